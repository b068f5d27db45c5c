"""The draws of k-means++ (Arthur and Vassilvitskii 2007): rows far from those drawn so far, by their squared distance.

Used as the batch itself by "badge" (Ash et al. 2020), and as the first centres of k-means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def spread_out(squared_distances: Callable[[int], Array], first: int, n: int, generator: np.random.Generator) -> Array:
    """Draw n different rows, each with probability proportional to its squared distance to the nearest one drawn.

    Where all rows that are left lie on rows drawn already, the earliest of them is taken.

    Args:
        squared_distances: the place of a row -> the squared distances of all N rows to it, `[N]`.
        first: the row to begin with.
        n: rows to draw, at most N.
        generator: gives one uniform number a draw.

    Returns:
        Places `[n]`, in the order in which they were drawn.

    Cost: n calls of `squared_distances`, and n passes over N numbers.
    """
    picked = np.empty(n, np.int64)
    picked[0], nearest_n = first, np.maximum(squared_distances(first), 0.0).astype(np.float64)
    free_n = np.ones(len(nearest_n), bool)
    free_n[first] = False
    for k in range(1, n):
        up_to = np.where(free_n, nearest_n, 0.0).cumsum()
        drawn = int(np.searchsorted(up_to, generator.random() * up_to[-1], side="right"))
        if up_to[-1] <= 0 or drawn >= len(up_to) or not free_n[drawn]:
            drawn = int(np.argmax(free_n))
        picked[k] = drawn
        free_n[drawn] = False
        np.minimum(nearest_n, np.maximum(squared_distances(drawn), 0.0), out=nearest_n)
    return picked
