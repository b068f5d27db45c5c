"""A small problem for the tests of active learning: three overlapping classes, and oracles with faults."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rayinf

WIDTH, CLASSES = 5, 3


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `[n, 5]` float32 and labels `[n]`, of every class."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % CLASSES)
    return (rng.normal(size=(n, WIDTH)) + 1.5 * np.eye(CLASSES, WIDTH)[y]).astype(np.float32), y


LABELED, POOL, TEST = rows(24, 0), rows(200, 1), rows(90, 2)


def task(**arguments: Any) -> rayinf.Task:
    """A logistic regression of the labelled rows."""
    return rayinf.logistic_regression(LABELED, l2=1e-2, **arguments)


def truth(ids: np.ndarray) -> np.ndarray:
    """An oracle that knows, of ids that are positions."""
    return POOL[1][ids]


def learn(**arguments: Any) -> rayinf.History:
    """Two rounds of eight rows, unless told otherwise."""
    given = {
        "task": task(),
        "labeled": LABELED,
        "pool": POOL[0],
        "oracle": truth,
        "test": TEST,
        "rounds": 2,
        "n": 8,
        "curvature": "exact",
    }
    return rayinf.active_learning(**{**given, **arguments})


def digest(folder: Path) -> str:
    """One hash of all rows that were picked and labelled in a run."""
    files = sorted(folder.glob("*/round-*.parquet"))
    return hashlib.sha256(b"".join(f"{f.parent.name}/{f.name}".encode() + f.read_bytes() for f in files)).hexdigest()


def measures(history: rayinf.History) -> list[dict[str, Any]]:
    """The table without its seconds, and the loss without the last bits, which hang on the order of sums."""
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in history.table.to_pylist()]
    return [{**row, "loss": round(row["loss"], 10)} for row in rows]


def die_once(mark: Path) -> None:
    """Kill this process, the first time."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Deadly:
    """An oracle that dies when it is asked the first time for labels of each trajectory and round."""

    marks: Path

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        die_once(self.marks / f"oracle-{'-'.join(map(str, ids))}")
        return truth(ids)


@dataclass(frozen=True)
class DeadlyFit:
    """A trainer of a linear model that dies when it is first given so many rows."""

    marks: Path

    def __call__(self, task: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
        die_once(self.marks / f"fit-{train.num_rows}")
        x = torch.tensor(train["features"].to_pylist())
        y = torch.tensor(train["label"].to_pylist())
        torch.manual_seed(seed)
        model = nn.Linear(WIDTH, CLASSES)
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(50):
            steps.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            steps.step()
        return model


def deadly_run(marks: Path, out: Path) -> rayinf.History:
    """A run that dies in every training and with every question."""
    torch.manual_seed(0)
    mortal = rayinf.Task(nn.Linear(WIDTH, CLASSES), fit=DeadlyFit(marks), l2=1e-2)
    return learn(task=mortal, oracle=Deadly(marks), out=out)


if __name__ == "__main__":
    deadly_run(Path(sys.argv[1]), Path(sys.argv[2]))
