"""Iterated trimming: rows that harm every class go, the model is fitted again, and the rest are valued anew."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.api.influence import influence
from rayinf.core.fisher import FisherKind
from rayinf.data.batches import Array
from rayinf.data.kept_table import KeptTable
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.tables import Table, as_table
from rayinf.data.vectors import Vectors
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import session
from rayinf.task import Task
from rayinf.training.evaluation import measure_model
from rayinf.training.open_table import check_unchanged
from rayinf.training.retraining import check_trainable, train_anew

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrimRounds:
    """What rounds of trimming did.

    Attributes:
        table: a line a round, from round 0, the task as it was given: `round`, `rows` (that the model was fitted on),
            `removed` (rows that the round took), `undone`, and of `valid` and `test` each `<table>_loss` (mean),
            `<table>_accuracy` and `<table>_accuracy_<label>`. The line of a round that was undone says what it led to.
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
        lines = [_told(row, row["round"]) for row in self.table.to_pylist()]
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
    test: Any = None,
    rounds: int = 10,
    curvature: str = "exact",
    fisher: FisherKind = "true",
    damping: float | None = None,
    cluster: Cluster | None = None,
    seed: int = 0,
) -> TrimRounds:
    """Remove the rows that harm every class, fit again, value what is left, and again.

    See Nahin 2025, Figure 5, appendix B.1.

    A round values the rows that are left by `influence(objective="category")` under the last model, removes the
    *jointly harmful* ones (all values <= 0, and one at least < 0), and fits the task's model to the rest. A refit keeps
    the *sum* of the ridge (`l2 n / n'`), as the values assume, and the minibatches of a fit to all rows (see
    `retrain(paired=True)`). It ends where no row is jointly harmful, or where the accuracy on `valid` falls: that round
    is undone. Nahin 2025 continues until no such row is left.

    A wrong label that helps a class stays: the rounds do not find all of them.

    Args:
        task: a trained model, and how to train it (`Task(fit=...)`; a linear softmax head needs none).
        train: the rows to trim: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or arrays
            `(X, y)`.
        valid: the rows that the classes' losses are summed over, and that the accuracy is measured on, in the same
            forms.
        test: rows that are only measured on, in the same forms, if any.
        rounds: the most rounds, >= 1. More of them go on from what is in `out`; fewer read the first ones.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity".
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        damping: a number >= 0 that is added to the eigenvalues of the mean curvature. None: 0.1 x each layer's mean
            eigenvalue for "kfac" and "ekfac", 0 otherwise.
        cluster: the workers on Ray that value rows; models are fitted in this process. None: this process values them
            too.
        seed: an integer >= 0 that fixes training and the drawn labels (above 32 classes).

    Returns:
        A `TrimRounds`: `.table` with a line a round, `.kept`, `.mask`, `.removed`, `.task`, `.reason`.

    Raises:
        InputError: before any work: a number of rounds below 1, a task that cannot be trained, or what `influence` and
            `evaluate` refuse.
        RunError: training diverged, the exact Hessian is not positive, or a table changed on the way.

    Cost: a round is `influence`, a fit, and a pass over `valid` and `test`. Memory: of a table on disk the ids and two
        numbers a row; rows that went are read past, so a round reads the whole table.
    """
    check(task=task, rounds=rounds, curvature=curvature, fisher=fisher, damping=damping, cluster=cluster, seed=seed)
    check_trainable(task)
    others = [task.label, *([task.group] if task.group else [])]
    table = as_table(train, task.feature_columns, others, "train")
    measured = {"valid": valid, **({} if test is None else {"test": test})}
    how: dict[str, Any] = {"curvature": curvature, "fisher": fisher, "damping": damping}
    trimming = _Trimming(table, train, measured, {**how, "cluster": cluster, "seed": seed})
    with session(cluster):
        return trimming.run(task, int(rounds))


