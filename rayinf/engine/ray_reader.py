"""A process that decodes shards for the workers, and how a worker comes by them.

Little is imported here: such a process needs neither torch nor the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from rayinf.data.handed import Array, Packer
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
class Given:
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


class Handed:
    """The rows that a worker's process was given for the item at work.

    They never decide a result: a worker whose reader has died or does not answer reads by itself until the pass ends.
    """

    def __init__(self) -> None:
        self._given: Given | None = None
        self._failed = ""

    def take(self, given: Given | None) -> None:
        """What comes with the next item, if anything does."""
        self._given = given

    def __call__(self, table: str, shard: Shard) -> Array | None:
        """The packed rows of a shard; None where it has to be read."""
        given = self._given
        if given is None or given.table != table or shard.index not in given.rows or given.name == self._failed:
            return None
        try:
            held: Array = ray.get(given.rows[shard.index], timeout=given.seconds)
        except ray.exceptions.RayError:
            self._failed = given.name
            return None
        return held
