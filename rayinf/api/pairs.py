"""For each validation row, the training rows that help and harm it most."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rayinf.core.fisher import FisherKind
from rayinf.data.pairs import Pairs
from rayinf.engine import pair_pipeline, pipeline
from rayinf.engine.job import Cluster
from rayinf.engine.run import Run, open_run
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
    damping: float | str | None = None,
    factors: str | AnyPath | None = None,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    inverse: str = "auto",
    training_time: float | None = None,
    curvature_rows: int | None = 100_000,
    batch_size: int | None = None,
    precision: str | None = None,
    on_error: str = "stop",
) -> Pairs:
    """For each validation row, the `top` training rows that help it and that harm it most.

    Args:
        task: the trained model and its columns.
        train: the rows to value: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        valid: the rows whose losses are explained, one by one, in any of these forms.
        top: training rows kept on each side, >= 1.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity".
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        inverse: the function of the curvature's eigenvalues that answers for the fit. "unrolled": that of a training of
            time T, `(1 - exp(-T x)) / x` at `x = eigenvalue + l2 + weight decay` (Bae et al. 2024); "damped":
            `1 / (eigenvalue + l2 + damping)`, that of a minimum; "auto": unrolled where `Task(fit=Fit(...))` says how
            the model was trained from its start, else damped; validation rows then also say how far the training
            rows are learned (docs/inverse.md), which the other two leave out.
        training_time: T: the sum of the learning rates of all steps, over `1 - momentum` for SGD; of Adam, in units of
            its step sizes. None: from `Task(fit=...)`.
        damping: for the damped inverse: a number >= 0 that is added to the eigenvalues of the mean curvature;
            "layer_mean:0.1", so many times each layer's mean eigenvalue; "sample:3", so many times mean x parameters of
            the layer / (rows x (classes - 1)). None: "sample:3" for "kfac" and "ekfac" ("layer_mean:0.1" for a linear
            softmax head without a fit, which is at its minimum), 0 otherwise.
        factors: the folder or URI of a finished run of the same model and curvature, whose factors are used again.
            None: they are fitted.
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: the run's folder or URI (`s3://bucket/run`): pairs are then Parquet there, a file a tile of validation
            rows, and the same call finishes an interrupted run. None: the result is held in memory.
        seed: an integer >= 0 that fixes what is drawn: labels (above 32 classes), rows of `curvature_rows`.
        curvature_rows: the most training rows that "kfac" and "ekfac" are fitted on, drawn by contents and seed (equal
            rows together); `metadata["curvature_sample"]` says how far the halves of the draw differ. None: all rows.
            "exact" and "ggn" use all.
        batch_size: rows a pass of the model. None: those whose activations take 512 MB, or 40% of a GPU's memory.
        precision: "bf16" or "fp16" runs the model in mixed precision, "fp64" in float64; sums and products stay in
            float32 or better. None: the model's own precision.
        on_error: "stop" or "skip", where a shard of `train` fails three times by its own fault: the model or
            `Task(transform=...)` raises on its rows, its part of a file is damaged, a value is not finite. "stop": the
            run ends and names it; all else is kept. "skip": the run goes on, also one that has stopped, in the same
            `out`. Such rows are in no list, are left out of the fit of the curvature if they fail there, and stand in
            `metadata["skipped"]`.

    Returns:
        Pairs, `2 top` rows for each validation row. `metadata["fit"]` holds the model's accuracy and mean loss on both
            tables.

    Raises:
        RayinfError: wrong input, before any work; or a run that cannot go on.

    Cost: a pass over `train` for each tile of validation rows whose gradients fit in 512 MB; only the best pairs
    are ever kept.
    """
    spec = PairsSpec(**locals())
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Pairs.read(run.folder.path)
        return pair_pipeline.finish_pairs(run, pair_rows(run))


def pair_rows(run: Run) -> list[pa.Table]:
    """The stages of `pairs`: a table for each tile of validation rows; none where they are in the folder."""
    pipeline.fit_factors(run)
    return pair_pipeline.pair_tiles(run)
