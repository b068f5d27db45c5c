"""A drawing of a tree: a box a node with its condition, value and rows, coloured by what the rows are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rayinf.errors import InputError
from rayinf.plots.figures import save
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]

_MOST_LEAVES = 64
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 1.75, 0.88, 0.12, 0.5
_LETTERS, _LINES = 24, 3


@dataclass(frozen=True)
class Column:
    """How a split of a column reads.

    Attributes:
        name: of the column.
        pair: what holds left and right of any split, where the column has two values.
        whole: whether it holds whole numbers alone.
        span: its largest number less its least.
    """

    name: str
    pair: tuple[str, str] | None = None
    whole: bool = False
    span: float = 0.0

    def conditions(self, threshold: float) -> tuple[str, str]:
        """What holds left and right of a split."""
        if self.pair is not None:
            return self.pair
        # A rounded 2015.5 would put 2016 on the wrong side.
        at = f"{np.floor(threshold):.0f}" if self.whole else _rounded(threshold, self.span)
        return f"{self.name} <= {at}", f"{self.name} > {at}"


def read_column(name: str, values: Array) -> Column:
    """How splits of a column `[n]` read: flags as "is" and "is not", other whole numbers without a fraction."""
    low, high = float(values.min()), float(values.max())
    if (values != np.rint(values)).any():
        return Column(name, span=high - low)
    if low == high or ((values != low) & (values != high)).any():
        return Column(name, whole=True)
    if "=" in name and (low, high) == (0, 1):  # a column of a one-hot code
        return Column(name, (f"not {name}", name))
    return Column(name, (f"{name} = {low:.0f}", f"{name} = {high:.0f}"))


def _rounded(threshold: float, span: float) -> str:
    """A threshold to about a thousandth of the column's span, and to four digits at least."""
    more = np.log10(abs(threshold) / span) if threshold and span else 0.0
    text = f"{threshold:.{4 + max(0, int(np.ceil(more)))}g}"
    return f"{threshold:.0f}" if "e+" in text and abs(threshold) < 1e9 else text


@dataclass(frozen=True)
class Node:
    """A node of a tree, listed before its children, the left one first.

    Attributes:
        parent: its place in the list; None for the root.
        depth: edges from the root.
        condition: what holds here and not in the other child of its parent.
        value: predicted.
        rows: of training.
    """

    parent: int | None
    depth: int
    condition: str
    value: float
    rows: int

    @property
    def size(self) -> str:
        """Its rows in words."""
        return f"{self.rows:,} row{'s' * (self.rows != 1)}"


def draw(nodes: Sequence[Node], path: str | AnyPath, title: str) -> AnyPath:
    """Draw a tree; red boxes harm, blue ones help, by how much.

    Args:
        nodes: as listed.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).
        title: over it.

    Raises:
        InputError: a format that is unknown, a place that cannot be written, or too many leaves to be read.
    """
    children: list[list[int]] = [[] for _ in nodes]
    for k, node in enumerate(nodes):
        if node.parent is not None:
            children[node.parent].append(k)
    leaves = [k for k in range(len(nodes)) if not children[k]]
    if len(leaves) > _MOST_LEAVES:
        raise InputError(
            f"A tree of {len(leaves):,} leaves cannot be read in one picture.", "pass a smaller max_depth, such as 4."
        )
    across = dict(zip(leaves, range(len(leaves)), strict=True))
    x = [0.0] * len(nodes)
    for k in reversed(range(len(nodes))):
        x[k] = across[k] * (_WIDTH + _GAP_X) if k in across else (x[children[k][0]] + x[children[k][-1]]) / 2
    y = [-node.depth * (_HEIGHT + _GAP_Y) for node in nodes]
    width, height = len(leaves) * (_WIDTH + _GAP_X), -min(y) + _HEIGHT
    figure = Figure(figsize=(max(width, 5.0) + 0.3, height + 1.2), layout="constrained")
    axes = figure.subplots()
    note = "red: rows here harm   blue: they help"
    axes.set_title(f"{title}\n{note}" if title else note, fontsize=11)
    largest = max(abs(n.value) for n in nodes) or 1.0
    for k, node in enumerate(nodes):
        if node.parent is not None:
            share = node.rows / nodes[0].rows
            ends = [y[node.parent] - _HEIGHT / 2, y[k] + _HEIGHT / 2]
            axes.plot([x[node.parent], x[k]], ends, color="#888888", linewidth=0.6 + 4 * share, zorder=0.5)
        _box(axes, node, x[k], y[k], node.value / largest)
    axes.set_xlim(-_WIDTH / 2 - 0.1, max(width - _WIDTH / 2, _WIDTH / 2 + 0.1))
    axes.set_ylim(min(y) - _HEIGHT / 2 - 0.1, _HEIGHT / 2 + 0.1)
    axes.set_aspect("equal")
    axes.axis("off")
    return save(figure, path)


def _box(axes: Axes, node: Node, x: float, y: float, part: float) -> None:
    """A node around `(x, y)`, in the colour of its part of the largest value, in [-1, 1]."""
    colour = colormaps["RdBu"](0.5 + 0.4 * part)  # short of both ends, where the darkest would hide the text
    corner = (x - _WIDTH / 2, y - _HEIGHT / 2)
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, _WIDTH, _HEIGHT, shape, facecolor=colour, edgecolor="#444444"))
    light = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    text = "\n".join([*_wrapped(node.condition), f"{node.value:+.3g}", node.size])
    ink = "black" if light > 0.45 else "white"
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink, linespacing=1.15, parse_math=False)


def _wrapped(condition: str) -> list[str]:
    """A condition in a few lines; a long one loses its middle, never its threshold."""
    room = _LETTERS * _LINES - _LETTERS // 2
    if len(condition) > room:
        condition = f"{condition[: room - _LETTERS - 1]}\u2026{condition[-_LETTERS:]}"
    # Hyphens are for names that do not fit a line; others are easier to read whole.
    return wrap(condition, _LETTERS, break_on_hyphens=max(map(len, condition.split())) > _LETTERS)
