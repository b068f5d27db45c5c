"""Text and pictures of a regression tree, by scikit-learn's `export_text` and `plot_tree`, with values of one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
import sklearn.tree
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rayinf.errors import InputError
from rayinf.plots.figures import ink_on, save
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]

_MOST_LEAVES, _DEEPEST = 64, 300
# Inches for a box with its margin.
_WIDTH, _HEIGHT = 1.9, 1.25
_LETTERS, _LINES = 24, 3


@dataclass(frozen=True)
class TreeView:
    """A tree with the values and names to show.

    Attributes:
        tree: a fitted `DecisionTreeRegressor`.
        values: `[nodes]`, in place of the tree's own values.
        names: of all columns.
        pairs: of every column with two values, what holds on the left and on the right of any split; of others None.
        digits: of thresholds, after the point.
    """

    tree: Any
    values: Array
    names: Sequence[str]
    pairs: Sequence[tuple[str, str] | None]
    digits: int

    def rows(self, node: int) -> str:
        """A node's training rows in words."""
        count = int(self.tree.tree_.n_node_samples[node])
        return f"{count:,} row{'s' * (count != 1)}"


def export_text(view: TreeView, decimals: int) -> str:
    """The rules of a tree as text, a line a node, with its value and its rows.

    Args:
        view: of the tree.
        decimals: significant digits of a value.

    Raises:
        InputError: a tree too deep to be read.
    """
    depth = view.tree.get_depth()
    if depth > _DEEPEST:  # scikit-learn descends by recursion
        raise InputError(f"A tree of {depth:,} levels cannot be read as text.", "pass a smaller max_depth, such as 4.")
    text: str = sklearn.tree.export_text(view.tree, max_depth=max(depth, 1), decimals=view.digits)
    lines = [f"all rows: {view.values[0]:+.{decimals}g} ({view.rows(0)})"]
    # A node has one line with its rule; nodes are numbered in the order of these. Further lines repeat leaves' values.
    for found in re.finditer(r"^([| ]*\|--- )feature_(\d+) (<=|>) +(\S+)$", text, re.MULTILINE):
        node, column, sign = len(lines), int(found[2]), found[3]
        pair = view.pairs[column]
        rule = f"{view.names[column]} {sign} {found[4]}" if pair is None else pair[sign == ">"]
        lines.append(f"{found[1]}{rule}: {view.values[node]:+.{decimals}g} ({view.rows(node)})")
    return "\n".join(lines)


def draw(view: TreeView, path: str | AnyPath, title: str) -> AnyPath:
    """Draw a tree: a box a node with its rule, value and rows, red where rows harm and blue where they help.

    Args:
        view: of the tree.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).
        title: over it.

    Raises:
        InputError: a format that is unknown, a place that cannot be written, or too many leaves to be read.
    """
    leaves = int(view.tree.get_n_leaves())
    if leaves > _MOST_LEAVES:
        raise InputError(
            f"A tree of {leaves:,} leaves cannot be read in one picture.", "pass a smaller max_depth, such as 4."
        )
    size = (max(leaves * _WIDTH, 5.0), (view.tree.get_depth() + 1) * _HEIGHT + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # plot_tree measures its boxes
    axes = figure.subplots()
    names = [_short(name) for name in view.names]
    drawn = sklearn.tree.plot_tree(
        view.tree, feature_names=names, precision=view.digits, impurity=False, fontsize=8, ax=axes
    )
    boxes = [box for box in drawn if box.get_bbox_patch() is not None]  # the others say "True" and "False"
    largest = float(np.abs(view.values).max()) or 1.0
    for k, box in enumerate(boxes):  # in the order of the nodes' numbers
        rule = box.get_text().rpartition("samples = ")[0]
        pair = view.pairs[view.tree.tree_.feature[k]] if rule else None
        rule = rule if pair is None else _short(pair[0]) + "\n"
        # Short of both ends of the colour map, where the darkest colours would hide the text.
        colour = colormaps["RdBu"](0.5 + 0.4 * view.values[k] / largest)
        box.set_text(f"{rule}{view.values[k]:+.3g}\n{view.rows(k)}")
        box.set_color(ink_on(colour))
        box.get_bbox_patch().set(facecolor=colour, edgecolor="#444444", boxstyle="round,pad=0.4")
    note = "red: rows here harm   blue: they help"
    axes.set_title(f"{title}\n{note}" if title else note, fontsize=11)
    return save(figure, path)


def _short(name: str) -> str:
    """A name in a few lines; a long one loses its middle. A dollar stands for itself, not for a formula."""
    room = _LETTERS * _LINES - _LETTERS // 2
    if len(name) > room:
        name = f"{name[: room - _LETTERS - 1]}\u2026{name[-_LETTERS:]}"
    # Hyphens are for names that do not fit a line; others are easier to read whole.
    whole = max(map(len, name.split()), default=0) <= _LETTERS
    return "\n".join(wrap(name, _LETTERS, break_on_hyphens=not whole)).replace("$", r"\$")
