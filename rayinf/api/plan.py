"""What a verb would cost, before it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from rayinf.api.influence import value_rows
from rayinf.api.influence_measure import measure_rows
from rayinf.arguments import shown
from rayinf.core.fisher import FisherKind
from rayinf.engine.acquisition import value_pool
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster
from rayinf.engine.plan import Cost, make_plan
from rayinf.engine.run import Run
from rayinf.engine.spec import AcquireSpec, InfluenceSpec, MeasureSpec, RunSpec
from rayinf.errors import InputError
from rayinf.store.places import AnyPath
from rayinf.task import Task

# Verbs that have a plan: what describes them, and their stages.
_VERBS: dict[str, tuple[type[RunSpec], Callable[[Run], Any]]] = {
    "influence": (InfluenceSpec, value_rows),
    "influence_measure": (MeasureSpec, measure_rows),
    "acquire": (AcquireSpec, value_pool),
}


def plan(
    task: Task,
    train: Any,
    valid: Any = None,
    objective: Any = "total",
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | None = None,
    halves: bool = False,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    precision: str | None = None,
    verb: str = "influence",
    pool: Any = None,
    strategy: str = "fi",
    rank: int | None = None,
    subsample: float = 1.0,
) -> Cost:
    """Seconds and bytes of every stage of `influence` (or of another verb) with these arguments, before it is run.

    Every stage is tried on the first rows of the tables for about a second, and scaled to all rows and workers;
    decompositions by the cube of their size. Memory and disk are counted from the shapes, and held against what is
    free on this machine.

    Args:
        task: as in `influence`.
        train: as in `influence`; only its first rows are read.
        valid: as in `influence`; only its first rows are read.
        objective: as in `influence`; the groups of a slice are those of the first rows.
        curvature: as in `influence`.
        fisher: as in `influence`.
        damping: as in `influence`.
        halves: as in `influence`.
        cluster: as in `influence`; nothing is started.
        out: as in `influence`; nothing is written.
        seed: as in `influence`.
        batch_size: as in `influence`.
        precision: as in `influence`.
        verb: "influence", "influence_measure" or "acquire"; of the last, `train` are the labelled rows.
        pool: for "acquire".
        strategy: for "acquire".
        rank: for "influence_measure" and "acquire".
        subsample: the same.

    Returns:
        A `Cost`; `to_text()` is the table that `rayinf plan` prints.

    Raises:
        InputError: wrong input, as far as the first rows show it; a verb that has no plan.
    """
    given = {**locals(), "labeled": train, "n": 1}
    check(**given)
    if not isinstance(verb, str) or verb not in _VERBS:
        raise InputError(f"verb={shown(verb)} has no plan.", f"use one of {', '.join(map(repr, _VERBS))}.")
    kind, compute = _VERBS[verb]
    names = {f.name for f in fields(kind) if f.init}
    return make_plan(kind(**{name: value for name, value in given.items() if name in names}), compute)
