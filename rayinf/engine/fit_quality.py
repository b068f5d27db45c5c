"""How well the model fits its rows, from passes that are made anyway: accuracy and mean loss, and what they warn of.

Values of a model that does not fit are values of nothing: all labels swapped, a model that was never trained, features
on another scale than in training.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayinf.core.kfac import Sums, add
from rayinf.data.files import Arrays
from rayinf.data.labels import Classes, order_warning
from rayinf.errors import FitWarning, InputError

# Under this key a shard's table carries the sums over its rows.
KEY = b"rayinf.fit"
# And a tile of pairs those over its validation rows.
VALID_KEY = b"rayinf.fit.valid"
# Sums over validation rows stand under names that begin so.
PREFIX = "fit/"
# Which class is taken for which is counted up to this many classes.
MOST_CLASSES = 256
# A table with fewer rows a class does not show what its majority class is.
_LEAST_ROWS = 10


@dataclass
class FitSums:
    """Sums over rows: how many, how many are classified right, their losses, and who is taken for whom.

    Attributes:
        classes: C.
        rows: summed over.
        correct: rows whose label is the likeliest.
        loss: the sum of the task's losses, float64.
        slope: the largest slope of a row's loss in a logit.
        value: the largest value that a row got, without its sign.
        labels: `[C]`, rows of each class.
        confusion: `[C, C]`, rows by label and prediction; empty above `MOST_CLASSES`.
    """

    classes: int
    rows: int = 0
    correct: int = 0
    loss: float = 0.0
    slope: float = 0.0
    value: float = 0.0
    labels: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    confusion: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __post_init__(self) -> None:
        """Room for every class."""
        if not len(self.labels):
            self.labels = np.zeros(self.classes, np.int64)
            side = self.classes if self.classes <= MOST_CLASSES else 0
            self.confusion = np.zeros((side, side), np.int64)

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor, gradient: Tensor) -> None:
        """Add a batch: logits and gradients in them `[B, C]`, labels and losses `[B]`."""
        with torch.no_grad():
            predicted, y = logits.argmax(1).cpu().numpy(), labels.cpu().numpy()
            self.rows += len(y)
            self.correct += int((predicted == y).sum())
            self.loss += float(losses.double().sum())
            self.slope = max(self.slope, float(gradient.abs().max()))
        self.labels += np.bincount(y, minlength=self.classes)
        if len(self.confusion):
            np.add.at(self.confusion, (y, predicted), 1)

    def merge(self, other: FitSums) -> FitSums:
        """Sums over the rows of both, this one's first."""
        return FitSums(
            self.classes,
            self.rows + other.rows,
            self.correct + other.correct,
            self.loss + other.loss,
            max(self.slope, other.slope),
            max(self.value, other.value),
            self.labels + other.labels,
            self.confusion + other.confusion,
        )

    def to_json(self) -> bytes:
        """For the metadata of a shard's table."""
        counts = None
        if len(self.confusion):
            y, predicted = np.nonzero(self.confusion)
            counts = np.stack([y, predicted, self.confusion[y, predicted]], 1).tolist()
        return json.dumps({**vars(self), "labels": self.labels.tolist(), "confusion": counts}).encode()

    @classmethod
    def from_json(cls, held: bytes) -> FitSums:
        """The inverse of `to_json`."""
        sums = json.loads(held)
        counts, labels = sums.pop("confusion"), np.array(sums.pop("labels"), np.int64)
        out = cls(**sums, labels=labels)
        if counts is not None:
            out.confusion = np.zeros((len(labels), len(labels)), np.int64)
            for y, predicted, count in counts:
                out.confusion[y, predicted] = count
        return out

    @property
    def majority(self) -> float:
        """The share of the most frequent class."""
        return float(self.labels.max()) / max(self.rows, 1)

    @property
    def prior_loss(self) -> float:
        """The mean cross-entropy of a model that gives every row the classes' shares."""
        share = self.labels[self.labels > 0] / max(self.rows, 1)
        return float(-(share * np.log(share)).sum())

    def summary(self) -> dict[str, Any]:
        """For people and for `metadata`."""
        return {"rows": self.rows, "accuracy": self.correct / self.rows, "mean_loss": self.loss / self.rows}


