"""Shards that cannot be worked on by their own fault: tried again, told from their neighbours, named.

A shard fails by its own fault where the user's code raises on its rows, a page of its file is damaged, or its values
are not finite: a `RowsError`. Errors of a machine, a network or a store are not the shard's own (a `ReadError` is tried
again and then ends the run), and neither is a model that cannot be built. On Ray a shard that ends one process after
the other is at fault too (`ray_failed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayinf.data.shards import Shard
from rayinf.engine.job import Chunk
from rayinf.errors import ReadError, RowsError

# How often a shard is tried, and the seconds before each further try: what fails for a moment may work then.
TRIES = 3
_PAUSES = (0.05, 0.2)


@dataclass(frozen=True)
class FailedShard:
    """A shard that failed every time.

    Attributes:
        table: the name of its table.
        shard: where it lies.
        what: happened.
        fix: of that.
    """

    table: str
    shard: Shard
    what: str
    fix: str

    @property
    def rows(self) -> tuple[int, int]:
        """Its first and its last row."""
        return self.shard.start, self.shard.start + self.shard.rows - 1

    @property
    def where(self) -> str:
        """Its rows and its file, in words."""
        file = f" ({self.shard.file})" if self.shard.file else ""
        return f"rows {self.rows[0]} to {self.rows[1]} of {self.table}{file}"


class ShardError(RowsError):
    """Shards that failed every time.

    Attributes:
        failed: they, with what happened to each.
    """

    def __init__(self, what: str, fix: str, failed: tuple[FailedShard, ...] = ()) -> None:
        """An error with the shards that it is about."""
        super().__init__(what, fix)
        self.failed = failed

    @classmethod
    def of(cls, failed: tuple[FailedShard, ...]) -> ShardError:
        """The error that names the first of them."""
        first, more = failed[0], len(failed) - 1
        also = f"; {more} more shard{'s' * (more > 1)} failed too" if more else ""
        where = first.where[0].upper() + first.where[1:]
        return cls(f"{where} failed {TRIES} times: {first.what.rstrip('.')}{also}.", first.fix, failed)

    def __reduce__(self) -> tuple[type, Any]:
        """Travel between processes with the shards."""
        return type(self), (self.what, self.fix, self.failed)


class Failures:
    """The shards that fail in a pass over many.

    Args:
        goes_on: whether the pass goes on without them; else it ends once what is under way has come in.

    Attributes:
        found: those that failed.
        first: the error of the first of them.
    """

    def __init__(self, goes_on: bool) -> None:
        self.goes_on = goes_on
        self.found: list[FailedShard] = []
        self.first: Exception | None = None

    def note(self, failed: tuple[FailedShard, ...], error: Exception) -> None:
        """Take in shards that failed, with the error that says so."""
        self.first = self.first or error
        self.found += failed

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be begun."""
        return bool(self.found) and not self.goes_on


def tried(work: Callable[[Any], Any], item: Any, table: Callable[[], str]) -> Any:
    """The result for an item, tried again where its rows fail.

    Args:
        work: gives it.
        item: a shard, a chunk of several, or anything else.
        table: the name of the table that was read last.

    Raises:
        ShardError: shards that fail every time: of a chunk those that fail by themselves.
        RowsError: rows that fail every time, where that is not the fault of single shards.
    """
    try:
        return _repeated(work, item)
    except RowsError as error:
        failed = _failing(work, item, error, table)
        if not failed:
            raise
        found = ShardError.of(failed)
        raise found from error


def _repeated(work: Callable[[Any], Any], item: Any) -> Any:
    for pause in _PAUSES:
        try:
            return work(item)
        except RowsError:
            time.sleep(pause)
    return work(item)


def _failing(
    work: Callable[[Any], Any], item: Any, error: RowsError, table: Callable[[], str]
) -> tuple[FailedShard, ...]:
    """The shards of an item that failed, which fail by themselves too."""
    if isinstance(error, ReadError):
        return ()
    if isinstance(item, Shard):
        return (FailedShard(table(), item, error.what, error.fix),)
    if not isinstance(item, Chunk):
        return ()
    if len(item.shards) == 1:
        return (FailedShard(table(), item.shards[0], error.what, error.fix),)
    found: list[FailedShard] = []
    for shard in item.shards:
        try:
            _repeated(work, Chunk((shard,)))
        except ReadError:
            raise
        except RowsError as own:
            found.append(FailedShard(table(), shard, own.what, own.fix))
    return tuple(found)
