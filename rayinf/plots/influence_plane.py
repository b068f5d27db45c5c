"""Rows in the plane of their values for two classes, coloured by what they do to both.

See Nahin 2025, Figures 1 and 2B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayinf.plots.figures import COLOURS, save
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]
HELPS, HARMS, MIXED = COLOURS[2], COLOURS[1], COLOURS[0]
# The axes show this share of the values; rows farther out are drawn at the edge.
_INSIDE = 0.998


@dataclass(frozen=True)
class Plane:
    """The content of the figure.

    Attributes:
        points: `[m, 2]`, values of the rows for both classes.
        names: of the classes.
        scale: `[2]`, `b` of the classes: the line `y = -x` is drawn for values in these units.
        counts: rows of the whole table by the signs of both values: `(++, -+, --, +-)`, the first class first.
        rows: of the whole table.
    """

    points: Array
    names: Sequence[str]
    scale: Array
    counts: tuple[int, int, int, int]
    rows: int


def plot(plane: Plane, path: str | AnyPath, title: str = "") -> AnyPath:
    """Draw the plane.

    Args:
        plane: its rows.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).
        title: over it.

    Returns:
        The path.

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    draw(axes, plane)
    drawn = len(plane.points)
    note = f"{plane.rows:,} rows" if drawn == plane.rows else f"{drawn:,} of {plane.rows:,} rows, the largest first"
    axes.set_title(f"{title}\n{note}" if title else note, fontsize=11)
    return save(figure, path)


def draw(axes: Axes, plane: Plane) -> None:
    """Draw the plane into axes."""
    x, y = plane.points.T
    reach = [max(float(np.quantile(np.abs(v), _INSIDE)) if len(v) else 0.0, 1e-300) * 1.12 for v in (x, y)]
    colours = np.where((x > 0) & (y > 0), HELPS, np.where((x <= 0) & (y <= 0), HARMS, MIXED))
    # Counts of mixed rows are written near the vertical axis: the dashed line runs through the corners.
    corners = (
        (1, 1, HELPS, " help both", 0.98),
        (-1, 1, MIXED, "", 0.48),
        (-1, -1, HARMS, " harm both", 0.02),
        (1, -1, MIXED, "", 0.52),
    )
    for (right, up, colour, suffix, place), count in zip(corners, plane.counts, strict=True):
        axes.fill_between([0, right * reach[0]], 0, up * reach[1], color=colour, alpha=0.07, linewidth=0)
        axes.annotate(
            f"{count:,}{suffix}",
            (place, 0.98 if up > 0 else 0.02),
            xycoords="axes fraction",
            ha="right" if place > 0.9 or right < 0 < up else "left",
            va="top" if up > 0 else "bottom",
            color=colour,
            fontsize=10,
            fontweight="bold",
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5},
            zorder=5,
        )
    inside_x, inside_y = (np.clip(v, -r, r) for v, r in zip((x, y), reach, strict=True))
    size = 14 if len(x) < 3000 else 5
    axes.scatter(inside_x, inside_y, s=size, c=colours, alpha=0.65, linewidths=0, rasterized=True, zorder=3)
    steep = plane.scale[1] / plane.scale[0]
    end = min(reach[0], reach[1] / steep)
    axes.plot([-end, end], [end * steep, -end * steep], color="#3A7D34", linestyle="--", linewidth=1.3, zorder=4)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    axes.set_xlabel(f"Influence on class {plane.names[0]} (summed validation loss)")
    axes.set_ylabel(f"Influence on class {plane.names[1]} (summed validation loss)")
    axes.spines[["top", "right"]].set_visible(False)
