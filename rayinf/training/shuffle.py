"""Minibatches of a table in a new order every epoch, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rayinf.data.batches import Array, Batch, BatchReader, Columns
from rayinf.data.tables import READ_ROWS, Table

# Rows that are shuffled together, and what their features may take: a table that fits is shuffled exactly.
BUFFER_ROWS = 65_536
BUFFER_BYTES = 256 << 20


@dataclass(frozen=True)
class Rows:
    """Some rows: features `[B, ...]`, raw labels `[B]`, positions in the table `[B]`."""

    x: Array
    labels: Array
    positions: Array

    @classmethod
    def of(cls, batch: Batch, at: Array) -> Rows:
        """Rows of a batch, by their places in it."""
        return cls(batch.x[at], batch.labels[at], batch.start + at)

    @classmethod
    def join(cls, parts: list[Rows]) -> Rows:
        """All rows of some parts."""
        fields = ([p.x for p in parts], [p.labels for p in parts], [p.positions for p in parts])
        return cls(*(np.concatenate(f) for f in fields))

    def take(self, at: Array | slice) -> Rows:
        """Some of them."""
        return Rows(self.x[at], self.labels[at], self.positions[at])

    def __len__(self) -> int:
        """Rows."""
        return len(self.positions)


class Shuffled:
    """The kept rows of a table as minibatches, in an order that is drawn anew for every epoch.

    A table that fits the buffer is read once and permuted as a whole, whatever its shards. Of a larger one, an epoch
    permutes the shards and shuffles inside the buffer.

    With `gaps`, order and minibatches are those of all rows, and rows that are not kept leave gaps in them.

    Args:
        table: the rows.
        columns: that are read.
        keep: whether each row is kept `[n]`.
        size: rows of a minibatch.
        gaps: see above.
        every: all rows of the table, if they are in memory (`hold`): nothing is read.
    """

    def __init__(
        self, table: Table, columns: Columns, keep: Array, size: int, gaps: bool = False, every: Rows | None = None
    ) -> None:
        self._table, self._size = table, size
        self._keep = np.ones_like(keep) if gaps else keep
        self._thinned: Array | None = keep if gaps else None
        self._reader = BatchReader(table, columns)
        self._rows = int(self._keep.sum())
        self._held: Rows | None = None
        if every is not None:
            self._held = every if self._keep.all() else every.take(np.flatnonzero(self._keep))
            return
        self._capacity = max(_buffer_rows(self._reader, table), 2 * size)
        if self._rows <= self._capacity:
            self._held = Rows.join(list(self._kept(range(len(table.shards)))))

    @property
    def steps(self) -> int:
        """Minibatches of an epoch."""
        return len(_cuts(self._rows, self._size))

    def epoch(self, generator: torch.Generator) -> Iterator[Rows]:
        """Minibatches of `size` rows, and a last one of the rest; fewer rows where there are gaps."""
        batches = self._epoch(generator)
        return batches if self._thinned is None else _thin(batches, self._thinned, min(self._size, 2))

    def _epoch(self, generator: torch.Generator) -> Iterator[Rows]:
        if self._held is not None:
            yield from self._split(_permuted(self._held, generator))
            return
        shards = torch.randperm(len(self._table.shards), generator=generator).tolist()
        buffer: list[Rows] = []
        for part in self._kept(shards):
            buffer.append(part)
            held = sum(map(len, buffer))
            if held >= self._capacity:
                rows = _permuted(Rows.join(buffer), generator)
                # At least one batch waits, so that what is left at the end is never less than one.
                out = (held // self._size - 1) * self._size
                yield from self._split(rows.take(slice(out)))
                buffer = [rows.take(slice(out, None))]
        yield from self._split(_permuted(Rows.join(buffer), generator))

    def _kept(self, shards: range | list[int]) -> Iterator[Rows]:
        for k in shards:
            shard = self._table.shards[k]
            if not self._keep[shard.start : shard.start + shard.rows].any():
                continue
            for batch in self._reader.read(shard, READ_ROWS):
                at = np.flatnonzero(self._keep[batch.start : batch.start + len(batch)])
                if len(at):
                    yield Rows.of(batch, at)

    def _split(self, rows: Rows) -> Iterator[Rows]:
        for start, stop in _cuts(len(rows), self._size):
            yield rows.take(slice(start, stop))


def hold(table: Table, columns: Columns) -> Rows | None:
    """All rows of a table in memory, for several trainings on it; None where they do not fit the buffer."""
    reader = BatchReader(table, columns)
    if table.num_rows > _buffer_rows(reader, table):
        return None
    parts = [
        Rows(batch.x, batch.labels, np.arange(batch.start, batch.start + len(batch)))
        for shard in table.shards
        for batch in reader.read(shard, READ_ROWS)
    ]
    return Rows.join(parts)


def _buffer_rows(reader: BatchReader, table: Table) -> int:
    """Rows that the buffer takes, by the size of the first ones."""
    first = next(reader.read(table.shards[0], 64))
    return min(BUFFER_ROWS, BUFFER_BYTES // row_bytes(first.x))


def _cuts(rows: int, size: int) -> list[tuple[int, int]]:
    """Where minibatches begin and end. A single row that is left joins the last one: batch norm needs two."""
    starts = list(range(0, rows, size))
    if size > 1 and rows > size and rows % size == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], rows], strict=True))


def _thin(batches: Iterator[Rows], keep: Array, fewest: int) -> Iterator[Rows]:
    """The kept rows of every minibatch. One of less than `fewest` rows joins the next, or the last one before it."""
    ready: list[Rows] = []
    waiting: list[Rows] = []
    for rows in batches:
        waiting.append(rows.take(np.flatnonzero(keep[rows.positions])))
        if sum(map(len, waiting)) >= fewest:
            if ready:
                yield Rows.join(ready)
            ready, waiting = waiting, []
    if sum(map(len, ready + waiting)):
        yield Rows.join(ready + waiting)


def _permuted(rows: Rows, generator: torch.Generator) -> Rows:
    return rows.take(torch.randperm(len(rows), generator=generator).numpy())


def row_bytes(x: Array) -> int:
    """What a row of some features takes."""
    size = sum(len(v) for v in x.reshape(-1)) if x.dtype == object else x.nbytes
    return max(size // len(x), 1)
