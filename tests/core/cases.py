"""Small trained models in float64, one for every kind of layer, and their truths from the oracles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import oracles
import torch
import torch.nn.functional as F
from oracles import Fisher
from torch import Tensor, nn

import rayinf

Method = Literal["ekfac", "kfac"]
Table = tuple[Tensor, Tensor]
# Every threshold on a curvature is taken at this damping, in units of the layer's mean eigenvalue.
LOW = 1e-4


class Pooled(nn.Module):
    """A layer under test, a non-linearity in place, the mean over positions, a head."""

    def __init__(
        self, layer: nn.Module, width: int, classes: int, positions_last: bool = False, calls: int = 1
    ) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, classes)
        self.positions_last, self.calls = positions_last, calls

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for _ in range(self.calls):
            hidden = torch.tanh_(self.layer(hidden))
        return self.head(hidden.flatten(2).mean(2) if self.positions_last else hidden.flatten(1, -2).mean(1))


@dataclass(frozen=True, eq=False)
class Case:
    """A trained model, and its rows."""

    model: nn.Module
    train: Table
    valid: Table
    classes: int


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def fit(model: nn.Module, x: Tensor, y: Tensor, steps: int, l2: float = 0.0) -> nn.Module:
    """Some steps of Adam, so that gradients are those of a real model; left in eval mode."""
    model = model.double().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        ridge = sum(p.square().sum() for p in model.parameters())
        (cross_entropy(model(x), y).mean() + 0.5 * l2 * ridge).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


def fit_to_optimum(model: nn.Module, x: Tensor, y: Tensor, l2: float) -> nn.Module:
    """The minimum of mean loss + l2/2 ||theta||^2."""
    model = model.double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(model(x), y).mean() + 0.5 * l2 * sum(p.square().sum() for p in model.parameters())
        value.backward()
        return value

    optimizer.step(closure)
    model.zero_grad()
    return model.eval()


def drawn_labels(x: Tensor, classes: int) -> Tensor:
    """Labels of a noisy linear teacher: every class occurs, and no class is sure."""
    flat = x.double().reshape(len(x), -1)
    flat = (flat - flat.mean(0)) / flat.std(0)
    teacher = torch.randn(flat.shape[1], classes, dtype=torch.float64) / flat.shape[1] ** 0.5
    return torch.multinomial((2 * flat @ teacher).softmax(1), 1)[:, 0]


def _inputs(n: int, *shape: int) -> Tensor:
    return oracles.correlated_inputs(n, int(np.prod(shape)), seed=7).reshape(n, *shape)


_CONV = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
_CASES = {
    "linear": lambda: (nn.Sequential(nn.Linear(5, 3)), _inputs(110, 5), 3),
    "linear of two classes": lambda: (nn.Sequential(nn.Linear(5, 2)), _inputs(110, 5), 2),
    "mlp": lambda: (nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), _inputs(110, 5), 3),
    "square": lambda: (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), _inputs(110, 5), 3),
    "conv2d": lambda: (Pooled(nn.Conv2d(4, 6, 3, **_CONV), 6, 3, True), _inputs(90, 4, 7, 6), 3),
    "conv1d": lambda: (Pooled(nn.Conv1d(2, 4, 3, stride=2), 4, 2, True), _inputs(90, 2, 9), 2),
    "tokens": lambda: (Pooled(nn.Linear(5, 4), 4, 3), _inputs(90, 6, 5), 3),
    "embedding": lambda: (Pooled(nn.Embedding(9, 4), 4, 3), _tokens(90, 5, 9), 3),
    "called twice": lambda: (Pooled(nn.Linear(4, 4), 4, 2, calls=2), _inputs(90, 3, 4), 2),
}
NAMES = tuple(_CASES)
# The layer of each case to look at first, and all that are looked at one by one.
FIRST = {name: "0" if name in ("linear", "linear of two classes", "mlp", "square") else "layer" for name in NAMES}
LAYERS = (*FIRST.items(), ("mlp", "2"))


def _tokens(n: int, length: int, words: int) -> Tensor:
    """Rows about different subjects: words are neither equally frequent nor independent in a row."""
    topic = torch.randint(3, (n, 1))
    return (torch.randint(words, (n, length)) * torch.randint(2, (n, length)) + 2 * topic).clamp(max=words - 1)


@lru_cache
def case(name: str) -> Case:
    torch.manual_seed(3)
    model, x, classes = _CASES[name]()
    y = drawn_labels(x, classes)
    split = len(x) * 3 // 4
    return Case(fit(model, x[:split], y[:split], 60), (x[:split], y[:split]), (x[split:], y[split:]), classes)


def by_class(rows: Tensor, y: Tensor, classes: int) -> Tensor:
    """Columns "total" and "category" from values a row: sums over all rows, then over those of each class."""
    return torch.stack([rows.sum(0), *(rows[y == c].sum(0) for c in range(classes))])


def query_matrices(case: Case, layer: str) -> Tensor:
    """`[1 + K, r, o, i]`."""
    rows = oracles.layer_row_gradients(case.model, cross_entropy, *case.valid, layer)
    return by_class(rows, case.valid[1], case.classes)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's factors, row gradients and queries, as the oracles define them."""

    basis: oracles.Basis
    eigenvalues: Mapping[Method, Tensor]
    rows: Tensor
    queries: Tensor

    def influence(self, method: Method, shift: float) -> Tensor:
        solved = oracles.solve_in_basis(self.queries, self.basis, self.eigenvalues[method], len(self.rows), shift)
        return torch.einsum("nroi,qroi->nq", self.rows, solved)

    def identity(self) -> Tensor:
        return oracles.identity_influence(self.queries.flatten(1), self.rows.flatten(1))


