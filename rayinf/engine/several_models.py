"""Values from several models: a pass over the rows with each, and one that joins what they gave."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.engine import curvature as curv
from rayinf.engine import joined_passes, pipeline, stages
from rayinf.engine.run import Run

# Artefacts that are dropped once a model's pass is done; those of the last one stay until the run is finished.
_OF_A_MODEL = ("queries", "solved", "gram", "lifted")
# The values of the models `[K, B, columns]` -> those of all of them `[B, joined columns]`.
Join = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class JoinModels:
    """The tables of the models -> their joined columns, by a function of all their values."""

    join: Join
    names: tuple[str, ...]

    def __call__(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """By name."""
        values = np.stack([[v.to_numpy() for v in joined_passes.values_of(t).values()] for t in tables]).transpose(
            0, 2, 1
        )
        joined = self.join(values)
        return {n: pa.array(np.ascontiguousarray(joined[:, k])) for k, n in enumerate(self.names)}


def score_models(run: Run, one: Callable[[int, str], list[pa.Table]], join: Join, names: list[str]) -> list[pa.Table]:
    """Every shard by each model in turn, then joined. With a folder, shards that are finished are kept.

    Args:
        run: open; its spec has `states`, as that of `baseline`.
        one: called with a model's number and a folder of the run's for its parts, while the run's workers hold that
            model; gives the shards' tables, or nothing where they were written.
        join: picklable.
        names: of the joined columns.

    Returns:
        The shards' tables in order, or nothing where they were written to the folder.
    """
    count = max(1, len(run.job.spec.states))
    found: list[list[pa.Table]] = []
    for k in range(count):
        done = joined_passes.is_done(run, _folder(k))
        # The last one is never passed over: what the run reports of its validation rows is made there.
        with _model(run, k):
            found.append([] if done and k < count - 1 else one(k, _folder(k)))
        if k < count - 1:
            for name in _OF_A_MODEL:
                run.runner.store("drop", f"{name}-{k}")
    folders = [_folder(k) for k in range(count)]
    return joined_passes.join_passes(run, found, folders, JoinModels(join, tuple(names)), names)


def solve(run: Run, k: int) -> str:
    """The gradients of all objectives at the model that the workers hold: the name of the artefact.

    They are divided by the number of training rows, as `curvature="identity"` has them.
    """
    name = "solved" if k == max(1, len(run.job.spec.states)) - 1 else f"solved-{k}"
    if not run.runner.store("has", name):
        run.fold(stages.Queries, {}, "valid", f"queries-{k}")
    pipeline.derive(run, name, curv.solve, [f"queries-{k}", "factors"], run.solver, run.job.targets, False)
    return name


@contextmanager
def _model(run: Run, k: int) -> Generator[None]:
    """The run's workers hold the k-th model for as long as the context lasts."""
    job = run.runner.job
    if len(run.job.spec.states):
        run.runner.job = replace(job, task=run.job.spec.states.task(job.task, k), key=f"{job.key}-model-{k}")
    try:
        yield
    finally:
        run.runner.job = job


def _folder(k: int) -> str:
    return f"model-{k}"
