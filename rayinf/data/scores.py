"""Scores: a value for every training row and objective, in memory or as Parquet shards that are read lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.arguments import path as check_path
from rayinf.arguments import refuse
from rayinf.data.batches import values as read_values
from rayinf.data.part_files import PartFiles
from rayinf.data.run_folder import FINISHED, SCORES, read_record
from rayinf.data.tables import READ_ROWS
from rayinf.errors import InputError
from rayinf.store.places import AnyPath, StorePath, open_place

if TYPE_CHECKING:
    import pandas as pd

HALVES = ("first_half:", "second_half:")
# The label of every row, for choices that depend on the class. Like the halves it is not a column of values.
LABEL_COLUMN = ":label"
# The standard error of a column, of values that are means over several models: what its name ends with.
ERROR = "_se"


@dataclass(frozen=True)
class Scores:
    """Values of every training row. Positive: the row helps; removing it is predicted to raise the objective.

    Attributes:
        metadata: the config, the sign and unit, the label of every class, values of the objectives, and figures of the
            curvature.
        path: the run's folder, where the scores lie on disk.
    """

    source: pa.Table | PartFiles = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: AnyPath | None = None

    @classmethod
    def load(cls, path: str | AnyPath) -> Scores:
        """Open the scores of a finished run; they are read on demand.

        Raises:
            InputError: the folder holds no run, or one that is not finished.
        """
        check_path("Scores.load.path", path)
        folder = open_place(path)
        run = read_record(folder)
        if run is None:
            raise InputError(f"{folder} holds no run (no run.json).", "pass the folder that was given as out=...")
        if run.get("status") != FINISHED:
            raise InputError(f"The run in {folder} is not finished.", "run the same command again: it goes on.")
        found = PartFiles(folder, "scores")
        if isinstance(folder, StorePath):  # one list instead of a request for each file
            there = {f"scores/{f.name}" for f in (folder / "scores").iterdir()}
            count = sum(entry.file in there for entry in found.entries())
        else:
            count = sum((folder / entry.file).is_file() for entry in found.entries())
        if count != run.get("parts"):
            raise InputError(
                f"{folder} holds {count} of {run.get('parts')} shards of scores.",
                "run the same command again: it computes those that are gone.",
            )
        return cls(found, run["metadata"], folder)

    @classmethod
    def from_numpy(
        cls,
        values: np.ndarray[Any, Any],
        columns: Sequence[str],
        row_ids: Sequence[Any] | np.ndarray[Any, Any] | None = None,
        labels: Sequence[Any] | np.ndarray[Any, Any] | None = None,
        halves: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None,
    ) -> Scores:
        """Scores of any origin, from `[n, columns]` (or `[n]` for one column).

        Args:
            values: finite numbers.
            columns: a name for each column.
            row_ids: `[n]`, all different; None: positions.
            labels: `[n]`, integers or strings, for choices that depend on the class (`trim(floor=...)`).
            halves: the same values from each half of the validation rows, as `influence(halves=True)` gives them.

        Raises:
            InputError: shapes that do not fit, a value that is not finite, an id that two rows have.
        """
        columns = _columns(columns)
        if "row_id" in columns:
            raise InputError("columns name 'row_id', which is the column of ids.", "pass the ids as row_ids.")
        if LABEL_COLUMN in columns:
            raise InputError(f"columns name {LABEL_COLUMN!r}, which is the column of labels.", "pass them as labels.")
        held = _values(values, columns, "values")
        if not (halves is None or isinstance(halves, tuple | list)):
            expected = "a pair of arrays of the values' shape, or None"
            refuse("halves", halves, expected, "pass halves=(first, second).")
        parts = [_values(half, columns, f"halves[{k}]") for k, half in enumerate(halves or ())]
        if len(parts) not in (0, 2) or any(part.shape != held.shape for part in parts):
            raise InputError(f"{len(parts)} halves for values {list(held.shape)}.", "pass two, of the values' shape.")
        ids = _as_array("row_ids", np.arange(len(held)) if row_ids is None else row_ids)
        if len(ids) != len(held) or len(ids.unique()) != len(ids):
            raise InputError(
                f"row_ids holds {len(ids)} ids ({len(ids.unique())} different) for {len(held)} rows.",
                "pass one id a row.",
            )
        hidden = {} if labels is None else {LABEL_COLUMN: _labels(labels, len(held))}
        shown = zip(("", *HALVES), (held, *parts), strict=False)
        table = {p + c: part[:, k] for p, part in shown for k, c in enumerate(columns)}
        return cls(pa.table({"row_id": ids, **hidden, **table}), {"origin": "from_numpy"})

    @property
    def columns(self) -> list[str]:
        """Names of the columns of values."""
        hidden = ("row_id", LABEL_COLUMN)
        return [n for n in self.source.schema.names if n not in hidden and not n.startswith(HALVES)]

    @property
    def value_columns(self) -> list[str]:
        """Those that are values: without the standard errors of means over several models."""
        names = self.columns
        errors = {c + ERROR for c in names} if "members" in self.metadata else set()
        return [c for c in names if c not in errors]

    @property
    def skipped_rows(self) -> int:
        """How many rows have no value, because their shards were left out (`on_error="skip"`)."""
        return sum(s["count"] for s in self.metadata.get("skipped", ()) if s["stage"] == SCORES)

    @property
    def table(self) -> pa.Table:
        """`row_id` and the columns, in row order. Reads all rows: `O(n)` memory."""
        return self.select(["row_id", *self.columns])

    @property
    def labels(self) -> np.ndarray[Any, Any] | None:
        """The label of every row `[n]`, in row order; None where the scores are without."""
        if LABEL_COLUMN not in self.source.schema.names:
            return None
        return to_numpy(self.select([LABEL_COLUMN])[LABEL_COLUMN])

    @property
    def halves(self) -> tuple[Scores, Scores] | None:
        """Every column for each half of the validation rows; None unless computed with `halves=True`."""
        if not any(n.startswith(HALVES) for n in self.source.schema.names):
            return None
        names = self.value_columns
        common = [n for n in ("row_id", LABEL_COLUMN) if n in self.source.schema.names]
        first, second = (
            Scores(
                self.select([*common, *(prefix + c for c in names)]).rename_columns([*common, *names]),
                self.metadata,
            )
            for prefix in HALVES
        )
        return first, second

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """Values `[n, columns]`, in row order; NaN on rows without one."""
        table = self.table
        return np.stack([table[c].to_numpy() for c in self.columns], axis=1)

    def to_pandas(self) -> pd.DataFrame:
        """A frame with `row_id` and the columns."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def __len__(self) -> int:
        """Training rows."""
        return int(self.source.num_rows)

    def select(self, columns: list[str]) -> pa.Table:
        """Columns of the source, in row order; no others are read."""
        if isinstance(self.source, pa.Table):
            return self.source.select(columns)
        return self.source.to_table(columns)

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the source, in row order, some thousand rows at a time."""
        if isinstance(self.source, pa.Table):
            yield from self.source.select(columns).to_batches(max_chunksize=READ_ROWS)
        else:
            yield from self.source.batches(columns, READ_ROWS)


def to_numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, Any]:
    """Ids or labels of a table as NumPy: text as str, numbers as they are."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.asarray(column.to_pylist(), dtype=str)
    array: np.ndarray[Any, Any] = column.to_numpy()
    return array


