"""A learning curve: accuracy against labelled rows, a line a strategy with a band over its seeds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rayinf.plots.figures import COLOURS, save
from rayinf.store.places import AnyPath

# With the colours, nine lines that can be distinguished in print too.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def plot(table: pa.Table, path: str | AnyPath) -> AnyPath:
    """Draw accuracy against labelled rows.

    Args:
        table: `strategy`, `seed`, `labeled`, `accuracy`, a row a round.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).

    Returns:
        The path.

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
    """
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    strategies = list(dict.fromkeys(table["strategy"].to_pylist()))
    seeds = 1
    for k, strategy in enumerate(strategies):
        rows = table.filter(pa.array([s == strategy for s in table["strategy"].to_pylist()]))
        seeds = max(seeds, len(set(rows["seed"].to_pylist())))
        _line(axes, rows, strategy, k)
    axes.set_xlabel("Labelled rows")
    axes.set_ylabel("Accuracy on the test rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=f"Mean of {seeds} seeds,\nband: standard deviation" if seeds > 1 else None, frameon=False)
    return save(figure, path)


def _line(axes: Axes, rows: pa.Table, strategy: str, k: int) -> None:
    """The mean over seeds, and a band of one standard deviation where there are several."""
    labeled, accuracy = rows["labeled"].to_numpy(), rows["accuracy"].to_numpy()
    x = np.unique(labeled)
    held = [accuracy[labeled == v] for v in x]
    mean = np.array([h.mean() for h in held])
    colour, marker = COLOURS[k % len(COLOURS)], _MARKERS[k % len(_MARKERS)]
    axes.plot(x, mean, color=colour, marker=marker, markersize=4, linewidth=1.5, label=strategy)
    if max(map(len, held)) > 1:
        spread = np.array([h.std(ddof=1) if len(h) > 1 else 0.0 for h in held])
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
