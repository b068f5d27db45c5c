"""The simple and the published rivals of influence values, under one name and in one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayinf.data.scores import Scores
from rayinf.engine import pipeline
from rayinf.engine.baseline_spec import RETRAINED, BaselineSpec
from rayinf.engine.baselines import describe, value_rows
from rayinf.engine.job import Cluster
from rayinf.engine.run import open_run
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.rows_to_keep import Keep
from rayinf.training.valued_by_retraining import value_by_retraining


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
    utility: str = "loss",
    only: Keep = None,
    seeds: int = 1,
    retrainings: int = 10_000,
    tolerance: float = 0.05,
    truncation: float = 0.01,
    batch_size: int | None = None,
    precision: str | None = None,
) -> Scores:
    spec = BaselineSpec(**locals())
    if spec.name in RETRAINED:
        return value_by_retraining(spec)
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        parts = value_rows(run)
        return pipeline.finish(run, parts, describe(run))
