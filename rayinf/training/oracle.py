"""Where labels come from: a function, a table that has them, or a folder in which they are dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayinf.arguments import path
from rayinf.data import batches
from rayinf.data.batches import Array, Columns, check_columns
from rayinf.data.files import readable, write_result
from rayinf.data.pandas_index import UNNAMED, index_column
from rayinf.data.scores import to_numpy
from rayinf.data.tables import Table, as_table
from rayinf.errors import InputError, RayinfError
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Task
from rayinf.user_code import user_code

_SHOWN = 5
_ASK, _LABELS = "ask-", "labels-"


@dataclass(frozen=True)
class LabelFolder:
    """A folder in which you answer questions: it gets a file a round of the rows to label, and waits for their labels.

    A round writes `ask-<strategy>-<seed>-round-<r>.parquet` (`row_id`, `rank` from 1, `value`). Drop
    `labels-<strategy>-<seed>-round-<r>.parquet` (`row_id`, `label`) beside it, and make the same call again.

    Args:
        path: of the folder; it is made if there is none.
    """

    path: str | Path

    def __post_init__(self) -> None:
        """Refuse what names no folder.

        Raises:
            InputError: it is not a path.
        """
        path("LabelFolder.path", self.path)


@dataclass(frozen=True)
class Query:
    """Rows of the pool whose labels are wanted.

    Attributes:
        strategy: by which they were picked.
        seed: of the trajectory.
        round: from 1.
        rows: `row_id`, `position` in the pool and `value`, best first.
    """

    strategy: str
    seed: int
    round: int
    rows: pa.Table

    @property
    def name(self) -> str:
        """What it is called in files."""
        return f"{self.strategy}-{self.seed}-round-{self.round}"


# Labels of a query's rows in their order, or the file that is awaited; picklable.
Oracle = Callable[[Query], Array | AnyPath]


@dataclass(frozen=True)
class Pool:
    """The pool whose rows an oracle labels, and the task.

    Attributes:
        task: with its classes.
        rows: how many there are.
        row_id: the column of ids; None: positions.
    """

    task: Task
    rows: int
    row_id: str | None

    def match(self, query: Query, ids: Sequence[Any], labels: pa.Array, source: str) -> Array:
        """Labels in the order of the query: integers, or text.

        Args:
            query: the rows.
            ids: of the rows that have labels.
            labels: one for each.
            source: how errors call where they came from.

        Raises:
            InputError: ids that were not asked for, twice or not at all; a null, or a label that is no class.
        """
        wanted = query.rows["row_id"].to_pylist()
        given, known = Counter(ids), set(wanted)
        fix = "give one label for every row that was asked for."
        _refuse([i for i, k in given.items() if k > 1], f"{source} gives labels twice", query, fix)
        _refuse([i for i in given if i not in known], f"{source} gives labels for unknown row ids", query, fix)
        _refuse([i for i in wanted if i not in given], f"{source} gives no label", query, fix)
        if labels.null_count:
            empty = [i for i, null in zip(ids, labels.is_null().to_pylist(), strict=True) if null]
            _refuse(empty, f"{source} gives null as the label", query, "label these rows too.")
        found = batches.values(labels, "label", source, 0)
        classes = tuple(self.task.classes or ())
        unknown = [f"{v!r} of row {i!r}" for i, v in zip(ids, found.tolist(), strict=True) if v not in classes]
        _refuse(
            unknown,
            f"{source} gives labels that are not classes of the task ({', '.join(map(repr, classes[:12]))})",
            query,
            "correct those labels, or start with a model that has a logit for them and Task(classes=[...]).",
        )
        place = {i: k for k, i in enumerate(ids)}
        return found[[place[i] for i in wanted]]


def make_oracle(given: Any, pool: Pool) -> Oracle:
    """An oracle from what the user gave.

    An existing directory is a `LabelFolder` unless it holds Parquet files other than questions and labels.

    Args:
        given: a callable, a table, a `LabelFolder`, or the path of a table or folder.
        pool: whose rows it labels.

    Raises:
        InputError: no such thing, or a table that lacks a column or, without ids, a row.
    """
    if isinstance(given, LabelFolder):
        return _Folder(open_place(given.path), pool)
    if callable(given) and not isinstance(given, type):
        return _Function(given, pool)
    if isinstance(given, str | Path) and _is_label_folder(open_place(given, "oracle")):
        return _Folder(open_place(given, "oracle"), pool)
    task = pool.task
    table = as_table(given, task.feature_columns, [task.label, *([task.group] if task.group else [])], "oracle")
    row_id = pool.row_id or "row_id"
    columns = Columns((), True, task.label, row_id if row_id in table.schema.names else None)
    check_columns(table, columns)
    # A pool whose ids are an index without a name is a part of a frame: of a whole frame the positions are such ids.
    numbered = pool.row_id == UNNAMED and index_column(table.schema) == ""
    if columns.row_id is None and not numbered and table.num_rows != pool.rows:
        raise InputError(
            f"The oracle's table has {table.num_rows:,} rows and no column {row_id!r}, and the pool has "
            f"{pool.rows:,} rows: which label belongs to which row is unknown.",
            "give it the ids of the pool's rows, or one row for each row of the pool, in its order.",
        )
    return _Table(table, columns, pool, numbered)


@dataclass(frozen=True)
class _Function:
    """A function of the user's: ids -> labels."""

    call: Callable[[Array], Any]
    pool: Pool

    def __call__(self, query: Query) -> Array:
        """The labels that the function returns."""
        import pandas as pd

        wanted = to_numpy(query.rows["row_id"])
        with user_code(f"The oracle, asked in round {query.round},", "mend it: an array of row ids -> their labels."):
            found = self.call(wanted)
        if isinstance(found, Mapping | pd.Series):
            ids, labels = list(found.keys()), list(found.values() if isinstance(found, Mapping) else found)
        else:
            ids, labels = wanted.tolist(), found
        held = _as_arrow(labels)
        if len(held) != len(ids):
            raise InputError(
                f"The oracle gives {len(held)} labels for {len(ids)} rows.", "return one label a row, in their order."
            )
        plain = [i.item() if isinstance(i, np.generic) else i for i in ids]
        return self.pool.match(query, plain, held, "The oracle")


