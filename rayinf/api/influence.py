"""Influence values: of every row, of a row on itself, of pairs. Each verb is a short pipeline over a run."""

from __future__ import annotations

from typing import Any

from rayinf.core.asked import parse
from rayinf.core.fisher import FisherKind
from rayinf.data.pairs import Pairs
from rayinf.data.scores import Scores
from rayinf.engine import curvature as curv
from rayinf.engine import pipeline, stages
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster, Settings
from rayinf.engine.run import Request, open_run
from rayinf.store.places import AnyPath
from rayinf.task import Task


def influence(
    task: Task,
    train: Any,
    valid: Any,
    objective: Any = "total",
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | None = None,
    factors: str | AnyPath | None = None,
    halves: bool = False,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    precision: str | None = None,
) -> Scores:
    """Influence of every training row on each objective (Nahin 2025, Eq. 1, Chhabra 2024, Eq. 1).

    `I_q(i) = grad f_q' (n Hbar)^-1 grad l_i`, `Hbar = mean_i hess l_i + l2 + damping`: the predicted rise of `f_q`, a
    *sum* over validation rows, when row i is removed. Positive: the row helps.

    Args:
        task: the trained model and its columns.
        train: the rows to value: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        valid: the rows that the objectives are summed over, in any of these forms.
        objective: "total", "category" (a column a class), "slice:<column>" (a column a value); "demographic_parity"
            and "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness" (the linear attack);
            an `Objective` (`demographic_parity(...)`, `robustness("pgd", epsilon=...)`, your own), a function
            `(logits [B, C], labels [B]) -> [B]`, or a list of these. All columns come from one pass.
        curvature: "ekfac", "kfac"; "exact" (the Hessian) or "ggn" for few parameters; "identity".
        fisher: "true" (the expectation over the model's labels, without sampling up to 32 classes) or "empirical".
        damping: added to the eigenvalues of the mean curvature. None: 0.1 x each layer's mean eigenvalue for kfac
            and ekfac, 0 otherwise.
        factors: the folder or URI of a finished run of the same model and curvature, whose factors to use again.
        halves: also give every column for each half of the validation rows (`Scores.halves`).
        cluster: None works in this process, with no Ray started.
        out: a folder for the run, or a URI (`s3://bucket/run`); scores are then Parquet shards, and the same call
            finishes an interrupted run.
        seed: of drawn labels (above 32 classes) and of the halves.
        batch_size: rows a pass; None fits activations in 512 MB.
        precision: "bf16" or "fp16" runs the model in mixed precision; sums and products stay in float32 or better.

    Returns:
        Scores with `row_id` and the columns, in row order. `metadata["fit"]` has the model's accuracy and mean loss on
        both tables; a `FitWarning` is given where it does not beat its majority class or a uniform guess.

    Raises:
        RayinfError: wrong input (before any work), or a run that cannot go on. `curvature="exact"` of a network that is
            clearly not at a minimum is refused after about one pass over the rows.

    Cost: one pass over `train` to score, `2 Q o i` flops a row and layer beside a forward and a backward without
    weights; two more to fit EKFAC (one for K-FAC). Memory does not grow with rows, beyond the result itself.
    """
    check(task=task, curvature=curvature, fisher=fisher, damping=damping, factors=factors, halves=halves)
    check(cluster=cluster, out=out, seed=seed, batch_size=batch_size, precision=precision)
    settings = Settings(curvature, fisher, halves, seed, batch_size, precision)
    tables = {"train": train, "valid": valid}
    asked = parse(objective, task.group)
    with open_run(Request("influence", task, tables, asked, settings, damping, factors, cluster, out)) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        pipeline.fit_factors(run)
        solved = pipeline.solve_queries(run)
        names = curv.column_names(run.job.settings.targets, halves)
        shards = pipeline.score(run, stages.Score, solved, names)
        return pipeline.finish(run, shards, pipeline.describe(run))


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
    check(task=task, curvature=curvature, fisher=fisher, damping=damping, factors=factors)
    check(cluster=cluster, out=out, seed=seed, batch_size=batch_size, precision=precision)
    settings = Settings(curvature, fisher, False, seed, batch_size, precision)
    request = Request("self_influence", task, {"train": train}, (), settings, damping, factors, cluster, out)
    with open_run(request) as run:
        if run.finished and run.folder is not None:
            return Scores.load(run.folder.path)
        pipeline.fit_factors(run)
        tables = pipeline.score(run, stages.SelfScore, pipeline.inverse_arrays(run), ["self_influence"])
        return pipeline.finish(run, tables, {})


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
    check(task=task, top=top, curvature=curvature, fisher=fisher, damping=damping, factors=factors)
    check(cluster=cluster, out=out, seed=seed, batch_size=batch_size, precision=precision)
    settings = Settings(curvature, fisher, False, seed, batch_size, precision, top=top)
    tables = {"train": train, "valid": valid}
    with open_run(Request("pairs", task, tables, (), settings, damping, factors, cluster, out)) as run:
        if run.finished and run.folder is not None:
            return Pairs.read(run.folder.path)
        pipeline.fit_factors(run)
        return pipeline.finish_pairs(run, pipeline.pair_tiles(run))
