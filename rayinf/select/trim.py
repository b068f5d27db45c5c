"""Which rows to trim: the worst of a column, at most a budget of them, while each class keeps its floor of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Columns without a sign, whose largest values are the worst (Yu 2025, Algorithm 3), for scores whose metadata do not
# name their verb. In all others the most negative are the worst, and a row of value 0 or more is never trimmed
# (Chhabra 2024, Algorithm 2).
UNSIGNED = ("fi", "fi_rank", "self_influence")


def worst_first(values: Array, signed: bool) -> Array:
    """Positions `[n]` from the worst to the best. Ties: the earlier row first; rows without a value (NaN) last.

    Args:
        values: `[n]`.
        signed: whether low values are bad (influence), or high ones (FI).
    """
    return np.argsort(values if signed else -values, kind="stable")


def candidates(values: Array, signed: bool) -> Array:
    """Whether a row may be trimmed at all, `[n]`: the harmful ones of a signed column, else all that have a value."""
    return values < 0 if signed else ~np.isnan(values)


def pick(order: Array, may: Array, budget: int, labels: Array | None = None, floor: int = 0) -> Array:
    """Whether each row is trimmed, `[n]`: the first `budget` candidates, without classes at their floor.

    Args:
        order: positions `[n]`, worst first.
        may: whether a row may be trimmed, `[n]`.
        budget: rows to trim, at most.
        labels: `[n]`, where there is a floor.
        floor: rows of every class that stay; a class that has fewer keeps all.
    """
    ranked = order[may[order]]
    if labels is not None and floor:
        import pandas as pd

        earlier = pd.Series(labels[ranked]).groupby(labels[ranked]).cumcount().to_numpy()  # rows of the same label
        ranked = ranked[earlier < _spare(labels, floor)[ranked]]
    trimmed = np.zeros(len(order), bool)
    trimmed[ranked[:budget]] = True
    return trimmed


def use_up(order: Array, trimmed: Array, values: Array, gap: float) -> Array:
    """The first of the trimmed rows, as many as bring a gap nearest to 0 by their predicted change.

    Removing a row moves `|gap|` by its value while the gap keeps its sign, so that the predicted gap after k rows is
    `| gap + sum of their values |`: beyond 0 each further row would open it on the other side.

    Args:
        order: positions `[n]`, worst first.
        trimmed: `[n]`, by position.
        values: `[n]`.
        gap: the absolute gap before.
    """
    ranked = order[trimmed[order]]
    left = np.abs(gap + np.concatenate([[0.0], np.cumsum(values[ranked])]))
    out = np.zeros(len(order), bool)
    out[ranked[: int(left.argmin())]] = True
    return out


def _spare(labels: Array, floor: int) -> Array:
    """How many rows may be removed from the class of each row."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    spare: Array = np.maximum(counts - floor, 0)[codes]
    return spare
