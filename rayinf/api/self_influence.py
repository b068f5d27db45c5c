"""Influence of every training row on its own loss."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rayinf.core.fisher import FisherKind
from rayinf.data.scores import Scores
from rayinf.engine import pipeline, scoring
from rayinf.engine.job import Cluster
from rayinf.engine.run import Run, open_run
from rayinf.engine.spec import SelfInfluenceSpec
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.member_scores import mean_of_members


def self_influence(
    task: Task,
    train: Any,
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
) -> Scores:
    """Influence of every training row on its own loss, `grad l_i' (n Hbar)^-1 grad l_i`: large for odd rows.

    Args:
        task: the trained model and its columns.
        train: the rows to value: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity".
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        inverse: the function of the curvature's eigenvalues that answers for the fit. "unrolled": that of a training of
            time T, `(1 - exp(-T x)) / x` at `x = eigenvalue + l2 + weight decay` (Bae et al. 2024); "damped":
            `1 / (eigenvalue + l2 + damping)`, that of a minimum; "auto": unrolled where `Task(fit=Fit(...))` says how
            the model was trained from its start, else damped.
        training_time: T: the sum of the learning rates of all steps, over `1 - momentum` for SGD; of Adam, in units of
            its step sizes. None: from `Task(fit=...)`.
        damping: for the damped inverse: a number >= 0 that is added to the eigenvalues of the mean curvature;
            "layer_mean:0.1", so many times each layer's mean eigenvalue; "sample:3", so many times mean x parameters of
            the layer / (rows x (classes - 1)). None: "sample:3" for "kfac" and "ekfac" ("layer_mean:0.1" for a linear
            softmax head without a fit, which is at its minimum), 0 otherwise.
        factors: the folder or URI of a finished run of the same model and curvature, whose factors are used again.
            None: they are fitted.
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: the run's folder or URI (`s3://bucket/run`): scores are then Parquet shards there, and the same call
            finishes an interrupted run. None: the result is held in memory.
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
            `out`. Such rows keep their places with null values, are left out of the fit of the curvature if they fail
            there, and stand in `metadata["skipped"]`.

    Returns:
        Scores with the column `self_influence`.

    Raises:
        RayinfError: wrong input, before any work; or a run that cannot go on.

    Cost: one pass over `train` beside fitting; per row and layer `o^2 + i^2 + o i` multiply-adds for one position.
    """
    given = locals()
    spec = SelfInfluenceSpec(**given)
    if task.members:
        return mean_of_members(spec, lambda one, folder: self_influence(**{**given, "task": one, "out": folder}))
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        return pipeline.finish(run, value_by_self(run), {})


def value_by_self(run: Run) -> list[pa.Table]:
    """The stages of `self_influence`: the shards' tables; none where they are in the folder."""
    pipeline.fit_factors(run)
    return pipeline.score(run, scoring.SelfScore, pipeline.inverse_arrays(run), ["self_influence"])
