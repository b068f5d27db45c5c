"""Shards that fail by their own fault, on Ray: by an error, or by ending their worker's process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine.test_on_error import BAD, GROUP, MANY, SPOILT, VALID, X, net, parts, write

import rayinf
from rayinf.engine import ray_calls
from rayinf.errors import SkippedWarning

WORKERS = rayinf.Cluster(workers=2)


class Picky:
    """Raises on rows whose first feature is above a million, or ends the process."""

    def __init__(self, deadly: bool = False) -> None:
        self.deadly, self.driver = deadly, os.getpid()

    def __call__(self, x: Any) -> Any:
        if (x[:, 0] > MANY).any():
            if self.deadly and os.getpid() != self.driver:
                os._exit(1)
            raise ValueError("too large")
        return x


def value(train: Path, out: Path, transform: Any, **more: Any) -> rayinf.Scores:
    task = rayinf.Task(net(), row_id="row_id", transform=transform, version="1")
    how = {"curvature": "kfac", "damping": 0.01, "batch_size": GROUP, **more}
    return rayinf.influence(task, train, (VALID[0][:15], VALID[1][:15]), out=out, **how)


def test_shards_that_raise_on_workers(ray_session: None, tmp_path: Path) -> None:
    """The run that stops names one; the one that goes on has the bytes of one process."""
    train = write(tmp_path / "t")
    with pytest.warns(SkippedWarning, match="40 rows have no value"):
        value(train, tmp_path / "here", Picky(), on_error="skip")
    with pytest.raises(rayinf.InputError, match=r"^Rows (20 to 39|80 to 99) of train \(.*on_error"):
        value(train, tmp_path / "there", Picky(), cluster=WORKERS)
    with pytest.warns(SkippedWarning, match="40 rows have no value"):
        found = value(train, tmp_path / "there", Picky(), cluster=WORKERS, on_error="skip")
    assert np.flatnonzero(np.isnan(found.to_numpy()[:, 0])).tolist() == BAD
    assert parts(tmp_path / "there") == parts(tmp_path / "here")


def test_a_shard_that_ends_its_workers(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours, which wait behind it in the same process, are not blamed."""
    monkeypatch.setattr(ray_calls, "MOST_DEATHS", 1)
    alone = {"curvature": "identity", "on_error": "skip"}  # one stage, since every death is a process to start
    x = X.copy()
    x[25, 0] = 2 * MANY
    train = write(tmp_path / "t", x)
    with pytest.warns(SkippedWarning, match="20 rows have no value"):
        value(train, tmp_path / "here", Picky(), **alone)
    with pytest.warns(SkippedWarning, match="20 rows have no value"):
        found = value(train, tmp_path / "ends", Picky(True), cluster=rayinf.Cluster(workers=1), **alone)
    assert all("ended its process" in s["error"] for s in found.metadata["skipped"])
    assert {(s["stage"], *s["rows"]) for s in found.metadata["skipped"]} == {("scores", 20, 39)}
    assert parts(tmp_path / "ends") == parts(tmp_path / "here")


def test_the_rows_that_are_spoilt() -> None:
    assert np.flatnonzero(SPOILT[:, 0] > MANY).tolist() == [25, 99]
