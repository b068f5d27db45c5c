"""The linear datamodelling score: do values predict what a model trained on a random part of the rows does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.api.lds_result import LDS, Effects
from rayinf.data.batches import Array, BatchReader, uniforms
from rayinf.data.out_folder import check_out
from rayinf.data.run_folder import RunFolder
from rayinf.data.scan import OTHER, TableScan
from rayinf.data.scores import Scores
from rayinf.data.tables import READ_ROWS, as_table
from rayinf.data.vectors import Vectors
from rayinf.engine.entry import check, check_scores
from rayinf.engine.job import Cluster, Job
from rayinf.errors import InputError
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.checked_inputs import absolute, check_tables, fit_identity
from rayinf.training.evaluation import Measurement
from rayinf.training.retraining import check_trainable
from rayinf.training.scored_table import check_scored
from rayinf.training.steps import recall, run_folder
from rayinf.training.subset_trainings import (
    SEEDS,
    SUBSETS,
    SubsetTrainings,
    TrainOnSubsets,
    is_sum_of_losses,
    measure_key,
)
from rayinf.training.subsets import Subsets, read_keys

VERB = "lds"
RANDOM, OWN_LOSS = "random", "own_loss"
# Columns that bear the name of their objective.
_NAMED = ("total", "demographic_parity", "equal_opportunity", "robustness")
_ONE_SEED = (
    "the ceiling is not known with one seed: pass seeds=2 or more, which also averages the noise of training out."
)
_NO_NOISE = "the fit goes to convergence, where seeds change nothing: each model was trained once."


def lds(
    task: Task,
    train: Any,
    valid: Any,
    scores: Scores | Mapping[str, Scores],
    subsets: int = 50,
    share: float = 0.5,
    seeds: int = 1,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    *,
    objective: Any = None,
    seed: int = 0,
) -> LDS:
    """The linear datamodelling score of values: train on random subsets, and compare with what the values predict.

    See Park et al. 2023 (TRAK), section 2, and Ilyas et al. 2022. `subsets` random subsets of `share` of the training
    rows are drawn, and the task's model is trained anew on each, as `Task(fit=...)` says. The predicted effect of a
    subset is the sum of the values of the rows that are left out: by so much an objective is predicted to rise. The
    score of a column is Spearman's correlation, over the subsets, of predicted and measured effects. For the mean over
    validation rows, the usual figure, give each of them a column: `influence(objective="slice:<column>")` with a column
    whose values name the rows (at most 1,000).

    - Every training has the number of epochs of the fit, so fewer steps on fewer rows; the *sum* of the ridge of
      `Task(l2=...)` is kept (`l2 n / n'`), as influence assumes. All subsets share first parameters, seed by seed.
    - A row's part in the draw depends on its content and `seed` alone: subsets are the same in any order of the table.
    - Trainings are shared by all columns and all scores, and kept in `out`: later calls with other scores, more subsets
      or more seeds train only what is missing. Objectives that are not sums of losses (gaps, attacks, functions) are
      measured while a model is at hand: where a later call adds one, models are trained again.
    - Rivals come from the same trainings: `random` values (one draw; its score is 0 on average, with a standard
      deviation of `1 / sqrt(subsets - 1)` in a column), and `own_loss`, the row's own loss under the task's model (by
      class: of rows of that class alone, others count 0).

    Args:
        task: the model, its columns, and how it is trained (`Task(fit=...)`). A linear softmax head without a `fit`
            goes to convergence.
        train: the rows that were scored: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`,
            or arrays `(X, y)`.
        valid: the validation rows of the scores, on which effects are measured, in the same forms.
        scores: the values of all training rows, or several by name. Their columns say what is measured: `total`,
            `category_<label>`, `slice_<column>_<value>`, `demographic_parity`, `equal_opportunity`, `robustness` (on
            inputs that are attacked through the task's model); others need `objective`.
        subsets: how many subsets, >= 3.
        share: the share of the training rows that a subset keeps, in (0, 1), rounded to a number of rows.
        seeds: how many trainings of each subset are averaged, >= 1 (one where the fit goes to convergence). From two
            on, the ceiling is known: the score of one half of the seeds for the other.
        cluster: the workers on Ray, on which trainings run side by side, each in one worker; tables in memory are sent
            to the workers. None: this process, without Ray.
        out: the folder or URI in which trainings are kept: `trainings/*.parquet` with the losses of all validation
            rows, `measures/` with the values of other objectives. The same call again goes on with those that are
            missing. None: nothing is kept.
        objective: what the scores' columns are of, where their names do not say it: "total" (the summed loss),
            "category" (a column a class), "slice:<column>" (a column a value); "demographic_parity" and
            "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness" (the linear attack); an
            `Objective` (`demographic_parity(...)`, `robustness("pgd", epsilon=...)`, your own), a function
            `(logits [B, C], labels [B]) -> [B]`, or a list of these. None: by the columns' names.
        seed: an integer >= 0: of the draw of subsets, and the first of the seeds of training.

    Returns:
        An `LDS`.

    Raises:
        InputError: before any work: arguments out of range, a task that cannot be trained, scores of another model or
            of other rows, a column whose objective is not known, or a folder of another config.
        RunError: training diverged, a table changed on the way, or a cluster that makes no progress.

    Cost: `subsets x seeds` trainings on `share` of the rows and passes over `valid`; a pass over `train` and over the
        values. Memory: about 40 bytes a training row, 16 a validation row, and `subsets x seeds x columns` numbers.
    """
    check(task=task, subsets=subsets, share=share, seeds=seeds, cluster=cluster, out=out, seed=seed)
    check_trainable(task)
    recall(out)
    named = _named(scores)
    inputs = _check_inputs(task, {"train": train, "valid": valid}, named, objective, (float(share), int(seed)))
    check_out(out, inputs.job.tables)
    counts = int(subsets), 1 if task.fit is None else int(seeds)
    record = {"verb": VERB, "identity": inputs.identity, "extent": inputs.trainings.extent(*counts)}
    with run_folder(out, record, inputs.job.tables.values()) as (run, finished):
        if not finished:
            inputs.trainings.complete(run, cluster)
            run.finish(record)
            run.log("finish")
        measured = _measured(inputs, run, counts)
    thresholds = inputs.draw.thresholds(counts[0])
    predicted = {name: _predicted(held, inputs, thresholds) for name, held in named.items()}
    effects = Effects(
        inputs.columns,
        tuple(t.objective.name for t in inputs.job.targets for _ in t.columns),
        measured,
        {**predicted, **_rivals(inputs, thresholds)},
        (RANDOM, OWN_LOSS),
    )
    rows = {name: scan.rows for name, scan in inputs.scans.items()}
    metadata = {SUBSETS: counts[0], "share": float(share), "kept": inputs.draw.kept, SEEDS: counts[1], "rows": rows}
    return LDS.of(effects, _notes(task, counts[1]), metadata)


@dataclass(frozen=True)
class _Inputs:
    """The arguments, checked.

    Attributes:
        job: the task with its classes, the tables, and the objectives with their groups.
        scans: of the tables.
        trainings: on the subsets.
        codes: the class of every training row `[n]`.
        identity: of the run.
    """

    job: Job
    scans: Mapping[str, TableScan]
    trainings: SubsetTrainings
    codes: Array
    identity: dict[str, Any]

    @property
    def draw(self) -> Subsets:
        """The subsets."""
        return self.trainings.function.subsets

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that are measured."""
        return tuple(c for t in self.job.targets for c in t.columns)


def _named(scores: Any) -> dict[str, Scores]:
    """Scores by name.

    Raises:
        InputError: something else, none, or one that is called as a rival.
    """
    if not isinstance(scores, Mapping):
        check_scores("scores", scores)
        return {"scores": scores}
    if not scores:
        raise InputError("scores={} holds no scores.", "pass rayinf.Scores, or several by name.")
    for name, held in scores.items():
        if not isinstance(name, str) or not name or name in (RANDOM, OWN_LOSS):
            raise InputError(
                f"scores cannot be called {name!r}.", f"name them by texts other than {RANDOM!r} and {OWN_LOSS!r}."
            )
        check_scores(f"scores[{name!r}]", held)
    return dict(scores)


def _check_inputs(
    task: Task, given: Mapping[str, Any], named: Mapping[str, Scores], objective: Any, draw: tuple[float, int]
) -> _Inputs:
    """Check everything before any work.

    Raises:
        InputError: what is wrong.
    """
    share, seed = draw
    columns = list(dict.fromkeys(c for held in named.values() for c in held.columns))
    if objective is None:
        objective = _objectives(columns, task, given["valid"])
    checked = check_tables(task, given, objective)
    job, scans = checked.job, checked.scans
    known = [c for t in job.targets for c in t.columns]
    if unknown := [c for c in columns if c not in known]:
        raise InputError(
            f"The scores have a column {unknown[0]!r}, which is none of the objectives' columns "
            f"({', '.join(map(repr, known[:8]))}{', ...' if len(known) > 8 else ''}).",
            "pass the validation rows and the objective that the scores were computed for.",
        )
    for held in named.values():
        check_scored(held, task, job.tables["train"], scans)
    rows = scans["train"].rows
    kept = round(share * rows)
    if not 0 < kept < rows:
        raise InputError(
            f"share={share} of {rows:,} rows keeps {kept:,}.", "pass a share that keeps some rows and leaves some out."
        )
    keys, codes = read_keys(job.tables["train"], job.columns["train"], job.classes)
    measures = {
        measure_key(t.objective, task, scans["valid"]): t for t in job.targets if not is_sum_of_losses(t.objective)
    }
    paths = {name: absolute(table) for name, table in given.items()}
    function = TrainOnSubsets(job.task, paths["train"], paths["valid"], Subsets(keys, kept, seed), measures)
    identity = {**checked.identity, **fit_identity(task), "share": share, "seed": seed}
    # Groups are made of the losses when they are read.
    identity["valid"] = {k: v for k, v in identity["valid"].items() if not k.startswith(OTHER)}
    trainings = SubsetTrainings(function, {name: job.tables[name] for name in given}, seed, VERB)
    return _Inputs(job, scans, trainings, codes, identity)


def _objectives(columns: Sequence[str], task: Task, valid: Any) -> list[str]:
    """The objectives whose columns have these names.

    Raises:
        InputError: a name that tells none.
    """
    others = [task.label, *([task.group] if task.group else [])]
    there = as_table(valid, task.feature_columns, others, "valid").schema.names
    found: dict[str, None] = {}
    for column in columns:
        slices = [name for name in there if column.startswith(f"slice_{name}_")]
        if column in _NAMED:
            found[column] = None
        elif column.startswith("category_"):
            found["category"] = None
        elif slices:
            found[f"slice:{max(slices, key=len)}"] = None
        else:
            raise InputError(
                f"The scores have a column {column!r}, whose name does not tell its objective.",
                "pass objective=..., what the scores were computed for, such as an Objective; a measure such as FI "
                "predicts no change, and cannot be compared with one.",
            )
    return list(found)


def _measured(inputs: _Inputs, run: RunFolder, counts: tuple[int, int]) -> Array:
    """The value of every column after each training, `[S, J, Q]`."""
    trainings, targets = inputs.trainings, inputs.job.targets
    groups = _groups(inputs)
    keys = [(j, trainings.first + r) for r in range(counts[1]) for j in range(counts[0])]
    out = np.empty((len(keys), len(inputs.columns)))
    for at, (losses, values) in enumerate(trainings.read(run, keys)):
        parts = [
            np.bincount(groups[t.objective.split], losses, t.width)
            if is_sum_of_losses(t.objective)
            else np.array([values[c] for c in t.columns])
            for t in targets
        ]
        out[at] = np.concatenate(parts)
    return out.reshape(counts[1], counts[0], -1)


def _groups(inputs: _Inputs) -> dict[str | None, Array]:
    """The group of every validation row `[V]` by the column that groups; without one, all are in the first."""
    job, rows = inputs.job, inputs.scans["valid"].rows
    out: dict[str | None, Array] = {None: np.zeros(rows, np.int64)}
    splits = [s for t in job.targets if (s := t.objective.split) is not None and is_sum_of_losses(t.objective)]
    out |= {split: np.empty(rows, np.int64) for split in splits}
    reader = BatchReader(job.tables["valid"], job.columns["valid"])
    for shard in job.tables["valid"].shards if splits else ():
        for batch in reader.read(shard, READ_ROWS):
            at = slice(batch.start, batch.start + len(batch))
            for split in splits:
                if split in batch.extra:
                    out[split][at] = np.searchsorted(np.asarray(job.levels[split]), batch.extra[split])
                else:
                    out[split][at] = job.classes.encode(batch.labels)
    return out


def _predicted(scores: Scores, inputs: _Inputs, thresholds: Sequence[Any]) -> Array:
    """The predicted change of every column, `[J, Q]`: the values of the rows left out; NaN where the scores lack it."""
    columns, start = tuple(scores.columns), 0
    at = [inputs.columns.index(c) for c in columns]
    out = np.full((len(thresholds), len(inputs.columns)), np.nan)
    out[:, at] = 0.0
    for values in Vectors(scores, columns, columns).batches():
        gone = inputs.draw.left_out(thresholds, start, len(values))
        out[:, at] += gone.T.astype(float) @ values
        start += len(values)
    return out


def _rivals(inputs: _Inputs, thresholds: Sequence[Any]) -> dict[str, Array]:
    """What random values and the rows' own losses predict, `[J, Q]` each."""
    function, columns, draw = inputs.trainings.function, inputs.columns, inputs.draw
    losses: list[Array] = []
    Measurement(function.task, function.train).of(function.task, losses)
    loss = np.concatenate(losses)
    out = {RANDOM: np.zeros((len(thresholds), len(columns))), OWN_LOSS: np.zeros((len(thresholds), len(columns)))}
    classes = {f"category_{name}": k for k, name in enumerate(inputs.job.classes.names)}
    for start in range(0, draw.rows, READ_ROWS):
        keys = draw.keys[start : start + READ_ROWS]
        gone = draw.left_out(thresholds, start, len(keys)).T.astype(float)
        out[RANDOM] += gone @ (uniforms(keys, draw.seed + 6, len(columns)) - 0.5)
        held, codes = loss[start : start + len(keys)], inputs.codes[start : start + len(keys)]
        own = [held * (codes == classes[c]) if c in classes else held for c in columns]
        out[OWN_LOSS] += gone @ np.stack(own, axis=1)
    return out


def _notes(task: Task, seeds: int) -> list[str]:
    """What a reader should know before trusting the figures."""
    return [_NO_NOISE] if task.fit is None else [_ONE_SEED] if seeds == 1 else []
