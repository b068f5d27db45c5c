"""How many workers `Cluster(workers="auto")` has room for: arithmetic on what nodes and this machine have free."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rayinf.engine.job import Cluster
from rayinf.engine.machine import cores, free_memory

# A worker with a batch and a stage's arrays; its model comes on top.
_WORKER_BYTES = 700 << 20


def request(cluster: Cluster, model_bytes: int) -> dict[str, float]:
    """What a worker takes of a node, by Ray's names.

    Args:
        cluster: what it reserves.
        model_bytes: of its model. Memory is counted, and not reserved: a worker that is alone needs no room for it.
    """
    found = {"CPU": float(cluster.cpus_per_worker), "GPU": float(cluster.gpus_per_worker)}
    return {**found, "memory": float(_WORKER_BYTES + model_bytes)}


def holds(node: Mapping[str, float], name: str, share: float) -> int:
    """Workers that one resource of a node suffices for. A share of a GPU lies within one GPU."""
    have = node.get(name, 0.0)
    if name == "GPU" and share < 1:
        return int(have) * int(1 / share + 1e-9)
    return int(have / share + 1e-9)


def more_workers(free: Mapping[str, float], requested: Mapping[str, float], there: int, starting: int) -> int:
    """Workers that a node has room for beside those of this run.

    Args:
        free: what Ray has not reserved there.
        requested: of a worker; see `request`.
        there: workers of this run, whose memory is not reserved.
        starting: further ones, of which nothing may be reserved yet.
    """
    have = {**free, "memory": free.get("memory", 0.0) - there * requested.get("memory", 0.0)}
    names = [name for name, share in requested.items() if share and (name != "memory" or name in free)]
    return max(min(holds(have, name, requested[name]) for name in names) - starting, 0)


def on_this_machine(cluster: Cluster, model_bytes: int) -> int:
    """Workers that this machine has room for, at least one."""
    have = {"CPU": cores(), "memory": float(free_memory())}
    if cluster.gpus_per_worker:
        have["GPU"] = float(torch.cuda.device_count())
    return max(1, more_workers(have, request(cluster, model_bytes), 0, 0))


def workers_now(cluster: Cluster | None, model_bytes: int = 0) -> int:
    """How many workers a run would have that began now; without a cluster one, this process.

    Args:
        cluster: one elsewhere is joined for a moment where it must be asked.
        model_bytes: of the model that each worker holds.

    Raises:
        InputError: the cluster cannot be joined, or could never hold one worker.
    """
    if cluster is None:
        return 1
    if cluster.fixed is not None:
        return cluster.fixed
    if cluster.address is None:
        return on_this_machine(cluster, model_bytes)
    from rayinf.engine import ray_cluster

    return ray_cluster.count_room(cluster, model_bytes)
