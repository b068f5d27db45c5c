"""The certificate for pairs of classes: how much each pair can gain in common."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def pairwise_gain(p_mk: Array, weight_m: Array) -> Array:
    """`min over y in [0, 1] of sum_i w_i |y P_i^k / b_k + (1 - y) P_i^l / b_l|` for every pair of classes, `[K, K]`.

    The gain of all classes in common is at most the least of these. The diagonal is 1; a class without any influence
    has NaN.

    Args:
        p_mk: influence vectors, or a sample of them.
        weight_m: how many rows each stands for.

    Cost: a sort of the rows for every pair.
    """
    weighted = p_mk * weight_m[:, None]
    total = np.abs(weighted).sum(0)
    classes = len(total)
    unit = np.divide(weighted, total, out=np.full_like(weighted, np.nan), where=total > 0)
    out = np.diag(np.where(total > 0, 1.0, np.nan))
    for k in range(classes):
        for j in range(k):
            out[k, j] = out[j, k] = _of_pair(unit[:, k], unit[:, j])
    return out


def _of_pair(a: Array, c: Array) -> float:
    """The least of `sum |y a + (1 - y) c|`: y is a weighted median of the places where a term is 0."""
    slope = a - c
    moves = slope != 0
    weight = np.abs(slope[moves])
    if np.isnan(weight).any():
        return float("nan")
    y = 0.0
    if weight.size:
        place = -c[moves] / slope[moves]
        order = np.argsort(place)
        held = np.cumsum(weight[order])
        y = float(np.clip(place[order[np.searchsorted(held, held[-1] / 2)]], 0.0, 1.0))
    return float(np.abs(y * a + (1 - y) * c).sum())
