"""Heat maps of classes: how much each pair can gain in common, and which rows help and harm whom.

See Nahin 2025, Figure 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rayinf.plots.figures import heat_map, save, shown_names
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClassMap:
    """One heat map.

    Attributes:
        title: over it.
        values: `[rows, columns]`; NaN is drawn grey.
        rows: names of the rows.
        columns: names of the columns.
        labels: of both axes, the vertical one first.
        colours: a colour map of matplotlib.
        format: of the numbers in the cells.
    """

    title: str
    values: Array
    rows: Sequence[str]
    columns: Sequence[str]
    labels: tuple[str, str]
    colours: str = "viridis"
    format: str = "{:.2f}"


def plot(maps: Sequence[ClassMap], path: str | AnyPath) -> AnyPath:
    """Draw maps side by side.

    Args:
        maps: one or more.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).

    Returns:
        The path.

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
    """
    sides = [max(3.4, 0.52 * min(len(m.columns), 16)) for m in maps]
    height = max(3.4, max(0.48 * min(len(m.rows), 16) for m in maps))
    figure = Figure(figsize=(sum(sides) + 1.8 * len(maps), height + 1.2), layout="constrained")
    for axes, held in zip(figure.subplots(1, len(maps), squeeze=False, width_ratios=sides)[0], maps, strict=True):
        largest = float(np.nanmax(held.values, initial=0.0)) or 1.0
        heat_map(axes, held.values, held.colours, held.format.format, vmin=0.0, vmax=largest)
        _names(axes, held)
        axes.set_title(held.title, fontsize=11)
    return save(figure, path)


def _names(axes: Any, held: ClassMap) -> None:
    """Ticks: every name, or every other one where there are many."""
    for which, names in (("y", held.rows), ("x", held.columns)):
        shown = shown_names(names)
        texts = [n if len(n) <= 16 else f"{n[:15]}\u2026" for n in (names[k] for k in shown)]
        vertical = which == "x" and max(map(len, texts)) * len(texts) > 45
        getattr(axes, f"set_{which}ticks")(shown, texts, rotation=90 if vertical else 0, fontsize=8, parse_math=False)
    axes.set_ylabel(held.labels[0])
    axes.set_xlabel(held.labels[1])
