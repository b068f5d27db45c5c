"""Several trainings and measurements on a table that is opened once give what each alone gives, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import rayinf
from rayinf.core.objective_parser import parse
from rayinf.data.batches import Columns
from rayinf.data.tables import as_table
from rayinf.training import evaluation, shuffle
from rayinf.training.evaluation import Measurement, measure_model
from rayinf.training.retraining import Retraining, train_anew
from rayinf.training.shuffle import Shuffled, hold

ROWS, WIDTH = 130, 4
KEPT = [np.random.default_rng(k).random(ROWS) < share for k, share in enumerate((0.5, 0.8, 1.1))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    held = pd.DataFrame({f"x{j}": x[:, j] for j in range(WIDTH)}).assign(label=x.argmax(1), side=np.arange(ROWS) % 3)
    file = tmp_path_factory.mktemp("table") / "t.parquet"
    held.to_parquet(file, row_group_size=40)
    return file


def task() -> rayinf.Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, WIDTH))
    fit = rayinf.Fit("adam", lr=1e-2, epochs=2, batch_size=16)
    return rayinf.Task(net, features=[f"x{j}" for j in range(WIDTH)], fit=fit, l2=1e-3, parameters="supported")


def state(trained: rayinf.Task) -> dict[str, Any]:
    return {k: v.tolist() for k, v in trained.build().state_dict().items()}


def test_trainings(path: Path) -> None:
    opened = Retraining(task(), path, several=True)
    for keep, paired in ((KEPT[0], False), (KEPT[1], True), (KEPT[2], False), (KEPT[0], False)):
        given = {"seed": 1, "rows": ROWS, "paired": paired}
        assert state(opened.train(keep, **given)) == state(train_anew(task(), path, keep, **given))


def test_minibatches(path: Path) -> None:
    table, columns = as_table(path, [], [], "train"), Columns(("x0", "x1"), False, "label", None)
    every = hold(table, columns)
    for keep in KEPT:
        for gaps in (False, True):
            found, plain = (
                list(Shuffled(table, columns, keep, 16, gaps, e).epoch(torch.Generator().manual_seed(3)))
                for e in (every, None)
            )
            for a, b in zip(found, plain, strict=True):
                assert (a.x == b.x).all() and (a.labels == b.labels).all() and (a.positions == b.positions).all()


@pytest.mark.parametrize("fits", [True, False])
def test_measurements(path: Path, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fits:
        monkeypatch.setattr(evaluation, "BUFFER_ROWS", ROWS - 1)
        monkeypatch.setattr(shuffle, "BUFFER_ROWS", ROWS - 1)
        assert hold(as_table(path, [], [], "train"), Columns(("x0",), True, "label", None)) is None
    wanted = parse(["category", "slice:side"])
    opened = Measurement(task(), path, wanted, several=True)
    assert (opened._held is not None) == fits
    for seed in (0, 1):
        trained = train_anew(task(), path, seed=seed)
        losses: list[np.ndarray] = []
        found = opened.of(trained, losses)
        assert found == measure_model(trained, path, wanted)
        assert np.concatenate(losses).sum() == pytest.approx(ROWS * found["loss"])
        assert len(np.concatenate(losses)) == ROWS


def doubled(x: np.ndarray) -> np.ndarray:
    x *= 2
    return x


def test_a_transform_that_works_in_place(path: Path) -> None:
    given = replace(task(), transform=doubled)
    opened, trained = Measurement(given, path, several=True), Retraining(given, path, several=True)
    first = trained.train(KEPT[0], seed=1)
    assert state(trained.train(KEPT[0], seed=1)) == state(first)
    assert opened.of(first) == opened.of(first) == measure_model(first, path)
