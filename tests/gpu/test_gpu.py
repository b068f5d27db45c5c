"""A model on a GPU has the values that it has on the CPU. In one process, without Ray: the model's device is used.

pytest tests/gpu -n 0
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rayinf
from rayinf.core import inverse
from rayinf.engine import column_tiles

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

N, K = 300, 4


class Tokens(nn.Module):
    """An embedding, attention-free mixing over positions, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.embed(x.long()))).mean(1))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    nets = {
        "mlp": lambda: nn.Sequential(nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, K)),
        "conv": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(180, K)
        ),
        "tokens": Tokens,
    }
    return nets[kind]().eval()


def tables(kind: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (N + 80, 6)) if kind == "tokens" else rng.normal(size=(N + 80, 36))
    y = rng.integers(0, K, N + 80)
    x = x.astype(np.float32)
    return (x[:N], y[:N]), (x[N:], y[N:])


def both(kind: str, verb: Any, dtype: torch.dtype = torch.float64, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values on the CPU in float64, and on the GPU."""
    train, valid = tables(kind)
    found = []
    for device, kept in (("cpu", torch.float64), ("cuda", dtype)):
        model = copy.deepcopy(network(kind)).to(device, kept)
        transform = None if kind == "tokens" else as_double if kept is torch.float64 else None
        task = rayinf.Task(model, l2=1e-2, transform=transform)
        given = (train,) if verb is rayinf.self_influence else (train, valid)
        frame = verb(task, *given, **more).to_pandas()
        found.append(frame.select_dtypes("number").drop(columns=["row_id"]).to_numpy(float))
    return found[0], found[1]


def as_double(x: Any) -> Any:
    return np.asarray(x, np.float64)


def far(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(found - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "identity"])
@pytest.mark.parametrize("kind", ["mlp", "conv", "tokens"])
def test_influence(kind: str, curvature: str) -> None:
    truth, found = both(kind, rayinf.influence, curvature=curvature, objective=["total", "category"])
    assert far(found, truth) < 1e-8


@pytest.mark.parametrize("curvature", ["exact", "ggn"])
def test_a_dense_curvature(curvature: str) -> None:
    truth, found = both("mlp", rayinf.influence, curvature=curvature, damping=5.0)
    assert far(found, truth) < 1e-8


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_in_float32(kind: str) -> None:
    truth, found = both(kind, rayinf.influence, torch.float32)
    assert far(found, truth) < 1e-2


@pytest.mark.parametrize("verb", [rayinf.self_influence, rayinf.influence_measure], ids=lambda v: v.__name__)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_other_values(kind: str, verb: Any) -> None:
    truth, found = both(kind, verb)
    assert far(found, truth) < 1e-6


@pytest.mark.parametrize("curvature", ["ekfac", "kfac"])
def test_solves_are_on_the_gpu(curvature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of columns in tiles, whose queries may be thin."""
    devices: list[str] = []
    for name in ("solve_eigen", "solve_thin"):
        real = getattr(inverse, name)

        def noted(block: Any, v: torch.Tensor, *given: Any, real: Any = real) -> Any:
            devices.append(v.device.type)
            return real(block, v, *given)

        monkeypatch.setattr(inverse, name, noted)
    train, valid = tables("mlp")
    task = rayinf.Task(network("mlp").cuda())
    whole = rayinf.influence(task, train, valid, "category", curvature=curvature).to_numpy()
    monkeypatch.setattr(column_tiles, "TILE_BYTES", 0)
    monkeypatch.setattr(column_tiles, "LEAST_COLUMNS", 2)
    tiles = rayinf.influence(task, train, valid, "category", curvature=curvature).to_numpy()
    assert far(tiles, whole) < 1e-5
    assert set(devices) == {"cuda"} and len(devices) >= 6  # two layers, of all columns and of two tiles


def test_pairs() -> None:
    truth, found = both("conv", rayinf.pairs, top=N)
    assert far(np.sort(found[:, -1]), np.sort(truth[:, -1])) < 1e-6


def test_a_training_on_the_gpu() -> None:
    """Its inverse follows from the fit, with Adam's time a layer."""
    train, valid = tables("mlp")
    task = rayinf.Task(network("mlp").cuda(), fit=rayinf.Fit(epochs=3, batch_size=32))
    trained = rayinf.retrain(task, train)
    assert next(trained.model.parameters()).is_cuda
    scores = rayinf.influence(trained, train, valid)
    on_cpu = rayinf.influence(rayinf.Task(copy.deepcopy(trained.model).cpu(), fit=task.fit), train, valid)
    assert far(scores.to_numpy(), on_cpu.to_numpy()) < 1e-2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(precision: str) -> None:
    truth, found = both("conv", rayinf.influence, torch.float32, precision=precision)
    plain, _ = both("conv", rayinf.influence, torch.float32)
    assert np.isfinite(found).all()
    assert np.corrcoef(found.ravel(), plain.ravel())[0, 1] > 0.98
    assert truth.shape == found.shape


def test_runs_are_equal_to_the_bit(tmp_path: Any) -> None:
    train, valid = tables("conv")
    task = rayinf.Task(network("conv").cuda())
    first, again = (rayinf.influence(task, train, valid, out=tmp_path / k).to_numpy() for k in "ab")
    np.testing.assert_array_equal(first, again)
