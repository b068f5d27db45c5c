"""Runners map a stage over keyed items. This one works in the calling process, with no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rayinf.data.files import Arrays
from rayinf.engine.factors import FactorStore
from rayinf.engine.job import Chunk, Cluster, Job
from rayinf.engine.stages import Stage, perform
from rayinf.engine.worker import Worker
from rayinf.store.places import AnyPath


class Runner(Protocol):
    """What the pipelines ask of whoever does the work.

    `arrays` is what a stage needs beside the job; on Ray it is a reference, and never passes through the driver.
    """

    job: Job

    def map(
        self, stage: type[Stage], arrays: Any, items: Mapping[int, Any], **options: Any
    ) -> Iterator[tuple[int, Any]]:
        """Results by key, as they finish."""
        ...

    def fold(self, stage: type[Stage], arrays: Any, items: Mapping[int, Chunk], name: str) -> Iterator[int]:
        """Add the sums of each chunk to the store under `name`; keys, as they are in."""
        ...

    def open_store(self, folder: AnyPath | None, owner: str) -> None:
        """Have a store of factors, with its state in a folder or in none; see `FactorStore`."""
        ...

    def store(self, method: str, *args: Any) -> Any:
        """Call the store of factors; the value of its method."""
        ...

    def publish(self, method: str, *args: Any) -> Any:
        """Call the store of factors; a handle of its arrays, to pass on to `map` and `fold`."""
        ...

    def count(self, name: str, value: float, verb: str, stage: str) -> None:
        """Tell the cluster's metrics of rows, shards, bytes or seconds; see `ray_metrics`."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


class LocalRunner:
    """One worker, in this process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._store = FactorStore(None)

    def open_store(self, folder: AnyPath | None, owner: str) -> None:
        """Have a store of factors."""
        self._store = FactorStore(folder, owner)

    @property
    def job(self) -> Job:
        """What the worker is told; setting it tells it something else."""
        return self._worker.job

    @job.setter
    def job(self, job: Job) -> None:
        self._worker = Worker(job)

    def map(
        self, stage: type[Stage], arrays: Arrays, items: Mapping[int, Any], **options: Any
    ) -> Iterator[tuple[int, Any]]:
        """Results by key, in order."""
        work = stage(self._worker, arrays, **options)
        for key, item in items.items():
            yield key, perform(work, item)

    def fold(self, stage: type[Stage], arrays: Arrays, items: Mapping[int, Chunk], name: str) -> Iterator[int]:
        """Add the sums of each chunk to the store."""
        left = set(self._store.pending(name, len(items)))
        todo = {k: v for k, v in items.items() if k in left}
        for key, sums in self.map(stage, arrays, todo):
            self._store.add(name, len(items), key, sums)
            yield key

    def store(self, method: str, *args: Any) -> Any:
        """Call the store of factors."""
        return getattr(self._store, method)(*args)

    publish = store

    def count(self, name: str, value: float, verb: str, stage: str) -> None:
        """There is no cluster that collects metrics."""

    def close(self) -> None:
        """Nothing to let go."""


def make_runner(job: Job, cluster: Cluster | None) -> Runner:
    """A runner for a cluster, or for this process. Ray is imported in the first case alone."""
    if cluster is None:
        return LocalRunner(job)
    from rayinf.engine.ray_runner import RayRunner

    return RayRunner(job, cluster)
