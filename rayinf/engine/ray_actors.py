"""The processes of a run on Ray: workers that do stages, and the store of factors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from rayinf.data.prefetched import PrefetchedTable
from rayinf.engine import ray_calls
from rayinf.engine.factors import FactorStore
from rayinf.engine.job import Cluster
from rayinf.engine.leaves import Group
from rayinf.engine.leftovers import remove, sweep_temporaries
from rayinf.engine.ray_calls import REPORTS, Life, check_deaths, get, label, processor_seconds
from rayinf.engine.ray_memory import MemoryDeaths
from rayinf.engine.ray_reader import Prefetched, PrefetchedRows
from rayinf.engine.stages import Stage, group_sum, perform
from rayinf.engine.worker import Worker
from rayinf.store.places import AnyPath


@dataclass(frozen=True)
class Work:
    """What the calls of one stage share. A worker fetches it once, with the job and the arrays that it names.

    Attributes:
        name: another for every pass.
        stage: its class.
        options: its own.
        table: whose rows it reads, for errors.
        key: of the job.
        job: a reference.
        arrays: a reference of what the stage needs beside the job, or a list of them.
    """

    name: str
    stage: type[Stage]
    options: dict[str, Any]
    table: str
    key: str
    job: Any
    arrays: Any


@dataclass(frozen=True)
class Halved:
    """A result that was made in smaller batches.

    Attributes:
        result: of the stage.
        halvings: how often batches were halved, by stage.
    """

    result: Any
    halvings: dict[str, int]


class WorkerActor:
    """A worker in its own process, for stages and for whole trainings: one may follow the other in a loop.

    Its stage is rebuilt where a restart has lost it. Where its former process was ended for want of memory, its batches
    are half as large.
    """

    def __init__(self, threads: int, device: str, most_deaths: int, most_deaths_of_trainings: int) -> None:
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)
        self._device, self._most_deaths = device, most_deaths
        self._most_deaths_of_trainings = most_deaths_of_trainings
        self._function: tuple[Any, Callable[[Any], Any]] | None = None
        self._trains = False
        self._worker: Worker | None = None
        self._held: tuple[Work, Stage | None] | None = None
        self._prefetched = Prefetched()
        self._steps = 0
        self._thread: int | None = None
        self._life = Life(self._progressed)

    @ray.method(concurrency_group=REPORTS)
    def ready(self) -> int:
        """Answers once the process is up: its id."""
        return os.getpid()

    @ray.method(concurrency_group=REPORTS)
    def progress(self) -> tuple[str, float]:
        """Answers while a call is under way: the process's name; how far it is.

        That is steps that it has begun and rows that it has read; in a decomposition, processor seconds. A training has
        no count of its own: while its process answers, it is taken to go on.
        """
        return self._life.report()

    def run(self, name: str, work: list[Any], item: Any, rows: PrefetchedRows | None) -> Any:
        """The stage's result for an item.

        Args:
            name: of the pass.
            work: its `Work` as a reference in a list: one that is an argument itself is fetched with every call.
            item: of the stage.
            rows: that the worker need not read.
        """
        self._prefetched.take(rows)
        return self._marked(perform(self._ready(name, work, item), item))

    def train(self, function: list[Any], item: Any, what: str) -> Any:
        """A function's result for an item, such as a whole training. The function stays, with what it has built up.

        Args:
            function: a reference in a list, which is fetched once, not with every call.
            item: what it is called with.
            what: the item, for errors.
        """
        self._trains = True
        check_deaths(what, self._most_deaths_of_trainings)
        if self._function is None or self._function[0] != function[0]:
            self._function = function[0], ray.get(function[0])
        return self._function[1](item)

    def _marked(self, found: Any) -> Any:
        """A result, with how often batches were halved if they were."""
        return Halved(found, self._worker.halved) if self._worker and self._worker.halved else found

    def run_alone(self, name: str, work: list[Any], item: Any, before: int, keep: bool) -> Any:
        """The stage's result for an item that has failed elsewhere, as the only call of this actor.

        Args:
            name: of the pass.
            work: as in `run`.
            item: of the stage.
            before: restarts of this actor when the call was sent.
            keep: False gives None: only whether it fails is asked.
        """
        self._prefetched.take(None)
        found = perform(self._ready(name, work, item, before), item)
        return self._marked(found) if keep else None

    def run_part(self, name: str, work: list[Any], item: Any, store: Any, into: tuple[str, int]) -> None:
        """Send the result for an item to the store, as a part of an artefact."""
        self._thread = threading.get_ident()
        try:
            found = perform(self._ready(name, work, item), item)
        finally:
            self._thread = None
        self._note(store)
        get(store.call("put_part", *into, found)[0])

    def _note(self, store: Any) -> None:
        """Say that batches were smaller, before the store has what was made in them."""
        if self._worker and self._worker.halved:
            get(store.call("note_halvings", self._worker.halved)[0])

    @cached_property
    def _memory(self) -> MemoryDeaths:
        return MemoryDeaths()

    def rest(self) -> bool:
        """Forget the job of the last run; whether another one can use this process: not one of smaller batches."""
        self._worker = self._held = self._function = None
        self._prefetched.take(None)
        return not self._memory.count

    def _progressed(self) -> float:
        if self._trains:
            return time.monotonic()
        thread, rows = self._thread, self._worker.rows_read if self._worker else 0
        return self._steps + rows + (0.0 if thread is None else processor_seconds(thread))

    def _ready(self, name: str, work: list[Any], item: Any, before: int = 0) -> Stage:
        """The stage of a pass, for an item; `before` as in `check_deaths`."""
        self._trains = False
        if self._held is None or self._held[0].name != name:
            self._held = get(work[0]), None
        held, stage = self._held
        shown = label(held.stage, held.table, item)
        check_deaths(shown, self._most_deaths, lambda: self._memory.count, before)
        self._steps += 1
        if self._worker is None or self._worker.job.key != held.key:
            job = get(held.job)
            halvings = self._worker.halvings if self._worker else self._memory.count
            drawn = self._worker.drawn if self._worker else None
            tables = {
                key: PrefetchedTable(table, key, tuple(job.columns[key].all), self._prefetched)
                for key, table in job.tables.items()
            }
            self._worker, stage = Worker(replace(job, tables=tables), self._device, halvings, drawn), None
        self._memory.note()
        if stage is None:
            stage = held.stage(self._worker, get(held.arrays), **held.options)
            self._held = held, stage
            self._steps += 1
        return stage

    def run_into(
        self, name: str, work: list[Any], group: Group, store: Any, into: tuple[str, int], rows: PrefetchedRows | None
    ) -> None:
        """Send the sums of a group of chunks to the store; a retry after a crash counts once, by its key."""
        self._prefetched.take(rows)
        stage = self._ready(name, work, group)
        sums = group_sum(stage, group)
        self._note(store)
        get(store.call("add", *into, group.index, sums, group.level)[0])


def started_with(cluster: Cluster) -> tuple[int, str, int, int]:
    """What a worker of a cluster is started with: where it is the same, one can be used in place of another."""
    threads, device = max(1, int(cluster.cpus_per_worker)), "cuda" if cluster.gpus_per_worker else "cpu"
    return threads, device, ray_calls.MOST_DEATHS, ray_calls.MOST_DEATHS_OF_TRAININGS


class StoreActor:
    """The store of factors in its own process."""

    def __init__(self, most_deaths: int) -> None:
        sweep_temporaries()
        self._most_deaths = most_deaths
        self._held: tuple[Place, FactorStore] | None = None
        self._thread: int | None = None
        # A decomposition says nothing of how far it is; but one that hangs takes no processor time.
        self._life = Life(lambda: processor_seconds(self._thread))

    @ray.method(concurrency_group=REPORTS)
    def ready(self) -> int:
        """Answers once the process is up: its id."""
        return os.getpid()

    @ray.method(concurrency_group=REPORTS)
    def progress(self) -> tuple[str, float]:
        """Answers while a call is under way: the process's name, and processor seconds of the thread that works."""
        return self._life.report()

    @ray.method(concurrency_group=REPORTS)
    def clean(self, folder: Path) -> None:
        """Remove a temporary folder on the machine where the store runs."""
        remove(folder)

    def rest(self) -> bool:
        """Forget the state of the last run; whether another one can use this process."""
        self._held = None
        return True

    @ray.method(num_returns=2)
    def call(self, place: Place, method: str, *args: Any) -> tuple[bool, Any]:
        """A method's value, after a sign that it has one: the sign can be had without fetching the value."""
        names = [a for a in args[:1] if isinstance(a, str)]
        check_deaths(f"{' '.join([method, *names])!r} in the store of factors", self._most_deaths)
        self._thread = threading.get_ident()
        if self._held is None or self._held[0] != place:
            self._held = place, FactorStore(*place)
        return True, getattr(self._held[1], method)(*args)


# Where the state of a store lies, and whose it is.
Place = tuple[AnyPath, str]


@dataclass(frozen=True)
class Store:
    """The store of a run, as its workers call it.

    Attributes:
        actor: in whose process it is.
        place: of its state.
    """

    actor: Any
    place: Place

    def call(self, method: str, *args: Any) -> list[Any]:
        """References of a sign and of a method's value."""
        found: list[Any] = self.actor.call.remote(self.place, method, *args)
        return found
