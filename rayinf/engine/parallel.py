"""Whole computations side by side, each in one process: trajectories of a loop, members of a population."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rayinf.data.known_scans import Scans, known
from rayinf.engine.job import Cluster

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def session(cluster: Cluster | None) -> Generator[None]:
    """Ray and its workers from the first call that needs them until the context ends: calls do not start their own.

    Args:
        cluster: None starts nothing.
    """
    if cluster is None:
        yield
        return
    from rayinf.engine import ray_session

    with ray_session.connected():
        yield


def rest(cluster: Cluster | None) -> None:
    """Called before something that takes its own time, such as people who label: idle workers leave a joined cluster.

    Args:
        cluster: of the session.
    """
    if cluster is not None:
        from rayinf.engine import ray_session

        ray_session.free_for_others()


# Item by key -> (key, result) as they finish.
Calls = Callable[[Mapping[Key, Item]], Iterator[tuple[Key, Result]]]


@contextmanager
def worker_pool(
    function: Callable[[Item], Result],
    cluster: Cluster | None,
    tick: Callable[[], None] | None = None,
    workers: int | None = None,
) -> Generator[Calls[Any, Item, Result]]:
    """A pool of workers for one set of items after another: the context's value is called with each set.

    Without a cluster items are done in this process and in order; else as they finish, every item in one worker of
    Ray. Workers start with the first item, and get the function once, so that an object keeps what it has built up (a
    model, a table) from item to item, and from set to set. The item of a worker that is lost is begun again in another,
    which builds anew: what it had done counts if the function keeps it on disk. A run is given up where nothing
    finishes in `Cluster.patience` seconds and no worker answers in them, and where one item has ended five processes.

    Args:
        function: picklable; sent to the workers once.
        cluster: where.
        tick: called here about once a second, on a cluster.
        workers: at most so many of the cluster's.

    Raises:
        RayinfError: what the function raised, or workers that cannot be had or kept alive.
    """
    if cluster is None:
        yield lambda items: ((key, function(item)) for key, item in items.items())
        return
    with ExitStack() as stack:
        started: list[Calls[Any, Item, Result]] = []

        def call(items: Mapping[Any, Item]) -> Iterator[tuple[Any, Result]]:
            if not items:
                return
            if not started:
                stack.enter_context(session(cluster))
                from rayinf.engine import ray_trainings

                informed = _Informed(function, known.all())
                actors = stack.enter_context(ray_trainings.training_actors(informed, cluster, workers))
                started.append(lambda items: actors.call(items, tick or _nothing))
            yield from started[0](items)

        yield call


def side_by_side(
    function: Callable[[Item], Result],
    items: Mapping[Key, Item],
    cluster: Cluster | None,
    tick: Callable[[], None] | None = None,
) -> Iterator[tuple[Key, Result]]:
    """The function's result for every item, with its key; see `worker_pool`.

    Args:
        function: picklable; sent to the workers once.
        items: what it is called with.
        cluster: where.
        tick: called here about once a second, on a cluster.

    Raises:
        RayinfError: what the function raised, or workers that cannot be had or kept alive.
    """
    with worker_pool(function, cluster, tick, len(items)) as calls:
        yield from calls(items)


@dataclass
class _Informed:
    """A function in another process, which knows what this one knows of tables, and does not scan them again."""

    function: Callable[[Any], Any]
    scans: Scans

    def __call__(self, item: Any) -> Any:
        """The function's result."""
        known.add(self.scans)
        self.scans = {}
        return self.function(item)


def _nothing() -> None:
    """What is called while items are at work, where the caller gives nothing."""