@dataclass
class _Trimming:
    """Rounds over one table.

    Attributes:
        table: opened.
        given: the same as the user gave it.
        measured: the tables that models are measured on.
        how: arguments of `influence`.
    """

    table: Table
    given: Any
    measured: Mapping[str, Any]
    how: Mapping[str, Any]

    def run(self, task: Task, rounds: int) -> TrimRounds:
        """All rounds."""
        n, first = self.table.num_rows, task
        # Also finds out, before anything is valued, whether the tables to measure on are sound.
        lines = [self._line(task, 0, n, 0)]
        self._say(lines[-1])
        round_of, ids, reason = np.zeros(n, np.int64), np.arange(n), f"all {rounds} rounds are used up."
        for r in range(1, rounds + 1):
            left = np.flatnonzero(round_of == 0)
            scores = influence(task, self._left(round_of), self.measured["valid"], "category", **self.how)
            if r == 1:
                ids = to_numpy(scores.select(["row_id"])["row_id"])
            harmful = left[jointly_harmful(scores)]
            if not len(harmful):
                reason = "no row that is left harms every class."
                break
            rest = np.setdiff1d(left, harmful, assume_unique=True)
            if lost := _emptied(scores, np.isin(left, rest)):
                reason = f"round {r} would leave no row of class {lost[0]!r}."
                break
            stays = np.isin(np.arange(n), rest)
            trained = train_anew(first, self.given, keep=stays, seed=self.how["seed"], rows=n, paired=True)
            trained = replace(trained, l2=first.l2 * n / len(rest))
            check_unchanged(self.table, self.given, "train")
            lines.append(self._line(trained, r, len(rest), len(harmful)))
            now, before = (line["valid_accuracy"] for line in (lines[-1], lines[-2]))
            lines[-1]["undone"] = now < before
            self._say(lines[-1])
            if now < before:
                reason = f"accuracy on valid fell from {before:.2%} to {now:.2%} in round {r}, which is undone."
                break
            round_of[harmful], task = r, trained
        return TrimRounds(pa.Table.from_pylist(lines), ids, round_of, task, reason)

    def _left(self, round_of: Array) -> Table:
        """The rows that are left."""
        return KeptTable(self.table, round_of == 0) if round_of.any() else self.table

    def _line(self, task: Task, r: int, rows: int, removed: int) -> dict[str, Any]:
        """A round's line: how the model does."""
        line: dict[str, Any] = {"round": r, "rows": rows, "removed": removed, "undone": False}
        for name, table in self.measured.items():
            found = measure_model(task, table)
            line |= {f"{name}_{key}": value for key, value in found.items() if key != "rows"}
        return line

    def _say(self, line: Mapping[str, Any]) -> None:
        print(f"rayinf trim_rounds {_told(line, line['round'])}", file=sys.stderr, flush=True)


def jointly_harmful(scores: Scores) -> Array:
    """Which rows harm at least one class and help none: positions in row order (Nahin 2025, section 3.3).

    Args:
        scores: with a column for each class.

    Raises:
        InputError: no such columns, or a value that is not finite.
    """
    masks = [(p <= 0).all(1) & (p < 0).any(1) for p in Vectors.of(scores).batches()]
    return np.flatnonzero(np.concatenate(masks))


def _emptied(scores: Scores, stays: Array) -> list[Any]:
    """Labels of which no row would stay."""
    labels = scores.labels
    assert labels is not None
    return sorted(set(labels.tolist()) - set(labels[stays].tolist()))


def _told(line: Mapping[str, Any], r: int) -> str:
    """A round in words."""
    went = f"{line['removed']:,} rows went, {line['rows']:,} left" if r else f"{line['rows']:,} rows"
    shown = [f"{name} {line[f'{name}_accuracy']:.2%}" for name in ("valid", "test") if f"{name}_accuracy" in line]
    return f"round {r}: {went}, accuracy on {', on '.join(shown)}{' (undone)' if line['undone'] else ''}"
