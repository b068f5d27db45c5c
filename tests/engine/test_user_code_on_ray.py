"""Errors of the user's own code on workers arrive as they are in one process: who, where, on which rows."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from data.refusals import TRAIN, VALID, X, task

import rayinf

WORKERS = rayinf.Cluster(workers=1)


def fails_late(x: Any) -> Any:
    """On the batch that holds row 53."""
    if bool((torch.tensor(x) == torch.tensor(X[53])).all(1).any()):
        raise KeyError("colour")
    return x


def refused(**given: Any) -> rayinf.RayinfError:
    with pytest.raises(rayinf.InputError) as caught:
        rayinf.influence(**{"task": task(), "train": TRAIN, "valid": VALID, "batch_size": 4, **given})
    return caught.value


@pytest.mark.slow
def test_a_transform_that_fails_on_a_worker(ray_session: None) -> None:
    of = task(transform=fails_late)
    there, here = refused(task=of, cluster=WORKERS), refused(task=of)
    assert type(there) is rayinf.InputError
    assert str(there) == str(here)
    assert "raised KeyError: 'colour' (test_user_code_on_ray.py, line " in there.what
    assert "on rows 52 to 55 of train" in there.what


def test_what_cannot_be_sent(ray_session: None) -> None:
    lock = threading.Lock()

    def locked(x: Any) -> Any:
        with lock:
            return x

    error = refused(task=task(transform=locked), cluster=WORKERS)
    assert "cannot be sent to them" in error.what
    assert "cannot pickle '_thread.lock' object" in error.what
    assert "\n" not in str(error)


def test_code_that_workers_cannot_import(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is found here alone."""
    (tmp_path / "only_here.py").write_text("def same(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    try:
        error = refused(task=task(transform=only_here.same), cluster=WORKERS)
    finally:
        del sys.modules["only_here"]
    assert "A worker cannot import the code of the Task: No module named 'only_here'" in error.what
    assert "runtime_env" in error.fix
    assert "\n" not in str(error)
