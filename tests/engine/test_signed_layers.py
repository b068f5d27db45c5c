"""Layers with many positions take Fisher columns of random signs: which do, what is said, against exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rayinf
from rayinf.core import fisher
from rayinf.engine import curvature_rows

ROWS, CLASSES = 160, 6


@pytest.fixture(autouse=True)
def of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature_rows, "SIGNED_ROWS", 100)


def test_few_rows_have_exact_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "random_signs" in run(convolutions()).metadata
    monkeypatch.setattr(curvature_rows, "SIGNED_ROWS", ROWS + 1)
    assert "random_signs" not in run(convolutions()).metadata


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *body)


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, 36)).astype(np.float32), rng.integers(0, CLASSES, ROWS)


def run(model: nn.Module, **options: object) -> rayinf.Scores:
    return rayinf.influence(rayinf.Task(model), rows(), rows(1), "category", damping="layer_mean:0.1", **options)


def oracle(model: nn.Module, layer: str, seed: int) -> np.ndarray:
    """G of a layer by naive sums in float64 over rows, exact columns and autograd: its mean eigenvalue times A's."""
    model = model.double()
    x = torch.tensor(rows()[0], dtype=torch.float64)
    module = model.get_submodule(layer)
    held = {}
    handle = module.register_forward_hook(lambda m, a, out: held.update(out=out, x=a[0]))
    total = None
    for row in x:
        logits = model(row[None])
        p = logits.detach().softmax(1)[0]
        for c in range(CLASSES):
            e = torch.zeros(CLASSES, dtype=torch.float64)
            e[c] = 1
            (grad,) = torch.autograd.grad(logits[0], module.weight, p[c].sqrt() * (e - p), retain_graph=True)
            total = grad.square() if total is None else total + grad.square()
    handle.remove()
    model.float()
    return (total / len(x)).numpy()


def test_the_head_stays_exact_and_the_convolution_is_right_on_average() -> None:
    """The trace of Lambda does not depend on the basis: exact columns, and means over seeds of signed ones."""
    model = convolutions()
    found = run(model)
    assert found.metadata["random_signs"] == {"1": fisher.SIGN_DRAWS}
    for layer in ("4", "6"):
        weights, size = oracle(model, layer, 0).sum(), found.metadata["blocks"][layer]
        module = model.get_submodule(layer)
        mean = found.metadata["layers"][layer]["mean_eigenvalue"] * np.prod(size)
        bias = sum_of_biases(model, layer)
        assert mean == pytest.approx(weights + bias, rel=1e-5)
        assert module.bias is not None
    truth = oracle(model, "1", 0).sum() + sum_of_biases(model, "1")
    means = [run(model, seed=s).metadata["layers"]["1"]["mean_eigenvalue"] * 40 for s in range(8)]
    assert np.mean(means) == pytest.approx(truth, rel=4 * np.std(means) / truth / 8**0.5 + 1e-3)
    assert np.std(means) > 0


def sum_of_biases(model: nn.Module, layer: str) -> float:
    model = model.double()
    bias, total = model.get_submodule(layer).bias, 0.0
    for row in torch.tensor(rows()[0], dtype=torch.float64):
        logits = model(row[None])
        p = logits.detach().softmax(1)[0]
        for c in range(CLASSES):
            e = torch.zeros(CLASSES, dtype=torch.float64)
            e[c] = 1
            (grad,) = torch.autograd.grad(logits[0], bias, p[c].sqrt() * (e - p), retain_graph=True)
            total += float(grad.square().sum())
    model.float()
    return total / ROWS


def test_more_draws_come_nearer_to_the_exact_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    model, gaps = convolutions(), []
    monkeypatch.setattr(fisher, "SIGN_DRAWS", 8)  # as many as there are columns, and more
    exact = run(model)
    assert "random_signs" not in exact.metadata
    for draws in (1, 4):
        monkeypatch.setattr(fisher, "SIGN_DRAWS", draws)
        gaps.append(np.mean([np.abs(run(model, seed=s).to_numpy() - exact.to_numpy()).mean() for s in range(3)]))
    assert gaps[1] < 0.6 * gaps[0]


@pytest.mark.parametrize("options", [{"fisher": "empirical"}, {"curvature": "ggn", "inverse": "damped"}])
def test_others_have_exact_columns(options: dict[str, str]) -> None:
    task = rayinf.Task(convolutions(), parameters="last" if "curvature" in options else "all")
    found = rayinf.influence(task, rows(), rows(1), damping=0.1, **options)
    assert "random_signs" not in found.metadata


def test_batches_do_not_matter() -> None:
    model = convolutions()
    one, other = run(model).to_numpy(), run(model, batch_size=7).to_numpy()
    assert np.abs(one - other).max() < 1e-4 * np.abs(one).max()


def test_many_classes_take_signs_over_the_classes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 40))
    x = rows()[0]
    train = x, np.arange(ROWS) % 40
    found = rayinf.influence(rayinf.Task(model), train, train, damping="layer_mean:0.1")
    assert found.metadata["random_signs"] == {"1": fisher.SIGN_DRAWS}
    assert set(found.metadata["drawn_labels_agreement"]) == {"4"}
