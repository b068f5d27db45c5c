"""Labels of any integer or string type, as classes: positions among the model's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.errors import InputError


@dataclass(frozen=True)
class Classes:
    """The label of every logit, in order."""

    labels: tuple[Any, ...]

    def encode(self, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Classes `[B]` of raw labels `[B]`, all of which a scan has seen to be known."""
        if all(isinstance(v, int) for v in self.labels) and self.labels == tuple(range(len(self.labels))):
            return raw.astype(np.int64)
        order = np.argsort(np.asarray(self.labels))
        return order[np.searchsorted(np.asarray(self.labels)[order], raw)].astype(np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Labels as they stand in column names."""
        return tuple(str(v) for v in self.labels)


def make_classes(counts: Mapping[Any, int], logits: int, given: Sequence[Any] | None = None) -> Classes:
    """Which label stands for which logit.

    Integer labels that all lie in `[0, logits)` name their logit. Other labels are taken in sorted order, if there
    are as many as logits and they do not look like such integers with a slip among them.

    Args:
        counts: rows of every label of the training table.
        logits: C of the model.
        given: `Task(classes=...)`, which settles it.

    Raises:
        InputError: a label has no logit, or the order cannot be told.
    """
    if given is not None:
        if len(given) != logits or len(set(given)) != len(given):
            raise InputError(
                f"Task(classes=...) names {len(given)} labels, and the model has {logits} logits.",
                "name one different label for every logit.",
            )
        return Classes(tuple(v.item() if isinstance(v, np.generic) else v for v in given))
    labels = sorted(counts)
    integers = all(isinstance(v, int) for v in labels)
    inside = [v for v in labels if integers and 0 <= v < logits]
    if integers and len(inside) == len(labels):
        return Classes(tuple(range(logits)))
    run = integers and labels[-1] - labels[0] == len(labels) - 1
    if len(labels) == logits and (not integers or run or 2 * len(inside) <= len(labels)):
        return Classes(tuple(labels))
    if not integers:
        raise InputError(
            f"The model has {logits} logits, and the training table has {len(labels)} labels "
            f"({', '.join(map(repr, labels[:12]))}): which logit is whose cannot be told.",
            "name the label of every logit in Task(classes=[...]), or use a model with a logit for each.",
        )
    outside = [v for v in labels if v not in inside]
    shown = ", ".join(f"{v!r} ({counts[v]} rows)" for v in outside[:5])
    raise InputError(
        f"The model has {logits} logits, and the training table has {len(labels)} labels; no logit for: {shown}.",
        "correct those labels, use a model with a logit for each, or name the labels in Task(classes=[...]).",
    )


def check_known(classes: Classes, counts: Mapping[Any, int], table: str) -> None:
    """Refuse a table with a label that is no class.

    Raises:
        InputError: such labels, with their rows.
    """
    unknown = [v for v in counts if v not in classes.labels]
    if unknown:
        shown = ", ".join(f"{v!r} ({counts[v]} rows)" for v in unknown[:5])
        raise InputError(
            f"{table} has labels that the model has no logit for: {shown}; it has {len(classes.labels)} logits, "
            f"for {', '.join(map(repr, classes.labels[:12]))}.",
            "correct those labels, or name the labels of the logits in Task(classes=[...]).",
        )
