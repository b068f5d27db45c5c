"""A run with as many workers as there is room for: a node joins while rows are scored, then the first one leaves.

    python tests/engine/joining_nodes.py TRAIN VALID OUT

Prints what came out: workers at the start and at the end, and how many items each node was given from then on.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import ray
from engine import small_job as job
from engine.lost_nodes import folder_of_ray
from ray.cluster_utils import Cluster

import rayinf
from rayinf.engine import ray_runner, ray_spread, scoring


def main() -> None:
    """The nodes have a CPU each; the head has none."""
    train, valid, out = sys.argv[1:4]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1)]
    env = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent)}}
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env=env)
    plain_map, plain_call = ray_runner.RayRunner.map, ray_spread._Spread._call
    given: Counter[str] = Counter()
    seen: dict[str, Any] = {}
    pool: list[Any] = []

    def call(self: Any, actor: Any, key: Any) -> None:
        given.update([p._nodes.get(actor, "") for p in pool])
        plain_call(self, actor, key)

    def scored(self: Any, stage: Any, arrays: Any, items: Any, **options: Any) -> Any:
        for key, result in plain_map(self, stage, arrays, items, **options):
            if stage is scoring.Score and not pool:
                pool.append(self._pool)
                seen["first"] = self.workers
                nodes.append(cluster.add_node(num_cpus=1))
            elif given[nodes[-1].node_id] > 3 and "left" not in seen:
                seen["left"] = time.monotonic()
                cluster.remove_node(nodes[0], allow_graceful=False)
            seen["last"] = self.workers
            yield key, result

    ray_runner.RayRunner.map, ray_spread._Spread._call = scored, call  # type: ignore[method-assign]
    job.run(train, valid, out, rayinf.Cluster(workers="auto", patience=120), job.slow, batch_size=20)
    seconds = time.monotonic() - seen["left"]
    print(
        json.dumps(
            {
                "digest": job.digest(Path(out)),
                "workers": [seen["first"], seen["last"]],
                "given": [given[node.node_id] for node in nodes],
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    with folder_of_ray():
        main()
