"""Labels of any integer or string type, as classes, which are positions among the model's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.errors import InputError

Array = np.ndarray[Any, Any]
# Another order of the labels counts as the right one if its accuracy is better by this much, and if it closes this
# share of the gap between the majority class and 1. No order does so where the labels are in order, or the model is
# untrained.
_BETTER, _SKILL = 0.1, 0.3
# It must also be better by so many standard errors of the sample's accuracy.
_ERRORS = 3.0


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
        """Labels as they are written in column names."""
        return tuple(str(v) for v in self.labels)


def make_classes(counts: Mapping[Any, int], logits: int, given: Sequence[Any] | None = None) -> Classes:
    """The label of every logit.

    Integer labels that all lie in `[0, logits)` name their logit, and so does text that writes such integers. Other
    labels are taken in sorted order, numbers that are written as text by their value, if there are as many as logits
    and they do not look like such integers with a slip among them.

    Args:
        counts: rows of every label of the training table.
        logits: C of the model.
        given: `Task(classes=...)`, which settles it.

    Raises:
        InputError: a label without a logit, or an order that is ambiguous.
    """
    if given is not None:
        if len(given) != logits or len(set(given)) != len(given):
            raise InputError(
                f"Task(classes=...) names {len(given)} labels, and the model has {logits} logits.",
                "name one different label for every logit.",
            )
        return Classes(tuple(v.item() if isinstance(v, np.generic) else v for v in given))
    labels = _in_order(counts)
    if _writes(labels, logits):
        return Classes(tuple(str(k) for k in range(logits)))
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
            f"({', '.join(map(repr, labels[:12]))}): which logit belongs to which label is unknown.",
            "name the label of every logit in Task(classes=[...]), or use a model with a logit for each.",
        )
    outside = [v for v in labels if v not in inside]
    shown = ", ".join(f"{v!r} ({counts[v]} rows)" for v in outside[:5])
    raise InputError(
        f"The model has {logits} logits, and the training table has {len(labels)} labels; no logit for: {shown}.",
        "correct those labels, use a model with a logit for each, or name the labels in Task(classes=[...]).",
    )


def is_certain(classes: Classes, counts: Mapping[Any, int], given: Sequence[Any] | None) -> bool:
    """Whether the order of the labels is certain: given by the task, or integers from 0 on."""
    first = classes.labels[0]
    return given is not None or (isinstance(first, int) and first == 0 and 0 in counts)


def check_order(classes: Classes, halves: Sequence[Array]) -> None:
    """Refuse an order of labels that the model was not trained with, by a sample of its predictions.

    The best order is found on one half of the sample and judged on the other, both ways.

    Args:
        classes: in the order that was taken.
        halves: two counts `[C, C]` of rows by label and predicted logit.

    Raises:
        InputError: another order is clearly better.
    """
    total = halves[0] + halves[1]
    rows = int(total.sum())
    if not halves[0].sum() or not halves[1].sum():
        return
    right = sum(int(other[np.arange(len(other)), _best(one)].sum()) for one, other in (halves, halves[::-1]))
    assumed, best, majority = np.trace(total) / rows, right / rows, total.sum(1).max() / rows
    margin = max(_BETTER, _ERRORS * float(np.sqrt((assumed + best) / rows)))
    shifted = _shifted(classes, total)
    if not _is_better(assumed, best, majority, margin) and not shifted:
        return
    order = _named(classes, _best(total) if not shifted else (np.arange(len(total)) - 1) % len(total), total)
    if shifted:
        best = shifted / rows
    mend = f"name the label of every logit in the order of training: Task(classes=[{', '.join(map(repr, order))}])."
    if shifted and best - assumed <= margin:
        raise InputError(
            f"No row has the label {classes.labels[0]!r}, so {order[0]!r} may name the first logit or the "
            f"second: the model is right on {best:.1%} or on {assumed:.1%} of {rows:,} training rows, which does not "
            "decide it.",
            mend.removesuffix(".") + f", or Task(classes=[{', '.join(map(repr, classes.labels))}]).",
        )
    raise InputError(
        f"The labels are not in the order of the model's logits: taken as {_listed(classes.labels)}, the model is "
        f"right on {assumed:.1%} of {rows:,} training rows; in the order {_listed(order)} it would be on {best:.1%}.",
        mend,
    )


def order_warning(classes: Classes, confusion: Array, table: str) -> str | None:
    """A warning where another order of labels fits all rows of a table clearly better; else None."""
    rows = int(confusion.sum())
    assignment = _best(confusion)
    right = int(confusion[np.arange(len(confusion)), assignment].sum())
    assumed, best, majority = np.trace(confusion) / rows, right / rows, confusion.sum(1).max() / rows
    if not _is_better(assumed, best, majority, max(_BETTER, _ERRORS * float(np.sqrt((assumed + best) / rows)))):
        return None
    return (
        f"Another order of the labels fits better: the model is right on {assumed:.1%} of {rows:,} rows of {table}, "
        f"and with the logits in the order {_listed(_named(classes, assignment, confusion))} it would be on "
        f"{best:.1%}. Check Task(classes=[...]), or whether labels were swapped."
    )


def _is_better(assumed: float, best: float, majority: float, margin: float) -> bool:
    return majority < 1 and best - assumed > margin and (best - majority) / (1 - majority) >= _SKILL


def _best(confusion: Array) -> Array:
    """The assignment of labels to logits with most rows right; ties go to the order that was taken."""
    favoured = 2.0 * confusion + np.eye(len(confusion)) / len(confusion)
    largest: Array = favoured.argmax(1)
    if len(np.unique(largest)) == len(largest):  # no assignment has more
        return largest
    from scipy.optimize import linear_sum_assignment  # 0.8 s to import

    assigned: Array = linear_sum_assignment(favoured, maximize=True)[1]
    return assigned


def _shifted(classes: Classes, confusion: Array) -> int:
    """Rows that are right if integer labels count from 1, the highest class being missing; 0 if that is not better."""
    if any(str(label) != str(k) for k, label in enumerate(classes.labels)) or confusion[0].sum():
        return 0
    shifted, given = int(np.trace(confusion, offset=-1)), int(np.trace(confusion))
    return shifted if shifted > given else 0


def _named(classes: Classes, assignment: Array, confusion: Array) -> list[Any]:
    """Labels in the order of the logits that they are assigned to; shifted integers go on after the last one."""
    order: list[Any] = [None] * len(assignment)
    for k, logit in enumerate(assignment):
        order[int(logit)] = classes.labels[k]
    if _shifted(classes, confusion):
        order = [type(classes.labels[0])(k + 1) for k in range(len(order))]
    return order


def _listed(labels: Sequence[Any]) -> str:
    return ", ".join(map(repr, labels[:12])) + (", ..." if len(labels) > 12 else "")


def _in_order(counts: Mapping[Any, int]) -> list[Any]:
    """Sorted labels; text that writes numbers by their value."""
    labels = sorted(counts)
    if not all(isinstance(v, str) for v in labels):
        return labels
    try:
        values = {v: float(v) for v in labels}
    except ValueError:
        return labels
    finite = all(np.isfinite(x) for x in values.values())
    return sorted(labels, key=lambda v: (values[v], v)) if finite else labels


def _writes(labels: Sequence[Any], logits: int) -> bool:
    """Whether labels are text that writes integers in `[0, logits)`, as Python would."""
    return all(isinstance(v, str) and v.isdecimal() and str(int(v)) == v and int(v) < logits for v in labels)


def check_known(classes: Classes, counts: Mapping[Any, int], table: str) -> None:
    """Refuse a table with a label that is not a class.

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
