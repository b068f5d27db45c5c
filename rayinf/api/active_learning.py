"""Active learning: pick rows of a pool, have them labelled, train, and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rayinf.api.acquire import acquire
from rayinf.api.history import History
from rayinf.arguments import plain
from rayinf.core.fisher import FisherKind
from rayinf.data.batches import Array, BatchReader, Columns
from rayinf.data.extent import EXTENT, OPTIONAL
from rayinf.data.out_folder import check_out
from rayinf.data.overlap import labelled_already, warn_left_out
from rayinf.data.run_folder import owner_of
from rayinf.data.tables import READ_ROWS, Table, as_table
from rayinf.engine.entry import BY_MEASURE, check, check_seeds, check_strategies, require_one_model
from rayinf.engine.job import Cluster
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.parallel import session, side_by_side
from rayinf.engine.run import open_run
from rayinf.errors import InputError
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.checked_inputs import TASK_IDENTITY, absolute, fit_identity
from rayinf.training.oracle import Pool, make_oracle
from rayinf.training.retraining import train_anew
from rayinf.training.steps import recall, run_folder
from rayinf.training.trajectory import AcquireOptions, Learning, print_round
from rayinf.training.trajectory_state import VERB, Key, TrajectoryState, folder_name, read_states


def active_learning(
    task: Task,
    labeled: Any,
    pool: Any,
    oracle: Any,
    test: Any,
    rounds: int = 12,
    n: int = 500,
    strategy: str | Sequence[str] = "fi",
    valid: Any = None,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int | Sequence[int] = 0,
    *,
    curvature: str = "ekfac",
    aggregate: str | float = "trimmed_mean",
    rank: int | None = None,
    subsample: float = 1.0,
    fisher: FisherKind = "true",
    damping: float | str | None = None,
    samples: int = 20,
    scale: str = "mean",
    perturb: str = "input",
) -> History:
    """Let a strategy choose which rows of a pool are labelled, round by round (Yu 2025, Algorithm 4).

    Round 0 trains the task's model on `labeled` and measures it on `test`. Every round after it picks `n` rows of the
    pool by `acquire`, asks the oracle for their labels, adds them to the labelled rows, trains anew and measures.
    The model is always trained by `Task(fit=...)`, in round 0 too: the task's own need not be trained.

    The labelled rows are held in memory; the pool and the test rows are streamed where they are Parquet. A `fit` that
    is a function gets the labelled rows as a `pyarrow.Table` with the task's feature columns and its label.

    Args:
        task: the model, its columns and how to train it (`Task(fit=...)`).
        labeled: the first labelled rows: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`,
            or arrays `(X, y)`.
        pool: the rows to pick from, in the same forms; labels in it are not read. Rows whose id a labelled row has too
            (where both tables have ids of their own) are left out, with a warning.
        oracle: where labels come from: a function, row ids `[n]` -> labels `[n]` (or a dict or Series, id -> label); a
            table that has the labels of the pool's rows, found by the pool's id column or, without one, by position; a
            `LabelFolder`; or a path: an existing directory without Parquet files of other names than questions and
            answers is a `LabelFolder`, anything else a table. It is not a part of the run's identity.
        test: the rows that every round is measured on, in the same forms.
        rounds: how often rows are picked, >= 1.
        n: rows to pick a round, >= 1.
        strategy: "fi", "fi_batch", "iv", "isal", "tree", "bald", "batchbald", "badge", "coreset", "typiclust",
            "entropy", "margin", "least_confidence" or "random". Or a list of these: each with each seed is a trajectory
            of its own. What makes a row worth a label: "fi", FI of the row, with its likeliest label, against every
            labelled row, aggregated (Yu 2025, Eq. 4.1); "fi_batch", the batch of the largest log-determinant in the
            geometry of FI: rows are vectors whose squared length is their mean FI over the labelled rows, each of these
            counting the same, and every pick is the row whose vector the picked ones span least
            (`rayinf.engine.spanning` has the maths); "iv", influence of the row, with its likeliest label, on the
            validation loss (needs `valid`); "isal", the same on the loss of the labelled rows (Liu et al. 2021, with
            the model's own label as pseudo-label); "tree", a tree of the labelled rows' influence on the validation
            loss, grown on their features alone, predicts that of the pool (Chhabra 2024, section 5.5; needs `valid`);
            "bald" and "batchbald", mutual information under dropout (Houlsby et al. 2011; Kirsch et al. 2019); "badge",
            draws of k-means++ on gradients in the last linear layer (Ash et al. 2020); "coreset", the row whose
            embedding is farthest from all labelled and picked ones, again and again (Sener and Savarese 2018);
            "typiclust", the most typical row of every cluster of embeddings without a label (Hacohen et al. 2022),
            where a row's embedding is what goes into the last linear layer; the others, how uncertain the prediction
            is, or chance.
        valid: validation rows, in the same forms, for "iv" and "tree".
        cluster: the workers on Ray. One trajectory shards its pool over them. Several run side by side, each in one
            worker (with the device of the task's own model); tables and a function as oracle are then sent to the
            workers. None: this process, without Ray.
        out: the run's folder or URI. `<strategy>-seed<k>/round-<r>.parquet` holds the rows that round r added
            (`row_id`, `position`, `label`, `value`, best first), `round-<r>.json` its measures. The same call again
            goes on after the last finished step. So does one that asks for more rounds, seeds or strategies, and one
            that asks for fewer reads what it needs. Workers on other machines must see the folder. None: the result is
            held in memory.
        seed: an integer >= 0 that fixes training and all that is drawn, the same in every round; or a list.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity". For "fi", "fi_batch",
            "iv", "isal" and "tree".
        aggregate: how a row's FI over the labelled rows becomes one number, for "fi": "trimmed_mean" (the middle 80 %),
            "mean", "median", or a quantile, as a number in [0, 1] or "quantile:0.9".
        rank: the rank of the truncated SVD that replaces the mixed derivative of every row (KFSVD, Yu 2025, Algorithm
            7), for "fi" and "fi_batch". None is exact.
        subsample: for "fi": the share of the rows that are left which is valued, in (0, 1]. Under 1, half of it is
            drawn by chance, anew in every round, the other half are the rows that a random forest on these puts on top,
            and the forest ranks the rest (after Yu 2025, Algorithm 8, where all is drawn by chance).
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        damping: a number >= 0 that is added to the eigenvalues of the mean curvature; "layer_mean:0.1", so many times
            each layer's mean eigenvalue; or "sample:3", so many times mean x parameters of the layer / (rows x
            (classes - 1)). None: "layer_mean:0.1" for "kfac" and "ekfac", 0 otherwise.
        samples: dropout masks, for "bald" and "batchbald".
        scale: for "fi" and "fi_batch": the size of the step that a perturbation is. "mean": the perturbed row counts
            1/n in the mean loss, so that the fit moves by `-(n Hbar)^-1 M w` (Yu 2025, Eq. A.7). "sum": it moves by
            `-Hbar^-1 M w`, n times as far, as Algorithms 1, 2, 5 and 7 there are printed. The scale changes the ranks
            of rows, since the metric adds that movement to what w does directly.
        perturb: for "fi" and "fi_batch": what is perturbed: "input", the features after `Task(transform=...)`, or the
            name of the layer (of `model.named_modules()`) whose input is, in place of the features. Tokens cannot be
            perturbed, but what goes into the layer after their embedding can.

    Returns:
        A `History`. Where an oracle's folder lacks labels, it says which in `waiting`: drop them and call again.

    Raises:
        InputError: before any work: a task, table or option that `acquire` refuses, more rows than the pool has, or a
            folder of another config. Later: labels that are missing, unknown, null or twice; none of these is kept.
        RunError: training diverged, a table changed on the way, or a cluster that makes no progress.

    Cost: a trajectory trains and measures `rounds + 1` times and acquires `rounds` times.
    """
    check(task=task, rounds=rounds, n=n, cluster=cluster, out=out, curvature=curvature, aggregate=aggregate, rank=rank)
    require_one_model(task, "active_learning")
    check(subsample=subsample, fisher=fisher, damping=damping, samples=samples, scale=scale, perturb=perturb)
    strategies, seeds = check_strategies("strategy", strategy), check_seeds("seed", seed)
    tables = {"labeled": labeled, "pool": pool, "test": test, "valid": valid}
    options = AcquireOptions(
        curvature, aggregate, plain(rank), plain(subsample), fisher, plain(damping), plain(samples), scale, perturb
    )
    recall(out)
    given = _Arguments(task, tables, int(rounds), int(n), strategies, seeds, options)
    learning, record = _check_inputs(given, oracle, out)
    with run_folder(out, record, filter(None, learning.tables.values())) as (folder, finished):
        alone = cluster is None or len(given.keys) == 1
        learning = replace(learning, folder=folder.path, owner=owner_of(record), prints=alone)
        before = read_states(folder.path, learning.owner, given.extent)
        if finished:
            return History.of(before)
        history = _learn(learning, given, before, cluster)
        if history.waiting:
            folder.log("waiting", files=history.waiting)
        else:
            folder.finish(record)
            folder.log("finish")
        return history


@dataclass(frozen=True)
class _Arguments:
    """What the user passed."""

    task: Task
    tables: Mapping[str, Any]
    rounds: int
    n: int
    strategies: Sequence[str]
    seeds: Sequence[int]
    options: AcquireOptions

    @property
    def keys(self) -> list[Key]:
        """Every strategy under every seed."""
        return [(strategy, seed) for strategy in self.strategies for seed in self.seeds]

    @property
    def extent(self) -> dict[str, int]:
        """Rounds of every trajectory, by its folder."""
        return {folder_name(key): self.rounds for key in self.keys}


def _learn(
    learning: Learning, given: _Arguments, before: Mapping[Key, TrajectoryState], cluster: Cluster | None
) -> History:
    """Every trajectory, from where its folder stands."""
    if len(given.keys) == 1:
        with session(cluster):
            return History.of({key: replace(learning, cluster=cluster)(key) for key in given.keys})
    printed = {key: len(state.rows) for key, state in before.items()}
    tick = partial(_print_new, learning, given, printed)
    states = dict(side_by_side(learning, {key: key for key in given.keys}, cluster, tick))
    if cluster is not None:
        tick()
    return History.of({key: states[key] for key in given.keys})


def _print_new(learning: Learning, given: _Arguments, printed: dict[Key, int]) -> None:
    """Print the rounds that workers have finished since the last time."""
    for key, state in read_states(learning.folder, learning.owner, given.extent).items():
        for r in range(printed[key], len(state.rows)):
            print_round(key, r, learning.rounds, state.rows[r])
        printed[key] = max(printed[key], len(state.rows))


def _check_inputs(given: _Arguments, oracle: Any, out: str | AnyPath | None) -> tuple[Learning, dict[str, Any]]:
    """Check everything that `acquire`, training and measuring would, before any work; and the record of the run.

    Raises:
        InputError: what is wrong.
    """
    task = given.task
    others = [task.label, *([task.group] if task.group else [])]
    tables = {
        name: as_table(table, task.feature_columns, others, name)
        for name, table in given.tables.items()
        if table is not None or name != "valid"
    }
    held: dict[str, Any] = {"labeled": tables["labeled"], "pool": tables["pool"], "valid": tables.get("valid")}
    # Options of FI are refused where no strategy takes FI; beside one that does, the others go without them.
    takes_fi = set(BY_MEASURE) & set(given.strategies)
    options = {s: given.options.of(s) if takes_fi else asdict(given.options) for s in given.strategies}
    specs = [
        AcquireSpec(task=task, n=given.n, strategy=s, seed=given.seeds[0], **held, **o) for s, o in options.items()
    ]
    check_out(out, tables)
    left_out = labelled_already(tables["labeled"], tables["pool"], task.row_id)
    _check_rounds(given.rounds, given.n, tables["pool"].num_rows, len(left_out))
    warn_left_out(left_out, tables["pool"].num_rows)
    identity: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for spec in specs:
        with open_run(spec, test=tables["test"]) as run:
            job, own = run.job, run.identity
        identity |= {k: own[k] for k in (*TASK_IDENTITY, "pool", "test")} | {"labeled": own["train"]}
        optional |= {"valid": own["valid"]} if spec.needs_valid else {}
    with_classes, columns = replace(task, classes=job.classes.labels), job.columns["pool"]
    x, y = _read(tables["labeled"], job.columns["train"])
    if task.fit is None:
        # A model that no fit says how to train must be refused before a folder is claimed.
        train_anew(with_classes, tables["labeled"], seed=given.seeds[0])
    identity |= {"n": given.n, **asdict(given.options), "row_id": columns.row_id, **fit_identity(task)}
    learning = Learning(
        with_classes,
        (x, y),
        {name: tables.get(name) for name in ("pool", "test", "valid")},
        {k: absolute(v) for k, v in given.tables.items() if k != "labeled" and isinstance(v, str | Path | list)},
        columns,
        make_oracle(oracle, Pool(with_classes, tables["pool"].num_rows, columns.row_id)),
        given.rounds,
        given.n,
        acquire,
        given.options,
        left_out,
    )
    return learning, {"verb": VERB, "identity": identity, OPTIONAL: optional, EXTENT: given.extent}


def _read(table: Table, columns: Columns) -> tuple[Array, Array]:
    """Features and labels of all rows."""
    reader = BatchReader(table, columns)
    found = [batch for shard in table.shards for batch in reader.read(shard, READ_ROWS)]
    return np.concatenate([b.x for b in found]), np.concatenate([b.labels for b in found])


def _check_rounds(rounds: int, n: int, rows: int, left_out: int) -> None:
    """Refuse rounds for which the pool has too few rows that are not labelled.

    Raises:
        InputError: too many.
    """
    free = rows - left_out
    if rounds * n > free:
        labelled = f", {left_out:,} of them labelled already" if left_out else ""
        raise InputError(
            f"{rounds} rounds of n={n:,} want {rounds * n:,} rows, and the pool has {rows:,}{labelled}.",
            f"pass a smaller n (up to {free // rounds:,}), or fewer rounds.",
        )
