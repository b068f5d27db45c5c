"""Nodes that are lost and that join while a run goes on: the scores are the same to the last byte.

    RAYINF_LOST_NODES=1 pytest -n 0 -m slow tests/engine/test_lost_nodes.py

On a machine that does nothing else: where three nodes share two cores with other work, Ray takes a late one for lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine import small_job as job
from engine.ray_head import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif("RAYINF_LOST_NODES" not in os.environ, reason="needs RAYINF_LOST_NODES=1 and a quiet machine"),
    pytest.mark.timeout(400),
]


def printed(script: str, *arguments: Path) -> Any:
    """What a script of this folder prints at its end, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)],
        env=environment(None, RAY_AUTH_MODE="disabled"),
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_node_of_a_worker_and_that_of_the_store_are_lost(tmp_path):
    """In a process of its own: the Ray of these tests has one node."""
    train = job.write(tmp_path / "train.parquet", job.ROWS, 1, 100)
    valid = job.write(tmp_path / "valid.parquet", job.VALID, 2, 40)
    job.run(train, valid, tmp_path / "calm", transform=job.slow_everywhere, batch_size=20)
    found = printed("lost_nodes.py", train, valid, tmp_path)
    for name in ("worker", "both"):
        assert found[name]["lost"] == 1
        assert found[name]["digest"] == job.digest(tmp_path / "calm"), name


def test_a_node_joins_while_rows_are_scored_and_the_first_one_leaves(tmp_path):
    """`workers="auto"`: one worker, then two, then the one that joined."""
    train = job.write(tmp_path / "train.parquet", 4800, 1, 100)
    valid = job.write(tmp_path / "valid.parquet", job.VALID, 2, 40)
    job.run(train, valid, tmp_path / "calm", batch_size=20)
    found = printed("joining_nodes.py", train, valid, tmp_path / "run")
    assert found["digest"] == job.digest(tmp_path / "calm")
    assert found["workers"] == [1, 1]
    assert min(found["given"]) > 3
