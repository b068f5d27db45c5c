"""Scores with their intervals, an objective a panel: how well predictions of several origins agree with retraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from rayinf.plots.figures import COLOURS, save
from rayinf.store.places import AnyPath


@dataclass(frozen=True)
class Point:
    """A score and its interval; None where it has none."""

    name: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Panel:
    """The scores of one objective.

    Attributes:
        objective: its name.
        columns: how many columns are averaged.
        points: the scores, from the top.
        ceiling: the score of one half of the seeds for the other; None where it is not known.
    """

    objective: str
    columns: int
    points: Sequence[Point]
    ceiling: float | None


def plot(panels: Sequence[Panel], path: str | AnyPath) -> AnyPath:
    """Draw a panel an objective.

    Args:
        panels: their scores.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).

    Returns:
        The path.

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
    """
    most = max((len(p.points) for p in panels), default=1)
    figure = Figure(figsize=(7.0, (0.9 + 0.32 * most) * len(panels) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for held, ax in zip(panels, axes, strict=True):
        for k, point in enumerate(held.points):
            ax.plot([point.value], [k], "o", color=COLOURS[0])
            if point.low is not None and point.high is not None:
                ax.plot([point.low, point.high], [k, k], "-", color=COLOURS[0], linewidth=1.5)
        if held.ceiling is not None:
            label = "one half of the seeds for the other"
            ax.axvline(held.ceiling, color=COLOURS[1], linestyle="--", linewidth=1.2, label=label)
            ax.legend(frameon=False, fontsize=8, loc="lower left")
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set_yticks(range(len(held.points)), [p.name for p in held.points])
        ax.invert_yaxis()
        several = f", mean of {held.columns:,} columns" if held.columns > 1 else ""
        ax.set_title(f"{held.objective}{several}", fontsize=10)
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("Spearman's correlation of predicted and measured effects of subsets")
    return save(figure, path)
