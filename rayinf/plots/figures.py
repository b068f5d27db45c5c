"""Saving a figure, heat maps, and colours that the colour-blind can distinguish (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayinf.errors import InputError, RayinfError
from rayinf.store.places import AnyPath, draw_into, open_place

Array = np.ndarray[Any, Any]
# With more rows or columns, the cells of a heat map are too small for numbers.
MOST_NUMBERS = 12
# With more names, an axis is too short for all of them.
_MOST_NAMES = 30
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7F7F7F")


def save(figure: Figure, path: str | AnyPath) -> AnyPath:
    """Write a figure; its suffix says which format (.png, .pdf, .svg).

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
        RayinfError: a store does not answer.
    """
    target = open_place(path)
    try:
        draw_into(target, lambda file: figure.savefig(file, dpi=150))
    except RayinfError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{target} cannot be drawn: {error}.", "name a .png, .pdf or .svg that can be written."
        ) from error
    return target


def ink_on(colour: Sequence[float] | Array) -> str:
    """The colour of text that can be read on a colour (red, green, blue, ...)."""
    light = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    return "black" if light > 0.45 else "white"


def shown_names(names: Sequence[str]) -> range:
    """Positions of the names that an axis has room for: all, or every second, third, ..."""
    return range(0, len(names), -(-len(names) // _MOST_NAMES))


def heat_map(axes: Axes, values: Array, colours: str, write: Callable[[float], str], **scale: Any) -> Any:
    """Draw `[rows, columns]` as colours, NaN grey, with the numbers where cells are large enough.

    Args:
        axes: to draw into.
        values: of the cells.
        colours: a colour map of matplotlib.
        write: a cell's text.
        scale: `norm`, or `vmin` and `vmax`, as of `imshow`.

    Returns:
        The colour bar.
    """
    shades = colormaps[colours].with_extremes(bad="#cccccc")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=shades, aspect="auto", **scale)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06)
    bar.ax.tick_params(labelsize=8)
    if max(values.shape) <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = ink_on(np.asarray(image.cmap(image.norm(value))))
                axes.text(column, row, write(value), ha="center", va="center", fontsize=7, color=ink)
    return bar
