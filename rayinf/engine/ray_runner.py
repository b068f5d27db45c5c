"""The runner on Ray: actors that hold the model, one central store of factors, bounded work in flight."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from rayinf.engine import ray_calls, ray_token
from rayinf.engine.curvature import MOST_THREADS
from rayinf.engine.factors import FactorStore
from rayinf.engine.failed_shards import Failures
from rayinf.engine.job import Chunk, Cluster, Job
from rayinf.engine.leaves import Group, groups
from rayinf.engine.leftovers import remove, sweep_temporaries, temporary_folder
from rayinf.engine.ray_calls import (
    FAULTS,
    REPORTS,
    Life,
    Watch,
    check_deaths,
    get,
    label,
    processor_seconds,
    restarts_of,
)
from rayinf.engine.ray_cluster import connect, near_driver, owns_ray, wait_ready
from rayinf.engine.ray_failed import OnceMore, Outcomes
from rayinf.engine.ray_metrics import Meter, meter
from rayinf.engine.ray_spread import spread
from rayinf.engine.stages import Stage, group_sum, perform
from rayinf.engine.worker import Worker
from rayinf.store.places import AnyPath
from rayinf.user_code import sendable

# Calls that wait in an actor while another runs: hides the way back to the driver, and loses little with the actor.
_IN_FLIGHT = 2
_CLEAN_SECONDS = 10.0


@dataclass(frozen=True)
class _Work:
    """What the calls of one stage share. A worker fetches it once, with the job and the arrays that it names.

    Attributes:
        name: another for every pass.
        stage: its class.
        options: its own.
        table: whose rows it reads, for errors.
        key: of the job.
        job: a reference.
        arrays: a reference of what the stage needs beside the job.
    """

    name: str
    stage: type[Stage]
    options: dict[str, Any]
    table: str
    key: str
    job: Any
    arrays: Any


class _Actor:
    """A worker in its own process; its stage is rebuilt where a restart has lost it."""

    def __init__(self, threads: int, device: str, most_deaths: int) -> None:
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)
        self._device, self._most_deaths = device, most_deaths
        self._worker: Worker | None = None
        self._held: tuple[_Work, Stage | None] | None = None
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

        That is steps that it has begun and rows that it has read; in a decomposition, processor seconds.
        """
        return self._life.report()

    def run(self, name: str, work: list[Any], item: Any) -> Any:
        """The stage's result for an item.

        Args:
            name: of the pass.
            work: its `_Work` as a reference in a list: one that is an argument itself is fetched with every call.
            item: of the stage.
        """
        return perform(self._ready(name, work, item), item)

    def run_alone(self, name: str, work: list[Any], item: Any, before: int, keep: bool) -> Any:
        """The stage's result for an item that has failed elsewhere, as the only call of this actor.

        Args:
            name: of the pass.
            work: as in `run`.
            item: of the stage.
            before: restarts of this actor when the call was sent.
            keep: False gives None: only whether it fails is asked.
        """
        found = perform(self._ready(name, work, item, before), item)
        return found if keep else None

    def run_part(self, name: str, work: list[Any], item: Any, store: Any, into: tuple[str, int]) -> None:
        """Send the result for an item to the store, as a part of an artefact."""
        self._thread = threading.get_ident()
        try:
            found = self.run(name, work, item)
        finally:
            self._thread = None
        get(store.call.remote("put_part", *into, found)[0])

    def _progressed(self) -> float:
        thread, rows = self._thread, self._worker.rows_read if self._worker else 0
        return self._steps + rows + (0.0 if thread is None else processor_seconds(thread))

    def _ready(self, name: str, work: list[Any], item: Any, before: int = 0) -> Stage:
        """The stage of a pass, for an item; `before` as in `check_deaths`."""
        if self._held is None or self._held[0].name != name:
            self._held = get(work[0]), None
        held, stage = self._held
        check_deaths(label(held.stage, held.table, item), self._most_deaths, before)
        self._steps += 1
        if self._worker is None or self._worker.job.key != held.key:
            self._worker, stage = Worker(get(held.job), self._device), None
        if stage is None:
            stage = held.stage(self._worker, get(held.arrays), **held.options)
            self._held = held, stage
            self._steps += 1
        return stage

    def run_into(self, name: str, work: list[Any], group: Group, store: Any, into: tuple[str, int]) -> None:
        """Send the sums of a group of chunks to the store; a retry after a crash counts once, by its key."""
        stage = self._ready(name, work, group)
        sums = group_sum(stage, group)
        get(store.call.remote("add", *into, group.index, sums, group.level)[0])


