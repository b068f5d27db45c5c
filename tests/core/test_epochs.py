"""Training by epochs against plain loops of torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rayinf
from rayinf.core.epochs import Recipe, rate, reinitialise, train_epochs

X, Y = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
W = torch.rand(50, generator=torch.Generator().manual_seed(1)) * 2


def network(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *extra, nn.Linear(8, 3))


def loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def in_batches(weighted: bool, size: int = 16) -> Any:
    def epoch(generator: torch.Generator) -> Any:
        order = torch.randperm(50, generator=generator)
        return [(X[k], Y[k], W[k] if weighted else None) for k in order.split(size)]

    return epoch


def recipe(fit: rayinf.Fit, seed: int = 3, **more: Any) -> Recipe:
    return Recipe(fit, loss, 4 * fit.epochs, seed, **more)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def trained(fit: rayinf.Fit, seed: int = 3, weighted: bool = False, model: nn.Module | None = None) -> Tensor:
    model = model or network()
    train_epochs(model, in_batches(weighted), recipe(fit, seed))
    return weights(model)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(("schedule", "weighted"), [("constant", False), ("cosine", True), ("linear", True)])
def test_against_a_plain_loop(optimizer: str, schedule: str, weighted: bool) -> None:
    fit = rayinf.Fit(optimizer, 0.05, schedule, epochs=3, batch_size=16, momentum=0.8, weight_decay=0.01, fresh=False)
    model, plain = network(), network()
    names = frozenset(n for n, _ in model.named_parameters() if not n.startswith("0."))
    train_epochs(model, in_batches(weighted), recipe(fit, l2=0.3, ridged=names))

    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    more = {"momentum": 0.8} if optimizer == "sgd" else {}
    steps: Any = kinds[optimizer](plain.parameters(), lr=0.05, weight_decay=0.01, **more)
    falls = {
        "constant": lambda t: 1.0,
        "linear": lambda t: 1 - t / 12,
        "cosine": lambda t: (1 + math.cos(math.pi * t / 12)) / 2,
    }
    falling = torch.optim.lr_scheduler.LambdaLR(steps, falls[schedule])
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        for x, y, w in in_batches(weighted)(generator):
            steps.zero_grad()
            row = F.cross_entropy(plain(x), y, reduction="none") * (1.0 if w is None else w)
            ridge = sum(p.square().sum() for n, p in plain.named_parameters() if not n.startswith("0."))
            (row.sum() / len(y) + 0.15 * ridge).backward()
            steps.step()
            falling.step()
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-5, atol=1e-6)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_rates_reach_both_ends() -> None:
    fits = {s: rayinf.Fit(lr=2.0, schedule=s) for s in ("constant", "cosine", "linear")}
    assert [rate(f, 0, 10) for f in fits.values()] == [2.0, 2.0, 2.0]
    assert [rate(f, 10, 10) for f in fits.values()] == pytest.approx([2.0, 0.0, 0.0])
    assert rate(fits["linear"], 5, 10) == rate(fits["cosine"], 5, 10) == pytest.approx(1.0)


def test_the_seed_says_it_all() -> None:
    """First parameters, order and dropout; the caller's own random numbers have no part in it and are not moved."""
    fit = rayinf.Fit("sgd", 0.1, epochs=2, batch_size=16)
    first = trained(fit, model=network(nn.Dropout(0.5)))
    torch.manual_seed(99)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(99))
    other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    torch.manual_seed(99)
    again = trained(fit, model=other)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.allclose(first, trained(fit, seed=4, model=network(nn.Dropout(0.5))))
    assert not torch.allclose(first, trained(fit))


def test_going_on_from_the_weights() -> None:
    still = rayinf.Fit("sgd", 1e-12, epochs=1, batch_size=16, fresh=False)
    torch.testing.assert_close(trained(still), weights(network()))
    anew = rayinf.Fit("sgd", 1e-12, epochs=1, batch_size=16)
    assert not torch.allclose(trained(anew), weights(network()))


def test_reinitialise_is_reset_parameters_in_order() -> None:
    model, other = network(nn.BatchNorm1d(8)), network(nn.BatchNorm1d(8))
    with torch.no_grad():
        model[2].running_mean.fill_(7.0)
    torch.manual_seed(1)
    reinitialise(model)
    torch.manual_seed(1)
    other[0].reset_parameters()
    other[3].reset_parameters()
    assert torch.equal(weights(model), weights(other))
    assert float(model[2].running_mean.sum()) == 0.0


def test_frozen_layers_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    trained(rayinf.Fit("sgd", 0.1, epochs=1, batch_size=16), model=model)
    assert torch.equal(model[0].weight, before)
    model[3 - 1].requires_grad_(False)
    with pytest.raises(rayinf.InputError, match="no trainable parameter"):
        trained(rayinf.Fit("sgd", 0.1, epochs=1, batch_size=16), model=model)


def test_attention_starts_anew() -> None:
    attention = nn.MultiheadAttention(4, 2)
    before = attention.in_proj_weight.clone()
    reinitialise(attention)
    assert not torch.equal(attention.in_proj_weight, before)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_what_cannot_start_anew() -> None:
    with pytest.raises(rayinf.InputError, match=r"'2' \(Scaled\) has parameters of its own and no reset_parameters"):
        trained(rayinf.Fit(epochs=1), model=network(Scaled()))
    trained(rayinf.Fit(epochs=1, fresh=False), model=network(Scaled()))


@pytest.mark.filterwarnings("ignore")
def test_divergence() -> None:
    with pytest.raises(
        rayinf.RunError, match=r"diverged: the loss is (nan|inf) in epoch \d.*Fix: pass a learning rate"
    ):
        train_epochs(
            network(),
            in_batches(False),
            recipe(rayinf.Fit("sgd", 1e30, "constant", epochs=3), l2=1.0, ridged=frozenset(["0.weight"])),
        )
