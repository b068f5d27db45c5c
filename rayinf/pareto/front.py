"""The front: candidates that no other one beats in the targets' gain and in the other classes' change at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def trade_off(accuracy: Array, plain: Array, targets: Sequence[int]) -> tuple[float, float]:
    """A candidate's place: the mean change of the targets' and of the other classes' accuracy (0 of no others).

    Args:
        accuracy: `[K]`.
        plain: `[K]`, after the unweighted epoch from the same checkpoint.
        targets: positions of the classes that are to gain.
    """
    change = accuracy - plain
    others = np.delete(change, list(targets))
    return float(change[list(targets)].mean()), float(others.mean()) if len(others) else 0.0


def non_dominated(gain: Array, others: Array) -> Array:
    """Which points no other point beats: no worse in both, and better in one. Of equal points the first is on it.

    Args:
        gain: `[m]`, the targets' mean change; the higher the better.
        others: `[m]`, that of the other classes; the higher the better.

    Returns:
        A mask `[m]`.

    Cost: a sort.
    """
    held = np.zeros(len(gain), bool)
    best = -np.inf
    for i in np.lexsort((np.arange(len(gain)), -others, -gain)):
        if others[i] > best:
            held[i], best = True, others[i]
    return held


def value(gain: float, others: float, price: float) -> float:
    """The targets' gain plus `price` times the others' change: a point's worth at that rate of exchange."""
    return gain + price * others
