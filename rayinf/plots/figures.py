"""Saving a figure, and colours that the colour-blind can tell apart (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from rayinf.errors import InputError, RayinfError
from rayinf.store.places import AnyPath, draw_into, open_place

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


def ink_on(colour: Sequence[float]) -> str:
    """The colour of text that can be read on a colour (red, green, blue, ...)."""
    light = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    return "black" if light > 0.45 else "white"
