"""Influence values of every training row on the objectives."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rayinf.core.fisher import FisherKind
from rayinf.data.scores import Scores
from rayinf.engine import pipeline, scoring
from rayinf.engine.column_pipeline import score_columns
from rayinf.engine.job import Cluster
from rayinf.engine.run import Run, open_run
from rayinf.engine.spec import InfluenceSpec
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.member_scores import mean_of_members


def influence(
    task: Task,
    train: Any,
    valid: Any,
    objective: Any = "total",
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | str | None = None,
    factors: str | AnyPath | None = None,
    halves: bool = False,
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
    """Influence of every training row on each objective (Nahin 2025, Eq. 1, Chhabra 2024, Eq. 1).

    `I_q(i) = grad f_q' (n Hbar)^-1 grad l_i`, `Hbar = mean_i hess l_i + l2 + damping`: the predicted rise of `f_q`, a
    *sum* over validation rows, when row i is removed. Positive: the row helps.

    Args:
        task: the trained model and its columns.
        train: the rows to value: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        valid: the rows that the objectives are summed over, in any of these forms.
        objective: "total" (the summed loss), "category" (a column a class), "slice:<column>" (a column a value);
            "demographic_parity" and "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness"
            (the linear attack); an `Objective` (`demographic_parity(...)`, `robustness("pgd", epsilon=...)`, your own),
            a function `(logits [B, C], labels [B]) -> [B]`, or a list of these. All columns come from one pass.
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
        halves: whether every column is also given for each half of the validation rows (`Scores.halves`).
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: the run's folder or URI (`s3://bucket/run`): scores are then Parquet shards there, and the same call
            finishes an interrupted run. None: the result is held in memory.
        seed: an integer >= 0 that fixes what is drawn: labels (above 32 classes), rows of `curvature_rows`, the halves.
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
        Scores with `row_id` and the columns, in row order. `metadata["fit"]` has the model's accuracy and mean loss on
        both tables; a `FitWarning` is given where it does not beat its majority class or a uniform guess.

    Raises:
        RayinfError: wrong input (before any work), or a run that cannot go on. `curvature="exact"` of a network that is
            clearly not at a minimum is refused after about one pass over the rows.

    Cost: one pass over `train` to score, `2 Q o i` flops a row and layer (Q objectives, o outputs, i inputs) beside a
    forward and a backward pass without weights; two more to fit EKFAC (one for K-FAC), and one for inverse="auto": of
    at most `curvature_rows` rows, which are drawn while the table is scanned. Memory does not grow with rows, beyond
    the result itself. Columns whose gradients and queries would hold more than 2 GiB (of 16 columns or fewer: 8 GiB)
    are taken in tiles, with a pass over both tables for each.
    """
    given = locals()
    spec = InfluenceSpec(**given)
    if task.members:
        return mean_of_members(spec, lambda one, folder: influence(**{**given, "task": one, "out": folder}))
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        parts = value_rows(run)
        return pipeline.finish(run, parts, pipeline.describe(run))


def value_rows(run: Run) -> list[pa.Table]:
    """The stages of a run: curvature, objectives, scores.

    Returns:
        The shards' tables, or nothing where they were written to the folder.
    """
    pipeline.fit_factors(run)
    return score_columns(run, scoring.Score)