def _values(given: np.ndarray[Any, Any], columns: Sequence[str], name: str) -> np.ndarray[Any, Any]:
    """Finite values `[n, columns]`.

    Raises:
        InputError: another shape, or a value that is not finite.
    """
    try:
        held = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        refuse(name, given, "an array of numbers [n, columns]", "pass scores.to_numpy(), say.")
    held = held[:, None] if held.ndim == 1 else held
    if held.ndim != 2 or held.shape[1] != len(columns) or len(set(columns)) != len(columns):
        raise InputError(
            f"{name} are {np.shape(given)}, with columns {list(columns)}.", "pass [n, columns], one name a column."
        )
    if not np.isfinite(held).all():
        row, column = np.argwhere(~np.isfinite(held))[0]
        raise InputError(f"{name}[{row}, {column}] is {held[row, column]}.", "pass finite scores.")
    return held


def _columns(given: Any) -> list[str]:
    """Names of columns, as a list.

    Raises:
        InputError: they are not names.
    """
    import pandas as pd

    held = [*given] if isinstance(given, str | list | tuple | np.ndarray | pd.Index) else []
    if not held or not all(isinstance(name, str) and name for name in held):
        refuse("columns", given, "a list of names, one a column of values", 'pass columns=["total"], say.')
    return [str(name) for name in held]


def _as_array(name: str, given: Any) -> pa.Array:
    """Ids or labels as an Arrow array.

    Raises:
        InputError: they are not a plain list or array.
    """
    expected, fix = "a list or array of integers or text, one a row", f"pass {name}=[...]."
    try:
        held = None if isinstance(given, str | bytes) or np.ndim(given) != 1 else pa.array(given)
    except (pa.ArrowException, TypeError, ValueError):
        held = None
    return refuse(name, given, expected, fix) if held is None else held


def _labels(given: Sequence[Any] | np.ndarray[Any, Any], rows: int) -> pa.Array:
    """Labels as runs write them: integers or text.

    Raises:
        InputError: another type, a missing label, or not one a row.
    """
    held = read_values(_as_array("labels", given), "labels", "Scores.from_numpy", 0)
    if len(held) != rows:
        raise InputError(f"{len(held)} labels for {rows} rows.", "pass one label a row.")
    return pa.array(held)
