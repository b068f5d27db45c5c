"""Rows in blocks of one fixed size, so that no sum depends on how the table is cut into shards and batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Groups of rows for the bootstrap. A prime, so that rows in a repeating order of classes spread over all groups.
GROUPS = 2003
ROWS = 4 * GROUPS


def blocks(batches: Iterable[tuple[Array, ...]], rows: int = ROWS) -> Iterator[tuple[Array, ...]]:
    """The same rows in blocks of `rows`, the last one shorter.

    Args:
        batches: arrays that share their first axis, in row order.
        rows: of a block.
    """
    held: list[tuple[Array, ...]] = []
    have = 0
    for batch in batches:
        start, size = 0, len(batch[0])
        while start < size:
            stop = min(size, start + rows - have)
            held.append(tuple(part[start:stop] for part in batch))
            have += stop - start
            start = stop
            if have == rows:
                yield _joined(held)
                held, have = [], 0
    if have:
        yield _joined(held)


def _joined(held: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    return tuple(np.ascontiguousarray(p[0]) if len(p) == 1 else np.concatenate(p) for p in zip(*held, strict=True))


def group_sums(values: Array) -> Array:
    """Sums `[GROUPS, ...]` of the rows of a block, by their place in it modulo `GROUPS`."""
    rows = len(values)
    if rows % GROUPS:
        padded = np.zeros((-(-rows // GROUPS) * GROUPS, *values.shape[1:]))
        padded[:rows] = values
        values = padded
    summed: Array = values.reshape(-1, GROUPS, *values.shape[1:]).sum(0)
    return summed


class Nearest:
    """The rows of smallest key, up to a capacity, with further columns of theirs; memory does not grow with rows."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._parts: list[dict[str, Array]] = []
        self._held = 0
        self._limit = np.inf

    def add(self, key: Array, **columns: Array) -> None:
        """Offer rows: `key [B]`, and columns `[B, ...]`; keys that are not finite are ignored."""
        rows = np.flatnonzero(key < self._limit)
        if len(rows):
            self._parts.append({"key": key[rows], **{name: held[rows] for name, held in columns.items()}})
            self._held += len(rows)
            if self._held > 2 * self._capacity:
                self._compact()

    def take(self) -> dict[str, Array]:
        """The rows that are kept, in the order in which they were added; an empty dict where there are none."""
        if self._parts:
            self._compact()
        return self._parts[0] if self._parts else {}

    def _compact(self) -> None:
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        if self._held > self._capacity:
            kept = np.sort(np.argpartition(joined["key"], self._capacity - 1)[: self._capacity])
            joined = {name: held[kept] for name, held in joined.items()}
            self._held, self._limit = self._capacity, float(joined["key"].max())
        self._parts = [joined]
