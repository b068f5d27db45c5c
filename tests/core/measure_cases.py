"""Models at their minimum for the tests of FI: what the package gives for them, and what the oracle does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import oracles
import oracles_measure as om
import torch
from core.cases import Table, drawn_labels, fit_to_optimum
from oracles_measure import Subject
from torch import Tensor, nn

import rayinf

ALLOWED = 1e-6
HEADS = [(2, 6, 0.01), (2, 6, 0.0), (3, 6, 0.01), (3, 6, 0.0), (5, 6, 0.01), (5, 6, 0.0), (5, 2, 0.01), (5, 3, 0.0)]
NETWORKS = [(2, 4, 0.01), (3, 4, 0.01), (5, 4, 0.01), (5, 2, 0.01)]


@dataclass(frozen=True, eq=False)
class Case:
    """A model at its minimum, and its rows."""

    model: nn.Module
    train: Table
    valid: Table
    l2: float
    names: Sequence[str] | None = None
    parameters: str | Sequence[str] = "all"

    @property
    def subject(self) -> Subject:
        return Subject(self.model, self.names)

    @property
    def task(self) -> rayinf.Task:
        return rayinf.Task(self.model, l2=self.l2, parameters=self.parameters)

    def curvature(self, damping: float = 0.0) -> Tensor:
        return om.mean_curvature(self.subject, self.train, self.l2, damping)

    def util(self, curvature: str = "exact", **how: Any) -> Tensor:
        """What the package gives, `[n]`."""
        scores = rayinf.influence_measure(self.task, self.train, self.valid, curvature=curvature, **how)
        assert scores.columns == ["fi"]
        return torch.from_numpy(scores.to_numpy()[:, 0])

    def active(self, curvature: str = "exact", **how: Any) -> Tensor:
        """What the package gives for the validation rows as a pool, `[m]` in their order."""
        picked = rayinf.acquire(self.task, self.train, (self.valid[0],), 3, curvature=curvature, **how)
        return torch.from_numpy(picked.to_pandas().sort_values("row_id")["value"].to_numpy())

    @lru_cache  # noqa: B019
    def truth(self, H: Tensor | None = None, rank: int | None = None) -> Tensor:
        H = self.curvature() if H is None else H
        return om.fi_util_naive(self.subject, self.train, self.valid, H, rank)

    @lru_cache  # noqa: B019
    def pairs(self, H: Tensor | None = None, rank: int | None = None) -> Tensor:
        H = self.curvature() if H is None else H
        return om.fi_pairs_naive(self.subject, self.train, self.valid[0], H, rank)


def made(model: nn.Module, classes: int, d: int, l2: float) -> Case:
    """41 rows that it was fitted to, and 9 others."""
    x = oracles.correlated_inputs(50, d, seed=5)
    # A third of the labels are noise: fits without a ridge have their minimum, and no row is sure.
    y = torch.where(torch.rand(50) < 0.33, torch.randint(classes, (50,)), drawn_labels(x, classes))
    fitted = fit_to_optimum(model, x[:41], y[:41], l2)
    return Case(fitted, (x[:41], y[:41]), (x[41:], y[41:]), l2)


def safe_damping(case: Case) -> float:
    """What the Hessian needs on rows that the model was not fitted to."""
    return 0.5 - min(0.0, float(torch.linalg.eigvalsh(case.curvature()).min()))


@lru_cache
def head(classes: int, d: int, l2: float = 0.01) -> Case:
    torch.manual_seed(1)
    return made(nn.Linear(d, classes), classes, d, l2)


@lru_cache
def network(classes: int, d: int, l2: float = 0.01) -> Case:
    torch.manual_seed(1)
    return made(nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, classes)), classes, d, l2)


@lru_cache
def only(layer: str) -> Case:
    """One layer of a network is valued; the features of the network are perturbed."""
    case = network(3, 4)
    names = [f"{layer}.weight", f"{layer}.bias"]
    return Case(case.model, case.train, case.valid, case.l2, names, "last" if layer == "2" else [layer])


CASES: dict[str, Callable[[], Case]] = {
    **{f"head of {k} classes, {d} features, l2 {l2}": lambda a=(k, d, l2): head(*a) for k, d, l2 in HEADS},
    **{f"network of {k} classes, {d} features": lambda a=(k, d, l2): network(*a) for k, d, l2 in NETWORKS},
    "last layer of a network": lambda: only("2"),
    "first layer of a network": lambda: only("0"),
}
SOME = ("head of 3 classes, 6 features, l2 0.01", "network of 3 classes, 4 features")


def relative(found: Tensor, truth: Tensor) -> float:
    """The largest relative error of all values."""
    return float(((found - truth).abs() / truth).max())