def add_valid(sums: Sums, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
    """Add a batch of validation rows to the sums of their gradients, under names of their own."""
    hits = logits.argmax(1) == labels
    found = {"rows": torch.tensor(float(len(labels))), "correct": hits.sum(), "loss": losses.double().sum()}
    found["labels"] = torch.bincount(labels, minlength=logits.shape[1])
    for name, value in found.items():
        add(sums, PREFIX + name, value.double())


def of_valid(arrays: Arrays) -> FitSums | None:
    """The sums of `add_valid`, merged; None where no pass over clean rows was made."""
    if PREFIX + "rows" not in arrays:
        return None
    rows, correct, loss = (float(arrays[PREFIX + name]) for name in ("rows", "correct", "loss"))
    labels = np.asarray(arrays[PREFIX + "labels"]).astype(np.int64)
    return FitSums(len(labels), int(rows), int(correct), loss, labels=labels)


def of_shards(schemas: Iterable[pa.Schema], key: bytes = KEY) -> FitSums | None:
    """The sums of all shards, in order; None where one has none."""
    total: FitSums | None = None
    for schema in schemas:
        held = (schema.metadata or {}).get(key)
        if held is None:
            return None
        found = FitSums.from_json(held)
        total = found if total is None else total.merge(found)
    return total


class FitMerge:
    """The sums of several `to_json`, which come in any order, merged in that of their keys 0, 1, 2, ..."""

    def __init__(self) -> None:
        self._early: dict[int, bytes] = {}
        self._count = 0
        self._total: FitSums | None = None

    def add(self, key: int, held: bytes) -> None:
        """Take one in; it is held until all before it are there."""
        self._early[key] = held
        while (ready := self._early.pop(self._count, None)) is not None:
            found = FitSums.from_json(ready)
            self._total = found if self._total is None else self._total.merge(found)
            self._count += 1

    def to_json(self) -> bytes:
        """The merged sums; there is one at least."""
        assert self._total is not None
        assert not self._early
        return self._total.to_json()


def fit_quality(run: Any, found: Mapping[str, FitSums | None]) -> dict[str, Any]:
    """`{"fit": ...}` for a run's metadata, with a warning where the model does not fit.

    Args:
        run: open, whose rows all have their values.
        found: sums by table, None where no pass over its rows was made.

    Returns:
        For "train" and "valid", where a pass over them was made: `rows`, `accuracy`, `mean_loss`; and `warnings`.

    Raises:
        InputError: no row's loss has a slope, or no row has a value: all of them are 0.
    """
    known = {name: sums for name, sums in found.items() if sums is not None and sums.rows}
    if not known:
        return {}
    if run.job.scored == "train":
        check_values(known.get("train"))
    exact = run.job.outputs.loss(run.job.task.loss) == "cross_entropy"
    texts = problems(known, exact, run.job.classes)
    for text in texts:
        warnings.warn(text, FitWarning, stacklevel=4)
    return {"fit": {**{name: sums.summary() for name, sums in known.items()}, "warnings": texts}}


def check_values(train: FitSums | None) -> None:
    """Refuse values that are all 0.

    Raises:
        InputError: no row has a gradient, or all values are too small for their precision.
    """
    if train is None or not train.rows:
        return
    if not train.slope:
        raise InputError(
            f"The loss of all {train.rows:,} training rows is flat to the last digit: no row has a gradient, and every "
            "value would be 0.",
            "check the scale of the features and of the model's outputs; a model that is so sure cannot be valued.",
        )
    if not train.value:
        raise InputError(
            f"The values of all {train.rows:,} training rows are 0, or too small for their precision, though their "
            f"losses have slopes up to {train.slope:.1e}: the model is sure of every row.",
            "check the scale of the features and of the model's outputs; a model that is so sure cannot be valued "
            '(one in float32 perhaps in float64: precision="fp64" of influence).',
        )


def problems(known: Mapping[str, FitSums], cross_entropy: bool, classes: Classes) -> list[str]:
    """What a user should look at before the values, in words.

    Args:
        known: sums by table.
        cross_entropy: whether the loss is comparable with the logarithm of the number of classes.
        classes: of the task.
    """
    texts = []
    for name, sums in known.items():
        shown = f"accuracy {sums.correct / sums.rows:.3f}, mean loss {sums.loss / sums.rows:.3f} on {name}"
        mean, several = sums.loss / sums.rows, int((sums.labels > 0).sum()) > 1
        if cross_entropy and mean > math.log(sums.classes):
            texts.append(
                f"The model fits {name} worse than a uniform guess: {shown}, and log {sums.classes} = "
                f"{math.log(sums.classes):.3f}. Its values mean little. Check that it is trained, the order of the "
                "labels (Task(classes=[...])), and that the features have the scale of its training."
            )
        elif (
            several
            and sums.rows >= _LEAST_ROWS * int((sums.labels > 0).sum())
            and sums.correct <= sums.majority * sums.rows
            and (not cross_entropy or mean >= sums.prior_loss)
        ):
            texts.append(
                f"The model is no better than its majority class: {shown}, and {sums.majority:.3f} of the rows are of "
                "one class. Its values mean little. Check that it is trained, the order of the labels "
                "(Task(classes=[...])), and that the features have the scale of its training."
            )
        if len(sums.confusion) and (text := order_warning(classes, sums.confusion, name)):
            texts.append(text)
    return texts


def fit_line(fit: Mapping[str, Any] | None) -> str | None:
    """One line for a terminal: `fit: accuracy 0.93 on train (mean loss 0.21), 0.91 on valid (0.30)`."""
    parts: list[str] = []
    for name in ("train", "valid"):
        if fit and name in fit:
            first = not parts
            loss = f"{fit[name]['mean_loss']:.3g}"
            parts.append(
                f"{'accuracy ' if first else ''}{fit[name]['accuracy']:.2f} on {name} "
                f"({'mean loss ' if first else ''}{loss})"
            )
    return f"fit: {', '.join(parts)}" if parts else None
