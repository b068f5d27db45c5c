"""What a removal check found: predicted and measured changes, a cell for each class removed and class measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.run_folder import owner_of, read_record
from rayinf.errors import InputError
from rayinf.store.places import AnyPath, open_place
from rayinf.training.agreement import rank_correlation, slope

if TYPE_CHECKING:
    import pandas as pd

_CELLS, _RESULT = "cells.parquet", "result.json"
# Columns of numbers, in the order of the table.
VALUES = (
    "predicted",
    "loss",
    "loss_std",
    "predicted_mean",
    "loss_mean",
    "loss_mean_std",
    "accuracy",
    "accuracy_std",
    "predicted_second",
    "predicted_second_mean",
)


@dataclass(frozen=True)
class Changes:
    """Changes of K classes after the removals of one side, `[K removed, K measured]`; NaN where nothing was removed.

    Attributes:
        rows: that were removed for each class `[K]`.
        predicted: of the sum of each class's test losses.
        loss: of the same, measured: a layer for every seed `[S, K, K]`.
        accuracy: of each class's test accuracy, measured `[S, K, K]`.
        second: of the sum of each class's test losses, predicted to second order; None where that is not known.
    """

    rows: Array
    predicted: Array
    loss: Array
    accuracy: Array
    second: Array | None = None


@dataclass(frozen=True)
class RemovalCheck:
    """How well influence predicts what happens when rows are removed (Nahin 2025, Figures 3 and 4).

    Attributes:
        table: a line a cell: `side` ("helpful", "harmful"), `removed` (the class whose top rows were removed), `rows`
            (how many), `measured` (the class that is looked at), and changes against training on all rows:
            `predicted` and `loss` of the *sum* of the class's test losses, `predicted_mean` and `loss_mean` of their
            mean, `predicted_second` and `predicted_second_mean` to second order (`predict_removal`; null where the
            scores do not say which curvature they rest on), `accuracy`; measured ones are means over seeds, with
            standard deviations `loss_std`, `loss_mean_std` and `accuracy_std` (null for one seed). Null where no row
            was there to remove.
        summary: side -> its figures: `spearman_loss` over all `cells`, predicted against measured change of the mean
            loss; `spearman_loss_sum` of the sum; `slope` and `slope_sum`, the measured change for each unit of
            predicted change of the same (1 at best), by regression through the point of both means, as in `lds`;
            `spearman_accuracy` of predicted mean loss against minus the change of accuracy; `sign_loss` and
            `sign_accuracy`, on the diagonal for how many classes the sign was right (no change is not right) out of
            `classes`; `ratio`, the median of measured to predicted change of loss there; `error` and `error_second`,
            the size of predicted less measured changes of the sum of losses over all cells, relative to that of the
            measured ones, to first and to second order.
        baseline: `loss` (mean) and `accuracy` of every class, trained on all rows, means over seeds.
        labels: of the K classes.
        notes: what a reader should know before trusting the figures.
        metadata: share, seeds, rows of the tables.
    """

    table: pa.Table = field(repr=False)
    summary: Mapping[str, Mapping[str, Any]]
    baseline: Mapping[str, Sequence[float]] = field(repr=False)
    labels: tuple[Any, ...]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        changes: Mapping[str, Changes],
        tests: Array,
        baseline: Mapping[str, Sequence[float]],
        labels: Sequence[Any],
        notes: Iterable[str],
        metadata: Mapping[str, Any],
    ) -> RemovalCheck:
        """From the changes of both sides.

        Args:
            changes: side -> changes.
            tests: test rows of every class `[K]`.
            baseline: as in the class.
            labels: of the classes.
            notes: as in the class.
            metadata: as in the class.
        """
        cells = pa.concat_tables([_cells(side, found, tests, labels) for side, found in changes.items()])
        summary = {side: summarise(cells, side, len(labels)) for side in changes}
        return cls(cells, summary, baseline, tuple(labels), tuple(notes), metadata)

    def values(self, side: str, name: str) -> Array:
        """A column of the table as `[K removed, K measured]`; NaN where no row was removed.

        Raises:
            InputError: no such side or column.
        """
        if side not in self.summary or name not in VALUES:
            raise InputError(
                f"side={side!r}, name={name!r}: there is no such cell.",
                f"use a side of {', '.join(self.summary)} and a name of {', '.join(VALUES)}.",
            )
        return grid(self.table, side, name, len(self.labels))

    def to_pandas(self) -> pd.DataFrame:
        """The table as a frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def to_text(self) -> str:
        """The figures in words, and the notes."""
        m = self.metadata
        seeds = f"{m['seeds']} seeds averaged" if m["seeds"] > 1 else "one seed"
        lines = [f"Top {m['share']:.0%} of the rows that help or harm each class removed, {seeds}:"]
        for side, s in self.summary.items():
            lines.append(
                f"  {side}: rank correlation of predicted and measured change over {s['cells']} cells "
                f"{_figure(s['spearman_loss'])} (loss), {_figure(s['spearman_accuracy'])} (accuracy); slope of "
                f"measured on predicted change {_figure(s['slope'])} (loss), 1 at best; on the diagonal "
                f"the sign is right for {s['sign_loss']} (loss) and {s['sign_accuracy']} (accuracy) of {s['classes']} "
                f"classes, and the loss changes by {_figure(s['ratio'])} times what is predicted (median); relative "
                f"error of the predicted changes {_figure(s['error'])} to first order, "
                f"{_figure(s['error_second'])} to second"
            )
        return "\n".join([*lines, *(f"  Note: {note}" for note in self.notes)])

    def plot(self, path: str | AnyPath) -> AnyPath:
        """Draw heat maps of predicted and measured changes beside their scatter, as in Nahin 2025, Figures 3 and 4.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).

        Returns:
            The path.
        """
        from rayinf.plots import removal

        names = [str(label) for label in self.labels]
        sides = []
        for side, s in self.summary.items():
            predicted, loss, accuracy = (self.values(side, n) for n in ("predicted_mean", "loss_mean", "accuracy"))
            sides.append(removal.SideMaps(side, predicted, loss, accuracy, s["spearman_loss"], s["slope"]))
        return removal.plot(sides, names, path)

    def save(self, files: CheckedFolder) -> None:
        """Write the cells as Parquet and the rest as JSON, into a run's folder."""
        held = {
            "summary": self.summary,
            "baseline": self.baseline,
            "labels": list(self.labels),
            "notes": list(self.notes),
            "metadata": self.metadata,
        }
        files.put_table(_CELLS, self.table)
        files.put_json(_RESULT, held)

    @classmethod
    def load(cls, path: str | AnyPath) -> RemovalCheck:
        """Read a finished check.

        Args:
            path: the folder that was given as `out`.

        Raises:
            InputError: no finished check there.
        """
        folder = open_place(path)
        record = read_record(folder)
        files = CheckedFolder(folder, owner_of(record)) if record else None
        held, cells = (files.json(_RESULT), files.table(_CELLS)) if files else (None, None)
        if held is None or cells is None:
            raise InputError(
                f"{folder} holds no finished removal check, or a damaged one.",
                "pass the folder that was given as out=..., or run that check again.",
            )
        labels, notes = tuple(held["labels"]), tuple(held["notes"])
        return cls(cells, held["summary"], held["baseline"], labels, notes, held["metadata"])


