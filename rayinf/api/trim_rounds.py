"""Iterated trimming: harmful rows go, the model is fitted again, and the rest are valued anew."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.api.influence import influence
from rayinf.arguments import plain
from rayinf.core.fisher import FisherKind
from rayinf.core.objective_parser import parse
from rayinf.data.batches import Array
from rayinf.data.kept_table import KeptTable
from rayinf.data.out_folder import check_out
from rayinf.data.scores import to_numpy
from rayinf.data.tables import Table, as_table
from rayinf.engine.entry import check, require_one_model
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import session
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.checked_inputs import check_tables, fit_name
from rayinf.training.evaluation import measure_model
from rayinf.training.harmful_rows import HarmRule
from rayinf.training.open_table import check_unchanged
from rayinf.training.retraining import check_trainable, train_anew
from rayinf.training.steps import Steps, recall, run_folder

if TYPE_CHECKING:
    import pandas as pd

VERB = "trim_rounds"
# Tables that every round's model is measured on, where they are given.
_MEASURED = ("valid", "held_out", "test")


@dataclass(frozen=True)
class TrimRounds:
    """What rounds of trimming did.

    Attributes:
        table: a line a round, from round 0, the task as it was given: `round`, `rows` (that the model was fitted on),
            `removed` (rows that the round took), `undone`, and of `valid`, `held_out` and `test` each `<table>_loss`
            (mean), `<table>_accuracy`, `<table>_accuracy_<label>`, and the value of an objective that is one column,
            `<table>_<objective>`. The line of a round that was undone says what it led to.
        row_ids: of all training rows `[n]`, in table order.
        round_of: the round in which each row went `[n]`, 0 for rows that stay.
        task: around the last model that was kept. Its `l2` is the ridge of that fit, the first one's times n / n'.
        reason: why no further round was made.
    """

    table: pa.Table = field(repr=False)
    row_ids: Array = field(repr=False)
    round_of: Array = field(repr=False)
    task: Task = field(repr=False)
    reason: str

    @property
    def mask(self) -> Array:
        """Whether each training row stays, `[n]`."""
        return np.asarray(self.round_of == 0)

    @property
    def kept(self) -> Array:
        """Ids of the rows that stay, in table order."""
        return np.asarray(self.row_ids[self.mask])

    @property
    def removed(self) -> Array:
        """Ids of the rows that went, by round, then in table order; `removed_in` has the round of each."""
        return np.asarray(self.row_ids[self._gone])

    @property
    def removed_in(self) -> Array:
        """The round in which each row of `removed` went."""
        return np.asarray(self.round_of[self._gone])

    @property
    def rounds(self) -> int:
        """Rounds that removed rows and were not undone."""
        return int(self.round_of.max())

    def to_pandas(self) -> pd.DataFrame:
        """The table as a frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def to_text(self) -> str:
        """The rounds in words."""
        lines = [_in_words(row) for row in self.table.to_pylist()]
        return "\n".join([*lines, f"Stopped: {self.reason}"])

    @property
    def _gone(self) -> Array:
        order = np.argsort(self.round_of, kind="stable")
        return order[self.round_of[order] > 0]


