"""The rows of a pool that are worth a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rayinf.core.fisher import FisherKind
from rayinf.data.scores import Scores
from rayinf.data.selection import Selection
from rayinf.engine import acquisition, joint, pipeline, rank_forest
from rayinf.engine.job import Cluster
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.run import open_run
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
    damping: float | str | None = None,
    factors: str | AnyPath | None = None,
    samples: int = 20,
    scale: str = "mean",
    perturb: str = "input",
    exclude: Sequence[Any] | None = None,
    curvature_rows: int | None = 100_000,
    batch_size: int | None = None,
) -> Selection:
    """The `n` rows of a pool whose labels are most worth asking for (Yu 2025, Algorithms 2, 4, 7 and 8).

    Args:
        task: the model, trained on `labeled`, and its columns.
        labeled: the labelled rows: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        pool: rows without labels, in the same forms; features alone (an array) are enough, and labels are not read.
        n: rows to pick, >= 1.
        strategy: "fi", "fi_batch", "iv", "isal", "tree", "bald", "batchbald", "badge", "coreset", "typiclust",
            "entropy", "margin", "least_confidence" or "random". What makes a row worth a label: "fi", FI of the row,
            with its likeliest label, against every labelled row, aggregated (Yu 2025, Eq. 4.1); "fi_batch", the batch
            of the largest log-determinant in the geometry of FI: rows are vectors whose squared length is their mean FI
            over the labelled rows, each of these counting the same, and every pick is the row whose vector the picked
            ones span least (`rayinf.engine.spanning` has the maths); "iv", influence of the row, with its likeliest
            label, on the validation loss (needs `valid`); "isal", the same on the loss of the labelled rows (Liu et al.
            2021, with the model's own label as pseudo-label); "tree", a tree of the labelled rows' influence on the
            validation loss, grown on their features alone, predicts that of the pool (Chhabra 2024, section 5.5; needs
            `valid`); "bald" and "batchbald", mutual information under dropout (Houlsby et al. 2011; Kirsch et al.
            2019); "badge", draws of k-means++ on gradients in the last linear layer (Ash et al. 2020); "coreset", the
            row whose embedding is farthest from all labelled and picked ones, again and again (Sener and Savarese
            2018); "typiclust", the most typical row of every cluster of embeddings without a label (Hacohen et al.
            2022), where a row's embedding is what goes into the last linear layer; the others, how uncertain the
            prediction is, or chance.
        valid: validation rows, in the same forms, for "iv" and "tree".
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity". For "fi", "fi_batch",
            "iv", "isal" and "tree".
        aggregate: how a row's FI over the labelled rows becomes one number, for "fi": "trimmed_mean" (the middle 80 %),
            "mean", "median", or a quantile, as a number in [0, 1] or "quantile:0.9".
        rank: the rank of the truncated SVD that replaces the mixed derivative of every row (KFSVD, Yu 2025, Algorithm
            7), for "fi" and "fi_batch". None is exact.
        subsample: for "fi": the share of the pool that is valued, in (0, 1]. Under 1, half of it is drawn by chance,
            the other half are the rows that a random forest on these puts on top, and the forest ranks the rest (after
            Yu 2025, Algorithm 8, where all is drawn by chance).
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: the run's folder or URI (`s3://bucket/run`): `scores/` then holds the value of every row of the pool, and
            the same call finishes an interrupted run. None: the result is held in memory.
        seed: an integer >= 0 that fixes all that is drawn.
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        damping: a number >= 0 that is added to the eigenvalues of the mean curvature; "layer_mean:0.1", so many times
            each layer's mean eigenvalue; or "sample:3", so many times mean x parameters of the layer / (rows x
            (classes - 1)). None: "layer_mean:0.1" for "kfac" and "ekfac", 0 otherwise.
        factors: the folder or URI of a finished run of the same model and curvature, whose factors are used again.
            None: they are fitted.
        samples: dropout masks, for "bald" and "batchbald".
        scale: for "fi" and "fi_batch": the size of the step that a perturbation is. "mean": the perturbed row counts
            1/n in the mean loss, so that the fit moves by `-(n Hbar)^-1 M w` (Yu 2025, Eq. A.7). "sum": it moves by
            `-Hbar^-1 M w`, n times as far, as Algorithms 1, 2, 5 and 7 there are printed. The scale changes the ranks
            of rows, since the metric adds that movement to what w does directly.
        perturb: for "fi" and "fi_batch": what is perturbed: "input", the features after `Task(transform=...)`, or the
            name of the layer (of `model.named_modules()`) whose input is, in place of the features. Tokens cannot be
            perturbed, but what goes into the layer after their embedding can.
        exclude: ids of rows of the pool that are not to be picked again. Rows whose id a labelled row has too (where
            both tables have ids of their own) are left out besides, with a warning; `metadata["left_out"]` counts them.
            With `subsample`, neither are among the rows that the share is drawn from.
        curvature_rows: the most training rows that "kfac" and "ekfac" are fitted on, drawn by contents and seed (equal
            rows together); `metadata["curvature_sample"]` says how far the halves of the draw differ. None: all rows.
            "exact" and "ggn" use all.
        batch_size: rows a pass of the model. None: those whose activations take 512 MB, or 40% of a GPU's memory.

    Returns:
        A Selection: `row_ids` best first, and the value of every row of the pool by itself. Strategies that pick rows
        together do not take those of highest value: "fi_batch" has the mean FI as a share of each labelled row's
        largest, "batchbald" BALD, "badge" the length of the gradient, "coreset" and "typiclust" the distance of the
        embedding to the nearest labelled one.

    Raises:
        RayinfError: wrong input, before any work, such as n over the rows of the pool, a strategy that is unknown,
            needs `valid` or needs dropout, or an unknown aggregate; a run that cannot go on.

    Cost of "fi": K passes a labelled row, then one matrix product `[labelled (K - 1), p] x [p, pool]` and a partial
    selection of its values; of "fi_batch" as much a labelled row, and `512 p` operations a row of the pool; of the
    others, one pass over the pool. Strategies that pick rows together hold the vectors of candidates: 512 numbers a row
    ("fi_batch"), what goes into and comes out of the last layer, or K numbers a mask. Candidates are all rows, while
    that is 1 GiB at most (of "batchbald" 20 a pick, 4,000 at most); else those of highest value ("typiclust": drawn by
    chance).
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
            parts, extra = rank_forest.rank_rest(run, parts, partial(acquisition.value_pairs, run))
        extra["left_out"] = len(left_out)
        if spec.is_joint:
            extra["picked"] = joint.pick(run, spec, parts)
        return acquisition.select(spec, pipeline.finish(run, parts, extra))
