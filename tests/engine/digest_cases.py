"""Code of a user's for the tests of digests: a module with helpers, constants, classes and a model."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TEMPERATURE = 1.0
MEANS = np.arange(3.0)


def helper(z: Tensor) -> Tensor:
    return z / TEMPERATURE


def outer(z: Tensor) -> Tensor:
    return helper(z)


def loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, *, power: int = 1) -> Tensor:
    """A loss over helpers."""
    found = nn.functional.cross_entropy(outer(logits), labels, reduction="none", label_smoothing=smoothing)
    return found**power


def make(weights: Tensor, temperature: float) -> Any:
    def weighted(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits / temperature, labels, weight=weights, reduction="none")

    return weighted


def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


class Scaled:
    """A callable object with a state."""

    def __init__(self, means: np.ndarray) -> None:
        self.means = means

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scaled(x)

    def scaled(self, x: np.ndarray) -> np.ndarray:
        return x - self.means


class Same(Scaled):
    pass


@dataclass(frozen=True)
class Shift:
    by: float
    names: tuple[str, ...] = ()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x + self.by


def many() -> dict[str, Any]:
    """Values of every kind, in orders that hash seeds and processes change."""
    names = {f"name{k}" for k in range(50)}
    return {
        "set": names,
        "dict": {name: len(name) for name in names},
        "frozen": frozenset(names),
        "loss": loss,
        "closure": make(torch.arange(3.0), 2.0),
        "partial": functools.partial(loss, smoothing=0.1),
        "object": Scaled(MEANS),
        "method": Scaled(MEANS).scaled,
        "lambda": lambda x: x in {"a", "b", "c"},
        "recursive": even,
        "class": Same,
        "dataclass": Shift(1.5, ("a",)),
        "torch": [torch.float16, torch.device("cpu"), torch.relu, nn.functional.relu, torch.Tensor.relu],
        "numbers": [1, True, 1.0, -0.0, float("nan"), 1 + 2j, None, "1", b"1", np.float32(1), np.int64(1), ...],
        "model": model(),
    }


class Gate(nn.Module):
    """A layer of the user's own."""

    def __init__(self, activation: Any = torch.tanh, scale: float = 1.0) -> None:
        super().__init__()
        self.activation, self.scale = activation, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(helper(x)) * self.scale


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), Gate(), nn.BatchNorm1d(5), nn.Linear(5, 3))
