"""How far predictions and measurements agree: Spearman's and Pearson's correlation, and the slope between them.

Every figure is also computed for weighted points, since a bootstrap's resample is the points with counts as weights: a
rank in a resample then follows from the order of all points, which is found once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def spearman(predicted: Array, measured: Array, counts: Array | None = None) -> Array:
    """Spearman's rank correlation, `[B]`; NaN where one of both is constant. Ties share their mean rank.

    Args:
        predicted: `[J]`.
        measured: `[J]`.
        counts: how often each point counts `[B, J]`; None: once, and B is 1.
    """
    found: Array = (standard_ranks(predicted, counts) * standard_ranks(measured, counts)).sum(1)
    return found


def standard_ranks(values: Array, counts: Array | None = None) -> Array:
    """The ranks of `[J]`, scaled so that the sum of products of two such rows is their correlation, `[B, J]`.

    Args:
        values: of the points; where they are constant, NaN.
        counts: as in `spearman`.
    """
    weights = np.ones((1, len(values))) if counts is None else np.asarray(counts, float)
    ranks = _ranks(values, weights)
    ranks -= (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    ranks *= np.sqrt(weights)
    norm = np.sqrt((ranks * ranks).sum(1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        held: Array = np.where(norm > 0, ranks / norm, np.nan)
    return held


def pearson(predicted: Array, measured: Array) -> float:
    """Pearson's correlation of `[J]` and `[J]`; NaN where one of both is constant."""
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:  # rounding could leave a spread
        return float("nan")
    p, m = predicted - predicted.mean(), measured - measured.mean()
    return float(p @ m / np.sqrt((p @ p) * (m @ m)))


def slope_parts(predicted: Array, measured: Array) -> tuple[float, float]:
    """The sums of which `sum (p - mean p)(m - mean m) / sum (p - mean p)^2` is the slope.

    That is the regression of what was measured on what was predicted, through the point of both means: how much
    changes for each unit of predicted change, 1 at best. Sums of several columns add up to a common slope.
    """
    p, m = predicted - predicted.mean(), measured - measured.mean()
    return float(p @ m), float(p @ p)


def slope(predicted: Array, measured: Array) -> float | None:
    """The slope over the points `[...]` that have both; None where predictions are constant, or for fewer than two."""
    both = np.isfinite(predicted) & np.isfinite(measured)
    p, m = predicted[both], measured[both]
    if len(p) < 2 or np.ptp(p) == 0:
        return None
    above, below = slope_parts(p, m)
    return above / below


def rank_correlation(a: Array, b: Array) -> float | None:
    """Spearman's over the points `[...]` that have both; None where one is constant, or for fewer than three."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearman(a, b)[0])


def _ranks(values: Array, weights: Array) -> Array:
    """The mean rank of every point among all, `[B, J]`: those below it, and half of those that equal it."""
    order = np.argsort(values, kind="stable")
    held = values[order]
    above = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, order], axis=1)], axis=1)
    first, last = (np.searchsorted(held, values, side) for side in ("left", "right"))
    ranks: Array = (above[:, first] + above[:, last]) / 2
    return ranks
