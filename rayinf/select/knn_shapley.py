"""Shapley values of training rows for one validation row, under the vote of its nearest neighbours. Pure, exact."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def knn_shapley(distances_n: Array, same_n: Array, tolerances_n: Array, neighbors: int) -> Array:
    """The Shapley value of every training row `[n]` (Jia et al. 2019, Theorem 1).

    The worth of a set of rows is the share of votes for the validation row's label among the K rows of the set that
    are nearest to it: `1/K` a vote, also where the set has fewer than K rows. With rows in the order of distance,
    `1_i` whether row i has the label, and `g_i = min(K, i) / (i K)`:

        s_i = g_i 1_i - sum_{j > i} (g_{j-1} - g_j) 1_j

    Rows at the same distance have no order: each gets the mean over all orders of them, so that the order of the table
    changes nothing.

    Args:
        distances_n: of every training row, in any increasing measure.
        same_n: whether it has the validation row's label.
        tolerances_n: distances that are nearer to the next one than this are taken as the same.
        neighbors: K.

    Cost: a sort of n numbers.
    """
    n = len(distances_n)
    order = np.argsort(distances_n)  # not stable: what is at the same distance is grouped below
    g = np.minimum(neighbors / np.arange(1, n + 1), 1.0) / neighbors
    own, sorted_d, slack = same_n[order].astype(np.float64), distances_n[order], tolerances_n[order]
    apart = np.diff(sorted_d) > np.maximum(slack[1:], slack[:-1])
    out = np.empty(n)
    if apart.all():
        out[order] = own * g - _farther(own, g)
        return out
    first = np.concatenate([[0], np.flatnonzero(apart) + 1])  # of each group of equal distances
    size = np.diff(np.concatenate([first, [n]]))
    hits = np.add.reduceat(own, first)
    mean_g, last_g = np.add.reduceat(g, first) / size, g[first + size - 1]
    farther = _farther(hits / size, last_g)
    of = np.repeat(np.arange(len(first)), size)
    others = (hits[of] - own) / np.maximum(size[of] - 1, 1)
    out[order] = own * mean_g[of] - others * (mean_g - last_g)[of] - farther[of]
    return out


def _farther(votes: Array, last_g: Array) -> Array:
    """What the groups farther away take off each: their expected votes, times how much g falls over each of them.

    Args:
        votes: the share of rows with the label, of each group.
        last_g: g at the last row of each group.
    """
    taken = votes[1:] * (last_g[:-1] - last_g[1:])
    return np.concatenate([np.cumsum(taken[::-1])[::-1], [0.0]])
