"""A transform that was written for one row, and is given a batch of them: seen by trying it on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_WRAP = "wrap it: transform=lambda batch: torch.stack([f(row) for row in batch]), in a function that has a name."


def transform_fix(transform: Callable[[Any], Any] | None, x: np.ndarray[Any, Any]) -> str:
    """How to mend a transform that fails on a batch: does it work on a single row of it?

    Args:
        transform: of the user.
        x: the features of a batch `[B, ...]`.
    """
    try:
        if transform is None:
            return "mend the transform."
        shape = getattr(transform(np.array(x[0])), "shape", None)
    except Exception:
        return "mend the transform: it gets the features of a batch as NumPy [B, ...], and returns the model's input."
    given = "" if shape is None else f", and gives {list(shape)}"
    return f"the transform works on one row{given}, but it gets a batch [B, ...]: {_WRAP}"
