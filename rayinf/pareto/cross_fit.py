"""What cross-fitted accuracies show: the targets' gain on rows that did not choose the weights, and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

Array = np.ndarray[Any, Any]
# The share of searches among candidates without a gain that find one.
_MISSED = 0.05


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


def shows_gain(gain: float, error: float, classes: int, tried: int = 1) -> bool:
    """Whether a gain of the targets is above 0 at 95%, one-sided, even if it is the best of several.

    Student's t with a degree of freedom a class; the level is shared between those that are tried (Bonferroni), so that
    among candidates that all gain nothing one in twenty searches finds a gain at most.

    Args:
        gain: the targets' mean gain.
        error: of `gain_error`.
        classes: K.
        tried: how many candidates are looked at.
    """
    return gain > float(stdtrit(classes, 1.0 - _MISSED / tried)) * error
