"""Runs on a cluster of three nodes, of which one is lost while it works, and then a new one. Prints what came out.

    python tests/engine/lost_nodes.py TRAIN VALID FOLDER

No run has a CPU to spare: what a lost node was doing must be done by the worker that is left.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("RAY_raylet_start_wait_time_s", "200")
os.environ.setdefault("RAY_health_check_period_ms", "1000")
os.environ.update(RAY_health_check_failure_threshold="15")
sys.path.insert(0, str(Path(__file__).parent.parent))

import ray
from engine import small_job as job
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rayinf
from rayinf.engine import ray_runner


def node_of(actor: Any) -> str:
    """The node that an actor's process is on."""
    return str(ray._private.state.state.actor_table(actor._actor_id.hex())["Address"]["NodeID"])


def run(tables: list[str], out: Path, lose: Any, stage: str, place: Any = None) -> dict[str, Any]:
    """One run; `lose(runner)` is called once the first chunk of a stage is in.

    Args:
        tables: training and validation rows.
        out: folder.
        lose: takes a node away.
        stage: when.
        place: the strategy that places the store, instead of the own one.
    """
    plain_fold, plain_near = ray_runner.RayRunner.fold, ray_runner.near_driver
    lost: list[float] = []

    def fold(self: Any, work: Any, arrays: Any, items: Any, name: str, *more: Any) -> Any:
        for key in plain_fold(self, work, arrays, items, name, *more):
            if name == stage and not lost:
                lost.append(time.monotonic())
                lose(self)
            yield key

    ray_runner.RayRunner.fold = fold  # type: ignore[method-assign]
    ray_runner.near_driver = place or plain_near
    try:
        job.run(*tables, out, rayinf.Cluster(workers=2, patience=200), job.slow_everywhere, batch_size=20)
    finally:
        ray_runner.RayRunner.fold, ray_runner.near_driver = plain_fold, plain_near  # type: ignore[method-assign]
    return {"digest": job.digest(out), "lost": len(lost), "seconds": round(time.monotonic() - lost[0], 1)}


@contextmanager
def folder_of_ray() -> Iterator[None]:
    """A folder of Ray's own with a short name, since sockets lie in it; and an end to its processes."""
    folder = tempfile.mkdtemp(prefix="ray-nodes-", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    try:
        yield
    finally:
        ray.shutdown()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Lose the node of a worker; then, on a node that has joined, a worker together with the store."""
    tables, folder = sys.argv[1:3], Path(sys.argv[3])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    env = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent)}}
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env=env)
    found = {}

    def lose_worker(runner: Any) -> None:
        where = node_of(runner._pool.actors[0])
        cluster.remove_node(next(n for n in nodes if n.node_id == where), allow_graceful=False)

    found["worker"] = run(tables, folder / "worker", lose_worker, "covariance")
    joined = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    while joined.node_id not in {n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}:
        time.sleep(0.5)

    def lose_both(runner: Any) -> None:
        assert node_of(runner._store.actor) == joined.node_id
        assert joined.node_id in {node_of(a) for a in runner._pool.actors}
        cluster.remove_node(joined, allow_graceful=False)

    on_joined = NodeAffinitySchedulingStrategy(joined.node_id, soft=True)
    found["both"] = run(tables, folder / "both", lose_both, "lambda", lambda soft: on_joined)
    print(json.dumps(found))


if __name__ == "__main__":
    with folder_of_ray():
        main()