def trim_rounds(
    task: Task,
    train: Any,
    valid: Any,
    *,
    objective: Any = "category",
    budget: int | None = None,
    held_out: Any = None,
    test: Any = None,
    rounds: int = 10,
    curvature: str = "exact",
    fisher: FisherKind = "true",
    damping: float | str | None = None,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
) -> TrimRounds:
    """Remove the rows that harm every class, or one objective, fit again, value what is left, and again.

    See Nahin 2025, Figure 5, appendix B.1.

    A round values the rows that are left by `influence` under the last model, removes the harmful ones, and fits the
    task's model to the rest. A refit keeps the *sum* of the ridge (`l2 n / n'`), as the values assume, and the
    minibatches of a fit to all rows (see `retrain(paired=True)`).

    - Of several columns (the default: one a class) the *jointly harmful* rows go: all values <= 0, one at least < 0. It
      ends where there is none, or where the accuracy falls: that round is undone. Nahin 2025 continues until no such
      row is left.
    - Of an objective that is one column ("total", a gap between groups, "robustness", your own) the `budget` most
      negative rows go; of a gap, no more than bring the predicted one nearest to 0 (see `trim`). It ends where no value
      is negative, or where the objective rises: that round is undone.

    What decides is measured on `held_out`, rows that no value looks at, or else on `valid` itself, which the values
    were made to improve.

    A wrong label that helps a class stays: the rounds do not find all of them.

    Args:
        task: a trained model, and how to train it (`Task(fit=...)`; a linear softmax head needs none).
        train: the rows to trim: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or arrays
            `(X, y)`.
        valid: the rows that the objective is summed over, in the same forms.
        objective: "category" (a column a class), "slice:<column>" (a column a value) or a list of several, for jointly
            harmful rows; or one of "total" (the summed loss), "demographic_parity" and "equal_opportunity" (gaps
            between the groups of `Task(group=...)`), "robustness" (the linear attack, aimed at the task as it was given
            where a round is judged), an `Objective`, a function `(logits [B, C], labels [B]) -> [B]`.
        budget: the most rows that a round removes, >= 1, those of lowest (summed) value. None: all that are jointly
            harmful; an objective of one column needs it.
        held_out: the rows that say whether a round is undone, in the same forms. None: `valid`.
        test: rows that are only measured on, in the same forms, if any.
        rounds: the most rounds, >= 1. More of them go on from what is in `out`; fewer read the first ones.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity".
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        damping: a number >= 0 that is added to the eigenvalues of the mean curvature; "layer_mean:0.1", so many times
            each layer's mean eigenvalue; or "sample:3", so many times mean x parameters of the layer / (rows x
            (classes - 1)). None: the inverse of the training that `Task(fit=Fit(...))` describes, which has none;
            without a `Fit`, "layer_mean:0.1" for a linear softmax head under "kfac" and "ekfac", 0 for "exact" and
            "ggn", "sample:3" otherwise.
        cluster: the workers on Ray that value rows; models are fitted in this process. None: this process values them
            too.
        out: the run's folder or URI. `round-<r>.parquet` has the rows that were left before round r (`row_id`, `label`,
            and whether they are `removed`), `round-<r>.safetensors` the model of the others, `round-<r>.json` the line
            of the table. The same call again goes on after the last finished step. None: the result is held in memory.
        seed: an integer >= 0 that fixes training and the drawn labels (above 32 classes).

    Returns:
        A `TrimRounds`: `.table` with a line a round, `.kept`, `.mask`, `.removed`, `.task`, `.reason`.

    Raises:
        InputError: before any work: a number of rounds below 1, an objective of one column without a budget, a task
            that cannot be trained, a folder of another config, or what `influence` and `evaluate` refuse.
        RunError: training diverged, the exact Hessian is not positive, or a table changed on the way.

    Cost: a round is `influence`, a fit, and a pass over `valid`, `held_out` and `test`. Memory: of a table on disk the
        ids and two numbers a row; rows that went are read past, so a round reads the whole table.
    """
    check(task=task, rounds=rounds, curvature=curvature, fisher=fisher, damping=damping, cluster=cluster)
    require_one_model(task, "trim_rounds")
    check(out=out, seed=seed)
    check_trainable(task)
    recall(out)
    rule = HarmRule.of(parse(objective, task.group), budget, "valid" if held_out is None else "held_out")
    others = [task.label, *([task.group] if task.group else [])]
    more = {name: table for name, table in (("held_out", held_out), ("test", test)) if table is not None}
    given = {"train": train, "valid": valid, **more}
    tables = {"train": as_table(train, task.feature_columns, others, "train")}
    how: dict[str, Any] = {"curvature": curvature, "fisher": fisher, "damping": damping, "seed": seed}
    trimming = _Trimming(task, tables, given, {**how, "cluster": cluster}, rule)
    with session(cluster):
        if out is None:
            return trimming.run(Steps(None), int(rounds))
        checked = check_tables(task, {**given, **tables}, rule.objectives)
        check_out(out, checked.job.tables)
        how |= {"damping": plain(damping), "seed": int(seed), "fit": fit_name(task), **rule.identity(task.version)}
        record = {"verb": VERB, "identity": {**checked.identity, **how}, "extent": {"rounds": int(rounds)}}
        trimming = replace(trimming, task=checked.job.task, tables=checked.job.tables)
        with run_folder(out, record, checked.job.tables.values()) as (folder, finished):
            found = trimming.run(Steps(lambda: folder.files), int(rounds))
            if not finished:
                folder.finish(record)
                folder.log("finish")
        return found


