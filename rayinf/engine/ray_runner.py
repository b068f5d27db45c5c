"""The runner on Ray: actors that hold the model, one central store of factors, bounded work in flight."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from rayinf.engine.curvature import MOST_THREADS
from rayinf.engine.factors import FactorStore
from rayinf.engine.job import Chunk, Cluster, Job
from rayinf.engine.stages import Stage, perform
from rayinf.engine.worker import Worker
from rayinf.errors import RayinfError, RunError
from rayinf.user_code import from_worker, sendable

# Calls that wait in an actor while another runs: hides the way back to the driver, and loses little with the actor.
_IN_FLIGHT = 2
_POLL_SECONDS = 1.0
# So long a process has to say that it lives.
_PULSE_SECONDS = 60.0
# Without end: a finite count is used up in seconds when a node is lost. The driver's clock ends a hopeless run.
_FAULTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}


class _Actor:
    """A worker in its own process; its stage is rebuilt where a restart has lost it."""

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)
        self._device = device
        self._worker: Worker | None = None
        self._stage: tuple[str, Stage] | None = None

    def ready(self) -> int:
        """Answers once the process is up: its id."""
        return os.getpid()

    def run(self, call: tuple[str, type[Stage], dict[str, Any]], job: Job, arrays: Any, item: Any) -> Any:
        """The stage's result for an item."""
        name, stage, options = call
        if self._worker is None or self._worker.job.key != job.key:
            self._worker, self._stage = Worker(job, self._device), None
        if self._stage is None or self._stage[0] != name:
            self._stage = (name, stage(self._worker, arrays, **options))
        return perform(self._stage[1], item)

    def run_into(self, call: Any, job: Job, arrays: Any, item: Any, store: Any, into: tuple[str, int, int]) -> None:
        """Send a chunk's sums to the store; a retry after a crash counts once, by its key."""
        ray.get(store.add.remote(*into, self.run(call, job, arrays, item)))


