"""The objectives that an argument names: names, objects, functions, or a list of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rayinf.arguments import shown
from rayinf.core.attacks import robustness
from rayinf.core.gaps import GROUP, demographic_parity, equal_opportunity
from rayinf.core.objectives import LABEL, Objective
from rayinf.errors import InputError

_NAMED: dict[str, Callable[[], Objective]] = {
    "total": lambda: Objective("total"),
    "category": lambda: Objective("category", split=LABEL),
    "demographic_parity": demographic_parity,
    "equal_opportunity": equal_opportunity,
    "robustness": robustness,
}
_KNOWN = ", ".join(f'"{name}"' for name in [*_NAMED, "slice:<column>"])
KNOWN = f"{_KNOWN}, an Objective, or a function (logits, labels) -> [B]"


def parse(objective: object, group: str | None = None) -> tuple[Objective, ...]:
    """The objectives of an argument: a name, an `Objective`, a function, or a list of these.

    Args:
        objective: the argument.
        group: of the task, for objectives that compare groups.

    Raises:
        InputError: something else, two objectives of one name, or groups where the task names no column of them.
    """
    given = list(objective) if isinstance(objective, list | tuple) else [objective]
    if not given:
        raise InputError("objective=[] is empty.", f"pass {KNOWN}, or a list of these.")
    found = tuple(_grouped(_parse_one(item), group) for item in given)
    names = [o.name for o in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(
            f"Objective {twice[0]!r} is named twice.",
            f"give every objective a name of its own: Objective.named({twice[0] + '_2'!r}), or "
            'demographic_parity(group=..., name="...").',
        )
    return found


def _parse_one(item: object) -> Objective:
    if isinstance(item, Objective):
        return item
    if isinstance(item, str) and item in _NAMED:
        return _NAMED[item]()
    if isinstance(item, str) and item.startswith("slice:") and len(item) > len("slice:"):
        column = item.removeprefix("slice:")
        return Objective(f"slice_{column}", split=column)
    if callable(item) and not isinstance(item, type):
        return Objective(getattr(item, "__name__", type(item).__name__), rows=item)
    raise InputError(f"objective={shown(item)} is unknown.", f"use {KNOWN}.")


def _grouped(objective: Objective, group: str | None) -> Objective:
    if objective.split != GROUP:
        return objective
    if group is None:
        raise InputError(
            f"objective={objective.name!r} compares groups, and the Task names no column of them.",
            f'pass Task(group="...") or rayinf.{getattr(objective, "kind", objective.name)}(group="...").',
        )
    return replace(objective, split=group)
