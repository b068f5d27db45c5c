"""The influence measure FI of every row."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from rayinf.core.fisher import FisherKind
from rayinf.data.files import Arrays
from rayinf.data.scores import Scores
from rayinf.engine import measure_stages, pipeline, rank_forest
from rayinf.engine.curvature import join_payloads
from rayinf.engine.job import Cluster
from rayinf.engine.measure_spec import MeasureSpec
from rayinf.engine.run import Run, open_run
from rayinf.store.places import AnyPath
from rayinf.task import Task


def influence_measure(
    task: Task,
    train: Any,
    valid: Any,
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | str | None = None,
    factors: str | AnyPath | None = None,
    rank: int | None = None,
    subsample: float = 1.0,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    scale: str = "mean",
    perturb: str = "input",
    curvature_rows: int | None = 100_000,
    batch_size: int | None = None,
    on_error: str = "stop",
) -> Scores:
    """The influence measure FI_util of every training row: how far the fit moves under small changes of it.

    See Yu 2025, Eq. 3.1.

    A perturbation w of row i's input moves the fit by `d theta = -(n Hbar)^-1 M_i w`, `M_i = d_x d_theta l_i`
    (Yu 2025, Eq. A.7; section 2.2 there drops the minus). With v the change of the **mean** validation loss a unit of
    w, and `G_i` the metric of the row's own prediction under it, `FI = v' G_i^+ v`. It has no sign: the higher, the
    more the fit depends on that row. What is perturbed is the model's input, or that of the layer that `perturb` names,
    for any `Task(parameters=...)`.

    FI does not change under a rotation of the input and one common scale. Under other linear maps it stays the same
    only where G has full rank, `d <= K - 1`, since Theorem 1 of Yu 2025 needs a metric that is positive definite. A row
    whose probabilities are exactly one-hot has no metric (G = 0): its FI is 0, and `metadata["one_hot_rows"]`
    counts it. Everything is computed in float64, except the passes of the model that K-FAC and EKFAC are fitted with.

    Args:
        task: the trained model and its columns.
        train: the rows to measure: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        valid: the rows whose mean loss is watched, in any of these forms.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity".
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        damping: a number >= 0 that is added to the eigenvalues of the mean curvature; "layer_mean:0.1", so many times
            each layer's mean eigenvalue; or "sample:3", so many times mean x parameters of the layer / (rows x
            (classes - 1)). None: "layer_mean:0.1" for "kfac" and "ekfac", 0 otherwise.
        factors: the folder or URI of a finished run of the same model and curvature, whose factors are used again.
            None: they are fitted.
        rank: the rank k of the truncated SVD that replaces every M_i (KFSVD, Yu 2025, Algorithm 5), from products
            alone. None is exact. It saves nothing over the exact form, which takes K products a row against `2 (k + 8)
            5`; it is there for comparison. `metadata["captured_share"]` is the mean share of the norm of M_i that is
            kept.
        subsample: the share of the rows that is measured, in (0, 1]. Under 1, half of it is drawn by chance; a random
            forest learns the ranks of these rows from the model's outputs, the loss, the label and (up to 256 numbers)
            the features; and the other half are the rows that it puts on top. It ranks the rest (after Yu 2025,
            Algorithm 6, where all is drawn by chance and the forest takes features and label). `fi` is null on rows
            that were not measured, and `fi_rank` in [0, 1] holds every row's rank, 1 the highest: `trim` reads that
            column. `metadata["exact_top_rows"]` says how many rows of highest rank are all measured,
            `metadata["forest_rank_correlation"]` is the forest's out-of-bag rank correlation. It saves nothing over the
            closed form of a linear head, which takes less time than a forest.
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: the run's folder or URI (`s3://bucket/run`): scores are then Parquet shards there, and the same call
            finishes an interrupted run. None: the result is held in memory.
        seed: an integer >= 0 that fixes the subsample, the forest and the start of the SVD.
        scale: the size of the step that a perturbation is. "mean": the perturbed row counts 1/n in the mean loss, so
            that the fit moves by `-(n Hbar)^-1 M w` (Yu 2025, Eq. A.7). "sum": it moves by `-Hbar^-1 M w`, n times as
            far, as Algorithms 1, 2, 5 and 7 there are printed. The scale changes the ranks of rows, since the metric
            adds that movement to what w does directly.
        perturb: what is perturbed: "input", the features after `Task(transform=...)`, or the name of the layer (of
            `model.named_modules()`) whose input is, in place of the features. Tokens cannot be perturbed, but what goes
            into the layer after their embedding can.
        curvature_rows: the most training rows that "kfac" and "ekfac" are fitted on, drawn by contents and seed (equal
            rows together); `metadata["curvature_sample"]` says how far the halves of the draw differ. None: all rows.
            "exact" and "ggn" use all.
        batch_size: rows a pass of the model. None: as many as have the differentiated graph in 512 MB.
        on_error: "stop" or "skip", where a shard of `train` fails three times by its own fault: the model or
            `Task(transform=...)` raises on its rows, its part of a file is damaged, a value is not finite. "stop": the
            run ends and names it; all else is kept. "skip": the run goes on, also one that has stopped, in the same
            `out`. Such rows keep their places with null values, are left out of the fit of the curvature if they fail
            there, and stand in `metadata["skipped"]`.

    Returns:
        Scores with the column `fi`, and `fi_rank` with `subsample < 1`.

    Raises:
        RayinfError: wrong input, before any work; a model that cannot be differentiated twice, or not in float64;
            integer inputs (tokens); a layer to perturb that is not there, or runs more than once; a rank over min(p,
            d); a subsample of under 20 rows.

    Cost: a row of a network takes K passes backward, K through the doubly differentiated graph, and a thin SVD of
    `d K^2`; of a linear head, `K^2 i^2` multiply-adds (exact) or `K i^2` (ekfac). No `p x d` or `d x d` matrix.
    """
    spec = MeasureSpec(**locals())
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        parts = measure_rows(run)
        forest: dict[str, Any] = {}
        if subsample < 1:
            parts, forest = rank_forest.rank_rest(run, parts, partial(measure_rows, run))
        return pipeline.finish(run, parts, {**measure_stages.summarise(run, parts), **forest})


def measure_rows(run: Run, top: Arrays | None = None) -> list[pa.Table]:
    """The stages of a run before a forest ranks the rest: curvature, validation loss, FI.

    Args:
        run: open.
        top: a forest and where its top begins, for the rows above (see `rank_forest`). None: all rows, or those of the
            subsample that are drawn by chance.

    Returns:
        The shards' tables, or nothing where they were written to the folder.
    """
    pipeline.fit_factors(run)
    arrays = pipeline.measure_arrays(run)
    if top is not None:
        run.runner.store("drop", "measured-top")
        arrays = run.runner.publish("derive", "measured-top", join_payloads, ["measured"], top)
    return pipeline.score(run, measure_stages.Measure, arrays, ["fi"], rank_forest.measured_into(run, top))
