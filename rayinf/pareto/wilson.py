"""Wilson's confidence interval for a share: inside [0, 1], and valid for few rows and for shares of 0 or 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

Array = np.ndarray[Any, Any]


def wilson(right: Array, rows: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """The lower and upper ends `[K]` of intervals for `right` out of `rows`, `[K]` each; NaN of no rows."""
    z = float(ndtri(0.5 + confidence / 2))
    count = np.where(rows > 0, rows, np.nan).astype(float)
    share = right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # At shares of 0 and 1 rounding would leave the share itself outside.
    return np.clip(middle - half, 0.0, share), np.clip(middle + half, share, 1.0)
