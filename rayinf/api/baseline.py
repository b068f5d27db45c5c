"""The simple and the published rivals of influence values, under one name and in one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayinf.data.scores import Scores
from rayinf.engine import pipeline
from rayinf.engine.baseline_spec import BaselineSpec
from rayinf.engine.baselines import describe, value_rows
from rayinf.engine.job import Cluster
from rayinf.engine.run import open_run
from rayinf.store.places import AnyPath
from rayinf.task import Task


def baseline(
    task: Task,
    train: Any,
    valid: Any = None,
    method: str | Sequence[str] = "loss",
    objective: Any = "total",
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    checkpoints: Any = None,
    rates: float | Sequence[float] | None = None,
    dim: int = 512,
    neighbors: int = 5,
    space: str = "features",
    batch_size: int | None = None,
    precision: str | None = None,
) -> Scores:
    spec = BaselineSpec(**locals())
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        parts = value_rows(run)
        return pipeline.finish(run, parts, describe(run))