@dataclass(frozen=True)
class _Table:
    """A table with the labels of the pool's rows; only ids and labels are read."""

    table: Table
    columns: Columns
    pool: Pool
    numbered: bool

    def __call__(self, query: Query) -> Array:
        """The labels of the rows, by id or by position."""
        by = "position" if self.columns.row_id is None and not self.numbered else "row_id"
        wanted = _plain(query.rows[by].combine_chunks())
        ids: list[Any] = []
        labels: list[pa.Array] = []
        reader = self.table.open(self.columns.all)
        for shard in self.table.shards:
            start = shard.start
            for record in reader.read(shard):
                own = self._ids(record, start, wanted.type)
                start += record.num_rows
                mask = pc.is_in(own, wanted)
                ids += own.filter(mask).to_pylist()
                labels.append(_plain(record.column(str(self.columns.label))).filter(mask))
        if by == "position":
            place = dict(zip(wanted.to_pylist(), query.rows["row_id"].to_pylist(), strict=True))
            ids = [place[i] for i in ids]
        return self.pool.match(query, ids, pa.concat_arrays(labels), "The oracle's table")

    def _ids(self, record: pa.RecordBatch, start: int, kind: pa.DataType) -> pa.Array:
        """Ids of some rows in the type of the pool's, or their positions.

        Raises:
            InputError: ids of another kind.
        """
        if self.columns.row_id is None:
            return pa.array(np.arange(start, start + record.num_rows))
        held = _plain(record.column(self.columns.row_id))
        try:
            return held.cast(kind)
        except pa.ArrowException as error:
            raise InputError(
                f"The oracle's table has row ids of type {held.type}, and the pool of type {kind}.",
                "give it the ids of the pool's rows.",
            ) from error


@dataclass(frozen=True)
class _Folder:
    """A folder in which queries are written, and labels are dropped."""

    path: AnyPath
    pool: Pool

    def __call__(self, query: Query) -> Array | AnyPath:
        """The labels that were dropped, or where they are awaited."""
        ask, answer = (self.path / f"{kind}{query.name}.parquet" for kind in (_ASK, _LABELS))
        ranks = pa.array(range(1, query.rows.num_rows + 1), pa.int64())
        rows = query.rows.select(["row_id", "value"]).add_column(1, "rank", ranks)
        if not ask.exists():
            write_result(ask, rows)
        elif _read(ask, ["row_id"])["row_id"].to_pylist() != rows["row_id"].to_pylist():
            raise InputError(f"{ask} asks for other rows: it is of another run.", "give this run a folder of its own.")
        if not answer.exists():
            return answer
        held = _read(answer, ["row_id", "label"])
        labels = _plain(held["label"].combine_chunks())
        return self.pool.match(query, held["row_id"].to_pylist(), labels, str(answer))


def _is_label_folder(path: AnyPath) -> bool:
    if not path.is_dir():
        return False
    files = [f for pattern in ("*.parquet", "*.pq") for f in path.rglob(pattern)]
    return all(f.name.startswith((_ASK, _LABELS)) for f in files)


def _read(path: AnyPath, columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file of the folder.

    Raises:
        InputError: it is damaged, or lacks one.
        RayinfError: a store does not answer.
    """
    try:
        held = pq.read_table(readable(path))
    except RayinfError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}.", "write it anew, whole.") from error
    if missing := [c for c in columns if c not in held.schema.names]:
        raise InputError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(held.schema.names)}.",
            f"write the columns {' and '.join(columns)}.",
        )
    return held.select(columns)


def _as_arrow(labels: Any) -> pa.Array:
    """Labels of any array-like form; NaN and None are null.

    Raises:
        InputError: they are no such thing.
    """
    try:
        held = np.asarray(labels)
        return pa.array(held, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(
            f"The oracle gives a {type(labels).__name__} that holds no labels: {error}.",
            "return an array, a list, or a dict from row id to label, of integers or text.",
        ) from error


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _refuse(wrong: Sequence[Any], what: str, query: Query, fix: str) -> None:
    """Refuse answers with some wrong rows.

    Raises:
        InputError: there are some.
    """
    if wrong:
        shown = ", ".join(v if isinstance(v, str) else repr(v) for v in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(f"{what} in round {query.round} of {query.strategy}, seed {query.seed}: {shown}{more}.", fix)
