"""BADGE (Ash et al. 2020): rows whose gradients in the last layer are long and point in different directions.

The gradient of a row is `g a'`: g of its loss, with the likeliest label, in the layer's outputs, and a the layer's
inputs. It is never formed: `<g a', h b'> = <g, h> <a, b>`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayinf.errors import InputError
from rayinf.select.seeding import spread_out

Array = np.ndarray[Any, Any]


def pick_badge(gradients_no: Array, inputs_ni: Array, n: int, seed: int) -> Array:
    """N rows by the draws of k-means++ on their gradients; the first is the one of the longest gradient.

    Cost: a pick is two products, `[N, o] x [o]` and `[N, i] x [i]`. Memory: the input, and some numbers a row.

    Args:
        gradients_no: g, `[N, o]`.
        inputs_ni: a, `[N, i]`.
        n: rows to pick.
        seed: of the draws.

    Returns:
        Places `[n]`, in the order in which they were drawn.

    Raises:
        InputError: fewer rows than n.
    """
    rows = len(gradients_no)
    if n > rows:
        raise InputError(f"A batch of {n} rows cannot be picked from {rows} candidates.", f"pass n <= {rows}.")
    length_n = _squares(gradients_no) * _squares(inputs_ni)

    def squared_distances(k: int) -> Array:
        product_n = (gradients_no @ gradients_no[k]).astype(np.float64) * (inputs_ni @ inputs_ni[k])
        return length_n + length_n[k] - 2 * product_n

    return spread_out(squared_distances, int(np.argmax(length_n)), n, np.random.default_rng(seed))


def _squares(x: Array) -> Array:
    out: Array = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return out
