"""Shapley values by their definition: every subset of the rows. Slow on purpose; no code is shared with the package."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def shapley(n: int, worth: Callable[[tuple[int, ...]], Any]) -> Array:
    """`[n, ...]` of a worth of sorted tuples of rows, which may be an array; each set's worth is taken once."""
    known = {rows: np.asarray(worth(rows)) for size in range(n + 1) for rows in combinations(range(n), size)}
    out = []
    for i in range(n):
        total = np.zeros_like(known[()], dtype=float)
        for rows, before in known.items():
            if i not in rows:
                size = len(rows)
                weight = math.factorial(size) * math.factorial(n - 1 - size) / math.factorial(n)
                total = total + weight * (known[tuple(sorted((*rows, i)))] - before)
        out.append(total)
    return np.stack(out)


def vote(rows: tuple[int, ...], distances: Array, same: Array, neighbors: int) -> float:
    """The expected share of the K nearest votes for the label, where ties are broken at random."""
    left, total = neighbors, 0.0
    for level in sorted({distances[i] for i in rows}):
        tied = [i for i in rows if distances[i] == level]
        taken = min(left, len(tied))
        total += taken * sum(same[i] for i in tied) / len(tied)
        left -= taken
    return total / neighbors
