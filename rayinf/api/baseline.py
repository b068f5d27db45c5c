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
    """Values of every training row by a simple or published rival of influence: to see when one does as well.

    Positive: the row helps, as everywhere; the **lowest** values are the suspects. So a high loss or a long gradient is
    a low value. Sizes are each method's own (`metadata["unit"]`); ranks can be compared.

    - `"loss"`: minus the row's own loss. `"margin"`: the logit of its label less the largest other one (Pleiss et al.
      2020). `"grad_norm"`: minus the Euclidean norm of the gradient of its loss. `"random"`: uniform draws in [-1, 0).
      A list of these comes from one pass.
    - `"grad_dot"`: `grad f_q' grad l_i`, which is n times `influence(curvature="identity")`. `"grad_cos"`: the same
      over both norms.
    - `"tracin"`: `sum_t rate_t grad f_q(theta_t)' grad l_i(theta_t)` over `checkpoints` (Pruthi et al. 2020, TracInCP;
      not divided by the batch size).
    - `"trak"`: `(P' grad f_q)' (Phi' Phi)^-1 (-phi_i) (1 - p_i)`, where `phi_i = P' grad log(p_i / (1 - p_i))` are row
      gradients projected to `dim` dimensions by random signs, and `p_i` is the probability of the row's label (Park et
      al. 2023). Over several models both factors are averaged, without soft thresholding. Cross-entropy alone.
    - `"knn_shapley"`: exact Shapley values of the vote of the `neighbors` nearest rows (Jia et al. 2019, Theorem 1),
      summed over validation rows. Rows at the same distance get the mean over their orders.
    - `"loo"`: the measured rise of f_q when the model is trained anew without the row, against a training on all rows
      with the same first parameters and minibatches.
    - `"data_shapley"`: the mean fall of f_q when the row joins those before it in a random order, by truncated Monte
      Carlo (Ghorbani and Zou 2019, Algorithm 1), until the mean standard error of a row is at most `tolerance` of the
      mean size of a value. The set of no row is worth what the model is before its training.

    Here f_q is an objective, a *sum* over validation rows, `l_i` a row's loss, and gradients are in the parameters that
    are valued. Retraining keeps the sum of the ridge, as influence assumes.

    Args:
        task: the trained model and its columns; for "loo" and "data_shapley" also how it is trained (`Task(fit=...)`).
        train: the rows to value: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        valid: the rows that the objectives are summed over, in any of these forms; not read by "loss", "margin",
            "grad_norm" and "random", required by all others.
        method: "loss", "margin", "grad_norm", "random" or a list of these; or one of "grad_dot", "grad_cos", "tracin",
            "trak", "knn_shapley", "loo", "data_shapley".
        objective: "total" (the summed loss), "category" (a column a class), "slice:<column>" (a column a value);
            "demographic_parity" and "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness"
            (the linear attack); an `Objective` (`demographic_parity(...)`, `robustness("pgd", epsilon=...)`, your own),
            a function `(logits [B, C], labels [B]) -> [B]`, or a list of these. For "knn_shapley" the first three,
            which then group the votes.
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: the run's folder or URI (`s3://bucket/run`): scores are then Parquet shards there, and the same call
            finishes an interrupted run. None: the result is held in memory.
        seed: an integer >= 0 that fixes the draws of "random", the projection of "trak", and the orders and trainings
            of "loo" and "data_shapley".
        checkpoints: for "tracin", of one training in its order; for "trak", models that were trained apart: a list of
            state dicts, of modules, or of paths or URIs of `.safetensors` or `torch.save` files. None: the task's own.
        rates: for "tracin": the learning rate at each checkpoint, > 0. None: 1 for each.
        dim: for "trak": k, the dimensions of the projection; well under the rows and the parameters.
        neighbors: for "knn_shapley": K, >= 1.
        space: for "knn_shapley": what distances are taken in: "features" (the model's input, after
            `Task(transform=...)`) or "embedding" (the input of the model's last linear layer).
        utility: for "loo" and "data_shapley": "loss" takes f_q itself; "accuracy" minus the share of the validation
            rows (of each class or slice) that are classified right.
        only: for "loo": the rows to value: row ids, True or False a row, or a Selection; others get null. None: all.
        seeds: for "loo": how many trainings are averaged, >= 1 (one where the fit goes to convergence). A folder that
            holds more of them is returned as it is.
        retrainings: for "loo" and "data_shapley": the most trainings that may be made. "loo" is refused where it takes
            more; "data_shapley" ends before it would, and goes on in the same folder where more are allowed.
        tolerance: for "data_shapley": the relative standard error that is enough, > 0.
        truncation: for "data_shapley": an order is cut off where five sets in a row are within this share of the whole
            gain from all rows, >= 0; later rows of the order count as 0. 0 cuts nothing off.
        batch_size: rows a pass of the model. None: those whose activations take 512 MB, or 40% of a GPU's memory.
        precision: "bf16" or "fp16" runs the model in mixed precision, "fp64" in float64; sums and products stay in
            float32 or better. None: the model's own precision.

    Returns:
        Scores with `row_id` and the columns, in row order: the methods' names, or the objectives' columns.
        `metadata["fit"]` has the model's accuracy and mean loss (of the last checkpoint, where there are several) on
        the tables that it passed over. "data_shapley" adds `permutations`, `measured_sets`, `relative_error` and
        `converged`.

    Raises:
        RayinfError: wrong input (before any work), an option of another method, or a run that cannot go on.

    Cost: a pass over `train` for the methods of the row, "grad_dot" and "grad_cos"; one a checkpoint for "tracin"; two
    a model for "trak", one with `2 p dim` flops a row (p parameters). "knn_shapley": a pass over `train` for each tile
    of validation rows whose distances fit in 512 MB (a validation row needs all its n distances at once), and `2 n d`
    flops and a sort of n numbers a validation row. "loo": a training a row and seed. "data_shapley": up to n for each
    of 20 orders or more. Memory does not grow with rows, beyond the result itself ("knn_shapley": n distances).
    """
    spec = BaselineSpec(**locals())
    if spec.name in RETRAINED:
        return value_by_retraining(spec)
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        parts = value_rows(run)
        return pipeline.finish(run, parts, describe(run))
