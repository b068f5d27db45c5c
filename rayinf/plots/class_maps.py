"""Heat maps of classes: how much each pair can gain in common, and which rows help and harm whom.

See Nahin 2025, Figure 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from rayinf.plots.figures import ink_on, save
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]
# Above so many cells a side they are too small for numbers, and axes for all names.
_MOST_NUMBERS, _MOST_NAMES = 12, 30


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
        low, high = (0.0, float(np.nanmax(held.values, initial=0.0)) or 1.0)
        shades = colormaps[held.colours].with_extremes(bad="#cccccc")
        image = axes.imshow(np.ma.masked_invalid(held.values), cmap=shades, vmin=low, vmax=high, aspect="auto")
        figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06).ax.tick_params(labelsize=8)
        _names(axes, held)
        axes.set_title(held.title, fontsize=11)
        if max(held.values.shape) <= _MOST_NUMBERS:
            for (row, column), value in np.ndenumerate(held.values):
                if np.isfinite(value):
                    ink, text = ink_on(image.cmap(image.norm(value))), held.format.format(value)
                    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
    return save(figure, path)


def _names(axes: Any, held: ClassMap) -> None:
    """Ticks: every name, or every other one where there are many."""
    for which, names in (("y", held.rows), ("x", held.columns)):
        shown = range(0, len(names), -(-len(names) // _MOST_NAMES))
        texts = [n if len(n) <= 16 else f"{n[:15]}\u2026" for n in (names[k] for k in shown)]
        turned = which == "x" and max(map(len, texts)) * len(texts) > 45
        getattr(axes, f"set_{which}ticks")(shown, texts, rotation=90 if turned else 0, fontsize=8, parse_math=False)
    axes.set_ylabel(held.labels[0])
    axes.set_xlabel(held.labels[1])
