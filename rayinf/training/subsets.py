"""Random subsets of a table's rows: the same rows in any order of the table, in any number of shards or processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.data.batches import Array, BatchReader, Columns, mix, row_keys
from rayinf.data.labels import Classes
from rayinf.data.tables import READ_ROWS, Table


@dataclass(frozen=True)
class Subsets:
    """Subsets of one size, as many as are asked for: the first ones stay the same when there are more.

    Every row has a key, made of its content and, among equal rows, of its place; for each subset the keys are hashed
    anew, and the rows with the smallest hashes are kept.

    Attributes:
        keys: of the rows `[n]`, all different.
        kept: rows of a subset.
        seed: of the draw.
    """

    keys: Array
    kept: int
    seed: int

    @property
    def rows(self) -> int:
        """Rows of the table, n."""
        return len(self.keys)

    def keep(self, subset: int) -> Array:
        """Whether each row is kept in a subset, `[n]`."""
        drawn = self._draws(subset, 0, self.rows)
        found: Array = drawn <= np.partition(drawn, self.kept - 1)[self.kept - 1]
        return found

    def thresholds(self, subsets: int) -> Sequence[Any]:
        """The largest hash that is kept, of each of the first subsets."""
        return [np.partition(self._draws(j, 0, self.rows), self.kept - 1)[self.kept - 1] for j in range(subsets)]

    def left_out(self, thresholds: Sequence[Any], start: int, rows: int) -> Array:
        """Whether some consecutive rows are left out of each subset, `[B, J]`."""
        return np.stack([self._draws(j, start, rows) > most for j, most in enumerate(thresholds)], axis=1)

    def _draws(self, subset: int, start: int, rows: int) -> Array:
        """A hash for each of some consecutive rows: different keys have different ones."""
        own = mix(np.array([self.seed], np.uint64)) + np.uint64(subset + 1)
        return mix(self.keys[start : start + rows] ^ mix(own))


def read_keys(table: Table, columns: Columns, classes: Classes) -> tuple[Array, Array]:
    """The key of every row and its class, `[n]` each: one pass over the table, 12 bytes a row."""
    keys, codes = np.empty(table.num_rows, np.uint64), np.empty(table.num_rows, np.int32)
    reader = BatchReader(table, columns)
    for shard in table.shards:
        for batch in reader.read(shard, READ_ROWS):
            at = slice(batch.start, batch.start + len(batch))
            keys[at], codes[at] = row_keys(batch.x, batch.labels), classes.encode(batch.labels)
    return _distinct(keys), codes


def _distinct(keys: Array) -> Array:
    """Keys that are all different: of equal ones, the second, third, ... are hashed with their number.

    Equal rows are interchangeable, so this does not depend on their order either.
    """
    order = np.argsort(keys, kind="stable")
    held = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], held[1:] != held[:-1]]))
    number = np.arange(len(keys)) - np.repeat(begins, np.diff([*begins, len(keys)]))
    again = number > 0
    out = keys.copy()
    out[order[again]] = mix(held[again] ^ mix(number[again].astype(np.uint64)))
    return out
