"""Heat maps of a removal check: what was predicted, what was measured, and one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rayinf.plots.figures import COLOURS, heat_map, save, shown_names
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]
# Cells within this share of the largest are coloured in proportion, the others by their logarithm: the diagonal is far
# larger than the rest.
_LINEAR = 0.05


@dataclass(frozen=True)
class SideMaps:
    """Changes of one side, `[K removed, K measured]`; NaN where nothing was removed.

    Attributes:
        side: "helpful" or "harmful".
        predicted: of each class's mean test loss.
        loss: of the same, measured.
        accuracy: of each class's test accuracy, measured.
        correlation: of predicted and measured loss, by ranks.
        slope: the measured change of loss for each unit of predicted change.
    """

    side: str
    predicted: Array
    loss: Array
    accuracy: Array
    correlation: float | None
    slope: float | None


def plot(sides: Sequence[SideMaps], names: Sequence[str], path: str | AnyPath) -> AnyPath:
    """Draw a row a side: predicted and measured change of loss, change of accuracy, and a scatter of the cells.

    Args:
        sides: their changes.
        names: of the K classes.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).

    Returns:
        The path.

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
    """
    figure = Figure(figsize=(19.0, 4.9 * len(sides)), layout="constrained")
    axes = figure.subplots(len(sides), 4, squeeze=False)
    for held, line in zip(sides, axes, strict=True):
        _map(line[0], held.predicted, names, "Predicted change of mean test loss", "RdBu_r")
        _map(line[1], held.loss, names, "Measured change of mean test loss", "RdBu_r")
        _map(line[2], 100 * held.accuracy, names, "Measured change of accuracy (points)", "RdBu")
        line[0].set_ylabel(f"Class whose {held.side} rows were removed")
        _scatter(line[3], held)
    return save(figure, path)


def _map(axes: Axes, values: Array, names: Sequence[str], title: str, colours: str) -> None:
    """One heat map, with the classes' own cells in bold borders."""
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    norm = SymLogNorm(_LINEAR * largest, vmin=-largest, vmax=largest)
    bar = heat_map(axes, values, colours, lambda value: _short(value, largest), norm=norm)
    ticks = [-largest, -largest / 5, 0.0, largest / 5, largest]
    bar.set_ticks(ticks, labels=[_short(t, largest) for t in ticks])
    bar.minorticks_off()
    for k in range(len(names)):
        axes.add_patch(Rectangle((k - 0.5, k - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.8))
    shown = shown_names(names)
    upright = max(len(names[k]) for k in shown) * len(shown) < 50
    axes.set_xticks(shown, [names[k] for k in shown], rotation=0 if upright else 90)
    axes.set_yticks(shown, [names[k] for k in shown])
    axes.set_xlabel("Class that is measured")
    axes.set_title(title, fontsize=11)


def _scatter(axes: Axes, held: SideMaps) -> None:
    """Measured against predicted change of loss; the classes' own cells apart from the others."""
    own = np.eye(len(held.loss), dtype=bool)
    there = np.isfinite(held.predicted) & np.isfinite(held.loss)
    for mask, colour, marker, label in (
        (~own & there, COLOURS[0], "o", "another class"),
        (own & there, COLOURS[1], "D", "the class itself"),
    ):
        axes.scatter(held.predicted[mask], held.loss[mask], s=22, color=colour, marker=marker, alpha=0.75, label=label)
    for name, values in (("x", held.predicted), ("y", held.loss)):
        largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        # A power of ten: with another threshold, the ticks around 0 overlap.
        getattr(axes, f"set_{name}scale")("symlog", linthresh=10 ** np.floor(np.log10(_LINEAR * largest)), linscale=0.7)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    shown, slope = ("undefined" if v is None else f"{v:.2f}" for v in (held.correlation, held.slope))
    axes.set_title(f"{held.side.capitalize()} rows removed: Spearman {shown}, slope {slope}", fontsize=11)
    axes.set_xlabel("Predicted change of mean test loss")
    axes.set_ylabel("Measured change")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="Measured on", frameon=False, fontsize=9)


def _short(value: float, largest: float) -> str:
    """A number with as many decimals as give the largest one three digits."""
    text = f"{value:.{int(np.clip(2 - np.floor(np.log10(largest)), 0, 6))}f}"
    zero = not text.strip("-0.")
    return "0" if zero else text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
