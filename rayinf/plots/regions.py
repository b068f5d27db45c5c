"""The regions in which a model of two features is positive or negative, with the rows that it was fitted to.

See Chhabra 2024, Figure 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rayinf.plots.figures import COLOURS, save
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]

_GRID = 400
_MARKERS = ("o", "x", "^", "s", "D", "v")
_SHADES = ListedColormap(["#F6C9C5", "#CDEBC9"])


@dataclass(frozen=True)
class Panel:
    """One picture of several: rows `[n, 2]`, and the value of any points `[m, 2]`.

    Attributes:
        title: over it.
        rows: `[n, 2]`.
        value: of points `[m, 2]`, `[m]`.
        group: `[n]`, sets the markers.
        gone: `[n]`, whether a ring is drawn around a row (it was trimmed).
    """

    title: str
    rows: Array
    value: Callable[[Array], Array]
    group: Array | None = None
    gone: Array | None = None


def draw(
    panels: Sequence[Panel],
    names: Sequence[str],
    path: str | AnyPath,
    boundary: tuple[Any, float] | None = None,
    title: str = "",
) -> AnyPath:
    """Draw the panels side by side: green where the value is positive, red where it is not.

    Args:
        panels: one or more.
        names: of both features.
        path: of the figure.
        boundary: `(w [2], b)` of a line `w'x + b = 0`.
        title: over all.

    Raises:
        InputError: the figure cannot be written.
    """
    rows = np.concatenate([p.rows for p in panels])
    low, high = rows.min(0), rows.max(0)
    margin = 0.08 * np.where(high > low, high - low, 1.0)
    low, high = low - margin, high + margin
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    groups = sorted({v for p in panels if p.group is not None for v in p.group.tolist()})
    for k, (axes, panel) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        x, y = (np.linspace(low[d], high[d], _GRID) for d in range(2))
        grid = np.stack([v.ravel() for v in np.meshgrid(x, y)], axis=1)
        positive = (panel.value(grid) > 0).reshape(_GRID, _GRID)
        axes.pcolormesh(x, y, positive, cmap=_SHADES, vmin=0, vmax=1, shading="nearest", rasterized=True)
        _rows(axes, panel, groups, COLOURS[k % len(COLOURS)])
        if boundary is not None:
            _line(axes, np.asarray(boundary[0], float), float(boundary[1]), low, high)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=names[0], ylabel=names[1], title=panel.title)
    keys = _keys(groups, any(p.gone is not None and p.gone.any() for p in panels), boundary is not None)
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=9, frameon=False)
    note = "green: rows here help   red: they harm"
    figure.suptitle(f"{title}\n{note}" if title else note, fontsize=11)
    return save(figure, path)


def _keys(groups: Sequence[Any], gone: bool, line: bool) -> list[Line2D]:
    """The entries of one legend for all panels: markers, without a class's colour."""
    marks = [(_marker(j), "#444444", f"group {g}") for j, g in enumerate(groups)]
    keys = [Line2D([], [], linestyle="", marker=m, color=c, markersize=5, label=n) for m, c, n in marks]
    if gone:
        keys.append(
            Line2D([], [], linestyle="", marker="o", color="black", fillstyle="none", markersize=9, label="trimmed")
        )
    return [*keys, Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="boundary")] if line else keys


def _marker(j: int) -> str:
    return _MARKERS[j % len(_MARKERS)]


def _rows(axes: Axes, panel: Panel, groups: Sequence[Any], colour: str) -> None:
    parts = [(np.ones(len(panel.rows), bool), "o")]
    if panel.group is not None:
        parts = [(panel.group == g, _marker(j)) for j, g in enumerate(groups)]
    for rows, marker in parts:
        x, y = panel.rows[rows].T
        axes.scatter(x, y, s=18, marker=marker, color=colour, linewidths=1.0)
    if panel.gone is not None:
        x, y = panel.rows[panel.gone].T
        axes.scatter(x, y, s=90, facecolors="none", edgecolors="black", linewidths=1.2)


def _line(axes: Axes, w: Array, b: float, low: Array, high: Array) -> None:
    """The line `w'x + b = 0`, as a function of that coordinate over which its slope is at most 1."""
    along = 0 if abs(w[1]) >= abs(w[0]) else 1
    t = np.array([low[along], high[along]])
    other = -(w[along] * t + b) / w[1 - along]
    axes.plot(*((t, other) if along == 0 else (other, t)), color="black", linestyle="--", linewidth=1.2)