@dataclass(frozen=True)
class _Trimming:
    """Rounds over one table.

    Attributes:
        task: as it was given; of a run with a folder, with its classes.
        tables: "train", opened; of a run with a folder, all tables.
        given: "train", "valid", "held_out" and "test", if any, as the user gave them.
        how: arguments of `influence`.
        rule: which rows go.
    """

    task: Task
    tables: Mapping[str, Table]
    given: Mapping[str, Any]
    how: Mapping[str, Any]
    rule: HarmRule

    def run(self, steps: Steps, rounds: int) -> TrimRounds:
        """All rounds."""
        n, task = self.tables["train"].num_rows, self.task
        # Also finds out, before anything is valued, whether the tables to measure on are sound.
        lines = [self._line(steps, task, {"round": 0, "rows": n, "removed": 0}, None)]
        round_of, ids, reason = np.zeros(n, np.int64), np.arange(n), f"all {rounds} rounds are used up."
        for r in range(1, rounds + 1):
            value = partial(self._value, task, round_of)
            left, valued = np.flatnonzero(round_of == 0), steps.step(f"round-{r}.parquet", value)
            if r == 1:
                ids = to_numpy(valued["row_id"])
            harmful = left[valued["removed"].to_numpy()]
            if not len(harmful):
                whom = self.rule.column or ("every class" if self.rule.by_class else "every column")
                reason = f"no row that is left harms {whom}."
                break
            if lost := _emptied(valued):
                reason = f"round {r} would leave no row of class {lost[0]!r}."
                break
            stays = round_of == 0
            stays[harmful] = False
            trained = steps.model(f"round-{r}.safetensors", self.task, partial(self._train, stays))
            trained = replace(trained, l2=self.task.l2 * n / int(stays.sum()))
            counts = {"round": r, "rows": int(stays.sum()), "removed": len(harmful)}
            lines.append(self._line(steps, trained, counts, self.rule.cost(lines[-1])))
            if lines[-1]["undone"]:
                reason = f"{self.rule.rise(*lines[-2:])} in round {r}, which is undone."
                break
            round_of[harmful], task = r, trained
        return TrimRounds(pa.Table.from_pylist(lines), ids, round_of, task, reason)

    def _value(self, task: Task, round_of: Array) -> pa.Table:
        """`row_id` and `label` of the rows that are left, and which of them go."""
        table = self.tables["train"]
        left = KeptTable(table, round_of == 0) if round_of.any() else table
        scores = influence(task, left, self.given["valid"], list(self.rule.objectives), **self.how)
        removed = self.rule.harmful(scores)
        assert scores.labels is not None
        ids = scores.select(["row_id"])["row_id"]
        return pa.table({"row_id": ids, "label": pa.array(scores.labels), "removed": removed})

    def _train(self, stays: Array) -> Task:
        """The task, trained on the rows that stay."""
        train, seed = self.given["train"], self.how["seed"]
        trained = train_anew(self.task, train, keep=stays, seed=seed, rows=len(stays), paired=True)
        self._check_unchanged()
        return trained

    def _line(self, steps: Steps, task: Task, counts: Mapping[str, int], before: float | None) -> dict[str, Any]:
        """A round's line: how the model does, and whether what decides is worse than `before`."""

        def measure() -> dict[str, Any]:
            line: dict[str, Any] = {**counts, "undone": False}
            for name in _MEASURED:
                more = (self.rule.measured, self.task)
                found = measure_model(task, self.given[name], *more) if name in self.given else {}
                line |= {f"{name}_{key}": value for key, value in found.items() if key != "rows"}
            line["undone"] = before is not None and self.rule.cost(line) > before
            self._check_unchanged()
            print(f"rayinf trim_rounds {_in_words(line)}", file=sys.stderr, flush=True)
            return line

        found: dict[str, Any] = steps.step(f"round-{counts['round']}.json", measure)
        return found

    def _check_unchanged(self) -> None:
        for name, table in self.tables.items():
            check_unchanged(table, self.given[name], name)


def _emptied(valued: pa.Table) -> list[Any]:
    """Labels of which no row would stay."""
    labels = np.array(valued["label"].to_pylist())
    return sorted(set(labels.tolist()) - set(labels[~valued["removed"].to_numpy()].tolist()))


def _in_words(line: Mapping[str, Any]) -> str:
    """A round in words."""
    went = f"{line['removed']:,} rows went, {line['rows']:,} left" if line["round"] else f"{line['rows']:,} rows"
    shown = [f"{name} {line[f'{name}_accuracy']:.2%}" for name in _MEASURED if f"{name}_accuracy" in line]
    return f"round {line['round']}: {went}, accuracy on {', on '.join(shown)}{' (undone)' if line['undone'] else ''}"
