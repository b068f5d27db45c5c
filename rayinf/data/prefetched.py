"""Rows of shards that another process has decoded, so that a large row group is decoded once for several readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rayinf.data.shards import Shard
from rayinf.data.tables import ShardReader, Table

Array = np.ndarray[Any, Any]


class Supply(Protocol):
    """What hands rows over."""

    def __call__(self, table: str, shard: Shard) -> Array | None:
        """The packed rows of a shard; None where it has to be read.

        Args:
            table: a name of the run's, such as "train".
            shard: of it.
        """
        ...


class Packer:
    """Packs batches into the same memory again and again: to fresh memory a copy takes three times as long."""

    def __init__(self) -> None:
        self._memory = np.zeros(0, np.uint8)

    def pack(self, records: Iterable[pa.RecordBatch]) -> Array:
        """Batches of one schema as bytes, from which they are read without a copy; valid until the next call."""
        held = list(records)
        size = _write(held, pa.MockOutputStream())
        if size > len(self._memory):
            self._memory = np.zeros(size, np.uint8)
        _write(held, pa.FixedSizeBufferWriter(pa.py_buffer(self._memory)))
        return self._memory[:size]


def _write(records: Sequence[pa.RecordBatch], sink: Any) -> int:
    """Write batches as a stream; its bytes."""
    with pa.ipc.new_stream(sink, records[0].schema) as writer:
        for record in records:
            writer.write_batch(record)
    return int(sink.size() if isinstance(sink, pa.MockOutputStream) else sink.tell())


def unpacked(held: Array) -> Iterator[pa.RecordBatch]:
    """The batches that were packed, the same ones."""
    yield from pa.ipc.open_stream(pa.py_buffer(held))


@dataclass(frozen=True)
class PrefetchedTable:
    """A table some of whose shards may have been decoded elsewhere; others are read.

    Attributes:
        table: as it lies on the disk.
        key: its name in the run, such as "train".
        columns: of which rows are handed over; a reader of others reads all shards.
        supply: asked for every shard.
    """

    table: Table
    key: str
    columns: tuple[str, ...]
    supply: Supply

    @property
    def name(self) -> str:
        """The table's name in errors."""
        return self.table.name

    @property
    def shards(self) -> Sequence[Shard]:
        """Its rows in order, in pieces that are processed one at a time."""
        return self.table.shards

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
        """As that of the table."""
        return self.table.stat

    @property
    def scan_key(self) -> str:
        """As that of the table."""
        return self.table.scan_key

    def open(self, columns: Sequence[str]) -> ShardReader:
        """A reader of some columns."""
        reader = self.table.open(columns)
        return _PrefetchedReader(reader, self) if tuple(columns) == self.columns else reader


@dataclass(frozen=True)
class _PrefetchedReader:
    reader: ShardReader
    table: PrefetchedTable

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        held = self.table.supply(self.table.key, shard)
        yield from self.reader.read(shard) if held is None else unpacked(held)
