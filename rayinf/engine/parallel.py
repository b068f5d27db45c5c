"""Whole computations side by side, each in one process: trajectories of a loop, members of a population."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from rayinf.engine.job import Cluster
from rayinf.engine.runner import guard_local_ray as guard_local_ray

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def session(cluster: Cluster | None) -> Generator[None]:
    """Ray for as long as the context lasts, so that what runs in it does not start and stop it each time.

    Args:
        cluster: None starts nothing.
    """
    if cluster is None:
        yield
        return
    if cluster.address is None:
        guard_local_ray()
    from rayinf.engine import ray_runner

    with ray_runner.connected(cluster):
        yield


def side_by_side(
    function: Callable[[Item], Result],
    items: Mapping[Key, Item],
    cluster: Cluster | None,
    tick: Callable[[], None] | None = None,
) -> Iterator[tuple[Key, Result]]:
    """The function's result for every item, with its key.

    Without a cluster in this process and in order; else as they finish, every item in one worker of Ray. The item of a
    worker that is lost is begun again in another: what it had done counts if the function keeps it on disk. A run is
    given up where nothing finishes in `Cluster.patience` seconds and no worker has lived through them.

    Args:
        function: picklable; sent to the workers once.
        items: what it is called with.
        cluster: where.
        tick: called here about once a second, on a cluster.

    Raises:
        RayinfError: what the function raised, or workers that cannot be had or kept alive.
    """
    if cluster is None:
        for key, item in items.items():
            yield key, function(item)
        return
    with session(cluster):
        from rayinf.engine import ray_runner

        yield from ray_runner.call_side_by_side(function, items, cluster, tick or _nothing)


def _nothing() -> None:
    """What is done while nothing is asked for."""
