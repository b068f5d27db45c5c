"""A small problem for the tests of `pareto_reweight`: four overlapping classes, and fits with faults."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rayinf

CLASSES, WIDTH = 4, 6
SMALL = rayinf.Search(elites=2, mutated_elites=2, randoms=2, crossover_children=2, iterations=3, prefer=0.5)


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `[n, 6]` float32 and labels `[n]`, of every class."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % CLASSES)
    return (rng.normal(size=(n, WIDTH)) + 1.2 * np.eye(CLASSES, WIDTH)[y]).astype(np.float32), y


TRAIN, VALID = rows(160, 0), rows(400, 1)


def task(fit: Any = None) -> rayinf.Task:
    """A checkpoint of a few epochs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, CLASSES))
    recipe = rayinf.Fit(optimizer="sgd", lr=0.05, epochs=2, batch_size=16, schedule="constant")
    trained = rayinf.retrain(rayinf.Task(model, fit=recipe), TRAIN)
    return rayinf.Task(trained.model, fit=fit or recipe)


def search(**arguments: Any) -> rayinf.Reweighting:
    """Three generations of eight, unless told otherwise."""
    given = {"task": task(), "train": TRAIN, "valid": VALID, "targets": [0, 2], "search": SMALL, "seed": 3}
    given |= arguments
    given["scores"] = arguments.get("scores") or scores()
    return rayinf.pareto_reweight(**given)


def scores() -> rayinf.Scores:
    """Influence vectors of the checkpoint."""
    return rayinf.influence(task(), TRAIN, VALID, "category", curvature="ggn", damping=0.1)


def digest(folder: Path) -> str:
    """One hash of all that a run leaves, but for its log."""
    files = sorted(
        f for f in folder.rglob("*") if f.is_file() and f.name not in ("log.jsonl", "run.json", "manifest.jsonl")
    )
    run = json.loads((folder / "run.json").read_text())
    del run["identity"]["fit"], run["checksum"], run["manifests"]  # a `CountedFit` says where it counts
    held = [str(f.relative_to(folder)).encode() + f.read_bytes() for f in files]
    return hashlib.sha256(b"".join([*held, json.dumps(run).encode()])).hexdigest()


@dataclass
class CountedFit:
    """A fit that is a function; counts its calls, and raises or dies when it is called for the k-th time in all.

    A file a call, so that the count survives the process. When it raises or dies stands in a file too: it is no part of
    what the fit is.
    """

    marks: Path

    @classmethod
    def planned(cls, marks: Path, stops_at: int | None = None, dies_at: int | None = None) -> CountedFit:
        """One that raises or dies."""
        cls(marks)._plan.write_text(json.dumps([stops_at, dies_at]))
        return cls(marks)

    @property
    def _plan(self) -> Path:
        return self.marks.with_name(f"{self.marks.name}.plan")

    def __call__(self, task: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
        calls = len(list(self.marks.iterdir()))
        (self.marks / f"{calls}-{os.getpid()}").touch()
        stops_at, dies_at = json.loads(self._plan.read_text())
        if calls == stops_at:
            raise KeyboardInterrupt
        if calls == dies_at:
            with suppress(FileExistsError):  # two processes may count the same call
                os.close(os.open(self.marks.with_name(f"{self.marks.name}.died"), os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return weighted_steps(task, train, weights, seed)


def weighted_steps(task: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
    """A few steps of weighted full-batch descent from the checkpoint."""
    model = copy.deepcopy(task.model)
    x, y = torch.tensor(train[0]), torch.tensor(train[1])
    w = torch.ones(len(y)) if weights is None else torch.tensor(weights, dtype=torch.float32)
    steps = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        steps.zero_grad()
        (w * nn.functional.cross_entropy(model(x), y, reduction="none")).mean().backward()
        steps.step()
    return model


if __name__ == "__main__":  # a run that dies in its k-th training
    search(task=task(CountedFit.planned(Path(sys.argv[1]), dies_at=int(sys.argv[3]))), out=Path(sys.argv[2]))
