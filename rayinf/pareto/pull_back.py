"""How far weights may move from 1 before a gap between groups is used up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def share(change: Array, total: Array, floor: Array, gaps: Mapping[int, float]) -> float:
    """The part t in [0, 1] of the way from weights of 1 to the optimum w at which a gap is closed.

    A column's predicted fall is linear in the weights: at `1 + t (w - 1)` it is t times that at w. A gap's absolute
    value falls until the gap is 0, and rises again beyond; so t is the least `gap_k / change_k`. Demands that weights
    of 1 do not meet are met from some t on, which is then the least that t may be.

    Args:
        change: `[K]`, `w'P^k - S_k`, at the optimum.
        total: `[K]`, `S_k`.
        floor: `[K]`, the demands.
        gaps: how wide they are, by their positions.
    """
    most = min((gap / float(change[k]) for k, gap in gaps.items() if change[k] > gap), default=1.0)
    unmet = floor > total
    needed = (floor[unmet] - total[unmet]) / np.maximum(change[unmet], np.finfo(float).tiny)
    return float(min(max(most, float(needed.max(initial=0.0))), 1.0))
