"""A process that decodes shards for the workers, and how a worker comes by them.

Little is imported here: such a process needs neither torch nor the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from rayinf.data.prefetched import Array, Packer
from rayinf.data.shards import Shard
from rayinf.data.tables import ShardReader


class ReaderActor:
    """Decodes the shards of a row group in order, for all workers that share it."""

    def __init__(self) -> None:
        self._held: tuple[str, ShardReader] | None = None
        self._packer = Packer()

    def read(self, name: str, source: list[Any], shard: Shard) -> Array:
        """The packed rows of a shard.

        Args:
            name: of the source.
            source: a reference of the table and of the columns that are read, in a list: it is fetched once.
            shard: of the table.
        """
        if self._held is None or self._held[0] != name:
            table, columns = ray.get(source[0])
            self._held = name, table.open(columns)
        return self._packer.pack(self._held[1].read(shard))  # Ray copies it before the next call


@dataclass(frozen=True)
class PrefetchedRows:
    """The rows that a worker gets with an item.

    Attributes:
        name: of the pass.
        table: that they are of.
        rows: references of packed rows, by the index of their shard.
        seconds: that a worker waits for one of them; None: for ever.
    """

    name: str
    table: str
    rows: Mapping[int, Any]
    seconds: float | None


class Prefetched:
    """The rows that a worker's process has for the item at work.

    They never decide a result: a worker whose reader has died or does not answer reads by itself until the pass ends.
    """

    def __init__(self) -> None:
        self._rows: PrefetchedRows | None = None
        self._failed = ""

    def take(self, rows: PrefetchedRows | None) -> None:
        """What comes with the next item, if anything does."""
        self._rows = rows

    def __call__(self, table: str, shard: Shard) -> Array | None:
        """The packed rows of a shard; None where it has to be read."""
        held = self._rows
        if held is None or held.table != table or shard.index not in held.rows or held.name == self._failed:
            return None
        try:
            packed: Array = ray.get(held.rows[shard.index], timeout=held.seconds)
        except ray.exceptions.RayError:
            self._failed = held.name
            return None
        return packed
