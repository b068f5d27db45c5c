"""Fairness gaps between groups of validation rows: demographic parity and equal opportunity.

See Chhabra 2024, Eq. 2 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rayinf.arguments import optional, text
from rayinf.core.objectives import Objective
from rayinf.errors import InputError

Kind = Literal["demographic_parity", "equal_opportunity"]
# A placeholder for Task(group=...), until the task is known.
GROUP = "<group>"


@dataclass(frozen=True)
class Gap(Objective):
    """The absolute gap between the means of two groups; of more groups, of each against the rest, a column each.

    Attributes:
        kind: what is compared between the groups, whatever the objective's name is.
        favourable: the label of the favourable outcome; None: the highest of two.
    """

    kind: Kind = "demographic_parity"
    favourable: Any = None

    def columns(self, levels: tuple[str, ...]) -> tuple[str, ...]:
        """One column for two groups, else one a group."""
        return (self.name,) if len(levels) <= 2 else tuple(f"{self.name}_{level}" for level in levels)

    def settle(self, labels: tuple[Any, ...]) -> Objective:
        """The same objective, with the favourable class as its position among the logits.

        Raises:
            InputError: no such label, or none given among more than two.
        """
        if self.favourable is None and len(labels) > 2:
            raise InputError(
                f"objective={self.name!r} with {len(labels)} classes: which is the favourable one?",
                f"pass rayinf.{self.kind}(favourable=...), one of {', '.join(map(repr, labels[:8]))}.",
            )
        if self.favourable is not None and self.favourable not in labels:
            raise InputError(
                f"objective={self.name!r}: favourable={self.favourable!r} is not a label.",
                f"name one of {', '.join(map(repr, labels[:8]))}.",
            )
        index = labels.index(max(labels) if self.favourable is None else self.favourable)
        if self.kind == "demographic_parity":
            return replace(self, rows=_Probability(index), hard=_IsPredicted(index))
        return replace(self, where=_IsLabel(index), hard=_IsPredicted(index))

    def check(self, labels: tuple[Any, ...], counts: Mapping[Any, Mapping[Any, int]]) -> None:
        """Refuse groups between which the gap is undefined.

        Args:
            labels: of all classes.
            counts: per group, its rows of every label.

        Raises:
            InputError: fewer than two groups, or one without rows of the favourable class where only these count.
        """
        if len(counts) < 2:
            raise InputError(
                f"objective={self.name!r}: column {self.split!r} of valid holds one value, {next(iter(counts))!r}.",
                "pass validation rows of two groups or more.",
            )
        favourable = max(labels) if self.favourable is None else self.favourable
        empty = [g for g, found in counts.items() if not found.get(favourable)]
        if self.kind == "equal_opportunity" and empty:
            raise InputError(
                f"objective={self.name!r}: no validation row of group {', '.join(map(repr, empty))} has the favourable "
                f"label {favourable!r}.",
                "add such rows, merge small groups, or use demographic_parity.",
            )

    def details(self, totals: Tensor, counts: Tensor, hard: Tensor) -> dict[str, Tensor]:
        """The gap with its sign (`signed`), and the absolute gap of predicted classes (`hard`)."""
        return {"signed": _signed(totals, counts), "hard": _signed(hard, counts).abs()}


def demographic_parity(favourable: Any = None, group: str | None = None, name: str | None = None) -> Objective:
    """`| mean(p | g = 1) - mean(p | g = 0) |`, p the probability of the favourable class (Chhabra 2024, Eq. 2).

    Groups are the values of a column of the validation rows in sorted order; of more than two, each is compared with
    all the rest, in a column `demographic_parity_<value>`. The value's derivative follows the gap's sign, and a gap of
    0 counts as positive. Scores' metadata give the gap with its sign too, and the gap of predicted classes (`hard`).

    Args:
        favourable: a label; None: the highest of two.
        group: a column; None: `Task(group=...)`.
        name: of the column of scores (of more than two groups, its beginning). None: `demographic_parity`. Two gaps
            in one call, over two columns of groups, need two names.

    Raises:
        InputError: a name that is not a text.
    """
    optional(text, "demographic_parity.group", group, "the name of a column, or None")
    return _gap("demographic_parity", favourable, group, name)


def equal_opportunity(favourable: Any = None, group: str | None = None, name: str | None = None) -> Objective:
    """`| mean(loss | y = 1, g = 1) - mean(loss | y = 1, g = 0) |` over rows of the favourable class.

    See Chhabra 2024, Eq. 4.

    As `demographic_parity`; `hard` is the gap of true-positive rates.

    Args:
        favourable: a label; None: the highest of two.
        group: a column; None: `Task(group=...)`.
        name: of the column of scores (of more than two groups, its beginning). None: `equal_opportunity`. Two gaps
            in one call, over two columns of groups, need two names.

    Raises:
        InputError: a name that is not a text.
    """
    optional(text, "equal_opportunity.group", group, "the name of a column, or None")
    return _gap("equal_opportunity", favourable, group, name)


def _gap(kind: Kind, favourable: Any, group: str | None, name: str | None) -> Objective:
    made = Gap(kind, split=group or GROUP, combine=_absolute, kind=kind, favourable=favourable)
    return made if name is None else made.named(name)


@dataclass(frozen=True)
class _Probability:
    """The probability of a class. Of logits, whatever the model returns (see `core.outputs`)."""

    index: int
    takes_logits: ClassVar[bool] = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.softmax(1)[:, self.index]


@dataclass(frozen=True)
class _IsPredicted:
    """Whether a class is predicted."""

    index: int

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) == self.index).to(logits.dtype)


@dataclass(frozen=True)
class _IsLabel:
    """Whether a row is of a class."""

    index: int

    def __call__(self, labels: Tensor) -> Tensor:
        return labels == self.index


def _signed(sums: Tensor, counts: Tensor) -> Tensor:
    """Second group less first, `[1]`; of more groups, each less the rest, `[groups]`."""
    if len(sums) <= 2:
        return (sums[-1:] / counts[-1:]) - (sums[:1] / counts[:1])
    return sums / counts - (sums.sum() - sums) / (counts.sum() - counts)


def _absolute(sums: Tensor, counts: Tensor) -> Tensor:
    gap = _signed(sums, counts)
    return torch.where(gap >= 0, gap, -gap)  # not abs(), whose derivative at 0 is 0
