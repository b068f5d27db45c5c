"""Leave-one-out retraining: what removing each row really does, against what was predicted without retraining."""

from __future__ import annotations

from functools import lru_cache

import oracles
import pytest
import torch
from core.cases import cross_entropy, drawn_labels, influence, least_spearman
from torch import Tensor, nn

N, VALID, L2 = 150, 40, 1e-2


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def newton(a: Tensor, y: Tensor, classes: int, l2: float) -> Tensor:
    """`W [K, d + 1]` at the minimum of mean loss + l2/2 ||W||^2, bias included."""
    n, d = a.shape
    w = torch.zeros(classes, d, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(y, classes).double()
    for _ in range(30):
        p = (a @ w.T).softmax(1)
        gradient = (p - one_hot).T @ a / n + l2 * w
        if gradient.abs().max() < 1e-13:
            break
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        H = torch.einsum("ncd,ni,nj->cidj", inner, a, a).reshape(classes * d, classes * d) / n
        step = torch.linalg.solve(H + l2 * torch.eye(classes * d, dtype=torch.float64), gradient.flatten())
        w = w - step.view(classes, d)
    assert gradient.abs().max() < 1e-12
    return w


def validation_losses(w: Tensor, valid: tuple[Tensor, Tensor]) -> Tensor:
    """Summed, over all rows and over those of each class."""
    loss = cross_entropy(with_ones(valid[0]) @ w.T, valid[1])
    return torch.stack([loss.sum(), *(loss[valid[1] == c].sum() for c in range(len(w)))])


@lru_cache
def removed(classes: int) -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """The fit on all rows, the tables, and the rise of every objective on the removal of each row `[N, 1 + K]`.

    The ridge is a sum over the fit, not over its rows: with a row less, the mean loss stands beside more of it.
    """
    torch.manual_seed(1)
    x = oracles.correlated_inputs(N + VALID, 2, seed=1)
    y = drawn_labels(x, classes)
    train, valid = (x[:N], y[:N]), (x[N:], y[N:])
    a = with_ones(train[0])
    full = newton(a, train[1], classes, L2)
    before, rises = validation_losses(full, valid), []
    for k in range(N):
        left = torch.arange(N) != k
        rises.append(validation_losses(newton(a[left], train[1][left], classes, L2 * N / (N - 1)), valid) - before)
    head = nn.Linear(2, classes).double()
    with torch.no_grad():
        head.weight.copy_(full[:, :-1])
        head.bias.copy_(full[:, -1])
    return nn.Sequential(head).eval(), train, valid, torch.stack(rises)


@pytest.mark.parametrize("classes", [2, 3])
def test_exact_influence_predicts_every_removal(classes: int) -> None:
    model, train, valid, truth = removed(classes)
    found = influence(model, train, valid, {"l2": L2}, curvature="exact")
    identity = influence(model, train, valid, {"l2": L2}, curvature="identity")
    ours, nothing = least_spearman(found, truth), least_spearman(identity, truth)
    slope = (found * truth).sum(0) / found.square().sum(0)
    signs = (found.sign() == truth.sign()).double().mean()
    print(f"\nrank correlation with {N} refits {ours:.4f}, the identity's {nothing:.4f}")
    print(f"true rise per predicted one {slope.tolist()}, signs alike {signs:.3f}")
    assert ours >= 0.99
    assert ((slope > 0.95) & (slope < 1.15)).all()
    assert signs > 0.98
    assert nothing < 0.9


@pytest.mark.parametrize("classes", [2, 3])
def test_ekfac_lies_between(classes: int) -> None:
    model, train, valid, truth = removed(classes)
    kinds = ("exact", "ekfac", "identity")
    found = {c: influence(model, train, valid, {"l2": L2}, curvature=c, damping=0.0) for c in kinds}
    score = {c: least_spearman(v, truth) for c, v in found.items()}
    print(f"\nrank correlation with {N} refits {score}")
    assert score["exact"] > score["ekfac"] > score["identity"] + 0.1
    assert score["ekfac"] > 0.85
