"""A small job for the tests of runners: an MLP, tables with any number of shards, a deadly transform."""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import rayinf

ROWS, VALID, WIDTH = 600, 120, 12
STAGES = ("Squares", "ValidSquares", "Covariance", "Lambda", "Queries", "Score")


def model() -> nn.Module:
    """Two layers, seeded."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Linear(9, 3))


def arrays(rows: int, seed: int):
    """Correlated features, labels that depend on them, ids that no other seed gives, and a group."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, WIDTH)) @ np.random.default_rng(9).normal(size=(WIDTH, WIDTH))).astype(np.float32)
    y = (x[:, :3] + rng.normal(size=(rows, 3))).argmax(1)
    return x, y, rng.permutation(rows) + 1000 + 100_000 * seed, rng.integers(0, 2, rows)


def write(path: Path, rows: int, seed: int, group_size: int, order=None) -> Path:
    """A Parquet file with row groups of a size."""
    x, y, ids, group = arrays(rows, seed)
    order = np.arange(rows) if order is None else order
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x[order].reshape(-1)), WIDTH)
    table = pa.table({"features": flat, "label": y[order], "row_id": ids[order], "group": group[order]})
    pq.write_table(table, path, row_group_size=group_size)
    return path


def digest(folder: Path) -> str:
    """One hash of all score files."""
    files = sorted((folder / "scores").glob("part-*.parquet"))
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()


class Killer:
    """A transform that kills the first worker process to use it in each of some stages."""

    def __init__(self, marks: Path, stages=STAGES) -> None:
        self.marks, self.stages, self.driver = marks, stages, os.getpid()

    def __call__(self, x):
        stage = stage_at_work(self.stages)
        if stage and os.getpid() != self.driver:
            try:
                os.close(os.open(self.marks / stage, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return x
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def stage_at_work(stages) -> str | None:
    """Which of some stages calls, if any."""
    frame = sys._getframe()
    while frame is not None:
        name = type(frame.f_locals.get("self")).__name__
        if name in stages:
            return name
        frame = frame.f_back
    return None


def slow(x):
    """A transform that takes its time where rows are scored, so that a run can be stopped there."""
    if stage_at_work(("Score",)):
        time.sleep(0.1)
    return x


def slow_everywhere(x):
    """A transform that takes its time in every stage."""
    time.sleep(0.02)
    return x


def same(x):
    """A transform that changes nothing."""
    return x


def run(train, valid, out=None, cluster=None, transform=same, **options):
    """The job of these tests: all kinds of columns."""
    task = rayinf.Task(model(), transform=transform)
    objective = ["total", "category", "slice:group"]
    return rayinf.influence(task, train, valid, objective, out=out, cluster=cluster, **options)


def measure(train, valid, out=None, cluster=None, transform=same, **options):
    """FI of every training row."""
    return rayinf.influence_measure(
        rayinf.Task(model(), transform=transform), train, valid, out=out, cluster=cluster, **options
    )


def acquire(train, pool, out=None, cluster=None, transform=same, **options):
    """FI of the rows of a pool."""
    task = rayinf.Task(model(), transform=transform)
    return rayinf.acquire(task, train, pool, 20, out=out, cluster=cluster, **options)


def slow_task():
    """For the command line."""
    return rayinf.Task(model(), transform=slow)
