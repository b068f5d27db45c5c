"""What cross-fitted accuracies show: the targets' gain on rows that did not choose the weights, and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

Array = np.ndarray[Any, Any]
# One-sided.
_LEVEL = 0.95


def gain_error(change_hk: Array, targets: Sequence[int]) -> float:
    """The standard error of the targets' mean gain over both halves, in the unit of the changes.

    Class k's change is measured twice, on halves without a common row, of models whose weights the other half chose.
    Of two independent measures with the variance `s^2` the squared difference is `2 s^2` in the mean; `s^2` is pooled
    over the classes. What the two models really differ by is in it too, which makes it larger. The gain is the mean of
    2 T such measures: `s / sqrt(2 T)`.

    Args:
        change_hk: `[2, K]`, the change of each class's accuracy against the unweighted epoch, on each half.
        targets: positions of the T classes that are to gain.
    """
    variance = float(((change_hk[0] - change_hk[1]) ** 2).mean()) / 2
    return float(np.sqrt(variance / (2 * len(targets))))


def shows_gain(gain: float, error: float, classes: int) -> bool:
    """Whether the targets' gain is above 0 at 95%, one-sided: Student's t with a degree of freedom a class.

    Args:
        gain: the targets' mean gain.
        error: of `gain_error`.
        classes: K.
    """
    return gain > float(stdtrit(classes, _LEVEL)) * error
