"""Sound input to be spoilt, and a check that it is then refused as the house asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import rayinf

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
VALID = RNG.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3
TRAIN = X, Y
LETTERS = list("abcd")


def linear(classes: int = 3) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, classes)


def task(model: Any = None, **arguments: Any) -> rayinf.Task:
    return rayinf.Task(model or linear(), **arguments)


def columns(x: np.ndarray = X, y: Any = Y, **more: Any) -> pa.Table:
    """Features as four scalar columns."""
    return pa.table({**{name: x[:, k] for k, name in enumerate(LETTERS)}, "label": y, **more})


def lists(x: Any = X, y: Any = Y, **more: Any) -> pa.Table:
    """Features as a column of lists."""
    return pa.table({"features": pa.array(list(x)), "label": y, **more})


def but(values: np.ndarray, where: Any, new: Any) -> np.ndarray:
    """A copy with one value changed."""
    out = np.array(values)
    out[where] = new
    return out


def ids(at: int, new: Any, kind: Callable[[int], Any] = int) -> list[Any]:
    """0 ... 59, or their words, with one value changed."""
    return [new if k == at else kind(k) for k in range(60)]


class Refused:
    """`check(*culprits, **arguments of influence)`."""

    def __init__(self, tmp_path: Path) -> None:
        self.out = tmp_path / "run"

    def __call__(self, *culprits: str, begun: bool | None = False, **arguments: Any) -> str:
        given = {"task": task(), "train": TRAIN, "valid": VALID, "out": self.out, **arguments}
        with pytest.raises(rayinf.InputError) as caught:
            rayinf.influence(**given)
        text = str(caught.value)
        what, _, fix = text.partition(" Fix: ")
        assert what.endswith(".")
        assert fix.endswith((".", "?"))
        assert text.count("Fix: ") == 1
        for culprit in culprits:
            assert culprit in text, f"{culprit!r} is not in: {text}"
        assert begun is None or self.out.exists() is begun, f"{self.out} is there: {not begun}"
        return text
