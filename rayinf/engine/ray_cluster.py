"""Starting or joining Ray, whether workers fit in it, and waiting for them to start: all within seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayinf.engine import ray_token
from rayinf.engine.job import Cluster
from rayinf.engine.machine import misfit
from rayinf.engine.ray_address import check_address
from rayinf.engine.ray_calls import get
from rayinf.engine.ray_session import connected, note_start
from rayinf.engine.room import holds, more_workers, on_this_machine, request
from rayinf.errors import InputError, RunError

# Seconds without one more worker that has started.
_START_SECONDS = 120.0
# And those after which a run begins with fewer workers than it was given.
_FEWER_SECONDS = 30.0
# A node that has just joined may not be listed yet.
_ROOM_SECONDS = 3.0
# A Ray of this machine ends while it starts if its processes need more than 15 seconds, as on a busy machine.
_STARTS = 3
_FEWER = "pass fewer workers or smaller ones in Cluster(...), or add nodes."


def connect(cluster: Cluster, workers: int, model_bytes: int = 0) -> bool:
    """Start or join Ray.

    Args:
        cluster: where.
        workers: how many of its workers are going to be started.
        model_bytes: of the model that each of them holds.

    Returns:
        Whether the caller must shut Ray down.

    Raises:
        InputError: workers that do not fit, an address at which no Ray answers.
    """
    started = False
    if not ray.is_initialized():
        if cluster.address is None and (why := misfit(cluster, model_bytes)):
            raise InputError(f"{why}.", "pass fewer workers or smaller ones in Cluster(...).")
        if cluster.address is not None:
            check_address(cluster.address)
        _init(cluster, model_bytes)
        started = note_start()
    try:
        _check_client(cluster)
        _check_room(cluster, workers)
    except BaseException:
        if started:
            ray_token.stop()
        raise
    return started


def count_room(cluster: Cluster, model_bytes: int) -> int:
    """Workers that a running cluster has room for at the moment, at least one.

    Args:
        cluster: it is joined, and left again where it was not joined before.
        model_bytes: of the model that each of them holds.

    Raises:
        InputError: as `connect`.
    """
    with connected():
        connect(cluster, 1, model_bytes)
        requested = request(cluster, model_bytes)
        free = ray._private.state.available_resources_per_node().values()
        return max(1, sum(more_workers(node, requested, 0, 0) for node in free))


def _init(cluster: Cluster, model_bytes: int) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": cluster.runtime_env or {},
    }
    if cluster.address is None:
        workers = cluster.fixed or on_this_machine(cluster, model_bytes)
        cpus = max(1, -(-int(workers * cluster.cpus_per_worker * 1000) // 1000))
        _start_here({"num_cpus": cpus, "include_dashboard": False, **common})
        return
    try:
        ray.init(address=cluster.address, **common)
    except (ConnectionError, RuntimeError) as error:
        raise InputError(
            f"Cluster(address={cluster.address!r}) cannot be joined: {_first_line(error)}.",
            "start Ray there (ray start --head), or leave address out to start one on this machine.",
        ) from error


def _start_here(options: dict[str, Any]) -> None:
    """Start a Ray of this machine.

    Raises:
        RunError: it does not start, tried three times.
    """
    for left in reversed(range(_STARTS)):
        try:
            with ray_token.guarded():
                ray.init(address="local", **options)
            return
        except Exception as error:  # Ray raises no other where its node does not come up
            if isinstance(error, ValueError | TypeError):  # of the options
                raise
            ray.shutdown()
            if not left:
                raise RunError(
                    f"Ray does not start on this machine, tried {_STARTS} times: {_first_line(error)}.",
                    "wait until other programs leave it more of the processor and the memory, or run in this process: "
                    "leave the cluster out.",
                ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _check_client(cluster: Cluster) -> None:
    """A client of Ray sees no nodes, and cannot count what they hold.

    Raises:
        InputError: the number of workers is automatic.
    """
    if cluster.fixed is None and ray.util.client.ray.is_connected():
        raise InputError(
            f'Cluster(workers="auto", address={cluster.address!r}): a client of Ray cannot count the room on nodes.',
            "pass a number of workers, or run on a machine of the cluster with its head's address.",
        )


def _check_room(cluster: Cluster, workers: int) -> None:
    """Refuse workers that the cluster cannot hold even when nothing else runs on it; report those that must wait.

    Raises:
        InputError: the resource that is short.
    """
    requested = {"CPU": float(cluster.cpus_per_worker), "GPU": float(cluster.gpus_per_worker)}
    nodes, room = _await_room(_whole_nodes, requested, workers)
    if room >= workers:
        _report_busy(requested, workers)
        return
    short, asked = _shortest(nodes, requested), cluster.workers if cluster.fixed is None else workers
    have = ", ".join(f"{node.get(short, 0):g}" for node in nodes)
    raise InputError(
        f"Cluster(workers={asked!r}) asks for {requested[short]:g} {short}s a worker, and Ray has {have} {short}s on "
        f"its {len(nodes)} node(s): room for {room} workers.",
        _FEWER,
    )


def _report_busy(requested: dict[str, float], workers: int) -> None:
    """Print which resource is missing for workers that cannot start yet: other jobs hold it."""
    try:
        nodes, room = _await_room(_free_nodes, requested, workers)
    except Exception:  # another version of Ray, or its client: nothing is known
        return
    if room >= workers:
        return
    short = _shortest(nodes, requested)
    have = ", ".join(f"{node.get(short, 0):g}" for node in nodes)
    print(
        f"rayinf: there is room for {room} of {workers} workers: each asks for {requested[short]:g} {short}s, and "
        f"{have} are free on the cluster's {len(nodes)} node(s). The others start when other jobs end.",
        file=sys.stderr,
        flush=True,
    )


def _await_room(
    look: Callable[[], list[dict[str, float]]], requested: dict[str, float], workers: int
) -> tuple[list[dict[str, float]], int]:
    """Resources by node and the workers that they hold, once these are enough or some seconds have passed.

    Nodes take a moment to report, and what has just ended is not free at once.
    """
    end = time.monotonic() + _ROOM_SECONDS
    while True:
        nodes = look()
        room = _room(nodes, requested)
        if room >= workers or time.monotonic() > end:
            return nodes, room
        time.sleep(0.2)


def _whole_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _free_nodes() -> list[dict[str, float]]:
    return list(ray._private.state.available_resources_per_node().values())


def _room(nodes: Sequence[dict[str, float]], requested: dict[str, float]) -> int:
    """Workers that nodes hold in all."""
    return sum(min(holds(node, k, v) for k, v in requested.items() if v) for node in nodes)


def _shortest(nodes: Sequence[dict[str, float]], requested: dict[str, float]) -> str:
    """The resource that suffices for the fewest workers."""
    return min(
        (k for k, v in requested.items() if v), key=lambda k: sum(holds(node, k, requested[k]) for node in nodes)
    )


def near_driver(soft: bool) -> Any:
    """A strategy that places an actor on the node of this process.

    Args:
        soft: whether it may start elsewhere when that node is lost. Ray then takes it for a wish: an actor may lie
            elsewhere from the start.
    """
    with suppress(Exception):  # a client of Ray is on no node
        return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft)
    return "DEFAULT"


def wait_ready(actors: Sequence[Any], cluster: Cluster, others: int = 0) -> None:
    """Until every actor has started; where some have and no more of them do for half a minute, until then.

    The others start when other jobs end, or when a node comes in place of a lost one. Items are then given to them too.

    Args:
        actors: that are to start.
        cluster: where.
        others: workers of the run that are up already.

    Raises:
        RunError: none has started in two minutes.
    """
    late = [actor.ready.remote() for actor in actors]
    last = time.monotonic()
    while late:
        there, late = ray.wait(late, timeout=1.0)
        for ref in there:
            last = time.monotonic()
            get(ref)
        quiet, up = time.monotonic() - last, others + len(actors) - len(late)
        if late and up and quiet > _FEWER_SECONDS:
            print(
                f"rayinf: {up} of {others + len(actors)} workers have started; the run begins with these, and the "
                "others join it once they have started.",
                file=sys.stderr,
                flush=True,
            )
            return
        if quiet > _START_SECONDS:
            raise RunError(*why_late(len(late), len(actors), cluster))


def why_late(late: int, workers: int, cluster: Cluster) -> tuple[str, str]:
    """Workers that wait for a place are distinguished from those that have one and are still starting."""
    free = ray.available_resources()
    what = f"{late} of {workers} workers did not start in {_START_SECONDS:.0f} s"
    for name, share in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        if share and free.get(name, 0.0) < share:
            have = ray.cluster_resources().get(name, 0.0)
            return (
                f"{what}: a worker asks for {share:g} {name}s, and {free.get(name, 0.0):g} of the cluster's {have:g} "
                "are free. Other jobs hold the rest.",
                "wait for them to end, or pass fewer workers.",
            )
    return (
        f"{what}, though the cluster has room for them: the machines are slow to import torch, Ray and the task's own "
        "code, or short of memory.",
        "look at the cluster's logs and the machines' load, then run the same command again.",
    )
