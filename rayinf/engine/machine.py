"""What this machine can hold: cores and free memory as its control group allows them, and workers that fit in them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

from rayinf.engine.job import Cluster

# A worker that has imported torch, pyarrow and Ray, before any data and beside its model.
WORKER_BYTES = 350 << 20
# Workers a core, beyond which they only wait for each other.
MOST_PER_CORE = 4
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> float:
    """Processors that this process may use: its affinity, and the quota of its control group."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError, IndexError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        count = min(count, int(quota) / int(period))  # a quota of "max" is a ValueError: no limit
    with suppress(OSError, ValueError):
        allowed = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        if allowed > 0:
            count = min(count, allowed / int((_CGROUP / "cpu/cpu.cfs_period_us").read_text()))
    return count


def free_memory() -> int:
    """Bytes that processes may still take: what the machine has free, and what the control group's limit leaves.

    Cached files are given back by the kernel when memory is short.
    """
    free = int(psutil.virtual_memory().available)
    for folder, limit, used, prefix in (
        (_CGROUP, "memory.max", "memory.current", ""),
        (_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            most, taken = int((folder / limit).read_text()), int((folder / used).read_text())
            held = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = sum(int(held.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
            free = min(free, max(most - taken + files, 0))
    return free


def misfit(cluster: Cluster, model_bytes: int = 0) -> str | None:
    """Why a Ray that is started on this machine cannot hold a cluster's workers; None where it can.

    A mild excess of workers over cores is allowed, since they share the cores; memory cannot be shared.

    Args:
        cluster: with `address=None`.
        model_bytes: of one worker's model.
    """
    have, free = cores(), free_memory()
    count = cluster.fixed or 1
    wanted = count * cluster.cpus_per_worker
    most = max(MOST_PER_CORE * have, 1.0)
    if wanted > most:
        return (
            f"Cluster(workers={cluster.workers!r}, cpus_per_worker={cluster.cpus_per_worker:g}) asks for {wanted:g} "
            f"CPUs, and this machine has {have:g}: at most {MOST_PER_CORE} times as many can be shared, "
            f"{int(most / cluster.cpus_per_worker)} such workers"
        )
    each = WORKER_BYTES + model_bytes
    if count * each > free:
        return (
            f"Cluster(workers={cluster.workers!r}) needs {count * each / 2**30:.1f} GiB of memory before any "
            f"data ({each / 2**20:.0f} MiB a worker), and this machine has {free / 2**30:.1f} GiB free: room for "
            f"{free // each} workers"
        )
    return None