class RayRunner:
    """Actors on a cluster. Who does which item is left to chance; what comes out is not."""

    def __init__(self, job: Job, cluster: Cluster, factors: Path | None) -> None:
        self._started = _connect(cluster)
        self._cluster = cluster
        self._count = itertools.count()
        self._run = uuid.uuid4().hex
        threads = max(1, int(cluster.cpus_per_worker))
        device = "cuda" if cluster.gpus_per_worker else "cpu"
        self.job = job
        actor: Any = ray.remote(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, **_FAULTS)(_Actor)
        self._actors = [actor.remote(threads, device) for _ in range(cluster.workers)]
        folder = factors or Path(tempfile.gettempdir()) / f"rayinf-{self._run}"
        self._temporary = None if factors else folder
        store: Any = ray.remote(num_cpus=0, runtime_env=_threads_env(MOST_THREADS), **_FAULTS)(FactorStore)
        self._store = store.remote(folder)
        try:
            _wait_ready(self._actors, cluster)
        except BaseException:
            self.close()
            raise

    @property
    def job(self) -> Job:
        """What the workers are told; setting it tells them something else."""
        return self._job

    @job.setter
    def job(self, job: Job) -> None:
        with sendable():
            self._job, self._job_ref = job, ray.put(job)

    def map(
        self, stage: type[Stage], arrays: Any, items: Mapping[int, Any], **options: Any
    ) -> Iterator[tuple[int, Any]]:
        """Results by key, as they finish."""
        call = (f"{self._run}-{next(self._count)}", stage, options)
        held = arrays if isinstance(arrays, ray.ObjectRef) else ray.put(arrays)
        for key, ref in self._spread(items, lambda actor, key: actor.run.remote(call, self._job_ref, held, items[key])):
            yield key, _get(ref)

    def fold(self, stage: type[Stage], arrays: Any, items: Mapping[int, Chunk], name: str) -> Iterator[int]:
        """Add the sums of each chunk to the store, until none is missing: a store that lost its disk asks again."""
        call: tuple[str, type[Stage], dict[str, Any]] = (f"{self._run}-{next(self._count)}", stage, {})
        held = arrays if isinstance(arrays, ray.ObjectRef) else ray.put(arrays)
        count = len(items)
        while left := self.store("pending", name, count):
            todo = {k: items[k] for k in left}
            for key, ref in self._spread(
                todo,
                lambda actor, key: actor.run_into.remote(
                    call, self._job_ref, held, items[key], self._store, (name, count, key)
                ),
            ):
                _get(ref)
                yield key

    def store(self, method: str, *args: Any) -> Any:
        """Call the store of factors."""
        return _get(self.publish(method, *args))

    def publish(self, method: str, *args: Any) -> Any:
        """Call the store of factors; a reference to its arrays."""
        ref = getattr(self._store, method).remote(*args)
        ray.wait([ref], fetch_local=False)
        return ref

    def close(self) -> None:
        """Let the actors go, and Ray too if this run started it."""
        for actor in [*self._actors, self._store]:
            ray.kill(actor)
        if self._temporary is not None:
            for file in sorted(self._temporary.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
            if self._temporary.is_dir():
                self._temporary.rmdir()
        if self._started:
            ray.shutdown()

    def _spread(self, items: Mapping[int, Any], send: Any) -> Iterator[tuple[int, Any]]:
        """Keep every actor busy with at most `_IN_FLIGHT` calls; keys with their finished references."""
        yield from _spread(self._actors * _IN_FLIGHT, items, send, _Patience(self._cluster))


class _Patience:
    """Gives a run up that gets nowhere."""

    def __init__(self, cluster: Cluster) -> None:
        self._seconds = cluster.patience
        self._last = time.monotonic()

    def renew(self) -> None:
        """Something was finished."""
        self._last = time.monotonic()

    def check(self, busy: Sequence[Any]) -> None:
        """Called with the actors at work at every poll in which nothing was finished.

        Raises:
            RunError: there were too many of them.
        """
        if time.monotonic() - self._last > self._seconds:
            raise RunError(
                f"No shard was finished in {self._seconds:.0f} s; {len(busy)} are in flight.",
                "look at the cluster's nodes and logs, then run the same command again: it goes on. "
                "For slow shards pass Cluster(patience=...).",
            )


def _spread(
    slots: Sequence[Any], items: Mapping[Any, Any], send: Any, patience: _Patience
) -> Iterator[tuple[Any, Any]]:
    """Keep every slot busy with a call, a slot an actor; keys with their finished references."""
    todo = iter(items)
    flying: dict[Any, tuple[Any, Any]] = {}
    for actor in slots:
        _launch(flying, todo, actor, send)
    patience.renew()
    while flying:
        done, _ = ray.wait(list(flying), timeout=_POLL_SECONDS, fetch_local=False)
        if not done:
            patience.check([actor for _, actor in flying.values()])
        for ref in done:
            patience.renew()
            key, actor = flying.pop(ref)
            _launch(flying, todo, actor, send)
            yield key, ref


class _Bench:
    """A process that calls a function for one item at a time, and says meanwhile that it lives."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)
        self._name = uuid.uuid4().hex
        self._function: Callable[[Any], Any] | None = None

    def ready(self) -> str:
        """Answers at any time: a name that is another after a restart."""
        return self._name

    def call(self, function: list[Any], item: Any) -> Any:
        """The function's result. Its object stays, with what it has built up.

        The function comes as a reference in a list, and is fetched once, not with every call.
        """
        if self._function is None:
            self._function = ray.get(function[0])
        return self._function(item)


class _Pulse(_Patience):
    """Patience with calls that take as long as they like, while a process lives on."""

    def __init__(self, cluster: Cluster, benches: Sequence[Any], tick: Callable[[], None]) -> None:
        super().__init__(cluster)
        self._tick = tick
        self._lived = self._pulse(benches)

    def check(self, busy: Sequence[Any]) -> None:
        """Called with the actors at work at every poll in which nothing was finished.

        Raises:
            RunError: none of them has lived since patience was last at an end.
        """
        self._tick()
        if time.monotonic() - self._last <= self._seconds:
            return
        now = self._pulse(busy)
        if not now & self._lived:
            raise RunError(
                f"No worker lived through {self._seconds:.0f} s; {len(busy)} calls are in flight.",
                "look at the cluster's nodes and logs (is memory short?), then run the same command again: it goes on.",
            )
        self._lived = now
        self.renew()

    def _pulse(self, benches: Sequence[Any]) -> set[str]:
        """Names of the processes that answer."""
        refs = [bench.ready.remote() for bench in benches]
        there, _ = ray.wait(refs, num_returns=len(refs), timeout=_PULSE_SECONDS)
        return {_get(ref) for ref in there}


class Benches:
    """Processes that stay, each with a function of its own; see `parallel.standing`."""

    def __init__(self, cluster: Cluster, actors: Sequence[Any], function: Any) -> None:
        self._cluster, self._actors, self._function = cluster, actors, function

    def call(self, items: Mapping[Any, Any], tick: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        """Results by key, as they finish."""
        pulse = _Pulse(self._cluster, self._actors, tick)
        held = [self._function]
        for key, ref in _spread(self._actors, items, lambda actor, key: actor.call.remote(held, items[key]), pulse):
            yield key, _get(ref)


@contextmanager
def benches(function: Callable[[Any], Any], cluster: Cluster, workers: int) -> Generator[Benches]:
    """Benches for as long as the context lasts, on a Ray that is there."""
    threads = max(1, int(cluster.cpus_per_worker))
    talks: dict[str, Any] = {"max_concurrency": 2}  # that it answers while it works
    bench: Any = ray.remote(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, **talks, **_FAULTS)(
        _Bench
    )
    actors = [bench.remote(threads) for _ in range(workers)]
    try:
        _wait_ready(actors, cluster)
        with sendable():
            sent = ray.put(function)
        yield Benches(cluster, actors, sent)
    finally:
        for actor in actors:
            ray.kill(actor)


def _wait_ready(actors: Sequence[Any], cluster: Cluster) -> None:
    refs = [actor.ready.remote() for actor in actors]
    _, late = ray.wait(refs, num_returns=len(refs), timeout=min(cluster.patience, 120.0))
    if late:
        raise RunError(
            f"{len(late)} of {len(refs)} workers did not start: the cluster has {ray.cluster_resources()}, and a "
            f"worker asks for {cluster.cpus_per_worker} CPUs and {cluster.gpus_per_worker} GPUs.",
            "pass fewer workers or smaller ones in Cluster(...), or add nodes.",
        )
    for ref in refs:
        _get(ref)


def _launch(flying: dict[Any, tuple[Any, Any]], todo: Iterator[Any], actor: Any, send: Any) -> None:
    key = next(todo, None)
    if key is not None:
        flying[send(actor, key)] = (key, actor)


def _get(ref: Any) -> Any:
    """A result, or the error that the worker met, as it was raised there."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RayinfError):
            raise error.cause from None
        raise from_worker(error.cause) from error
    except ray.exceptions.RayActorError as error:
        raise RunError(
            f"A worker could not be kept alive: {str(error).splitlines()[0]}",
            "look at the worker's log for the cause, then run the same command again: it goes on.",
        ) from error


def _threads_env(count: int) -> dict[str, Any]:
    return {"env_vars": {"OMP_NUM_THREADS": str(count)}}


@contextmanager
def connected(cluster: Cluster) -> Generator[None]:
    """Ray for as long as the context lasts; one that was there before stays."""
    started = _connect(cluster)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _connect(cluster: Cluster) -> bool:
    """Start or join Ray; whether this call did so."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": cluster.runtime_env or {},
    }
    if cluster.address is None:
        cpus = max(1, -(-int(cluster.workers * cluster.cpus_per_worker * 1000) // 1000))
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
    else:
        ray.init(address=cluster.address, **common)
    return True
