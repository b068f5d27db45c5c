"""The runner on Ray: workers that hold the model, one central store of factors, bounded work in flight."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from rayinf.engine import ray_calls, ray_token
from rayinf.engine.curvature import MOST_THREADS
from rayinf.engine.failed_shards import Failures
from rayinf.engine.job import Chunk, Cluster, Job
from rayinf.engine.leaves import FEWEST, Group, groups
from rayinf.engine.leftovers import remove, temporary_folder
from rayinf.engine.ray_actors import Halved, Store, StoreActor, Work, WorkerActor, started_with
from rayinf.engine.ray_calls import FAULTS, REPORTS, Watch, get, label
from rayinf.engine.ray_cluster import connect, near_driver, wait_ready
from rayinf.engine.ray_failed import OnceMore, Outcomes
from rayinf.engine.ray_metrics import Meter, meter
from rayinf.engine.ray_pool import Pool
from rayinf.engine.ray_prefetch import Pass, Prefetch, Readers
from rayinf.engine.ray_session import Kind, give_back, kill, owns_ray, take
from rayinf.engine.ray_spread import Waiting, spread
from rayinf.engine.room import workers_now
from rayinf.engine.stages import Stage
from rayinf.store.places import AnyPath
from rayinf.user_code import sendable

# Calls that wait in an actor while another runs: hides the way back to the driver, and loses little with the actor.
_IN_FLIGHT = 2
_CLEAN_SECONDS = 10.0


class RayRunner:
    """Actors on a cluster. Who does which item is left to chance; what comes out is not.

    Ray, the workers and the store are started when the first of them is needed: a finished run needs none.
    """

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self._cluster = cluster
        self._count = itertools.count()
        self._run = uuid.uuid4().hex
        self._factors: tuple[AnyPath | None, str] = (None, "")
        self._pool: Pool | None = None
        self._readers = Readers(cluster.patience)
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
        first, prefetch = Outcomes(failed), self._prefetch(table, items)
        done = first.results(
            spread(
                self._workers().slots(_IN_FLIGHT),
                prefetch.waiting,
                lambda actor, key: first.sent(actor, key).run.remote(name, work, items[key], prefetch.rows(key)),
                Watch(self._cluster.patience),
                lambda key: label(stage, table, items[key]),
                again=True,
                ended=first.ended,
            )
        )
        for key, found in done:
            yield key, self._plain(found)
        if failed is not None and first.errors:
            again = {k: items[k] for k in first.errors}
            for key, found in self._once_more(table, name, work).results(first, again, failed):
                yield key, self._plain(found)

    def fold(
        self,
        stage: type[Stage],
        arrays: Any,
        items: Mapping[int, Chunk],
        name: str,
        failed: Failures | None = None,
        fewest: int = FEWEST,
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

        def into(prefetch: Prefetch, actor: Any, key: int) -> Any:
            args = (mark, work, todo[key], self._store, (name, count), prefetch.rows(key))
            return first.sent(actor, key).run_into.remote(*args)

        while left := self.store("pending", name, count):
            todo.clear()
            todo.update(groups(items, left, self._workers().count, fewest))
            prefetch = self._prefetch(table, todo)
            for key, _ in first.results(
                spread(
                    self._workers().slots(_IN_FLIGHT),
                    prefetch.waiting,
                    partial(into, prefetch),
                    Watch(self._cluster.patience, {"the store of factors": self._store.actor}),
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
                self._workers().slots(1),
                Waiting({k: items[k] for k in left}),
                lambda actor, key: actor.run_part.remote(mark, work, items[key], self._store, (name, key)),
                Watch(self._cluster.patience, {"the store of factors": self._store.actor}),
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
        sign, ref = self._standing_store().call(method, *args)
        what = " ".join([repr(method), *[a for a in args[:1] if isinstance(a, str)]])
        Watch(self._cluster.patience).wait([sign], lambda: {f"{what} in the store of factors": self._store.actor})
        get(sign)
        return ref

    def count(self, name: str, value: float, verb: str, stage: str) -> None:
        """Count in the cluster's metrics; with the seconds of a stage, how often workers died meanwhile."""
        if self._meter is None:
            return
        self._meter.add(name, value, verb, stage)
        if name == "rayinf_stage_seconds":
            deaths = 0 if self._pool is None else self._pool.restarts
            self._meter.add("rayinf_retries", deaths - self._deaths, verb, stage)
            self._deaths = deaths

    def close(self) -> None:
        """End the actors, remove the temporary folder, and end Ray too if this run started it."""
        if self._temporary is not None and self._store is not None and ray.is_initialized():
            cleaned = self._store.actor.clean.remote(self._temporary)  # its machine may be another
            ray.wait([cleaned], timeout=_CLEAN_SECONDS)
        self._readers.close()
        if self._pool is not None:
            self._pool.close()
        give_back(self._kind_of_store, self._held)
        self._pool, self._store = None, None
        self._held.clear()
        self._clean()
        if self._started:
            self._started = False
            ray_token.stop()

    def _connect(self) -> None:
        if not self._connected:
            count = max(0, (self._cluster.fixed or 1) - self._made().make_room())
            self._started = connect(self._cluster, count, _model_bytes(self._job))
            self._connected = True
            self._meter = meter(own=self._cluster.address is None and (self._started or owns_ray()))

    @property
    def workers(self) -> int:
        """Processes that share the work now."""
        return workers_now(self._cluster, _model_bytes(self._job)) if self._pool is None else self._pool.count

    def _workers(self) -> Pool:
        """The workers, started once."""
        if self._pool is None:
            self._connect()
            self._pool = self._made()
            self._pool.start()
            self._deaths = self._pool.restarts  # those of earlier runs
        return self._pool

    def _made(self) -> Pool:
        return Pool(self._cluster, WorkerActor, started_with(self._cluster), model_bytes=_model_bytes(self._job))

    def _plain(self, found: Any) -> Any:
        """A worker's result; that batches were smaller is noted first."""
        if isinstance(found, Halved):
            self.store("note_halvings", found.halvings)
            return found.result
        return found

    def _prefetch(self, table: str, items: Mapping[int, Any]) -> Prefetch:
        """How the items of a pass reach the workers."""
        job, workers = self._job, self._workers().count
        return self._readers.prefetch(Pass(table, job.tables[table], job.columns[table], items, workers, _IN_FLIGHT))

    def _once_more(self, table: str, *work: Any) -> OnceMore:
        return OnceMore(self._workers().actors, work, self._cluster.patience, self._job.tables[table].name)

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
        kind = self._kind_of_store
        groups: dict[str, Any] = {"concurrency_groups": {REPORTS: 1}}
        # Without a folder of the user's its state lies on the machine of this process, without which no run goes on.
        where = near_driver(soft=self._temporary is None)
        env = _threads_env(MOST_THREADS)
        store: Any = ray.remote(num_cpus=0, runtime_env=env, scheduling_strategy=where, **groups, **FAULTS)(StoreActor)
        [actor], new = take(kind, 1, lambda: store.remote(*kind.given))
        self._store = Store(actor, (folder, owner))
        self._held.append(actor)
        wait_ready(new, self._cluster)

    @property
    def _kind_of_store(self) -> Kind:
        return Kind("StoreActor on this node" if self._temporary else "StoreActor", 0, 0, (ray_calls.MOST_DEATHS,))

    def _send(self, stage: type[Stage], arrays: Any, table: str, options: dict[str, Any]) -> tuple[str, list[Any]]:
        """The name of a pass, and a reference of what its calls share, in a list."""
        self._connect()
        if self._job_ref is None:
            with sendable():
                self._job_ref = ray.put(self._job)
        held = arrays if isinstance(arrays, ray.ObjectRef | list) else ray.put(arrays)
        name = f"{self._run}-{next(self._count)}"
        return name, [ray.put(Work(name, stage, options, table, self._job.key, self._job_ref, held))]


def _abandon(actors: list[Any], folder: Path) -> None:
    """Remove a temporary folder, and first what would write into it again."""
    kill(actors)
    remove(folder)


def _model_bytes(job: Job) -> int:
    """Bytes of the model, where it is there without being built."""
    model = job.task.model
    return sum(p.numel() * p.element_size() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def _threads_env(count: int) -> dict[str, Any]:
    return {"env_vars": {"OMP_NUM_THREADS": str(count)}}


def _nothing() -> None:
    """There is no temporary folder to remove."""