@lru_cache
def layer_truth(name: str, layer: str, fisher: Fisher = "true") -> Layer:
    c = case(name)
    arguments = (c.model, cross_entropy, *c.train, layer, fisher)
    sums = oracles.factors(*arguments)
    basis = oracles.eigenbasis(sums)
    kfac = basis.lG[:, :, None] * basis.lA[:, None, :] / (sums.n * sums.N)
    eigenvalues: dict[Method, Tensor] = {"ekfac": oracles.textbook_lambda(*arguments, basis), "kfac": kfac}
    rows = oracles.layer_row_gradients(c.model, cross_entropy, *c.train, layer)
    return Layer(basis, eigenvalues, rows, query_matrices(c, layer))


def influence(
    model: nn.Module, train: Table, valid: Table, task: Mapping[str, Any] | None = None, **how: Any
) -> Tensor:
    """What the package gives, `[n, Q]`."""
    how = {"objective": ["total", "category"], **how}
    scores = rayinf.influence(rayinf.Task(model, **(task or {})), train, valid, **how)
    return torch.from_numpy(scores.to_numpy())


def layer_influence(
    name: str, layer: str, method: Method, fisher: Fisher = "true", **how: Any
) -> tuple[Tensor, Tensor]:
    """One layer valued at low damping: what the package gives, and the truth."""
    c, truth = case(name), layer_truth(name, layer, fisher)
    damping = LOW * float(truth.eigenvalues[method].mean())
    task = {"parameters": [layer]}
    found = influence(c.model, c.train, c.valid, task, curvature=method, fisher=fisher, damping=damping, **how)
    return found, truth.influence(method, damping)


def error(found: Tensor, truth: Tensor) -> float:
    """The largest error, in units of the largest value."""
    return float((found - truth).abs().max() / truth.abs().max())


def least_spearman(found: Tensor, truth: Tensor) -> float:
    """The lowest rank correlation of all columns."""
    return min(oracles.spearman(found[:, q], truth[:, q]) for q in range(truth.shape[1]))
