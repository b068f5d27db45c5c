"""Data Shapley by truncated Monte Carlo (Ghorbani and Zou 2019, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.data.batches import Array
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import worker_pool
from rayinf.training.set_worth import SetCosts
from rayinf.training.steps import Steps

# Permutations between two looks at the standard errors: fixed, so that workers change nothing.
BLOCK = 20
# A permutation is cut off where so many sets in a row are worth as much as all rows.
_LEVEL = 5


@dataclass(frozen=True)
class _Permutation:
    """Adds the rows one after another, in an order drawn from the seed and the permutation's number; picklable.

    Attributes:
        costs: of sets of rows.
        seed: of the orders, and of every training.
        truncation: the share of the whole gain within which a set counts as worth as much as all rows.
    """

    costs: SetCosts
    seed: int
    truncation: float

    def __call__(self, number: int) -> dict[str, Any]:
        """How much each row's arrival lowers every cost, `[n][columns]`, and how many sets were measured."""
        n = self.costs.rows
        order = np.random.default_rng([self.seed, number]).permutation(n)
        kept = np.zeros(n, bool)
        last = np.array(self.costs.of(kept, self.seed))
        whole = np.array(self.costs.of(np.ones(n, bool), self.seed))
        near = self.truncation * abs(whole[0] - last[0])
        falls = np.zeros((n, len(last)))
        level = measured = 0
        for row in order:
            kept[row] = True
            now = np.array(self.costs.of(kept, self.seed))
            measured += 1
            falls[row], last = last - now, now
            level = level + 1 if abs(now[0] - whole[0]) <= near else 0
            if level == _LEVEL and self.truncation:
                break
        return {"values": falls.tolist(), "measured": measured}


@dataclass
class Means:
    """Means of values over permutations, and how sure they are.

    Attributes:
        count: permutations.
        measured: sets of rows that were trained on.
        total: the sum of their values `[n, columns]`.
        squares: the sum of the squares.
    """

    count: int = 0
    measured: int = 0
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def add(self, found: dict[str, Any]) -> None:
        """Take in a permutation."""
        values = np.array(found["values"])
        self.count += 1
        self.measured += int(found["measured"])
        self.total, self.squares = self.total + values, self.squares + values**2

    @property
    def values(self) -> Array:
        """The means `[n, columns]`."""
        return np.asarray(self.total) / self.count

    @property
    def relative_error(self) -> float:
        """The mean standard error of a row over the mean size of a value, of the first column."""
        mean = self.values[:, 0]
        spread = np.maximum(np.asarray(self.squares)[:, 0] / self.count - mean**2, 0.0)
        errors = np.sqrt(spread / max(self.count - 1, 1))
        return float(errors.mean() / max(np.abs(mean).mean(), np.finfo(float).tiny))


def data_shapley(
    costs: SetCosts, seed: int, stop: tuple[float, float, int], steps: Steps, cluster: Cluster | None
) -> tuple[Array, dict[str, Any]]:
    """The mean fall of every cost when a row joins the rows before it in a random order, `[n, columns]`.

    After every 20 permutations the standard errors are looked at: where their mean is at most `tolerance` times the
    mean size of a value (of the first column), it is enough. (Ghorbani and Zou compare with the values of 100
    permutations before, row by row, which rows of a value near 0 never satisfy.)

    Args:
        costs: of sets of rows.
        seed: of the orders and the trainings.
        stop: `truncation` of a permutation, `tolerance`, and the most trainings.
        steps: where each permutation's values are kept.
        cluster: where permutations run side by side.

    Returns:
        The values, and `permutations`, `measured_sets`, `relative_error`, `converged`.
    """
    truncation, tolerance, most = stop
    means = Means()
    with worker_pool(_Permutation(costs, seed, truncation), cluster) as calls:
        while means.measured + BLOCK * costs.rows <= most:
            items = {f"permutations/{k:06d}.json": k for k in range(means.count, means.count + BLOCK)}
            found = steps.map(calls, items, lambda name, result: None, "data shapley", "permutations")
            for name in items:
                means.add(found[name])
            if means.relative_error <= tolerance:
                break
    error = means.relative_error
    return means.values, {
        "permutations": means.count,
        "measured_sets": means.measured,
        "relative_error": error,
        "converged": error <= tolerance,
    }
