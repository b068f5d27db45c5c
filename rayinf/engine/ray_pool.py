"""The workers of a run on Ray: a given number, or as many as the cluster has room for from moment to moment.

A worker of `Cluster(workers="auto")` is bound to the node that has room for it. Ray then never looks for another place:
no request waits that could make an autoscaling cluster grow, and where a node is lost its workers end with it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayinf.engine.job import Cluster
from rayinf.engine.ray_calls import FAULTS, REPORTS, has_ended, restarts_of
from rayinf.engine.ray_cluster import wait_ready, why_late
from rayinf.engine.ray_session import Kind, give_back, make_room, take
from rayinf.engine.room import more_workers, request
from rayinf.errors import RunError

# Seconds in which a worker starts, or another process has taken its place.
_START_SECONDS = 120.0
# How a call ends whose worker has left for good.
_LOST = (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError, ray.exceptions.ObjectLostError)


@dataclass(frozen=True)
class Slots:
    """The actors that items are spread over.

    Attributes:
        now: those that have started, each as often as it may have calls.
        joined: those that have started since the last call.
        is_lost: whether a call that has ended, of an actor, has no result, since that has left for good.
    """

    now: Sequence[Any]
    joined: Callable[[], Sequence[Any]]
    is_lost: Callable[[Any, Any], bool]


class Pool:
    """Actors of one kind.

    Args:
        cluster: how many, and what Ray reserves for each.
        kind: their class.
        args: what it is made with.
        most: at most so many.
        model_bytes: of the model that each of them holds.
    """

    def __init__(
        self, cluster: Cluster, kind: type, args: Sequence[Any], most: int | None = None, model_bytes: int = 0
    ) -> None:
        groups: dict[str, Any] = {"concurrency_groups": {REPORTS: 1}}
        c = cluster
        self._kind = Kind(kind.__name__, c.cpus_per_worker, c.gpus_per_worker, tuple(args))
        self._make: Any = ray.remote(num_cpus=c.cpus_per_worker, num_gpus=c.gpus_per_worker, **groups, **FAULTS)(kind)
        self._cluster, self._most = cluster, most
        self._requested = request(cluster, model_bytes)
        self.actors: list[Any] = []
        self._starting: dict[Any, tuple[Any, float]] = {}  # by the reference of its sign: an actor, and since when
        self._nodes: dict[Any, str] = {}  # by actor, those that are bound to one
        self._lost: set[Any] = set()  # those of which a call was lost
        self._left_restarts = 0

    def start(self) -> None:
        """Return once the given number of workers has started; of as many as there is room for, once the first has.

        Raises:
            RunError: none starts.
        """
        count = self._cluster.fixed
        if count is not None:
            count = min(self._most or count, count)
            self.actors, new = take(self._kind, count, lambda: self._make.remote(*self._kind.given))
            wait_ready(new, self._cluster, len(self.actors) - len(new))
            return
        make_room(None)
        begin = time.monotonic()
        while not self.actors:
            self.look()
            if time.monotonic() - begin > _START_SECONDS:
                raise RunError(*why_late(1, 1, self._cluster))
            if self._starting:
                ray.wait(list(self._starting), timeout=1.0)
            elif not self.actors:
                time.sleep(0.5)

    def make_room(self) -> int:
        """End idle workers of other kinds where this one may need their place; how many of this kind a run has left."""
        return make_room(None if self._cluster.fixed is None else self._kind)

    @property
    def count(self) -> int:
        """Workers that there are, and those that are about to be."""
        return len(self.actors) + len(self._starting)

    @property
    def restarts(self) -> int:
        """How often processes were started again, those of workers that have left included."""
        return self._left_restarts + sum(restarts_of(actor) for actor in self.actors)

    def slots(self, each: int) -> Slots:
        """The workers as they are now, and those that join.

        Args:
            each: calls that a worker may have.
        """

        def joined() -> list[Any]:
            return [actor for actor in self.look() for _ in range(each)]

        self.look()
        return Slots(self.actors * each, joined, self._is_lost)

    def look(self) -> list[Any]:
        """Add workers that have started, remove those whose node is lost, start more where there is room.

        Returns:
            The workers that have started since the last look.
        """
        if self._cluster.fixed is not None:
            return []
        found = self._collect()
        self.actors += found
        try:
            free = ray._private.state.available_resources_per_node()
        except Exception:  # the head does not answer at the moment
            return found
        self._leave(free)
        self._grow(free)
        return [actor for actor in found if actor in self.actors]

    def close(self) -> None:
        """Leave a given number of workers to the next run; end others."""
        if self._cluster.fixed is not None:
            give_back(self._kind, self.actors)
            self.actors = []
        for actor in [*self.actors, *(a for a, _ in self._starting.values())]:
            self._end(actor)
        self.actors = []
        self._starting.clear()

    def _is_lost(self, ref: Any, actor: Any) -> bool:
        if self._cluster.fixed is not None:
            return False
        try:
            ray.get(ref)
        except _LOST:
            self._lost.add(actor)
            return True
        except Exception:  # the caller's to word
            return False
        return False

    def _leave(self, nodes: Mapping[str, Any]) -> None:
        """Remove workers whose node is lost, or whose process was ended from outside for good."""
        for actor in [a for a in self.actors if a in self._lost or self._nodes[a] not in nodes]:
            if has_ended(actor):
                self.actors.remove(actor)
                self._left_restarts += restarts_of(actor)
                del self._nodes[actor]
        self._lost.intersection_update(self.actors)

    def _collect(self) -> list[Any]:
        """Those that have started. One that has not in two minutes is given up: another job has taken its place."""
        found, now = [], time.monotonic()
        for ref, (actor, since) in list(self._starting.items()):
            try:
                ray.get(ref, timeout=0)
                found.append(actor)
            except ray.exceptions.GetTimeoutError:
                if now - since < _START_SECONDS:
                    continue
                self._end(actor)
            except ray.exceptions.RayError:
                self._end(actor)
            del self._starting[ref]
        return found

    def _end(self, actor: Any) -> None:
        self._nodes.pop(actor, None)
        with suppress(Exception):  # Ray itself may be gone
            ray.kill(actor)

    def _grow(self, free: Mapping[str, Mapping[str, float]]) -> None:
        for node in self._room(free):
            bound = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = self._make.options(scheduling_strategy=bound).remote(*self._kind.given)
            self._starting[actor.ready.remote()] = actor, time.monotonic()
            self._nodes[actor] = node

    def _room(self, free: Mapping[str, Mapping[str, float]]) -> list[str]:
        """The nodes of workers that can be started, each as often as it holds one."""
        there = Counter(self._nodes.values())
        starting = Counter(self._nodes[actor] for actor, _ in self._starting.values())
        places = [
            node
            for node, have in free.items()
            for _ in range(more_workers(have, self._requested, there[node], starting[node]))
        ]
        if not places and not self.count:  # one is tried, however little memory there is
            bare = {k: v for k, v in self._requested.items() if k != "memory"}
            places = [node for node, have in free.items() if more_workers(have, bare, 0, 0)][:1]
        return places if self._most is None else places[: max(self._most - self.count, 0)]
