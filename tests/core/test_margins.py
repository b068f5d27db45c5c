"""Margins and log-odds against their definitions in float64, and where a model is sure."""

from __future__ import annotations

import torch

from rayinf.core.margins import log_odds, margin


def logits(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 3 * torch.randn(rows, 4, dtype=torch.float64), torch.arange(rows) % 4


def test_margin_is_the_own_logit_less_the_best_other() -> None:
    z, y = logits()
    truth = [float(z[b, y[b]]) - max(float(z[b, c]) for c in range(4) if c != y[b]) for b in range(len(z))]
    torch.testing.assert_close(margin(z, y), torch.tensor(truth, dtype=torch.float64))
    assert bool((margin(z.float(), y) < 0).equal(z.argmax(1) != y))


def test_log_odds_and_its_slope_are_those_of_autograd() -> None:
    z, y = logits()
    leaf = z.clone().requires_grad_(True)
    p = leaf.softmax(1).gather(1, y[:, None])[:, 0]
    truth = (p / (1 - p)).log()
    (slope,) = torch.autograd.grad(truth.sum(), leaf)
    f, gradient, rest = log_odds(z, y)
    torch.testing.assert_close(f, truth.detach())
    torch.testing.assert_close(gradient, slope)
    torch.testing.assert_close(rest, 1 - p.detach())
    loss = torch.nn.functional.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-f)))


def test_sure_rows_keep_their_digits() -> None:
    """`1 - p` and the slope of the loss where p is 1 to the last digit."""
    z, y = torch.tensor([[60.0, 0.0, -1.0]]), torch.tensor([0])
    _, gradient, rest = log_odds(z, y)
    others = torch.tensor([1.0, 1 / torch.e], dtype=torch.float64)
    torch.testing.assert_close(rest, (others.sum() * torch.exp(torch.tensor(-60.0, dtype=torch.float64)))[None])
    torch.testing.assert_close(gradient[0, 1:], -others / others.sum())
