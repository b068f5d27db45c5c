"""Every form of table as one thing: a fixed list of shards that can be read again and again, in any process."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rayinf.errors import InputError

# Bytes that are read and decoded at a time, and the most rows of it.
READ_BYTES = 8 << 20
READ_ROWS = 8192
# A shard is at most this many reads: large row groups are cut, so that one row group cannot fill memory.
READS_PER_SHARD = 8
# A table in memory is cut into about this many shards, so that a small one can be spread over workers too.
MEMORY_SHARDS = 32
_FEW_ROWS = 1024
# What pyarrow raises over damaged files (a ValueError where a column's name is no text any more).
_UNREADABLE = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a table: one task, one file of scores."""

    index: int
    start: int
    rows: int
    file: str = ""
    group: int = 0
    offset: int = 0


@runtime_checkable
class Table(Protocol):
    """What the engine asks of a table; picklable, and cheap to pickle where it lies on disk."""

    @property
    def name(self) -> str:
        """How errors call the table."""
        ...

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Its rows in order, in pieces that are worked on one at a time."""
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
        """Changes whenever the table may have changed; empty where only reading it can tell."""
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
    shards: tuple[Shard, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Cut the table into shards, from its own size alone."""
        n = self.table.num_rows
        step = min(max(-(-n // MEMORY_SHARDS), _FEW_ROWS), READ_ROWS * READS_PER_SHARD)
        cuts = range(0, n, step)
        object.__setattr__(self, "shards", tuple(Shard(k, s, min(step, n - s)) for k, s in enumerate(cuts)))

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
        """Nothing but its contents tells whether a table in memory has changed."""
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
    """Parquet files, one shard a row group (large row groups are cut). Nothing is read until a shard is asked for."""

    name: str
    filesystem: pafs.FileSystem
    files: tuple[str, ...]
    shards: tuple[Shard, ...]
    schema: pa.Schema
    stat: str
    read_rows: int

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
        self._file: tuple[str, pq.ParquetFile] | None = None
        self._place: tuple[str, int, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._read(shard)
        except _UNREADABLE as error:
            raise corrupt(shard.file, f"row group {shard.group}", error) from error

    def _read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        if self._place != (shard.file, shard.group, shard.offset):
            self._seek(shard)
        done = 0
        while done < shard.rows:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise corrupt(shard.file, f"row group {shard.group}", f"{shard.rows - done} rows are missing")
            take = min(batch.num_rows, shard.rows - done)
            self._rest = batch.slice(take) if take < batch.num_rows else None
            done += take
            self._place = (shard.file, shard.group, shard.offset + done)
            if take:
                yield batch.slice(0, take)

    def _seek(self, shard: Shard) -> None:
        if self._file is None or self._file[0] != shard.file:
            # Plain buffered reads: pre-buffering holds whole column chunks, which a large row group makes huge.
            source = self._table.filesystem.open_input_file(shard.file)
            opened = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 18, page_checksum_verification=True)
            self._file = (shard.file, opened)
        self._batches = self._file[1].iter_batches(
            self._table.read_rows, row_groups=[shard.group], columns=self._columns, use_threads=False
        )
        self._rest, skip = None, shard.offset
        while skip:
            batch = next(self._batches, None)
            if batch is None:
                raise corrupt(shard.file, f"row group {shard.group}", f"{skip} rows are missing")
            take = min(batch.num_rows, skip)
            self._rest = batch.slice(take) if take < batch.num_rows else None
            skip -= take


def as_table(given: Any, features: Sequence[str], others: Sequence[str], name: str) -> Table:
    """A table from any form of the contract.

    Args:
        given: a path, folder, glob or URI of Parquet; a `pyarrow.Table`; a `pandas.DataFrame`; or a tuple of arrays.
            A pool may be features alone: an array, or a tuple of one.
        features: names for the first array of a tuple: of it as a whole, or of each of its columns.
        others: names for its further arrays: the label and, where there is one, the group.
        name: how errors call the table ("train", "valid", "pool").

    Raises:
        InputError: nothing there, no such form, no rows, or a file that is no Parquet.
    """
    if isinstance(given, Table):
        return given
    if isinstance(given, str | Path):
        table: Table = _parquet(str(given), name)
    elif isinstance(given, pa.Table):
        table = MemoryTable(given, name)
    elif isinstance(given, tuple) or (name == "pool" and (isinstance(given, np.ndarray) or hasattr(given, "detach"))):
        given = given if isinstance(given, tuple) else (given,)
        table = MemoryTable(_from_arrays(given, features, others, name), name)
    elif hasattr(given, "columns") and hasattr(given, "iloc"):
        table = MemoryTable(_from_pandas(given, name), name)
    else:
        raise InputError(
            f"{name} is a {type(given).__name__}, which is no table.",
            "pass a Parquet path, a pyarrow.Table, a pandas.DataFrame, or arrays (X, y).",
        )
    if table.num_rows == 0:
        raise InputError(f"{name} has no rows.", "pass a table with at least one row.")
    return table


def corrupt(file: str, where: str, error: object) -> InputError:
    """The one error for a Parquet file that cannot be read."""
    return InputError(
        f"{file} ({where}) cannot be read as Parquet: {str(error).rstrip('.')}.", "restore or rewrite the file."
    )


def _from_arrays(arrays: tuple[Any, ...], features: Sequence[str], others: Sequence[str], name: str) -> pa.Table:
    held = [_array(a, name) for a in arrays]
    fewest = 1 if name == "pool" else 2
    if not fewest <= len(held) <= 1 + len(others):
        raise InputError(
            f"{name} is a tuple of {len(held)} arrays.", "pass (X, y), or (X, y, group) with Task(group=...)."
        )
    if not all(a.ndim for a in held):
        raise InputError(f"{name} holds a single number where an array is expected.", "pass arrays of rows: (X, y).")
    if len({len(a) for a in held}) != 1:
        raise InputError(f"{name} has arrays of {[len(a) for a in held]} rows.", "pass arrays of one length.")
    x = held[0]
    if len(features) == 1:
        columns = {features[0]: _column(x)}
    elif x.ndim == 2 and x.shape[1] == len(features):
        columns = {feature: pa.array(x[:, k]) for k, feature in enumerate(features)}
    else:
        raise InputError(
            f"{name} has features of shape {x.shape}, and the Task names {len(features)} columns.",
            "pass one column of X for each name, or one name for all of X.",
        )
    return pa.table({**columns, **{c: _column(a) for c, a in zip(others, held[1:], strict=False)}})


def _array(given: Any, name: str) -> np.ndarray[Any, Any]:
    if hasattr(given, "detach"):  # a tensor, on any device
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given  # NumPy has no bfloat16
    try:
        return np.asarray(given)
    except ValueError as error:
        raise InputError(
            f"{name} holds lists that make no array: {error}.", "give every row features of one length."
        ) from error


def _from_pandas(frame: Any, name: str) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError) as error:
        told = ": ".join(map(str, error.args))
        raise InputError(
            f"{name} is a DataFrame that makes no table: {told}.", "give every column one type and a name of its own."
        ) from error


def _column(array: np.ndarray[Any, Any]) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    array = np.ascontiguousarray(array)
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    return pa.FixedShapeTensorArray.from_numpy_ndarray(array)


def _parquet(path: str, name: str) -> ParquetTable:
    filesystem, files = _find(path, name)
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda f: _footer(filesystem, f), files))
    schema = footers[0][1]
    for file, (_, other, _) in zip(files, footers, strict=True):
        if not other.equals(schema):
            raise InputError(
                f"{file} has other columns or types than {files[0]}: {_difference(schema, other)}.",
                "rewrite the files with one schema.",
            )
    rows, size = (
        sum(m.num_rows for m, _, _ in footers),
        sum(m.row_group(g).total_byte_size for m, _, _ in footers for g in range(m.num_row_groups)),
    )
    read_rows = _power_of_two(READ_BYTES * max(rows, 1) // max(size, 1))
    shards: list[Shard] = []
    start = 0
    for file, (metadata, _, _) in zip(files, footers, strict=True):
        for group in range(metadata.num_row_groups):
            in_group = metadata.row_group(group).num_rows
            for offset in range(0, in_group, read_rows * READS_PER_SHARD):
                count = min(read_rows * READS_PER_SHARD, in_group - offset)
                shards.append(Shard(len(shards), start, count, file, group, offset))
                start += count
    stat = hashlib.sha256(repr([(f, s) for f, (_, _, s) in zip(files, footers, strict=True)]).encode()).hexdigest()
    return ParquetTable(name, filesystem, tuple(files), tuple(shards), schema, stat, read_rows)


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


def _find(path: str, name: str) -> tuple[pafs.FileSystem, list[str]]:
    if "://" in path:
        try:
            filesystem, root = pafs.FileSystem.from_uri(path)
        except _UNREADABLE as error:
            raise InputError(f"{name}: {path} cannot be opened: {error}.", "check the URI and its scheme.") from error
    else:
        filesystem, root = pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    if isinstance(filesystem, pafs.LocalFileSystem) and any(c in root for c in "*?[") and not Path(root).exists():
        files = [f for f in sorted(glob.glob(root, recursive=True)) if Path(f).is_file()]
    else:
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.Directory:
            inside = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
            files = sorted(i.path for i in inside if i.is_file and i.path.endswith((".parquet", ".pq")))
        else:
            files = [root] if info.type == pafs.FileType.File else []
    if not files:
        raise InputError(f"{name}: no Parquet file at {path}.", "check the path, folder, glob or URI.")
    return filesystem, files


def _footer(filesystem: pafs.FileSystem, file: str) -> tuple[pq.FileMetaData, pa.Schema, tuple[Any, ...]]:
    try:
        info = filesystem.get_file_info(file)
        with filesystem.open_input_file(file) as source:
            opened = pq.ParquetFile(source)
            return opened.metadata, opened.schema_arrow.remove_metadata(), (info.size, info.mtime_ns)
    except _UNREADABLE as error:
        raise corrupt(file, "footer", error) from error
