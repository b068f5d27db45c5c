"""What a verb would cost, before it is run."""

from __future__ import annotations

from typing import Any

from rayinf.arguments import shown
from rayinf.core.fisher import FisherKind
from rayinf.core.objective_parser import parse
from rayinf.engine import measure_stages
from rayinf.engine.acquisition import AcquisitionSpec
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster, Settings
from rayinf.engine.plan import Cost, make_plan
from rayinf.engine.run import Request
from rayinf.errors import InputError
from rayinf.store.places import AnyPath
from rayinf.task import Task


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
    check(task=task, curvature=curvature, fisher=fisher, damping=damping, halves=halves, cluster=cluster, out=out)
    check(seed=seed, batch_size=batch_size, precision=precision, rank=rank, subsample=subsample)
    tables, objectives = {"train": train, "valid": valid}, parse(objective, task.group)
    if verb == "influence":
        settings = Settings(curvature, fisher, halves, seed, batch_size, precision)
    elif verb == "influence_measure":
        objectives = (measure_stages.OBJECTIVE,)
        settings = measure_stages.settings(curvature, fisher, seed, batch_size, rank, subsample)
    elif verb == "acquire":
        spec = AcquisitionSpec(strategy, 1)
        tables, objectives = spec.tables(train, pool, valid), spec.objectives()
        settings = spec.settings(curvature, fisher, seed, batch_size, rank, subsample)
    else:
        raise InputError(f"verb={shown(verb)} has no plan.", 'use "influence", "influence_measure" or "acquire".')
    return make_plan(Request(verb, task, tables, objectives, settings, damping, None, cluster, out))
