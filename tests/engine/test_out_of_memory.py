"""A device that runs out of memory: the item is done again in smaller batches, and no row is lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data.refusals import TRAIN, VALID, task
from torch import nn

import rayinf
from rayinf.core import kfac
from rayinf.engine.worker import Worker

NET = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def hold(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that holds so many rows of a batch; the rows of every batch that it was given."""
    given: list[int] = []
    predict = Worker.predict

    def limited(self: Worker, x: Any) -> torch.Tensor:
        given.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")
        return predict(self, x)

    monkeypatch.setattr(Worker, "predict", limited)
    return given


@pytest.mark.parametrize("verb", ["influence", "self_influence", "pairs"])
def test_smaller_batches_give_the_same_values(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = (TRAIN,) if verb == "self_influence" else (TRAIN, VALID)
    run = getattr(rayinf, verb)
    options = {"damping": 0.1}

    def values() -> np.ndarray:
        found = run(task(NET), *tables, **options)
        return found.to_pandas()["value"].to_numpy() if verb == "pairs" else found.to_numpy()

    truth = values()
    given = hold(monkeypatch, 9)
    found = values()
    assert max(given) > 9
    assert len(found) == len(truth)
    assert np.abs(found - truth).max() < 1e-5 * np.abs(truth).max()
    fits = [n for n in given if n <= 9]
    assert max(fits) >= 5  # not smaller than was needed


def test_a_row_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, 0)
    monkeypatch.setattr(Worker, "activations", (4, 9))
    with pytest.raises((rayinf.RunError, torch.OutOfMemoryError), match=r"out of (the accelerator's )?memory"):
        rayinf.influence(task(NET), TRAIN, VALID, damping=0.1, batch_size=16)


def test_slow_doubles_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer's card has 1/64 of its speed in float64, and Apple's have none."""
    assert kfac.fast_doubles(torch.device("cpu"))
    assert not kfac.fast_doubles(torch.device("mps"))
    for capability, fast in (((8, 0), True), ((9, 0), True), ((8, 6), False), ((8, 9), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, held=capability: held)
        assert kfac.fast_doubles(torch.device("cuda")) == fast
    torch.manual_seed(0)
    x = torch.randn(1, 400, 20)
    exact: kfac.Sums = {}
    rough: kfac.Sums = {}
    kfac.add_gram(exact, "A", x)
    monkeypatch.setattr(kfac, "fast_doubles", lambda device: False)
    kfac.add_gram(rough, "A", x)
    truth = x[0].double().T @ x[0].double()
    assert torch.allclose(exact["A"][0].tril(), truth.tril(), rtol=1e-12)
    assert rough["A"].dtype == torch.float64
    assert 0 < float((rough["A"][0].tril() - truth.tril()).abs().max()) < 1e-3


def test_batches_follow_from_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """40% of the card's memory, whatever is free."""
    worker = SimpleNamespace(
        activations=(1000, 500),
        blocks=(),
        device=torch.device("cuda"),
        job=SimpleNamespace(classes=SimpleNamespace(labels=())),
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10**8))
    assert Worker._measure(worker, 1) == int(4e7) // 4 // 3000
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10**12))
    assert Worker._measure(worker, 1) == 16_384