def summarise(cells: pa.Table, side: str, classes: int) -> dict[str, Any]:
    """The figures of one side, as in `RemovalCheck.summary`."""
    total, mean = grid(cells, side, "predicted", classes), grid(cells, side, "predicted_mean", classes)
    loss_sum, loss = grid(cells, side, "loss", classes), grid(cells, side, "loss_mean", classes)
    accuracy = grid(cells, side, "accuracy", classes)
    own, seen, gained = np.diag(mean), np.diag(loss), np.diag(accuracy)
    there = np.isfinite(seen)
    ratio = [s / o for s, o in zip(seen[there], own[there], strict=True) if o]
    return {
        "spearman_loss": rank_correlation(mean, loss),
        "spearman_loss_sum": rank_correlation(total, loss_sum),
        "slope": slope(mean, loss),
        "slope_sum": slope(total, loss_sum),
        "spearman_accuracy": rank_correlation(mean, -accuracy),
        "sign_loss": int((np.sign(own) * np.sign(seen) > 0)[there].sum()),
        "sign_accuracy": int((np.sign(own) * np.sign(gained) < 0)[there].sum()),
        "classes": int(there.sum()),
        "cells": int(np.isfinite(loss).sum()),
        "ratio": float(np.median(ratio)) if ratio else None,
        "error": _error(total, loss_sum),
        "error_second": _error(grid(cells, side, "predicted_second", classes), loss_sum),
    }


def _error(predicted: Array, measured: Array) -> float | None:
    """The norm of the difference relative to that of what was measured; None where nothing is known of one."""
    both = np.isfinite(predicted) & np.isfinite(measured)
    size = float(np.linalg.norm(measured[both]))
    return float(np.linalg.norm((predicted - measured)[both])) / size if size else None


def grid(cells: pa.Table, side: str, name: str, classes: int) -> Array:
    """A column of one side's cells as `[K, K]`."""
    mine = cells.filter(pa.array([s == side for s in cells["side"].to_pylist()]))
    values = mine[name].to_numpy(zero_copy_only=False).astype(np.float64)
    return values.reshape(classes, classes)


def _cells(side: str, found: Changes, tests: Array, labels: Sequence[Any]) -> pa.Table:
    classes, seeds = len(labels), len(found.loss)
    blank = np.full((classes, classes), np.nan)

    def spread(layers: Array) -> Array:
        return layers.std(0, ddof=1) if seeds > 1 else blank

    means, second = found.loss / tests, blank if found.second is None else found.second
    numbers = dict(
        zip(
            VALUES,
            (
                found.predicted,
                found.loss.mean(0),
                spread(found.loss),
                found.predicted / tests,
                means.mean(0),
                spread(means),
                found.accuracy.mean(0),
                spread(found.accuracy),
                second,
                second / tests,
            ),
            strict=True,
        )
    )
    return pa.table(
        {
            "side": pa.array([side] * classes**2),
            "removed": pa.array([a for a in labels for _ in labels]),
            "rows": pa.array(np.repeat(found.rows, classes)),
            "measured": pa.array([b for _ in labels for b in labels]),
            **{name: pa.array(held.reshape(-1), from_pandas=True) for name, held in numbers.items()},
        }
    )


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
