"""Demands that cannot be met together: a smallest set of classes that conflict, and the largest feasible alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayinf.errors import InputError
from rayinf.pareto.decomposition import InfeasibleDemands, Search, Survey
from rayinf.pareto.demands import Array, Demands


class InfeasibleError(InputError):
    """No weights meet all demands.

    Attributes:
        classes: positions of a smallest set of classes whose demands conflict: without any one of them they do not.
        largest_alpha: the largest alpha that all classes can have in common; infinite where it is unbounded.
    """

    def __init__(self, what: str, fix: str, classes: Sequence[int] = (), largest_alpha: float = np.nan) -> None:
        super().__init__(what, fix)
        self.classes = tuple(int(k) for k in classes)
        self.largest_alpha = float(largest_alpha)

    def __reduce__(self) -> tuple[type, Any]:
        """Travel between processes with all parts."""
        return type(self), (self.what, self.fix, self.classes, self.largest_alpha)


def conflict(
    search: Search, demands: Demands, survey: Survey, unit: Array, called: tuple[Sequence[str], str], prices: Array
) -> InfeasibleError:
    """The error for demands that cannot be met together.

    Args:
        search: over the rows.
        demands: which cannot be met.
        survey: of the rows.
        unit: of the search, `[K]`.
        called: the names of the classes, and the slack.
        prices: `[K]`, the proof (Farkas) that they cannot.
    """
    floor = demands.of_v(demands.floor, survey.total, unit)
    classes = _smallest(search, floor, prices)
    at_zero = demands.floor - demands.alpha * demands.slope
    largest = search.highest(demands.slope / (demands.half * unit), demands.of_v(at_zero, survey.total, unit))
    names, slack = called
    described = []
    for k in classes:
        gain = slack == "paper" and survey.total[k] < 0 and demands.alpha[k] < 1
        why = ", which is negative: an alpha under 1 demands a gain" if gain else ""
        demand = f"alpha {demands.alpha[k]:.4g}: w'P >= {demands.floor[k]:.4g}"
        described.append(f"{names[k]} ({demand}; the sum of P is {survey.total[k]:.4g}{why})")
    common = (
        "all classes can have any larger alpha in common"
        if np.isinf(largest)
        else f"the largest alpha that all classes can have in common is {_down(largest)}"
    )
    return InfeasibleError(
        f"No weights meet the demands of class{'es' * (len(described) > 1)} {' and '.join(described)}"
        f"{' together' * (len(described) > 1)}, {_box(demands)}.",
        f"{_advice(names, classes, demands)}; {common}.",
        classes,
        largest,
    )


def _smallest(search: Search, floor: Array, prices: Array) -> list[int]:
    """By deletion: demands without which the others still conflict are dropped. Only those of a proof are tried."""
    left = np.flatnonzero(prices > 0)
    for k in left[np.argsort(prices[left], kind="stable")]:
        if k not in left:
            continue
        others = np.full(len(floor), -np.inf)
        rest = left[left != k]
        others[rest] = floor[rest]
        try:
            search.reachable(others)
        except InfeasibleDemands as proof:
            left = np.flatnonzero(proof.prices > 0)
    return [int(k) for k in left]


def _advice(names: Sequence[str], classes: Sequence[int], demands: Demands) -> str:
    """Which alphas to change, and how: for a class of negative sum, a larger alpha is the weaker demand."""
    falls = [names[k] for k in classes if demands.slope[k] >= 0]
    rises = [names[k] for k in classes if demands.slope[k] < 0]
    changes = [
        f"{verb} the alpha of {' or '.join(named)}" for verb, named in (("lower", falls), ("raise", rises)) if named
    ]
    return ", or ".join(changes)


def _box(demands: Demands) -> str:
    low, high = demands.centre - demands.half, demands.centre + demands.half
    return f"with weights from {low:.4g} to {high:.4g}"


def _down(value: float) -> str:
    """Four digits, rounded down, so that the alpha that is shown is feasible."""
    if value == 0 or not np.isfinite(value):
        return f"{value:.4g}"
    step = 10.0 ** (np.floor(np.log10(abs(value))) - 3)
    return f"{np.floor(value / step * (1 - 1e-9 * np.sign(value))) * step:.4g}"
