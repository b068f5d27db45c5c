"""A factory must build the same model each time: twice in the driver, and in every worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rayinf
from rayinf.engine.job import Job
from rayinf.engine.model_digest import state_digest
from rayinf.engine.worker import Worker
from rayinf.training.open_table import open_table

WIDTH, CLASSES = 4, 3
X = np.random.default_rng(0).normal(size=(30, WIDTH)).astype(np.float32)
Y = np.arange(30) % CLASSES


def unseeded() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def seeded() -> nn.Module:
    torch.manual_seed(0)
    return unseeded()


def partly() -> nn.Module:
    """Only the head is left to chance."""
    made = seeded()
    torch.seed()
    made.append(nn.Linear(CLASSES, CLASSES))
    return made


def buffered() -> nn.Module:
    made = seeded()
    made.register_buffer("noise", torch.rand(3, generator=torch.Generator().manual_seed(int(np.random.randint(2**31)))))
    return made


def attributed() -> nn.Module:
    made = seeded()
    made.scale = float(np.random.default_rng().random())
    return made


def value(model: Any, **more: Any) -> rayinf.Scores:
    return rayinf.influence(rayinf.Task(model), (X, Y), (X, Y), **{"curvature": "identity", **more})


@pytest.mark.parametrize(
    ("factory", "name"),
    [(unseeded, "'0.weight' differs"), (partly, "'3.weight' differs"), (buffered, "'noise' differs")],
)
def test_a_factory_that_is_random(factory: Callable[[], nn.Module], name: str, tmp_path: Path) -> None:
    with pytest.raises(rayinf.InputError, match=rf"builds another model each time it is called: {name}.*seed"):
        value(factory, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_factory_whose_attributes_are_random() -> None:
    with pytest.raises(rayinf.InputError, match="the parameters agree, but attributes"):
        value(attributed)


def test_a_factory_is_known_by_what_it_builds() -> None:
    held = seeded()
    a, b, c = (value(m) for m in (seeded, seeded(), lambda: held))
    assert a.metadata["of"] == b.metadata["of"] == c.metadata["of"]
    np.testing.assert_array_equal(a.to_numpy(), b.to_numpy())


def test_one_module_each_time_stays_as_it_is() -> None:
    """In float64 a worker converts the model; the user's own must not change."""
    held = seeded()
    found = value(lambda: held, precision="fp64")
    assert held[0].weight.dtype is torch.float32
    np.testing.assert_array_equal(found.to_numpy(), value(seeded(), precision="fp64").to_numpy())


# --- Workers


def job_of(model: Any) -> Job:
    worker, _ = open_table(rayinf.Task(model), (X, Y), "train")
    return replace(worker.job, state=state_digest(seeded()), task=rayinf.Task(model))


def test_a_worker_that_builds_the_same() -> None:
    assert torch.equal(Worker(job_of(seeded)).model[0].weight, seeded()[0].weight)
    job = job_of(seeded)
    fp64 = replace(job, spec=replace(job.spec, precision="fp64"))
    assert Worker(fp64).model[0].weight.dtype is torch.float64


class Checkpoint:
    """A factory that loads what stands in a file, as it is on each machine."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self) -> nn.Module:
        made = unseeded()
        made.load_state_dict(torch.load(self.file))
        return made


def test_a_worker_that_loads_another_checkpoint(tmp_path: Path) -> None:
    factory = Checkpoint(tmp_path / "model.pt")
    torch.save(seeded().state_dict(), factory.file)
    job = job_of(factory)
    _ = Worker(job).model
    other = seeded()
    other[2].bias.data[1] += 1e-3
    torch.save(other.state_dict(), factory.file)
    with pytest.raises(rayinf.InputError, match=r"another model in a worker than in the driver: '2.bias' differs"):
        _ = Worker(job).model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: seeded()[:1], r"'2.weight' is missing"),
        (lambda: seeded().append(nn.BatchNorm1d(CLASSES)), "'3.weight' is not in the driver's"),
        (lambda: seeded().double(), "'0.weight' differs"),
    ],
)
def test_a_worker_that_builds_another(model: Callable[[], nn.Module], said: str) -> None:
    job = replace(job_of(seeded), task=rayinf.Task(model))
    with pytest.raises(rayinf.InputError, match=said):
        _ = Worker(job).model


def test_every_run_gives_its_workers_the_drivers_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory that changes after the probe is found out by the worker that builds it."""
    calls: list[int] = []

    def changes() -> nn.Module:
        made = seeded()
        calls.append(1)
        if len(calls) > 3:  # twice to compare, once to probe
            made[0].bias.data += 1
        return made

    with pytest.raises(rayinf.InputError, match=r"in a worker than in the driver: '0.bias' differs"):
        value(changes)
    calls.clear()
    monkeypatch.setattr("rayinf.engine.worker.check_same_state", lambda *_: None)
    value(changes)  # without the check it runs, on another model


def test_a_module_is_not_built_anew() -> None:
    """It is sent as it is: nothing is compared."""
    job = replace(job_of(seeded), task=rayinf.Task(nn.Linear(WIDTH, CLASSES)))
    assert isinstance(Worker(job).model, nn.Linear)
