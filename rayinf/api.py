"""The verbs: each a short pipeline over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rayinf.core.fisher import FisherKind
from rayinf.core.objectives import Objective, mean_loss, parse
from rayinf.data.pairs import Pairs
from rayinf.data.scores import Scores
from rayinf.data.selection import Selection
from rayinf.data.tables import Table
from rayinf.engine import acquiring, measuring, pipeline, ranking, stages
from rayinf.engine import curvature as curv
from rayinf.engine.fit import fit_logistic
from rayinf.engine.job import Cluster, Settings
from rayinf.engine.plan import Cost, make_plan
from rayinf.engine.probe import Probe
from rayinf.engine.run import Request, open_run
from rayinf.errors import InputError
from rayinf.task import Task


def influence(
    task: Task,
    train: Any,
    valid: Any,
    objective: Any = "total",
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | None = None,
    factors: str | Path | None = None,
    halves: bool = False,
    cluster: Cluster | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    precision: str | None = None,
) -> Scores:
    """Influence of every training row on each objective (A Eq. 1, C Eq. 1).

    `I_q(i) = grad f_q' (n Hbar)^-1 grad l_i`, `Hbar = mean_i hess l_i + l2 + damping`: the predicted rise of `f_q`, a
    *sum* over validation rows, when row i is removed. Positive: the row helps.

    Args:
        task: the trained model and its columns.
        train: the rows to value: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        valid: the rows that the objectives are summed over, in any of these forms.
        objective: "total", "category" (a column a class), "slice:<column>" (a column a value), an `Objective`, a
            function `(logits [B, C], labels [B]) -> [B]`, or a list of these. All columns come from one pass.
        curvature: "ekfac", "kfac"; "exact" (the Hessian) or "ggn" for few parameters; "identity".
        fisher: "true" (the expectation over the model's labels, without sampling up to 32 classes) or "empirical".
        damping: added to the eigenvalues of the mean curvature. None: 0.1 x each layer's mean eigenvalue for kfac
            and ekfac, 0 otherwise.
        factors: the folder of a finished run of the same model and curvature, whose factors to use again.
        halves: also give every column for each half of the validation rows (`Scores.halves`).
        cluster: None works in this process, with no Ray started.
        out: a folder for the run; scores are then Parquet shards, and the same call finishes an interrupted run.
        seed: of drawn labels (above 32 classes) and of the halves.
        batch_size: rows a pass; None fits activations in 512 MB.
        precision: "bf16" or "fp16" runs the model in mixed precision; sums and products stay in float32 or better.

    Returns:
        Scores with `row_id` and the columns, in row order.

    Raises:
        RayinfError: wrong input (before any work), or a run that cannot go on.

    Cost: one pass over `train` to score, `2 Q o i` flops a row and layer beside a forward and a backward without
    weights; two more to fit EKFAC (one for K-FAC). Memory does not grow with rows, beyond the result itself.
    """
    settings = Settings(curvature, fisher, halves, seed, batch_size, precision)
    tables = {"train": train, "valid": valid}
    with open_run(
        Request("influence", task, tables, parse(objective), settings, damping, factors, cluster, out)
    ) as run:
        if run.finished:
            return Scores.load(str(out))
        pipeline.fit_factors(run)
        solved = pipeline.solve_queries(run)
        names = curv.column_names(run.job.settings.targets, halves)
        tables = pipeline.score(run, stages.Score, solved, names)
        return pipeline.finish(run, tables, pipeline.describe(run))


def influence_measure(
    task: Task,
    train: Any,
    valid: Any,
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | None = None,
    factors: str | Path | None = None,
    rank: int | None = None,
    subsample: float = 1.0,
    cluster: Cluster | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    *,
    batch_size: int | None = None,
) -> Scores:
    """The influence measure FI_util of every training row (B Eq. 3.1): how far the fit hangs on small changes of it.

    A perturbation w of row i's input moves the fit by `d theta = -(n Hbar)^-1 M_i w`, `M_i = d_x d_theta l_i`
    (B Eq. A.7; B section 2.2 drops the minus). With v the change of the **mean** validation loss a unit of w, and
    `G_i` the metric of the row's own prediction under it, `FI = v' G_i^+ v`. It has no sign: the higher, the more the
    fit hangs on that row. What is perturbed is the model's input: the features, after `Task(transform=...)`,
    whatever `Task(parameters=...)` says; pass embeddings as the features to perturb those.

    FI does not change under a rotation of the input and one common scale. Under other linear maps it stays the same
    only where G has full rank, `d <= K - 1`, since B's Theorem 1 needs a metric that is positive definite. A row
    whose probabilities are exactly one-hot has no metric (G = 0): its FI is 0, and `metadata["one_hot_rows"]`
    counts it. Everything is computed in float64, whatever the model's own precision.

    Args:
        task: the trained model and its columns.
        train: the rows to measure, as in `influence`.
        valid: the rows whose mean loss is watched.
        curvature: as in `influence`.
        fisher: as in `influence`.
        damping: as in `influence`.
        factors: as in `influence`.
        rank: None is exact. k replaces every M_i by its truncated SVD of rank k (KFSVD, B Algorithm 5), from products
            alone. It saves nothing over the exact form, which takes K products a row against `2 (k + 8) 5`; it is
            there for comparison. `metadata["captured_share"]` is the mean share of the norm of M_i that is kept.
        subsample: under 1, measure that share of the rows; a random forest over features and label, fitted once,
            ranks the rest (B Algorithm 6). `fi` is then null on rows that were not measured, and `fi_rank` in [0, 1]
            holds every row's rank, 1 the highest: that is what `trim` reads. `metadata["forest_rank_correlation"]` is
            the forest's out-of-bag rank correlation.
        cluster: as in `influence`.
        out: as in `influence`.
        seed: of the subsample, the forest and the SVD's start.
        batch_size: rows a pass; None fits the graph in half a gigabyte.

    Returns:
        Scores with the column `fi`, and `fi_rank` with `subsample < 1`.

    Raises:
        RayinfError: as in `influence`; a model that cannot be differentiated twice, or not in float64; integer
            inputs (tokens); a rank over min(p, d); a subsample of under 20 rows.

    Cost: a row of a network takes K passes backward, K through the doubly differentiated graph, and a thin SVD of
    `d K^2`; of a linear head, `K^2 i^2` multiply-adds (exact) or `K i^2` (ekfac). No `p x d` or `d x d` matrix.
    """
    settings = Settings(
        curvature, fisher, seed=seed, batch_size=batch_size, precision="fp64", mixed=True, rank=rank, subsample=subsample
    )
    tables = {"train": train, "valid": valid}
    objective = Objective("fi", combine=mean_loss)


    def check(tables: Mapping[str, Table], probed: Probe) -> None:
        measuring.check(tables["train"].num_rows, probed, settings)

    request = Request("influence_measure", task, tables, (objective,), settings, damping, factors, cluster, out, check)
    with open_run(request) as run:
        if run.finished:
            return Scores.load(str(out))
        pipeline.fit_factors(run)
        shards = pipeline.score(run, measuring.Measure, pipeline.measure_arrays(run), ["fi"], later=["fi_rank"])
        told = measuring.summarise(run, shards)
        if subsample < 1:
            shards, forest = ranking.rank_rest(run, shards)
            told = {**told, **forest}
        return pipeline.finish(run, shards, told)


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
    out: str | Path | None = None,
    seed: int = 0,
    *,
    fisher: FisherKind = "true",
    damping: float | None = None,
    factors: str | Path | None = None,
    samples: int = 20,
    exclude: Sequence[Any] | None = None,
    batch_size: int | None = None,
) -> Selection:
    """The `n` rows of a pool whose labels are most worth asking for (B Algorithms 2, 4, 7 and 8).

    Args:
        task: the model, trained on `labeled`.
        labeled: the labelled rows.
        pool: rows without labels, in the same forms; features alone (an array) will do, and labels are not read.
        n: rows to pick.
        strategy: "fi": FI of the row, with its likeliest label, against every labelled row, aggregated (B Eq. 4.1);
            "iv": influence of the row, with its likeliest label, on the validation loss (needs `valid`);
            "isal": the same on the loss of the labelled rows (Liu et al. 2021, with the model's own label as
            pseudo-label); "bald" and "batchbald": mutual information under dropout (Houlsby et al. 2011; Kirsch et
            al. 2019); "entropy", "margin", "least_confidence"; "random".
        valid: for "iv".
        curvature: for "fi", "iv" and "isal", as in `influence`; n is the number of labelled rows.
        aggregate: of a row's FI over the labelled rows: "trimmed_mean" (the middle 80 %), "mean", "median", or
            a quantile, as a number in [0, 1] or "quantile:0.9".
        rank: as in `influence_measure` (B Algorithm 7).
        subsample: under 1, value that share of the pool; a random forest ranks the rest (B Algorithm 8).
        cluster: as in `influence`.
        out: as in `influence`; `scores/` then holds the value of every row of the pool.
        seed: of what is drawn.
        fisher: as in `influence`.
        damping: as in `influence`.
        factors: as in `influence`.
        samples: dropout masks for "bald" and "batchbald".
        exclude: ids of rows of the pool that are not to be picked again.
        batch_size: as in `influence`.

    Returns:
        A Selection: `row_ids` best first, and the value of every row of the pool.

    Raises:
        RayinfError: as in `influence`; n over the rows of the pool; a strategy that is unknown, needs `valid` or
            needs dropout; an unknown aggregate.

    Cost of "fi": K passes a labelled row, then one matrix product `[labelled (K - 1), p] x [p, pool]` and a partial
    selection of its values; of the others, one pass over the pool.
    """
    wish = acquiring.Wish(strategy, n, () if exclude is None else exclude)
    settings = Settings(
        curvature if strategy in (*acquiring.BY_INFLUENCE, "fi") else "identity",
        fisher,
        seed=seed,
        batch_size=batch_size,
        precision="fp64" if strategy == "fi" else None,
        mixed=strategy == "fi",
        rank=rank,
        subsample=subsample,
        strategy=strategy,
        aggregate=str(aggregate),
        samples=samples if strategy in acquiring.BY_DROPOUT else 0,
        wish=wish.digest,
    )
    tables = wish.tables(labeled, pool, valid)
    check = partial(wish.check, settings=settings)
    request = Request("acquire", task, tables, wish.objectives(), settings, damping, factors, cluster, out, check)
    with open_run(request) as run:
        if run.finished:
            return wish.select(Scores.load(str(out)))
        shards = acquiring.value_pool(run)
        told: dict[str, Any] = {}
        if subsample < 1:
            shards, told = ranking.rank_rest(run, shards)
        if wish.is_joint:
            told["picked"] = acquiring.pick_jointly(run, wish, shards)
        return wish.select(pipeline.finish(run, shards, told))


def self_influence(
    task: Task,
    train: Any,
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | None = None,
    factors: str | Path | None = None,
    cluster: Cluster | None = None,
    out: str | Path | None = None,
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
    settings = Settings(curvature, fisher, False, seed, batch_size, precision)
    request = Request("self_influence", task, {"train": train}, (), settings, damping, factors, cluster, out)
    with open_run(request) as run:
        if run.finished:
            return Scores.load(str(out))
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
    factors: str | Path | None = None,
    cluster: Cluster | None = None,
    out: str | Path | None = None,
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
        Pairs, `2 top` rows for each validation row.

    Raises:
        InputError: as in `influence`, and `top` under 1.

    Cost: a pass over `train` for each tile of validation rows whose gradients fit in 512 MB; only the best pairs
    are ever kept.
    """
    if top < 1:
        raise InputError(f"top={top} keeps no pairs.", "pass at least 1.")
    settings = Settings(curvature, fisher, False, seed, batch_size, precision, top=top)
    tables = {"train": train, "valid": valid}
    with open_run(Request("pairs", task, tables, (), settings, damping, factors, cluster, out)) as run:
        if run.finished and run.folder is not None:
            return Pairs.read(run.folder.path, pipeline.metadata(run))
        pipeline.fit_factors(run)
        return pipeline.finish_pairs(run, pipeline.pair_tiles(run))


def plan(
    task: Task,
    train: Any,
    valid: Any,
    objective: Any = "total",
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | None = None,
    halves: bool = False,
    cluster: Cluster | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    precision: str | None = None,
) -> Cost:
    """Seconds and bytes of every stage of `influence` with these arguments, before it is run.

    Every stage is tried on the first rows of the tables for about a second, and scaled to all rows and workers;
    decompositions by the cube of their size. Memory and disk are counted from the shapes, and held against what is
    free on this machine.

    Args:
        task: as in `influence`.
        train: as in `influence`; only its first rows are read.
        valid: as in `influence`; only its first rows are read.
        objective: as in `influence`; the groups of a slice are those of the first rows.
        curvature: as in `influence`.
        fisher: as in `influence`.
        damping: as in `influence`.
        halves: as in `influence`.
        cluster: as in `influence`; nothing is started.
        out: as in `influence`; nothing is written.
        seed: as in `influence`.
        batch_size: as in `influence`.
        precision: as in `influence`.

    Returns:
        A `Cost`; `to_text()` is the table that `rayinf plan` prints.

    Raises:
        RayinfError: wrong input, as far as the first rows show it.
    """
    settings = Settings(curvature, fisher, halves, seed, batch_size, precision)
    tables = {"train": train, "valid": valid}
    return make_plan(Request("plan", task, tables, parse(objective), settings, damping, None, cluster, out))


def logistic_regression(
    train: Any,
    l2: float = 1e-3,
    features: str | Sequence[str] = "features",
    label: str = "label",
    group: str | None = None,
    row_id: str | None = None,
) -> Task:
    """A `Task` around a softmax regression with bias, fitted to `train` until its gradient's norm is under 1e-8.

    Minimises the mean cross-entropy + l2/2 ||theta||^2 over weights and bias, in float64.

    Args:
        train: a table of any form; Parquet is streamed.
        l2: the ridge.
        features: a column, or a list of numeric columns.
        label: integers or strings; the classes are the sorted labels.
        group: kept in the task.
        row_id: kept in the task.

    Raises:
        RayinfError: a table that cannot be fitted, or no convergence.

    Cost: about ten passes of Newton's method up to 3,000 parameters; conjugate-gradient Newton steps above.
    """
    columns = {"features": features, "label": label, "group": group, "row_id": row_id}
    return fit_logistic(train, columns, l2)
