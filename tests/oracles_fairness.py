"""Naive float64 definitions of gaps between groups and of attacks (Chhabra 2024), without code of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Value = Callable[[nn.Module], Tensor]


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def signed_gap(values: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Mean of the values where `one` holds, less that where `other` does."""
    return values[one].mean() - values[other].mean()


def parity(model: nn.Module, x: Tensor, one: Tensor, favourable: int) -> Tensor:
    """Chhabra 2024, Eq. 2 with its sign: the probability of the favourable class, in a group and in the rest."""
    p = model(x).softmax(1)[:, favourable]
    return signed_gap(p, one, ~one)


def opportunity(model: nn.Module, x: Tensor, y: Tensor, one: Tensor, favourable: int) -> Tensor:
    """Chhabra 2024, Eq. 4 with its sign: the loss of rows of the favourable class, in a group and in the rest."""
    mine = y == favourable
    return signed_gap(losses(model, x, y), one & mine, ~one & mine)


def closest_point(model: nn.Sequential, x: Tensor, gamma: float) -> Tensor:
    """`x - gamma (theta'x + b) / (theta'theta) theta` of a linear two-class model (Chhabra 2024, section 2)."""
    head: Any = model[-1]
    theta, b = (head.weight[1] - head.weight[0]).detach(), (head.bias[1] - head.bias[0]).detach()
    return torch.stack([row - gamma * (theta @ row + b) / (theta @ theta) * theta for row in x])


def gradient_in_input(model: nn.Module, row: Tensor, label: Tensor) -> Tensor:
    leaf = row[None].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(losses(model, leaf, label[None]).sum(), leaf)
    return slope[0]


def projected(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int, step: float) -> Tensor:
    """Steps along the sign of the loss's gradient, each brought back into the box around the row; row by row."""
    out = []
    for row, label in zip(x, y, strict=True):
        moved = row.clone()
        for _ in range(steps):
            moved = moved + step * gradient_in_input(model, moved, label).sign()
            moved = torch.minimum(torch.maximum(moved, row - epsilon), row + epsilon)
        out.append(moved)
    return torch.stack(out)


def gradient(value: Value, model: nn.Module, parameters: Sequence[Tensor]) -> Tensor:
    """Of a value in all parameters, `[p]`."""
    found = torch.autograd.grad(value(model), list(parameters), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def finite_difference(value: Value, model: nn.Module, step: float = 1e-6) -> Tensor:
    """Central differences, one parameter at a time, `[p]`."""
    out = []
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for k in range(len(flat)):
                held = flat[k].item()
                ends = []
                for sign in (1, -1):
                    flat[k] = held + sign * step
                    ends.append(value(model))
                flat[k] = held
                out.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(out)


def hessian(model: nn.Sequential, x: Tensor, y: Tensor, l2: float) -> Tensor:
    """Of mean loss + l2/2 ||theta||^2 of a linear head over weight, bias: `[p, p]`, in the order of its parameters."""
    head: Any = model[-1]
    shapes = [head.weight.shape, head.bias.shape]

    def total(flat: Tensor) -> Tensor:
        w, b = flat.split([s.numel() for s in shapes])
        logits = x @ w.view(shapes[0]).T + b
        return F.cross_entropy(logits, y) + 0.5 * l2 * flat.square().sum()

    flat = torch.cat([head.weight.detach().flatten(), head.bias.detach()])
    found: Tensor = torch.autograd.functional.hessian(total, flat)  # type: ignore[no-untyped-call]
    return found


def row_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`[n, p]`."""
    parameters = list(model.parameters())
    return torch.stack(
        [gradient(lambda m, k=k: losses(m, x[k : k + 1], y[k : k + 1]).sum(), model, parameters) for k in range(len(x))]
    )  # type: ignore[misc]
