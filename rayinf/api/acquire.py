"""The rows of a pool that are worth a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rayinf.core.fisher import FisherKind
from rayinf.data.scores import Scores
from rayinf.data.selection import Selection
from rayinf.engine import acquisition, pipeline, rank_forest
from rayinf.engine.job import Cluster
from rayinf.engine.run import open_run
from rayinf.engine.spec import AcquireSpec
from rayinf.store.places import AnyPath
from rayinf.task import Task


def acquire(
    task: Task,
    labeled: Any,
    pool: Any,
    n: int = 500,
    strategy: str = "fi",
    valid: Any = None,
    curvature: str = "ekfac",
    aggregate: str | float = "trimmed_mean",
    rank: int | None = None,
    subsample: float = 1.0,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    fisher: FisherKind = "true",
    damping: float | None = None,
    factors: str | AnyPath | None = None,
    samples: int = 20,
    exclude: Sequence[Any] | None = None,
    batch_size: int | None = None,
) -> Selection:
    """The `n` rows of a pool whose labels are most worth asking for (Yu 2025, Algorithms 2, 4, 7 and 8).

    Args:
        task: the model, trained on `labeled`.
        labeled: the labelled rows.
        pool: rows without labels, in the same forms; features alone (an array) will do, and labels are not read.
        n: rows to pick.
        strategy: "fi": FI of the row, with its likeliest label, against every labelled row, aggregated (Yu 2025, Eq.
        4.1);
            "iv": influence of the row, with its likeliest label, on the validation loss (needs `valid`);
            "isal": the same on the loss of the labelled rows (Liu et al. 2021, with the model's own label as
            pseudo-label); "tree": a tree of the labelled rows' influence on the validation loss, grown on their
            features alone, predicts that of the pool (Chhabra 2024, section 5.5; needs `valid`); "bald" and
            "batchbald": mutual
            information under dropout (Houlsby et al. 2011; Kirsch et al. 2019); "entropy", "margin",
            "least_confidence"; "random".
        valid: for "iv" and "tree".
        curvature: for "fi", "iv", "isal" and "tree", as in `influence`; n is the number of labelled rows.
        aggregate: of a row's FI over the labelled rows: "trimmed_mean" (the middle 80 %), "mean", "median", or
            a quantile, as a number in [0, 1] or "quantile:0.9".
        rank: as in `influence_measure` (Yu 2025, Algorithm 7).
        subsample: under 1, value that share of the pool; a random forest ranks the rest (Yu 2025, Algorithm 8).
        cluster: as in `influence`.
        out: as in `influence`; `scores/` then holds the value of every row of the pool.
        seed: of what is drawn.
        fisher: as in `influence`.
        damping: as in `influence`.
        factors: as in `influence`.
        samples: dropout masks for "bald" and "batchbald".
        exclude: ids of rows of the pool that are not to be picked again. Rows whose id a labelled row has too (where
            both tables have ids of their own) are left out besides, with a warning; `metadata["left_out"]` counts them.
            With `subsample`, neither are among the rows that the share is drawn from.
        batch_size: as in `influence`.

    Returns:
        A Selection: `row_ids` best first, and the value of every row of the pool.

    Raises:
        RayinfError: as in `influence`; n over the rows of the pool; a strategy that is unknown, needs `valid` or
            needs dropout; an unknown aggregate.

    Cost of "fi": K passes a labelled row, then one matrix product `[labelled (K - 1), p] x [p, pool]` and a partial
    selection of its values; of the others, one pass over the pool.
    """
    spec = AcquireSpec(**locals())
    left_out = acquisition.labelled_already(spec)
    spec = replace(spec, exclude=[*spec.exclude, *left_out.tolist()])
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return acquisition.select(spec, Scores.load(run.folder.path))
        parts = acquisition.value_pool(run)
        extra: dict[str, Any] = {}
        if subsample < 1:
            parts, extra = rank_forest.rank_rest(run, parts)
        extra["left_out"] = len(left_out)
        if spec.is_joint:
            extra["picked"] = acquisition.pick_jointly(run, spec, parts)
        return acquisition.select(spec, pipeline.finish(run, parts, extra))
