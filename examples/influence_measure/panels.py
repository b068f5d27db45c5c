"""Four panels of two features: training rows, what FI and IV remove from them, and the boundaries on the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import torch
from common import Rows, Split
from matplotlib.axes import Axes

import rayinf

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CLASSES = ("#4393c3", "#f4a582")
LINES = {"before": ("#1b7837", "-"), "FI": ("#c51b1b", "--"), "IV": ("#2020c0", ":")}


def points(axis: Axes, rows: Rows, alpha: float, ring: str | None = None) -> None:
    """The rows of both classes, with a ring around each or without."""
    x, y = rows
    size, width = (14, 0.0) if ring is None else (50, 1.5)
    for k, colour in enumerate(CLASSES):
        shown = {"s": size, "facecolor": colour, "edgecolor": ring, "linewidths": width, "alpha": alpha}
        axis.scatter(*x[y == k].T, **shown, label=f"class {k}")


def boundary(axis: Axes, task: rayinf.Task, name: str) -> None:
    """The line on which both classes are as likely."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    grid = np.meshgrid(np.linspace(left, right, 300), np.linspace(low, high, 300))
    model = task.build()
    with torch.no_grad():
        at = torch.from_numpy(np.stack(grid, -1).reshape(-1, 2)).to(next(model.parameters()).dtype)
        logits = model(at).double().numpy().reshape(300, 300, 2)
    colour, style = LINES[name]
    axis.contour(*grid, logits[..., 1] - logits[..., 0], [0.0], colors=colour, linestyles=style, linewidths=2)
    axis.plot([], [], style, color=colour, linewidth=2, label=name if name == "before" else f"after {name}")


def draw_panels(
    split: Split, removed: Mapping[str, np.ndarray], tasks: Mapping[str, rayinf.Task], title: str, out: Path
) -> None:
    """Draw a PNG like Figures 1 and 9 of Yu 2025.

    Args:
        split: of two features and two classes.
        removed: of FI and of IV: the training rows that it removes.
        tasks: the model "before", and those after trimming by "FI" and "IV".
        title: above the panels.
        out: the file.
    """
    figure, axes = plt.subplots(1, 4, figsize=(18, 5), layout="constrained", sharex=True, sharey=True)
    points(axes[0], split.train, 0.8)
    axes[0].set_title("A  training rows")
    points(axes[3], split.test, 0.5)
    axes[3].set_title("D  test rows")
    boundary(axes[0], tasks["before"], "before")
    for axis, letter, name in zip(axes[1:3], "BC", ("FI", "IV"), strict=True):
        rows = removed[name]
        points(axis, split.train, 0.25)
        points(axis, (split.train[0][rows], split.train[1][rows]), 1.0, LINES[name][0])
        axis.set_title(f"{letter}  {len(rows)} rows removed by {name}")
        boundary(axis, tasks[name], name)
    for name, task in tasks.items():
        boundary(axes[3], task, name)
    axes[3].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize=14)
    figure.savefig(out, dpi=100)
    plt.close(figure)
