"""Some rows of a table as a table, without a copy: the others are read and dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.data.shards import Shard
from rayinf.data.tables import ShardReader, Table


@dataclass(frozen=True)
class KeptTable:
    """The kept rows of a table, in order. Its shards are the table's own that still have rows.

    Attributes:
        table: whose rows they are.
        keep: `[n]`, whether each of its rows is kept; at least one is.
        shards: numbered and placed among the kept rows.
    """

    table: Table
    keep: Array
    shards: tuple[Shard, ...] = field(init=False)
    _sources: tuple[Shard, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Count what is left of every shard."""
        counted = [(s, int(self.keep[s.start : s.start + s.rows].sum())) for s in self.table.shards]
        left = [(s, rows) for s, rows in counted if rows]
        starts = np.cumsum([0, *(rows for _, rows in left)])
        shards = tuple(Shard(k, int(starts[k]), rows, s.file) for k, (s, rows) in enumerate(left))
        object.__setattr__(self, "shards", shards)
        object.__setattr__(self, "_sources", tuple(s for s, _ in left))

    @property
    def name(self) -> str:
        """The table's name in errors."""
        return self.table.name

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self.table.schema

    @property
    def num_rows(self) -> int:
        """Kept rows."""
        return self.shards[-1].start + self.shards[-1].rows

    @property
    def stat(self) -> str:
        """Changes with the table, and with which rows are kept."""
        return self._with_rows(self.table.stat)

    @property
    def scan_key(self) -> str:
        """As `stat`, of the table's own."""
        return self._with_rows(self.table.scan_key)

    def open(self, columns: Sequence[str]) -> ShardReader:
        """A reader of some columns."""
        return _KeptReader(self.table.open(columns), self)

    def _with_rows(self, held: str) -> str:
        return hashlib.sha256(held.encode() + self.keep.tobytes()).hexdigest() if held else ""

    def source(self, shard: Shard) -> Shard:
        """The table's own shard that a shard of kept rows comes from."""
        return self._sources[shard.index]


@dataclass(frozen=True)
class _KeptReader:
    reader: ShardReader
    kept: KeptTable

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        source = self.kept.source(shard)
        skip, left, start = shard.start - self.kept.shards[shard.index].start, shard.rows, source.start
        for batch in self.reader.read(source):
            part = batch.filter(pa.array(self.kept.keep[start : start + batch.num_rows])).slice(skip, left)
            skip = max(skip - int(self.kept.keep[start : start + batch.num_rows].sum()), 0)
            start, left = start + batch.num_rows, left - part.num_rows
            if part.num_rows:
                yield part
