"""For each validation row, the training rows that help and harm it most."""

from __future__ import annotations

from typing import Any

from rayinf.core.fisher import FisherKind
from rayinf.data.pairs import Pairs
from rayinf.engine import pipeline
from rayinf.engine.job import Cluster
from rayinf.engine.run import open_run
from rayinf.engine.spec import PairsSpec
from rayinf.store.places import AnyPath
from rayinf.task import Task


def pairs(
    task: Task,
    train: Any,
    valid: Any,
    top: int = 100,
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
) -> Pairs:
    """For each validation row, the `top` training rows that help it and that harm it most.

    Args:
        task: the trained model and its columns.
        train: the rows to value.
        valid: the rows whose losses are explained, one by one.
        top: rows kept on each side.
        curvature: as in `influence`.
        fisher: as in `influence`.
        damping: as in `influence`.
        factors: as in `influence`.
        cluster: as in `influence`.
        out: as in `influence`; pairs are then Parquet, a file a tile of validation rows.
        seed: as in `influence`.
        batch_size: as in `influence`.
        precision: as in `influence`.

    Returns:
        Pairs, `2 top` rows for each validation row. `metadata["fit"]` holds the model's accuracy
            and mean loss on both tables.

    Raises:
        InputError: as in `influence`, and `top` under 1.

    Cost: a pass over `train` for each tile of validation rows whose gradients fit in 512 MB; only the best pairs
    are ever kept.
    """
    spec = PairsSpec(**locals())
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Pairs.read(run.folder.path)
        pipeline.fit_factors(run)
        return pipeline.finish_pairs(run, pipeline.pair_tiles(run))
