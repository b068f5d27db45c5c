"""The rows that help a class most, or harm it most: a share of a column of influence values."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Side = Literal["helpful", "harmful"]
SIDES: tuple[Side, ...] = ("helpful", "harmful")


def top_share(values: Array, share: float, side: Side) -> Array:
    """Whether each row is among the top, `[n]`: `share` of the rows of that sign, at least one if there is any.

    Args:
        values: of one column `[n]`; positive values help.
        share: in (0, 1); the number of rows is rounded down.
        side: the largest positive values, or the most negative ones. Ties: the earlier row first.
    """
    signed = values if side == "harmful" else -values
    candidates = int((signed < 0).sum())
    count = min(max(int(share * candidates), 1), candidates)
    top = np.zeros(len(values), bool)
    top[np.argsort(signed, kind="stable")[:count]] = True
    return top
