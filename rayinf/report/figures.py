"""Saving a figure, and colours that the colour-blind can tell apart (Okabe and Ito)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from rayinf.errors import InputError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7F7F7F")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; its suffix says which format (.png, .pdf, .svg).

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
    """
    target = Path(path).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{target} cannot be drawn: {error}.", "name a .png, .pdf or .svg that can be written."
        ) from error
    return target
