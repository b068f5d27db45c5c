"""A pool of actors on Ray, each with a copy of a function: whole trainings, one item at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from rayinf.engine.job import Cluster
from rayinf.engine.ray_actors import WorkerActor, started_with
from rayinf.engine.ray_calls import Watch, get
from rayinf.engine.ray_cluster import connect
from rayinf.engine.ray_pool import Pool
from rayinf.engine.ray_session import connected
from rayinf.engine.ray_spread import Waiting, spread
from rayinf.user_code import sendable


class TrainingActors:
    """The actors of a pool; see `parallel.worker_pool`."""

    def __init__(self, cluster: Cluster, pool: Pool, function: Any) -> None:
        self._cluster, self._pool, self._function = cluster, pool, function

    def call(self, items: Mapping[Any, Any], tick: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        """Results by key, as they finish."""
        held = [self._function]
        for key, ref in spread(
            self._pool.slots(1),
            Waiting(items),
            lambda actor, key: actor.train.remote(held, items[key], _what(key)),
            Watch(self._cluster.patience, tick=tick),
            _what,
        ):
            yield key, get(ref)


@contextmanager
def training_actors(function: Callable[[Any], Any], cluster: Cluster, most: int | None) -> Generator[TrainingActors]:
    """TrainingActors for as long as the context lasts.

    Args:
        function: what is called.
        cluster: where.
        most: at most so many of its workers.

    Raises:
        RayinfError: workers that do not fit, do not start, or an address at which no Ray answers.
    """
    with connected():
        count = cluster.fixed or 1
        pool = Pool(cluster, WorkerActor, started_with(cluster), most)
        connect(cluster, max(0, min(most or count, count) - pool.make_room()))
        try:
            pool.start()
            with sendable():
                sent = ray.put(function)
            yield TrainingActors(cluster, pool, sent)
        finally:
            pool.close()


def _what(key: Any) -> str:
    return f"Item {key!r}"
