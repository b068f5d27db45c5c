"""The fitness of a candidate (Nahin 2025, Algorithm 1, line 7), and the order that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# The rank of a candidate that could not be trained: the last one.
UNTRAINED = (-np.inf, -np.inf)


def relative_change(new: Array, old: Array) -> Array:
    """`Delta [K]`: the change of each class's accuracy, relative to the old one; as it is where the old one is 0."""
    return (new - old) / np.where(old > 0, old, 1.0)


def fitness(delta: Array, targets: Sequence[int]) -> float:
    """Line 7: minus infinity if a target has not gained, else the mean of the other classes' losses (0 of no others).

    The paper multiplies indicators by minus infinity, which gives NaN where they are 0; here they are branches.

    Args:
        delta: `[K]`, of `relative_change`.
        targets: positions of the classes that are to gain.
    """
    if (delta[list(targets)] <= 0).any():
        return -np.inf
    others = np.delete(delta, list(targets))
    return float(np.minimum(others, 0.0).mean()) if len(others) else 0.0


def rank(delta: Array, targets: Sequence[int]) -> tuple[float, float]:
    """The fitness, then a tie-breaker; the higher the better.

    The fitness is 0 for all candidates that cost no other class anything: among equals the higher mean gain of the
    targets wins. At minus infinity the gain of the worst target counts, so that a search that starts there improves.
    """
    found, gains = fitness(delta, targets), delta[list(targets)]
    return found, float(gains.mean() if np.isfinite(found) else gains.min())
