"""A pool of actors on Ray, each with a copy of a function: whole trainings, one item at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import torch

from rayinf.engine.job import Cluster
from rayinf.engine.ray_calls import MOST_DEATHS_OF_TRAININGS, REPORTS, Life, Watch, check_deaths, get
from rayinf.engine.ray_cluster import connect
from rayinf.engine.ray_pool import Pool
from rayinf.engine.ray_session import connected
from rayinf.engine.ray_spread import Waiting, spread
from rayinf.user_code import sendable


class _TrainingActor:
    """An actor that applies a function to one item at a time, and reports meanwhile that its process runs."""

    def __init__(self, threads: int, most_deaths: int) -> None:
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)
        self._most_deaths = most_deaths
        # A training has no count of its own: while its process answers, it is taken to go on.
        self._life = Life(time.monotonic)
        self._held: tuple[Any, Callable[[Any], Any]] | None = None

    @ray.method(concurrency_group=REPORTS)
    def ready(self) -> bool:
        """Returns once the process is up."""
        return True

    @ray.method(concurrency_group=REPORTS)
    def progress(self) -> tuple[str, float]:
        """At any time: the process's name, and a count that rises as long as it runs."""
        return self._life.report()

    def call(self, function: list[Any], item: Any, what: str) -> Any:
        """The function's result. Its object stays, with what it has built up.

        The function comes as a reference in a list, and is fetched once, not with every call.
        """
        check_deaths(what, self._most_deaths)
        if self._held is None or self._held[0] != function[0]:
            self._held = function[0], ray.get(function[0])
        return self._held[1](item)

    def rest(self) -> bool:
        """Forget what the last pool left; whether another one can use this process."""
        self._held = None
        return True


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
            lambda actor, key: actor.call.remote(held, items[key], _what(key)),
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
        threads = max(1, int(cluster.cpus_per_worker))
        pool = Pool(cluster, _TrainingActor, (threads, MOST_DEATHS_OF_TRAININGS), most)
        connect(cluster, max(0, min(most or count, count) - pool.idle))
        try:
            pool.start()
            with sendable():
                sent = ray.put(function)
            yield TrainingActors(cluster, pool, sent)
        finally:
            pool.close()


def _what(key: Any) -> str:
    return f"Item {key!r}"
