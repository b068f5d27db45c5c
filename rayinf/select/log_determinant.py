"""The batch of the greatest log-determinant, greedily: rows of long vectors that point in different directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayinf.errors import InputError

Array = np.ndarray[Any, Any]


def pick_spanning(vectors_nm: Array, n: int, ridge: float) -> tuple[Array, Array]:
    """Greedily, n rows S of large `log det(I + V_S V_S' / ridge)`.

    A pick adds `log(1 + r)`, with `r = v' (ridge I + sum of picked v v')^-1 v`: how much of the row's vector is not
    spanned by those of the rows picked. The set function is submodular, so that the greedy choice has at least 1 - 1/e
    of the greatest log-determinant (Nemhauser et al. 1978). With a small ridge a direction counts once; with a large
    one the rows of the longest vectors are picked.

    Cost: a pick is one product `[N, m] x [m]`. Memory: the vectors, and two numbers a row.

    Args:
        vectors_nm: `[N, m]`, float32 or float64.
        n: rows to pick.
        ridge: over 0, in the squared unit of the vectors.

    Returns:
        The positions `[n]`, best first, and what each adds to the log-determinant. Ties: the earlier row.

    Raises:
        InputError: fewer rows than n.
    """
    rows, m = vectors_nm.shape
    if n > rows:
        raise InputError(f"A batch of {n} rows cannot be picked from {rows} candidates.", f"pass n <= {rows}.")
    left_n = np.einsum("nm,nm->n", vectors_nm, vectors_nm, dtype=np.float64) / ridge
    # Row k: B^-1 v / sqrt(1 + r) of the k-th pick, with the B of before it: B^-1 loses the outer product of each.
    moved_km = np.zeros((n, m))
    picked, gains = np.empty(n, np.int64), np.empty(n)
    for k in range(n):
        best = int(np.argmax(left_n))
        picked[k], gains[k] = best, np.log1p(max(left_n[best], 0.0))
        v_m = vectors_nm[best].astype(np.float64)
        solved_m = v_m / ridge - moved_km[:k].T @ (moved_km[:k] @ v_m)
        moved_km[k] = solved_m / np.sqrt(1 + max(float(v_m @ solved_m), 0.0))
        left_n -= np.square(vectors_nm @ moved_km[k].astype(vectors_nm.dtype), dtype=np.float64)
        left_n[picked[: k + 1]] = -np.inf
    return picked, gains
