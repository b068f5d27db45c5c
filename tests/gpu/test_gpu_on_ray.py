"""Workers of Ray with a share of a GPU each: the values of one process that has the GPU for itself.

pytest tests/gpu -n 0 -m ""
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rayinf

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

N, K = 400, 4
TWO = rayinf.Cluster(workers=2, gpus_per_worker=0.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(180, K)
    ).eval()


def tables() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N + 80, 36)).astype(np.float32), rng.integers(0, K, N + 80)
    return (x[:N], y[:N]), (x[N:], y[N:])


def far(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(found - truth).max() / np.abs(truth).max())


@pytest.fixture(scope="module")
def gpu_session() -> Any:
    """A local Ray that knows of the GPU, whose workers run from one call to the next."""
    ray = pytest.importorskip("ray")
    from rayinf.engine.ray_session import connected

    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    with connected():
        yield
    ray.shutdown()


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "ggn"])
def test_influence(curvature: str, gpu_session: Any) -> None:
    train, valid = tables()
    given = {"objective": ["total", "category"], "curvature": curvature, "damping": 0.1 if curvature == "ggn" else None}
    found = rayinf.influence(rayinf.Task(network()), train, valid, cluster=TWO, **given).to_numpy()
    truth = rayinf.influence(rayinf.Task(network().cuda()), train, valid, **given).to_numpy()
    assert far(found, truth) < 1e-5


def test_runs_are_equal_to_the_bit_whatever_the_workers(tmp_path: Path, gpu_session: Any) -> None:
    train, valid = tables()
    one = rayinf.Cluster(workers=1, gpus_per_worker=1)
    first, again = (
        rayinf.influence(rayinf.Task(network()), train, valid, cluster=c, out=tmp_path / str(c.workers)).to_numpy()
        for c in (TWO, one)
    )
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("verb", [rayinf.self_influence, rayinf.influence_measure], ids=lambda v: v.__name__)
def test_other_values(verb: Any, gpu_session: Any) -> None:
    train, valid = tables()
    given = (train,) if verb is rayinf.self_influence else (train, valid)
    found = verb(rayinf.Task(network()), *given, cluster=TWO).to_numpy()
    truth = verb(rayinf.Task(network().cuda()), *given).to_numpy()
    assert far(found, truth) < 1e-4


def test_pairs(gpu_session: Any) -> None:
    train, valid = tables()
    found, truth = (
        rayinf.pairs(task, train, valid, top=N, cluster=c).to_pandas().iloc[:, -1].to_numpy(float)
        for task, c in ((rayinf.Task(network()), TWO), (rayinf.Task(network().cuda()), None))
    )
    assert far(np.sort(found), np.sort(truth)) < 1e-4
