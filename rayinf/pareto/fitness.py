"""The fitness of a candidate (Nahin 2025, Algorithm 1, line 7), and the order that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# What ranks last: a candidate that could not be trained.
HOPELESS = (-np.inf, -np.inf)


def relative_change(new: Array, old: Array) -> Array:
    """`Delta [K]`: the change of each class's accuracy, relative to the old one; as it is where the old one is 0."""
    return (new - old) / np.where(old > 0, old, 1.0)


def fitness(delta: Array, targets: Sequence[int]) -> float:
    """Line 7: minus infinity if a target has not gained, else the mean of the other classes' losses (0 of no others).

    A writes indicators times (minus infinity), which is not a number where they are 0: here they are branches.

    Args:
        delta: `[K]`, of `relative_change`.
        targets: positions of the classes that are to gain.
    """
    if (delta[list(targets)] <= 0).any():
        return -np.inf
    others = np.delete(delta, list(targets))
    return float(np.minimum(others, 0.0).mean()) if len(others) else 0.0


def rank(delta: Array, targets: Sequence[int]) -> tuple[float, float]:
    """The higher the better: the fitness, and what settles ties.

    The fitness is 0 for all who cost no other class anything: among equals the higher mean gain of the targets counts.
    At minus infinity it is the worst target, so that a search that starts there finds its way out.
    """
    found, gains = fitness(delta, targets), delta[list(targets)]
    return found, float(gains.mean() if np.isfinite(found) else gains.min())
