"""HiGHS beside other users of it in the same process."""

import subprocess
import sys

import pytest

PROGRAM = """
import highspy, numpy as np
from rayinf.pareto.common_gain import common_gain
from rayinf.pareto.lp import ReweightLP

def others(threads):
    highs = highspy.Highs()
    for name, value in {"output_flag": False, "threads": threads, "solver": "ipm"}.items():
        highs.setOptionValue(name, value)
    highs.addVar(0, 1)
    highs.changeColCost(0, -1.0)
    highs.run()
    return highs.getModelStatus() == highspy.HighsModelStatus.kOptimal

p = np.random.default_rng(0).normal(size=(400, 3))
if FIRST is not None:
    assert others(FIRST)
gain = common_gain(p / np.abs(p).sum(0)).y
weights = ReweightLP(p, [0]).solve(0.9).weights
assert others(0)
print("CHECK", gain.tobytes().hex(), weights.tobytes().hex())
"""


def solved(first: int | None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"FIRST = {first}\n{PROGRAM}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("CHECK"))


@pytest.fixture(scope="module")
def alone() -> str:
    return solved(None)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_whoever_has_started_its_threads_the_bytes_are_the_same(alone: str, threads: int) -> None:
    assert solved(threads) == alone
