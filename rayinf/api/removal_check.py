"""Does influence predict what removing rows does? Remove each class's top rows, train again, and compare."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from rayinf.api.class_values import ClassValues
from rayinf.api.predict_removal import predict_removal
from rayinf.api.removal_check_result import Changes, RemovalCheck
from rayinf.core.objective_parser import parse
from rayinf.data.batches import Array
from rayinf.data.labels import Classes
from rayinf.data.out_folder import check_out
from rayinf.data.run_folder import RunFolder
from rayinf.data.scan import TableScan
from rayinf.data.scores import Scores
from rayinf.data.tables import Table
from rayinf.data.vectors import Vectors
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import session, side_by_side
from rayinf.errors import InputError, RayinfError
from rayinf.select.top_share import SIDES
from rayinf.store.places import AnyPath
from rayinf.task import Fit, Task
from rayinf.training.checked_inputs import absolute, check_tables, fit_identity
from rayinf.training.evaluation import Measurement
from rayinf.training.open_table import check_unchanged
from rayinf.training.removal_sets import Removal, Removals
from rayinf.training.retraining import Retraining, check_trainable
from rayinf.training.scored_curvature import curvature_of
from rayinf.training.scored_table import check_scored
from rayinf.training.steps import Steps, recall, run_folder

VERB = "removal_check"
_SECOND = "second_order.json"
# What a training leaves out, or None for nothing; and its seed.
Training = tuple[Removal | None, int]

_CONSTANT = (
    'Task(fit=...) has schedule="constant": with a constant learning rate, training noise can drown the effect of '
    "removing rows (a network on MNIST: rank correlations of 0.77 and 0.86 instead of 0.89 and 0.94). Let it decay, as "
    'with Fit(schedule="cosine").'
)
_ONE_SEED = "training noise is not averaged out with one seed: pass seeds=3 or more."
_NO_NOISE = "the fit goes to convergence, where seeds change nothing: each model was trained once."


def removal_check(
    task: Task,
    train: Any,
    valid: Any,
    test: Any,
    scores: Scores | None = None,
    share: float = 0.1,
    seeds: int = 3,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    *,
    seed: int = 0,
    inverse: str = "auto",
    training_time: float | None = None,
) -> RemovalCheck:
    """Remove the rows that help or harm each class most, train again, and compare with prediction.

    See Nahin 2025, section 5.1.

    For each class, `share` of the rows that help it (the largest values) are removed, and the task's model is trained
    anew on the rest, as `Task(fit=...)` says; then the same with the rows that harm it. The prediction for every class
    is the sum of the removed rows' values; beside it stands that of second order (`predict_removal`), with the
    curvature that the scores rest on. What is measured is the change of the class's test loss and accuracy
    against training on all rows under the same seeds. Either side has K x K cells.

    - "Top 10% of beneficial and detrimental samples" is read as 10% of the rows *of that sign*, not of all rows: with K
      equally frequent classes, a share 1/K of all rows can be a whole class, where no first-order prediction holds.
    - Refits keep the *sum* of the ridge (`l2 n / n'`), as influence assumes.
    - Values predict changes on `valid`: they are scaled to `test` by each class's number of rows.
    - Training noise can hide the effect. Each training is paired with one on all rows: the same first parameters, order
      and minibatches, with gaps (see `retrain(paired=True)`). Seeds are averaged by default, and the learning rate
      should decay: with a constant one, rank correlations of a network on MNIST were 0.77 and 0.86 instead of 0.89 and
      0.94.

    Args:
        task: the model, its columns, and how it is trained (`Task(fit=...)`). A linear softmax head without a `fit`
            goes to convergence.
        train: the rows that were scored: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`,
            or arrays `(X, y)`.
        valid: the validation rows of the scores, in the same forms; beside the comparison with these, only their
            classes are counted.
        test: the rows that changes are measured on, with rows of every class, in the same forms.
        scores: of `influence(task, train, valid, objective="category")`. None: they are computed here, in memory.
        share: the share of the rows of each sign that is removed, in (0, 1); rounded down, but a row at least.
        seeds: how many trainings are averaged, >= 1 (one where the fit goes to convergence). More of them go on from
            what is in `out`; for fewer than are there, the first ones are read, and the folder stays as it is.
        cluster: the workers on Ray, on which trainings run side by side, each in one worker; tables in memory are sent
            to the workers. None: this process, without Ray.
        out: the run's folder or URI: `trainings/*.json` as each is finished, then `cells.parquet` and `result.json`.
            The same call again goes on with those that are missing. None: the result is held in memory.
        seed: an integer >= 0, the first of the seeds.
        inverse: of scores that are computed here, as `influence` takes it: "auto", "unrolled" or "damped".
        training_time: of scores that are computed here: T of the unrolled inverse. None: from `Task(fit=...)`.

    Returns:
        A `RemovalCheck`.

    Raises:
        InputError: before any work: a share or seeds out of range, a task that cannot be trained, scores of another
            model, of other training or validation rows, or without classes, a class without a test row, a removal that
            would take all training rows of a class, or a folder of another config.
        RunError: training diverged, a table changed on the way, or a cluster that makes no progress.

    Cost: `(2 K + 1) seeds` trainings and passes over `test`; and one `predict_removal` of 2 K sets. Memory: a column
        of values at a time, a bit a row and removal, and the valued parameters for each removal.
    """
    check(task=task, share=share, seeds=seeds, cluster=cluster, out=out, seed=seed)
    check_trainable(task)
    recall(out)
    scores = ClassValues(inverse, training_time, cluster).unless(scores, task, train, valid)
    if isinstance(task.fit, Fit) and task.fit.schedule == "constant":
        warnings.warn(_CONSTANT, stacklevel=2)
    inputs = _check_inputs(task, {"train": train, "valid": valid, "test": test}, scores, float(share))
    check_out(out, inputs.tables)
    first, count = int(seed), 1 if task.fit is None else int(seeds)
    record = {"verb": VERB, "identity": {**inputs.identity, "seed": first}, "extent": {"seeds": count}}
    with session(cluster), run_folder(out, record, inputs.tables.values()) as (run, finished):
        second = Steps(lambda: run.files).step(_SECOND, partial(_second_order, inputs, scores, cluster))
        done = _train(inputs, range(first, first + run.extent["seeds"]), run, cluster)
        if not finished:
            _compare(inputs, done, second, range(first, first + run.extent["seeds"])).save(run.files)
            run.finish(record)
            run.log("finish")
    return _compare(inputs, done, second, range(first, first + count))


@dataclass(frozen=True)
class _Inputs:
    """The arguments, checked.

    Attributes:
        task: with its classes.
        given: the tables as they were given, paths absolute.
        tables: the same, opened.
        labels: of the K classes that have a column.
        counts: rows of each of these in "valid" and "test" `[K]`.
        removals: which rows go.
        identity: of the run.
        share: of the rows of each sign.
    """

    task: Task
    given: Mapping[str, Any]
    tables: Mapping[str, Table]
    labels: tuple[Any, ...]
    counts: Mapping[str, Array]
    removals: Removals
    identity: dict[str, Any]
    share: float


@dataclass
class _Train:
    """Trains without some rows and measures; picklable, for workers. Tables are opened once in each process."""

    task: Task
    train: Any
    test: Any
    removals: Removals
    _opened: tuple[Retraining, Measurement] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was opened."""
        return {**self.__dict__, "_opened": None}

    def __call__(self, key: Training) -> dict[str, Any]:
        """Measures on the test rows: those of `evaluate`, `category_<label>` (the sum of losses) among them."""
        removal, seed = key
        begin = time.perf_counter()
        keep = None if removal is None else ~self.removals.gone(removal)
        if self._opened is None:
            measurement = Measurement(self.task, self.test, parse("category"), several=True)
            self._opened = Retraining(self.task, self.train, several=True), measurement
        retraining, measurement = self._opened
        found = measurement.of(retraining.train(keep, seed=seed, rows=self.removals.rows, paired=True))
        return {**found, "seconds": time.perf_counter() - begin}


def _check_inputs(task: Task, given: Mapping[str, Any], scores: Scores, share: float) -> _Inputs:
    """Check everything before any work.

    Raises:
        InputError: what is wrong.
    """
    vectors = Vectors.of(scores)
    checked = check_tables(task, given)
    job, scans = checked.job, checked.scans
    labels = _labels(vectors, job.classes)
    _check_tables(task, scores, scans, labels)
    check_scored(scores, task, job.tables["train"], {name: scans[name] for name in ("train", "valid")})
    removals = Removals.of(vectors, share)
    removals.check_left(job.tables["train"], task.label, job.classes, labels)
    counts = {t: np.array([scans[t].counts[task.label][v] for v in labels]) for t in ("valid", "test")}
    identity = {**checked.identity, **fit_identity(task), "columns": list(vectors.columns), "share": share}
    identity["removals"] = removals.digest
    held = {k: absolute(v) for k, v in given.items()}
    return _Inputs(job.task, held, job.tables, labels, counts, removals, identity, share)


def _labels(vectors: Vectors, classes: Classes) -> tuple[Any, ...]:
    """The class of every column of the scores.

    Raises:
        InputError: a column that is no class's.
    """
    known = {f"category_{name}": label for name, label in zip(classes.names, classes.labels, strict=True)}
    if unknown := [c for c in vectors.columns if c not in known]:
        raise InputError(
            f"The scores have a column {unknown[0]!r}, which is not a class of the task "
            f"({', '.join(map(repr, classes.labels[:12]))}).",
            'compute them with rayinf.influence(task, train, valid, objective="category").',
        )
    return tuple(known[c] for c in vectors.columns)


def _check_tables(task: Task, scores: Scores, scans: Mapping[str, TableScan], labels: Sequence[Any]) -> None:
    """Refuse classes without a test row, and other validation rows than those of the scores.

    Raises:
        InputError: one of these.
    """
    if empty := [v for v in labels if not scans["test"].counts[task.label].get(v)]:
        raise InputError(
            f"test has no row of class {', '.join(map(repr, empty))}, whose change cannot be measured.",
            "add test rows of every class.",
        )
    rows = scores.metadata.get("rows", {}).get("valid")
    if rows is not None and rows != scans["valid"].rows:
        raise InputError(
            f"valid has {scans['valid'].rows:,} rows, and the scores were computed for {rows:,}.",
            "pass the validation rows of the scores.",
        )


def _train(
    inputs: _Inputs, seeds: Sequence[int], run: RunFolder, cluster: Cluster | None
) -> dict[Training, dict[str, Any]]:
    """The measures of every training: those that the folder holds are not made again."""
    names = {(removal, s): _file(removal, s) for removal in (None, *inputs.removals.bits) for s in seeds}
    training = _Train(inputs.task, inputs.given["train"], inputs.given["test"], inputs.removals)

    def check(name: str, found: Mapping[str, Any]) -> None:
        for table in ("train", "test"):
            check_unchanged(inputs.tables[table], inputs.given[table], table)
        run.log("training", file=name, seconds=round(found["seconds"], 3))

    calls = partial(side_by_side, training, cluster=cluster)
    held = Steps(lambda: run.files).map(calls, {name: key for key, name in names.items()}, check, VERB, "trainings")
    return {key: held[name] for key, name in names.items()}


def _file(removal: Removal | None, seed: int) -> str:
    name = "all" if removal is None else f"{removal[0]}-{removal[1]}"
    return f"trainings/{name}-seed{seed}.json"


def _second_order(inputs: _Inputs, scores: Scores, cluster: Cluster | None) -> dict[str, Any]:
    """What second order predicts of every removal: its file's name -> changes of the classes' validation losses.

    Under `why`: why nothing is predicted, where that is so.
    """
    how = curvature_of(scores)
    if how is None:
        return {"why": "the scores do not say which curvature of which one model they rest on."}
    names = {_file(removal, 0): removal for removal in inputs.removals.bits}
    given = inputs.given["train"], inputs.given["valid"], _Masks(inputs.removals, names)
    try:
        found = predict_removal(inputs.task, *given, objective="category", cluster=cluster, **how)
    except RayinfError as error:
        return {"why": error.what}
    columns = {f"category_{label}": k for k, label in enumerate(map(str, inputs.labels))}
    changes = {name: [0.0] * len(columns) for name in names}
    for line in found.table.to_pylist():
        if line["objective"] in columns:
            changes[line["set"]][columns[line["objective"]]] = line["second_order_change"]
    return changes


@dataclass(frozen=True)
class _Masks(Mapping[str, Array]):
    """The rows of every removal by the name of its file, each made when it is asked for."""

    removals: Removals
    names: Mapping[str, Removal]

    def __getitem__(self, name: str) -> Array:
        return self.removals.gone(self.names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _compare(
    inputs: _Inputs, done: Mapping[Training, Mapping[str, Any]], second: Mapping[str, Any], seeds: Sequence[int]
) -> RemovalCheck:
    """Predicted and measured changes, from the measures of every training."""
    names, classes = [str(v) for v in inputs.labels], len(inputs.labels)
    tests, removals = inputs.counts["test"], inputs.removals

    def measures(removal: Removal | None, prefix: str) -> Array:
        return np.array([[done[removal, s][f"{prefix}_{name}"] for name in names] for s in seeds])

    before = {prefix: measures(None, prefix) for prefix in ("category", "accuracy")}
    changes: dict[str, Changes] = {}
    for side in SIDES:
        found = {prefix: np.full((len(seeds), classes, classes), np.nan) for prefix in before}
        predicted, newton = np.full((classes, classes), np.nan), np.full((classes, classes), np.nan)
        for k in range(classes):
            if (side, k) in removals.bits:
                predicted[k] = removals.predicted[side, k] / inputs.counts["valid"] * tests
                newton[k] = np.array(second.get(_file((side, k), 0), np.nan)) / inputs.counts["valid"] * tests
                for prefix in before:
                    found[prefix][:, k] = measures((side, k), prefix) - before[prefix]
        rows = np.array([removals.counts.get((side, k), 0) for k in range(classes)])
        changes[side] = Changes(rows, predicted, found["category"], found["accuracy"], newton)
    baseline = {
        "loss": (before["category"].mean(0) / tests).tolist(),
        "accuracy": before["accuracy"].mean(0).tolist(),
    }
    held = {name: table.num_rows for name, table in inputs.tables.items()}
    metadata = {"share": inputs.share, "seeds": len(seeds), "rows": held}
    notes = _notes(inputs, len(seeds))
    notes += [f"second order is not predicted: {second['why']}"] if "why" in second else []
    return RemovalCheck.of(changes, tests, baseline, inputs.labels, notes, metadata)


def _notes(inputs: _Inputs, seeds: int) -> list[str]:
    """What a reader should know before trusting the figures."""
    fit, removals = inputs.task.fit, inputs.removals
    notes = [_CONSTANT] if isinstance(fit, Fit) and fit.schedule == "constant" else []
    notes += [_NO_NOISE] if fit is None else [_ONE_SEED] if seeds == 1 else []
    return notes + [
        f"no training row is {side} to class {label!r}: nothing was removed there."
        for side in SIDES
        for k, label in enumerate(inputs.labels)
        if (side, k) not in removals.bits
    ]
