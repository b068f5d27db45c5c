"""Every form of table behind one interface: a fixed list of shards that can be read repeatedly, in any process."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rayinf.data.changes import Stat, in_order
from rayinf.data.file_state import FileState, state_of
from rayinf.data.pandas_index import UNNAMED, Index, counted, joined, kind_of, mark, own_numbers, read_index, with_index
from rayinf.data.shards import Shard, Shards
from rayinf.data.sources import Source, find
from rayinf.data.table_forms import from_arrays, from_pandas, plain, plain_record, plain_type, refuse
from rayinf.data.unreadable import FOOTER, UNREADABLE, corrupt, ends_of
from rayinf.errors import InputError, RayinfError

Array = np.ndarray[Any, Any]
# Bytes that are read and decoded at a time, and the most rows of it.
READ_BYTES = 8 << 20
READ_ROWS = 8192
# A shard is at most this many reads: large row groups are cut, so that one row group cannot fill memory.
READS_PER_SHARD = 8
# A table in memory is cut into about this many shards, so that a small one can be spread over workers too.
MEMORY_SHARDS = 32
_FEW_ROWS = 1024


@runtime_checkable
class Table(Protocol):
    """The interface of tables; picklable, and cheap to pickle where the table is on disk."""

    @property
    def name(self) -> str:
        """The table's name in errors."""
        ...

    @property
    def shards(self) -> Sequence[Shard]:
        """Its rows in order, in pieces that are processed one at a time."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        ...

    @property
    def stat(self) -> str:
        """A text that changes whenever the table may have changed; empty where this is unknown without reading it."""
        ...

    @property
    def scan_key(self) -> str:
        """A text that is the same as long as the table's values surely are; empty where that is unknown."""
        ...

    def open(self, columns: Sequence[str]) -> ShardReader:
        """A reader of some columns."""
        ...


class ShardReader(Protocol):
    """Reads shards; consecutive ones without decoding anything twice."""

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        """The rows of a shard, in order, some thousand at a time."""
        ...


