"""A drawing of a tree: a box a node with its condition, value and rows, coloured by what the rows are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rayinf.errors import InputError
from rayinf.report.figures import save

_MOST_LEAVES = 64
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 1.55, 0.78, 0.12, 0.55
_LETTERS = 22


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


def draw(nodes: Sequence[Node], path: str | Path, title: str) -> Path:
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
    axes.set_title(title)
    largest = max(abs(n.value) for n in nodes) or 1.0
    scale, colours = Normalize(-largest, largest), colormaps["RdBu"]
    for k, node in enumerate(nodes):
        if node.parent is not None:
            share = node.rows / nodes[0].rows
            ends = [y[node.parent] - _HEIGHT / 2, y[k] + _HEIGHT / 2]
            axes.plot([x[node.parent], x[k]], ends, color="#888888", linewidth=0.6 + 4 * share, zorder=1)
        colour = colours(0.5 + 0.8 * (float(scale(node.value)) - 0.5))
        corner = (x[k] - _WIDTH / 2, y[k] - _HEIGHT / 2)
        box = FancyBboxPatch(
            corner, _WIDTH, _HEIGHT, "round,pad=0,rounding_size=0.08", facecolor=colour, edgecolor="#444444"
        )
        axes.add_patch(box)
        dark = abs(float(scale(node.value)) - 0.5) > 0.4
        text = "\n".join([*wrap(node.condition, _LETTERS)[:2], f"{node.value:+.3g}", f"{node.rows:,} rows"])
        axes.text(x[k], y[k], text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xlim(-_WIDTH / 2 - 0.1, max(width - _WIDTH / 2, _WIDTH / 2 + 0.1))
    axes.set_ylim(min(y) - _HEIGHT / 2 - 0.1, _HEIGHT / 2 + 0.1)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.text(
        0.0,
        1.0,
        "red: rows here harm   blue: they help",
        transform=axes.transAxes,
        va="top",
        fontsize=8,
        color="#444444",
    )
    return save(figure, path)
