"""Runners map a stage over keyed items. This one works in the calling process, with no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from rayinf.data.files import Arrays
from rayinf.engine.factors import FactorStore
from rayinf.engine.failed_shards import Failures, ShardError
from rayinf.engine.job import Chunk, Cluster, Job
from rayinf.engine.leaves import FEWEST, groups
from rayinf.engine.stages import Stage, group_sum, perform
from rayinf.engine.worker import Worker
from rayinf.store.places import AnyPath

Piece = TypeVar("Piece")


class Runner(Protocol):
    """What the pipelines need to have work done.

    `arrays` is what a stage needs beside the job, one set of arrays or a list of them; on Ray each is a reference, and
    never passes through the driver.
    """

    job: Job

    @property
    def workers(self) -> int:
        """Processes that share the work now."""
        ...

    def map(
        self,
        stage: type[Stage],
        arrays: Any,
        items: Mapping[int, Any],
        failed: Failures | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Results by key, as they finish. With `failed`, shards that fail are noted there; else they are an error."""
        ...

    def fold(
        self,
        stage: type[Stage],
        arrays: Any,
        items: Mapping[int, Chunk],
        name: str,
        failed: Failures | None = None,
        fewest: int = FEWEST,
    ) -> Iterator[int]:
        """Add the sums of each chunk to the store under `name`, in `fewest` groups at least; keys, as they are in.

        `failed` as in `map`.
        """
        ...

    def fill(
        self, stage: type[Stage], arrays: Any, items: Mapping[int, Any], name: str, **options: Any
    ) -> Iterator[int]:
        """Put the result of each item into the store, as a part of `name`; keys, as they are in."""
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
        """Add rows, shards, bytes or seconds to the cluster's metrics; see `ray_metrics`."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class LocalRunner:
    """One worker, in this process.

    Args:
        job: what it works on.
        device: where the model is moved to; None leaves it where it is.
    """

    def __init__(self, job: Job, device: str | None = None) -> None:
        self._device = device
        self._worker = Worker(job, device)
        self.workers = 1
        self._store = FactorStore(None)

    def open_store(self, folder: AnyPath | None, owner: str) -> None:
        """Have a store of factors."""
        self._store = FactorStore(folder, owner)

    @property
    def job(self) -> Job:
        """What the worker works on; setting it makes another worker."""
        return self._worker.job

    @job.setter
    def job(self, job: Job) -> None:
        self._worker = Worker(job, self._device, self._worker.halvings, self._worker.drawn)

    def map(
        self,
        stage: type[Stage],
        arrays: Arrays,
        items: Mapping[int, Any],
        failed: Failures | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Results by key, in order."""
        work = stage(self._worker, arrays, **options)
        for (key, _), found in self._done(items.items(), lambda pair: perform(work, pair[1]), failed):
            yield key, found

    def _done(
        self, pieces: Iterable[Piece], do: Callable[[Piece], Any], failed: Failures | None
    ) -> Iterator[tuple[Piece, Any]]:
        """Pieces of a pass with their results; those whose shards fail are noted, if they may be."""
        for piece in pieces:
            try:
                found = do(piece)
            except ShardError as error:
                if failed is None:
                    raise
                failed.note(error.failed, error)
                if failed.ended:
                    return
                continue
            if self._worker.halved:  # noted before what was made in smaller batches counts
                self._store.note_halvings(self._worker.halved)
            yield piece, found

    def fold(
        self,
        stage: type[Stage],
        arrays: Arrays,
        items: Mapping[int, Chunk],
        name: str,
        failed: Failures | None = None,
        fewest: int = FEWEST,
    ) -> Iterator[int]:
        """Add the sums of each chunk to the store."""
        todo = groups(items, self._store.pending(name, len(items)), 1, fewest)
        if not todo:
            return
        work = stage(self._worker, arrays)
        for group, sums in self._done(todo.values(), lambda group: group_sum(work, group), failed):
            self._store.add(name, len(items), group.index, sums, group.level)
            yield from group.keys

    def fill(
        self, stage: type[Stage], arrays: Arrays, items: Mapping[int, Any], name: str, **options: Any
    ) -> Iterator[int]:
        """Put the result of each item into the store."""
        left = self._store.missing_parts(name, list(items))
        for key, found in self.map(stage, arrays, {k: items[k] for k in left}, **options):
            self._store.put_part(name, key, found)
            yield key

    def store(self, method: str, *args: Any) -> Any:
        """Call the store of factors."""
        return getattr(self._store, method)(*args)

    def publish(self, method: str, *args: Any) -> Any:
        """The same: in one process a handle of arrays is the arrays."""
        return self.store(method, *args)

    def count(self, name: str, value: float, verb: str, stage: str) -> None:
        """Do nothing: without a cluster, nothing collects metrics."""

    def close(self) -> None:
        """Nothing to end."""


def make_runner(job: Job, cluster: Cluster | None) -> Runner:
    """A runner for a cluster, or for this process. Ray is imported in the first case alone."""
    if cluster is None:
        return LocalRunner(job)
    from rayinf.engine.ray_runner import RayRunner

    return RayRunner(job, cluster)