@dataclass(frozen=True)
class MemoryTable:
    """A `pyarrow.Table` held in memory."""

    table: pa.Table
    name: str = "the table in memory"
    shards: Shards = field(init=False)

    def __post_init__(self) -> None:
        """Cut the table into shards, from its own size alone."""
        n = self.table.num_rows
        step = min(max(-(-n // MEMORY_SHARDS), _FEW_ROWS), READ_ROWS * READS_PER_SHARD)
        cuts = range(0, n, step)
        object.__setattr__(self, "shards", Shards(Shard(k, s, min(step, n - s)) for k, s in enumerate(cuts)))

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self.table.schema

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return self.table.num_rows

    @property
    def stat(self) -> str:
        """Empty: whether a table in memory has changed shows in its contents alone."""
        return ""

    @property
    def scan_key(self) -> str:
        """Empty, as `stat`."""
        return ""

    def open(self, columns: Sequence[str]) -> ShardReader:
        """A reader of some columns."""
        return _MemoryReader(self.table.select(list(columns)))


@dataclass(frozen=True)
class _MemoryReader:
    table: pa.Table

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        for batch in self.table.slice(shard.start, shard.rows).to_batches(max_chunksize=READ_ROWS):
            if batch.num_rows:
                yield batch


@dataclass(frozen=True)
class ParquetTable:
    """Parquet files, one shard a row group (large row groups are cut). Only footers are read before the first shard.

    Attributes:
        name: of the table, in errors.
        source: its files.
        shards: of all files, in order.
        schema: of every file; metadata names the index of a pandas frame.
        stat: of sizes, times and places of the files; of objects in a store, of their ETags.
        scan_key: of these, and of when the files' entries changed; empty where a file is so young that a further
            change might leave all of this as it is.
        read_rows: rows that are decoded at a time.
        row_bytes: of a row of all columns, about, decoded.
        counts: columns that are not stored, since pandas keeps an index that is a range as three numbers; of each
            `[files, 3]`, every file's first row, its first value and the step.
    """

    name: str
    source: Source
    shards: Shards
    schema: pa.Schema
    stat: str
    read_rows: int
    row_bytes: int
    scan_key: str = ""
    counts: Mapping[str, Array] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return self.shards[-1].start + self.shards[-1].rows if self.shards else 0

    def open(self, columns: Sequence[str]) -> ShardReader:
        """A reader of some columns."""
        return _ParquetReader(self, list(columns))


class _ParquetReader:
    """Keeps its place in a row group, so that a group cut into shards is decoded once when read in order."""

    def __init__(self, table: ParquetTable, columns: list[str]) -> None:
        self._table, self._columns = table, columns
        self._stored = [c for c in columns if c not in table.counts]
        self._file: tuple[str, pq.ParquetFile] | None = None
        self._place: tuple[str, int, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._read(shard)
        except RayinfError:
            self._forget()
            raise
        except UNREADABLE as error:
            self._forget()
            raise corrupt(shard.file, f"row group {shard.group}", error) from error

    def _forget(self) -> None:
        """Open the file anew for the next shard: after an error nothing that was open can be read on."""
        self._file = self._place = self._rest = None

    def _read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        if self._place != (shard.file, shard.group, shard.offset):
            self._seek(shard)
        done, taken = 0, 0
        while done < shard.rows:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise corrupt(shard.file, f"row group {shard.group}", f"{shard.rows - done} rows are missing")
            take = min(batch.num_rows, shard.rows - done)
            self._rest = batch.slice(take) if take < batch.num_rows else None
            done += take
            self._place = (shard.file, shard.group, shard.offset + done)
            if take:
                yield self._whole(plain_record(batch.slice(0, take)), shard, taken)
                taken += take

    def _whole(self, record: pa.RecordBatch, shard: Shard, skipped: int) -> pa.RecordBatch:
        """The requested columns, with the values of an index that is a range."""
        if self._stored == self._columns:
            return record
        counts, at = self._table.counts, shard.start + skipped
        held = []
        for column in self._columns:
            if column in counts:
                # The last file that begins no later: those before it that begin there too are empty.
                file = np.searchsorted(counts[column][:, 0], shard.start, side="right") - 1
                first, start, step = counts[column][file].tolist()
                held.append(counted(start, step, at - first, record.num_rows))
            else:
                held.append(record.column(column))
        return pa.RecordBatch.from_arrays(held, names=self._columns)

    def _seek(self, shard: Shard) -> None:
        if self._file is None or self._file[0] != shard.file:
            # Plain buffered reads: pre-buffering holds whole column chunks, which a large row group makes huge.
            source = self._table.source.filesystem.open_input_file(shard.file)
            opened = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 18, page_checksum_verification=True)
            self._file = (shard.file, opened)
        if self._place is None or self._place[:2] != (shard.file, shard.group) or self._place[2] > shard.offset:
            self._batches = self._file[1].iter_batches(
                self._table.read_rows, row_groups=[shard.group], columns=self._stored, use_threads=False
            )
            self._rest, self._place = None, (shard.file, shard.group, 0)
        skip = shard.offset - self._place[2]
        while skip:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise corrupt(shard.file, f"row group {shard.group}", f"{skip} rows are missing")
            take = min(batch.num_rows, skip)
            self._rest = batch.slice(take) if take < batch.num_rows else None
            skip -= take


def as_table(given: Any, features: Sequence[str], others: Sequence[str], name: str) -> Table:
    """A table from any form that verbs accept.

    Args:
        given: a path, folder, glob or URI of Parquet, or a list of these, read one after the other; a `pyarrow.Table`;
            a `pandas.DataFrame`; or a tuple of arrays. A pool may be features alone: an array, or a tuple of one.
        features: names for the first array of a tuple: of it as a whole, or of each of its columns.
        others: names for its further arrays: the label and, where there is one, the group.
        name: of the table, in errors ("train", "valid", "pool").

    Raises:
        InputError: a path without files, another form, no rows, or a file that is not Parquet.
    """
    if isinstance(given, Table):
        return given
    import pandas as pd

    if isinstance(given, str | Path):
        table: Table = _parquet([str(given)], name)
    elif isinstance(given, list) and given and all(isinstance(p, str | Path) for p in given):
        table = _parquet([str(p) for p in given], name)
    elif isinstance(given, pa.RecordBatch):
        table = MemoryTable(with_index(plain(pa.Table.from_batches([given]))), name)
    elif isinstance(given, pa.Table):
        table = MemoryTable(with_index(plain(given)), name)
    elif isinstance(given, tuple) or (name == "pool" and (isinstance(given, np.ndarray) or hasattr(given, "detach"))):
        given = given if isinstance(given, tuple) else (given,)
        table = MemoryTable(from_arrays(given, features, others, name), name)
    elif isinstance(given, pd.DataFrame):
        table = MemoryTable(with_index(from_pandas(given, name)), name)
    else:
        refuse(given, name)
    if table.num_rows == 0:
        raise InputError(f"{name} has no rows.", "pass a table with at least one row.")
    return table


def files_of(table: Table) -> list[str]:
    """The files of a table in the order in which they are read; none of a table in memory."""
    table = getattr(table, "table", table)  # of a KeptTable
    return list(table.source.files) if isinstance(table, ParquetTable) else []


def _parquet(paths: Sequence[str], name: str) -> ParquetTable:
    source = find(paths, name)
    groups, counted_groups, own = array("q"), array("q"), array("q")
    known: dict[Index | None, Index | None] = {}
    stats, entries, young = Stat(), hashlib.sha256(), False
    indexes, size, schema = [], 0, None
    footers = in_order(partial(_footer, source.filesystem), source.files)
    for file, footer in zip(source.files, footers, strict=True):
        schema = schema or footer.schema
        if not footer.schema.equals(schema):
            raise _unequal(file, source.files[0], schema, footer.schema)
        groups.extend(footer.groups)
        counted_groups.append(len(footer.groups))
        kind = kind_of(footer.index)
        indexes.append(known.setdefault(kind, kind))  # one object for all files of a kind
        own.extend(own_numbers(footer.index))
        stats.add(file, footer.state)
        entries.update(repr((footer.state.entry,)).encode())
        young = young or footer.state.young
        size += footer.size
    assert schema is not None
    rows = sum(groups)
    read_rows = _power_of_two(READ_BYTES * max(rows, 1) // max(size, 1))
    shards = Shards(_shards(source.files, groups, counted_groups, read_rows * READS_PER_SHARD), source.files)
    entries.update(repr((read_rows, READS_PER_SHARD)).encode())  # a scan knows the sizes of the shards
    index = joined(indexes)
    counts = {}
    if index is not None and index.counts:
        firsts = np.fromiter(_first_rows(groups, counted_groups), np.int64)
        numbers = np.array(own).reshape(len(firsts), len(index.counts), 2)
        counts = {name: np.column_stack([firsts, numbers[:, k]]) for k, (name, _, _) in enumerate(index.counts)}
    schema = mark(pa.schema([f.with_type(plain_type(f.type)) for f in schema]), index)
    stat = stats.text()
    scan_key = "" if young else f"{stat}-{entries.hexdigest()}"
    return ParquetTable(name, source, shards, schema, stat, read_rows, size // max(rows, 1) + 1, scan_key, counts)


def _first_rows(groups: Iterable[int], counts: Iterable[int]) -> Iterator[int]:
    """The first row of every file."""
    start, rows = 0, iter(groups)
    for count in counts:
        yield start
        start += sum(itertools.islice(rows, count))


def _shards(files: Sequence[str], groups: Iterable[int], counts: Iterable[int], most: int) -> Iterator[Shard]:
    """A shard a row group; large row groups are cut.

    Args:
        files: in order.
        groups: rows of the row groups of all files.
        counts: row groups of each file.
        most: rows of a shard.
    """
    count = start = 0
    held = iter(groups)
    for file, several in zip(files, counts, strict=True):
        for group, rows in enumerate(itertools.islice(held, several)):
            for offset in range(0, rows, most):
                shard = Shard(count, start, min(most, rows - offset), file, group, offset)
                count, start = count + 1, start + shard.rows
                yield shard


def _unequal(file: str, first: str, schema: pa.Schema, other: pa.Schema) -> InputError:
    """The error for files of different schemas."""
    fix = "rewrite the files with one schema."
    if (UNNAMED in schema.names) != (UNNAMED in other.names):
        fix = "write all files with to_parquet(index=False)."
    return InputError(f"{file} has other columns or types than {first}: {_difference(schema, other)}.", fix)


def _difference(schema: pa.Schema, other: pa.Schema) -> str:
    types, others = dict(zip(schema.names, schema.types, strict=True)), dict(zip(other.names, other.types, strict=True))
    for name in [*types, *others]:
        old, new = types.get(name), others.get(name)
        if old != new:
            return f"column {name!r} is {new or 'missing'} instead of {old or 'missing'}"
    return f"columns {other.names} instead of {schema.names}" if other.names != schema.names else "nullable columns"


def _power_of_two(rows: int) -> int:
    """The power of two at or under `rows`, between 64 and `READ_ROWS`, so that shards hold whole reads."""
    return int(min(max(1 << max(rows, 1).bit_length() - 1, 64), READ_ROWS))


@dataclass(frozen=True)
class _Footer:
    """The footer of a file."""

    groups: list[int]
    size: int
    schema: pa.Schema
    state: FileState
    index: Index | None


def _footer(filesystem: pafs.FileSystem, file: str) -> _Footer:
    try:
        # Before the file is read, so that a change in between shows.
        state = state_of(filesystem, file)
        with filesystem.open_input_file(file) as source:
            opened = pq.ParquetFile(source)
            schema, rows = opened.schema_arrow, opened.metadata.num_rows
            index = read_index(schema, rows)
            groups, size = [], 0
            for k in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(k)
                groups.append(group.num_rows)
                size += group.total_byte_size
            return _Footer(groups, size, schema.remove_metadata(), state, index)
    except RayinfError:
        raise
    except UNREADABLE as error:
        raise corrupt(file, FOOTER, error, ends_of(filesystem, file)) from error
