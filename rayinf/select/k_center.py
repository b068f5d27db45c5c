"""K-center greedy, the selection of CoreSet (Sener and Savarese 2018): the batch that leaves no row far from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayinf.errors import InputError

Array = np.ndarray[Any, Any]

# Numbers of one tile of differences or products: 8 MB in float64.
_TILE = 1 << 20


def pick_centers(embedding_nd: Array, labeled_ld: Array, n: int) -> tuple[Array, Array]:
    """Greedily, the row that is farthest from the labelled rows and the rows picked before it, n times.

    The greatest distance that is left is at most twice the least that n rows can leave.

    Cost: `L d` operations a row for the labelled rows, and a pass over the embedding a pick. Memory: the input, a
    number a row, and 8 MB.

    Args:
        embedding_nd: `[N, d]`.
        labeled_ld: `[L, d]`; L may be 0, and the first row of the embedding then begins.
        n: rows to pick.

    Returns:
        Places `[n]` in the order of picking, and the distance of each to its nearest centre when it was picked (inf
        for the first without labelled rows). Ties: the earlier row.

    Raises:
        InputError: fewer rows than n.
    """
    rows = len(embedding_nd)
    if n > rows:
        raise InputError(f"A batch of {n} rows cannot be picked from {rows} candidates.", f"pass n <= {rows}.")
    nearest_n = np.square(nearest_distance(embedding_nd, labeled_ld))
    picked, distance = np.empty(n, np.int64), np.empty(n)
    for k in range(n):
        picked[k] = best = int(np.argmax(nearest_n))
        distance[k] = np.sqrt(nearest_n[best])
        np.minimum(nearest_n, squared_distance(embedding_nd, embedding_nd[best]), out=nearest_n)
        nearest_n[best] = -1.0
    return picked, distance


def squared_distance(embedding_nd: Array, center_d: Array) -> Array:
    """Squared distances `[N]` to one point, float64: by differences, so that near points keep theirs."""
    out = np.empty(len(embedding_nd))
    step = max(1, _TILE // max(embedding_nd.shape[1], 1))
    for at in range(0, len(out), step):
        difference = embedding_nd[at : at + step].astype(np.float64) - center_d
        out[at : at + step] = np.einsum("nd,nd->n", difference, difference)
    return out


def nearest_distance(embedding_nd: Array, centers_ld: Array) -> Array:
    """The distance `[N]` of every row to the nearest of L points, float64; inf where L is 0."""
    nearest_n = np.full(len(embedding_nd), np.inf)
    size_l = np.einsum("ld,ld->l", centers_ld, centers_ld, dtype=np.float64)
    step = max(1, _TILE // max(len(centers_ld), embedding_nd.shape[1], 1))
    for at in range(0, len(nearest_n) if len(centers_ld) else 0, step):
        part_nd = embedding_nd[at : at + step].astype(np.float64)
        # The nearest by products, and its distance by the difference: products lose what near points differ by.
        product_nl = part_nd @ centers_ld.T.astype(np.float64)
        difference = part_nd - centers_ld[np.argmin(size_l - 2 * product_nl, axis=1)]
        nearest_n[at : at + step] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return nearest_n
