"""Influence of every training row on its own loss."""

from __future__ import annotations

from typing import Any

from rayinf.core.fisher import FisherKind
from rayinf.data.scores import Scores
from rayinf.engine import pipeline, stages
from rayinf.engine.job import Cluster
from rayinf.engine.run import open_run
from rayinf.engine.spec import SelfInfluenceSpec
from rayinf.store.places import AnyPath
from rayinf.task import Task


def self_influence(
    task: Task,
    train: Any,
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | None = None,
    factors: str | AnyPath | None = None,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    precision: str | None = None,
) -> Scores:
    """Influence of every training row on its own loss, `grad l_i' (n Hbar)^-1 grad l_i`: large for rows that are odd.

    Args:
        task: the trained model and its columns.
        train: the rows to value.
        curvature: as in `influence`.
        fisher: as in `influence`.
        damping: as in `influence`.
        factors: as in `influence`.
        cluster: as in `influence`.
        out: as in `influence`.
        seed: as in `influence`.
        batch_size: as in `influence`.
        precision: as in `influence`.

    Returns:
        Scores with the column `self_influence`.

    Raises:
        RayinfError: as in `influence`.

    Cost: one pass over `train` beside fitting; per row and layer `o^2 + i^2 + o i` multiply-adds for one position.
    """
    spec = SelfInfluenceSpec(**locals())
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        pipeline.fit_factors(run)
        parts = pipeline.score(run, stages.SelfScore, pipeline.inverse_arrays(run), ["self_influence"])
        return pipeline.finish(run, parts, {})
