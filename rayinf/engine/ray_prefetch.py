"""Row groups that few hold and many want: decoded once, by a process each, and handed to the workers.

A worker that enters a row group in the middle has to decode all of it up to there. So where a table has far fewer row
groups than there are workers, each is decoded in order by a reader, and shards are dealt out in turn. As many shards as
are under way are held in the object store.
"""

from __future__ import annotations

import bisect
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from rayinf.data.batches import Columns
from rayinf.data.tables import ParquetTable, Table
from rayinf.engine.leaves import shards_of
from rayinf.engine.ray_reader import PrefetchedRows, ReaderActor
from rayinf.engine.ray_session import kill
from rayinf.engine.ray_spread import InTurn, Waiting, few_runs

# A run of fewer shards is decoded several times sooner than a process has started.
_FEWEST_SHARDS = 16
# Of a node's object store, at most.
_SHARE = 0.25
# Of a run's patience, the part that a worker has for a reader.
_PATIENCE_SHARE = 0.25
# A reader that has died begins its row group again. After a few times workers read by themselves.
_TRIES: dict[str, Any] = {"max_restarts": 3, "max_task_retries": 3}


@dataclass(frozen=True)
class Pass:
    """One stage over the items of a table.

    Attributes:
        key: the table's name in the run.
        table: whose shards the items are made of.
        columns: that are read.
        items: by key, in order.
        workers: that share them.
        calls: that each of them may have.
    """

    key: str
    table: Table
    columns: Columns
    items: Mapping[int, Any]
    workers: int
    calls: int


class Prefetch:
    """The items of a pass, each with the rows that a worker is handed with it. Here none: workers read them.

    Attributes:
        waiting: deals the items out.
    """

    def __init__(self, waiting: Waiting | InTurn) -> None:
        self.waiting = waiting

    def rows(self, key: int) -> PrefetchedRows | None:
        """The rows of an item that is sent now, as references that are soon there; None: the worker reads them."""
        return None


class _ByReaders(Prefetch):
    """The items of runs that have a reader each; keys rise."""

    def __init__(self, work: Pass, runs: Sequence[Sequence[int]], readers: Sequence[Any], sends: _Sends) -> None:
        super().__init__(InTurn(runs))
        self._work, self._readers, self._sends = work, readers, sends
        self._firsts = [run[0] for run in runs]
        self._next = list(self._firsts)
        self._name = uuid.uuid4().hex

    def rows(self, key: int) -> PrefetchedRows | None:
        """The rows of an item. One that is sent again comes without: its reader is past it."""
        run = bisect.bisect(self._firsts, key) - 1
        if key < self._next[run]:
            return None
        self._next[run] = key + 1
        reader, sends = self._readers[run], self._sends
        rows = {s.index: reader.read.remote(sends.name, sends.source, s) for s in shards_of(self._work.items[key])}
        return PrefetchedRows(self._name, self._work.key, rows, sends.seconds)


@dataclass(frozen=True)
class _Sends:
    """What every call of a reader holds, and how long a worker waits for it: see `ReaderActor.read`."""

    name: str
    source: list[Any]
    seconds: float | None


class Readers:
    """The readers of a run, started when a pass first needs them.

    Args:
        patience: see `Cluster`.
    """

    def __init__(self, patience: float) -> None:
        self._seconds = None if patience == float("inf") else patience * _PATIENCE_SHARE
        self._actors: list[Any] = []
        self._sent: dict[str, tuple[Table, Columns, _Sends]] = {}

    def prefetch(self, work: Pass) -> Prefetch:
        """How the items of a pass reach the workers."""
        runs = few_runs(work.items, work.workers // 2)
        if runs is None or not isinstance(work.table, ParquetTable) or not _pays(work, work.table, runs):
            return Prefetch(Waiting(work.items))
        while len(self._actors) < len(runs):
            make: Any = ray.remote(num_cpus=0, scheduling_strategy="SPREAD", **_TRIES)(ReaderActor)
            self._actors.append(make.remote())
        return _ByReaders(work, runs, self._actors, self._sends_of(work))

    def _sends_of(self, work: Pass) -> _Sends:
        """What the calls of a pass hold: as in the pass before, so that a reader keeps its file open."""
        table, columns, sends = self._sent.get(work.key, (None, None, None))
        if sends is None or table is not work.table or columns != work.columns:
            source = [ray.put((work.table, work.columns.all))]
            sends = _Sends(uuid.uuid4().hex, source, self._seconds)
            self._sent[work.key] = work.table, work.columns, sends
        return sends

    def close(self) -> None:
        """End them."""
        kill(self._actors)
        self._actors = []


def _pays(work: Pass, table: ParquetTable, runs: Sequence[Sequence[int]]) -> bool:
    """Whether the rows are enough to start processes for, and few enough for the object store."""
    count = largest = 0
    for key in itertools.chain.from_iterable(runs):
        shards = shards_of(work.items[key])
        count, largest = count + len(shards), max(largest, sum(s.rows for s in shards))
    if count < _FEWEST_SHARDS * len(runs):
        return False
    return largest * table.row_bytes * work.workers * work.calls <= _SHARE * _object_store()


def _object_store() -> float:
    """Bytes of the smallest object store of a node."""
    sizes = [n["Resources"].get("object_store_memory", 0.0) for n in ray.nodes() if n["Alive"]]
    return min(sizes, default=0.0)
