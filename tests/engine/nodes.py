"""A cluster of a head and some nodes on this machine, any part of which can be killed.

As a program (`nodes.py COUNT`) it serves one cluster: it prints its address, and obeys a word a line (`join`, `fill`)
until its input ends.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

HOME = Path(__file__).parent.parent
# Signs of life, a second each, that a node may miss, unless the environment says otherwise: it is late where other
# work shares the machine.
_MISSED = {"RAY_health_check_failure_threshold": "15"}
_SETTINGS = {
    "RAY_raylet_start_wait_time_s": "200",
    "RAY_health_check_period_ms": "1000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_metrics_report_interval_ms": "600000",
    "RAY_task_events_report_interval_ms": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{HOME}:{HOME.parent}",
}
_OBJECTS = 80 << 20  # bytes of a node's object store
TITLES = {"worker": ("ray::WorkerActor", "ray::ReaderActor"), "store": ("ray::StoreActor",)}


class Nodes:
    """A standing cluster: the driver's node has no CPU for workers, the others have one each.

    Args:
        count: of the others.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._folder = tempfile.mkdtemp(prefix="ray-nodes-", dir="/tmp")  # sockets lie in it: a short name
        env = {**_MISSED, **os.environ, **_SETTINGS, "RAY_TMPDIR": self._folder}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(count)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._answer()

    def close(self) -> None:
        """End all processes."""
        for one in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
            with suppress(psutil.Error):
                one.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def processes(self, *titles: str) -> list[psutil.Process]:
        """Ray's processes whose command line begins so."""
        found = []
        for one in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(one.cmdline()).startswith(titles):
                    found.append(one)
        return found

    def strike(self, kind: str, rng: random.Random) -> bool:
        """Kill a part; whether there was one.

        Args:
            kind: "worker", "store", "node" (one that has workers), "head" (the driver's node), "gcs", or "objects",
                which fills the object stores.
            rng: draws which.
        """
        if kind == "objects":
            return self._say("fill")
        if kind in TITLES:
            found = self.processes(*TITLES[kind])
        elif kind == "gcs":
            found = [p for p in self._daemons() if "gcs_server" in p.name()]
        else:
            raylets = [p for p in self._daemons() if "raylet" in p.name()]
            head = min(raylets, key=lambda p: p.create_time())
            found = [head] if kind == "head" else [p for p in raylets if p != head]
        if not found:
            return False
        victim = rng.choice(sorted(found, key=lambda p: p.pid))
        for one in [victim, *victim.children(recursive=True)]:  # at once, as power fails
            with suppress(psutil.Error):
                one.send_signal(signal.SIGKILL)
        return True

    def join(self) -> None:
        """Add a node with a CPU."""
        self._say("join")

    def refill(self) -> None:
        """Add nodes until there are as many with a CPU as at the start."""
        while sum("raylet" in p.name() for p in self._daemons()) < self._count + 1:
            self.join()

    def _daemons(self) -> list[psutil.Process]:
        found = psutil.Process(self._process.pid).children(recursive=True)
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def _say(self, word: str) -> bool:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer() == word

    def _answer(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("> "):
                return line[2:].strip()
        raise AssertionError("the cluster's process has ended")


def _fill(seconds: float, share: int) -> None:
    """Put more into the object store of this node than it holds."""
    import numpy as np
    import ray

    end, held = time.monotonic() + seconds, []
    while time.monotonic() < end:
        held.append(ray.put(np.ones(share // 8)))
        del held[:-12]


def _add(cluster: Any, cpus: int) -> None:
    """Add a node. On a busy machine it may end while it starts: another is started."""
    for left in reversed(range(3)):
        try:
            cluster.add_node(num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECTS)
            return
        except Exception:  # Ray raises no other
            if not left:
                raise


def main() -> None:
    """Serve one cluster."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cluster = Cluster()
    for cpus in [0] + [1] * int(sys.argv[1]):  # the first is the head
        _add(cluster, cpus)
    print(f"> {cluster.address}", flush=True)
    held = []
    for line in sys.stdin:
        if line.strip() == "join":
            _add(cluster, 1)
        else:
            if not ray.is_initialized():
                ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            for node in [n["NodeID"] for n in ray.nodes() if n["Alive"]]:
                where = NodeAffinitySchedulingStrategy(node, soft=False)
                task = ray.remote(num_cpus=0, scheduling_strategy=where, max_retries=0)(_fill)
                held.append(task.remote(4.0, _OBJECTS // 8))
        print(f"> {line.strip()}", flush=True)


if __name__ == "__main__":
    main()
