"""Some of the runs of `chaos.py`, in each of which something fails at a random moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]
CHAOS = Path(__file__).parent / "chaos.py"
# Ten of the 200 of `chaos.py`, with one worker: every kind of failure, six verbs.
SEEDS = (2, 17, 25, 37, 40, 43, 45, 62, 85, 124)


def test_ten_runs_in_which_something_fails(tmp_path):
    """In a process of its own, which forks drivers."""
    command = [sys.executable, str(CHAOS), str(tmp_path), "--workers", "1", "--seeds", *map(str, SEEDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    held = [json.loads(line) for line in (tmp_path / "chaos.jsonl").read_text().splitlines()]
    assert done.returncode == 0, (done.stderr[-2000:], [r for r in held if r["wrong"]])
    assert sum(r["struck"] for r in held) >= 7