class _Store:
    """The store of factors in its own process."""

    def __init__(self, make: Callable[[], FactorStore], most_deaths: int) -> None:
        sweep_temporaries()
        self._most_deaths = most_deaths
        self._store = make()
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

    @ray.method(num_returns=2)
    def call(self, method: str, *args: Any) -> tuple[bool, Any]:
        """A method's value, after a sign that it has one: the sign can be had without fetching the value."""
        names = [a for a in args[:1] if isinstance(a, str)]
        check_deaths(f"{' '.join([method, *names])!r} in the store of factors", self._most_deaths)
        self._thread = threading.get_ident()
        return True, getattr(self._store, method)(*args)


class RayRunner:
    """Actors on a cluster. Who does which item is left to chance; what comes out is not.

    Ray, the workers and the store are started when the first of them is needed: a finished run needs none.
    """

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self._cluster = cluster
        self._count = itertools.count()
        self._run = uuid.uuid4().hex
        self._factors: tuple[AnyPath | None, str] = (None, "")
        self._actors: list[Any] = []
        self._store: Any = None
        self._connected = self._started = False
        self._meter: Meter | None = None
        self._deaths = 0
        self._temporary: Path | None = None
        self._held: list[Any] = []  # the store, for when this object is lost without being closed
        self._clean: Callable[[], object] = _nothing
        self._job = job
        self._job_ref: Any = None

    def open_store(self, folder: AnyPath | None, owner: str) -> None:
        """Have a store of factors, in an actor of its own that is started when it is first needed."""
        self._factors = (folder, owner)

    @property
    def job(self) -> Job:
        """The run's description, which every worker fetches once."""
        return self._job

    @job.setter
    def job(self, job: Job) -> None:
        self._job, self._job_ref = job, None

    def map(
        self,
        stage: type[Stage],
        arrays: Any,
        items: Mapping[int, Any],
        failed: Failures | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Results by key, as they finish.

        Raises:
            RunError: an item that ends one process after the other; nothing that moves for `Cluster.patience` seconds.
        """
        table = options.get("table", self._job.scored)
        name, work = self._send(stage, arrays, table, options)
        first = Outcomes(failed)
        yield from first.results(
            spread(
                self._workers() * _IN_FLIGHT,
                items,
                lambda actor, key: first.sent(actor, key).run.remote(name, work, items[key]),
                Watch(self._cluster.patience),
                lambda key: label(stage, table, items[key]),
                again=True,
                ended=first.ended,
            )
        )
        if failed is not None and first.errors:
            again = {k: items[k] for k in first.errors}
            yield from self._once_more(table, name, work).results(first, again, failed)

    def fold(
        self,
        stage: type[Stage],
        arrays: Any,
        items: Mapping[int, Chunk],
        name: str,
        failed: Failures | None = None,
    ) -> Iterator[int]:
        """Add the sums of each chunk to the store, until none is missing: a store that lost its disk asks again.

        Raises:
            RunError: as `map`.
        """
        table = getattr(stage, "table", "train")
        mark, work = self._send(stage, arrays, table, {})
        count = len(items)
        todo: dict[int, Group] = {}
        first = Outcomes(failed)
        while left := self.store("pending", name, count):
            todo.clear()
            todo.update(groups(items, left, self._cluster.workers))
            for key, _ in first.results(
                spread(
                    self._workers() * _IN_FLIGHT,
                    todo,
                    lambda actor, key: first.sent(actor, key).run_into.remote(
                        mark, work, todo[key], self._store, (name, count)
                    ),
                    Watch(self._cluster.patience, {"the store of factors": self._store}),
                    lambda key: label(stage, table, todo[key]),
                    again=True,
                    ended=first.ended,
                )
            ):
                yield from todo[key].keys
            if failed is not None and first.errors:
                self._once_more(table, mark, work).find(first, todo, failed)
                if failed.found:
                    return
                first.errors.clear()

    def fill(
        self, stage: type[Stage], arrays: Any, items: Mapping[int, Any], name: str, **options: Any
    ) -> Iterator[int]:
        """Put the result of each item into the store, until none is missing. One call at a time an actor.

        Raises:
            RunError: as `map`.
        """
        mark, work = self._send(stage, arrays, name, options)
        while left := self.store("missing_parts", name, list(items)):
            for key, ref in spread(
                self._workers(),
                {k: items[k] for k in left},
                lambda actor, key: actor.run_part.remote(mark, work, items[key], self._store, (name, key)),
                Watch(self._cluster.patience, {"the store of factors": self._store}),
                lambda key: label(stage, name, items[key]),
            ):
                get(ref)
                yield key

    def store(self, method: str, *args: Any) -> Any:
        """Call the store of factors; the value of its method."""
        return get(self.publish(method, *args))

    def publish(self, method: str, *args: Any) -> Any:
        """Call the store of factors; a reference to its arrays.

        Raises:
            RunError: a call that ends one process after the other; one that does not move for `Cluster.patience`
                seconds.
        """
        sign, ref = self._standing_store().call.remote(method, *args)
        what = " ".join([repr(method), *[a for a in args[:1] if isinstance(a, str)]])
        Watch(self._cluster.patience).wait([sign], lambda: {f"{what} in the store of factors": self._store})
        get(sign)
        return ref

    def count(self, name: str, value: float, verb: str, stage: str) -> None:
        """Count in the cluster's metrics; with the seconds of a stage, how often workers died meanwhile."""
        if self._meter is None:
            return
        self._meter.add(name, value, verb, stage)
        if name == "rayinf_stage_seconds":
            deaths = sum(restarts_of(actor) for actor in self._actors)
            self._meter.add("rayinf_retries", deaths - self._deaths, verb, stage)
            self._deaths = deaths

    def close(self) -> None:
        """End the actors, remove the temporary folder, and end Ray too if this run started it."""
        if self._temporary is not None and self._store is not None and ray.is_initialized():
            cleaned = self._store.clean.remote(self._temporary)  # its machine may be another
            ray.wait([cleaned], timeout=_CLEAN_SECONDS)
        _kill([*self._actors, *self._held])
        self._actors, self._store = [], None
        self._held.clear()
        self._clean()
        if self._started:
            self._started = False
            ray_token.stop()

    def _connect(self) -> None:
        if not self._connected:
            self._started = connect(self._cluster, self._cluster.workers, _model_bytes(self._job))
            self._connected = True
            self._meter = meter(own=self._cluster.address is None and (self._started or owns_ray()))

    def _workers(self) -> list[Any]:
        """The workers, started once."""
        if not self._actors:
            self._connect()
            c = self._cluster
            groups: dict[str, Any] = {"concurrency_groups": {REPORTS: 1}}
            actor: Any = ray.remote(num_cpus=c.cpus_per_worker, num_gpus=c.gpus_per_worker, **groups, **FAULTS)(_Actor)
            device = "cuda" if c.gpus_per_worker else "cpu"
            threads = max(1, int(c.cpus_per_worker))
            self._actors = [actor.remote(threads, device, ray_calls.MOST_DEATHS) for _ in range(c.workers)]
            wait_ready(self._actors, c)
        return self._actors

    def _once_more(self, table: str, *work: Any) -> OnceMore:
        return OnceMore(self._workers(), work, self._cluster.patience, self._job.tables[table].name)

    def _standing_store(self) -> Any:
        """The store, started once."""
        if self._store is None:
            folder, owner = self._factors
            if folder is None:
                folder = self._temporary = temporary_folder()
                self._clean = weakref.finalize(self, _abandon, self._held, folder)  # also when the process ends
            self._start_store(folder, owner)
        return self._store

    def _start_store(self, folder: AnyPath, owner: str) -> None:
        self._connect()
        groups: dict[str, Any] = {"concurrency_groups": {REPORTS: 1}}
        # Without a folder of the user's its state lies on the machine of this process, without which no run goes on.
        where = near_driver(soft=self._temporary is None)
        env = _threads_env(MOST_THREADS)
        store: Any = ray.remote(num_cpus=0, runtime_env=env, scheduling_strategy=where, **groups, **FAULTS)(_Store)
        self._store = store.remote(partial(FactorStore, folder, owner), ray_calls.MOST_DEATHS)
        self._held.append(self._store)
        wait_ready([self._store], self._cluster)

    def _send(self, stage: type[Stage], arrays: Any, table: str, options: dict[str, Any]) -> tuple[str, list[Any]]:
        """The name of a pass, and a reference of what its calls share, in a list."""
        self._connect()
        if self._job_ref is None:
            with sendable():
                self._job_ref = ray.put(self._job)
        held = arrays if isinstance(arrays, ray.ObjectRef) else ray.put(arrays)
        name = f"{self._run}-{next(self._count)}"
        return name, [ray.put(_Work(name, stage, options, table, self._job.key, self._job_ref, held))]


def _abandon(actors: list[Any], folder: Path) -> None:
    """Remove a temporary folder, and first what would write into it again."""
    _kill(actors)
    remove(folder)


def _kill(actors: Iterable[Any]) -> None:
    for actor in actors:
        with suppress(Exception):  # Ray itself may be gone
            ray.kill(actor)


def _model_bytes(job: Job) -> int:
    """Bytes of the model, where it is there without being built."""
    model = job.task.model
    return sum(p.numel() * p.element_size() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def _threads_env(count: int) -> dict[str, Any]:
    return {"env_vars": {"OMP_NUM_THREADS": str(count)}}


def _nothing() -> None:
    """There is no temporary folder to remove."""
