"""FI against IV and chance on one model over many draws: trim by each, train anew, test (Yu 2025, Tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import METHODS, Split, accuracy, refit_without, spread, trimming_orders
from panels import draw_panels
from rich.console import Console
from rich.table import Table

import rayinf

BUDGETS = (5, 10, 20)
# By budget: draws in which FI is better, accuracy after FI, accuracy after IV.
Paper = Mapping[int, tuple[int, str, str]]


@dataclass
class Found:
    """Test accuracies in per cent, a number a draw; those after trimming by budget and method."""

    budgets: Sequence[int] = BUDGETS
    before: list[float] = field(default_factory=list)
    after: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    negative: list[float] = field(default_factory=list)

    def wins(self, budget: int, method: str = "FI") -> tuple[int, int]:
        """In how many draws a method is better than IV, and as good."""
        gap = np.array(self.after[budget, method]) - np.array(self.after[budget, "IV"])
        return int((gap > 0).sum()), int((gap == 0).sum())


def compare(task: rayinf.Task, split: Split, curvature: str, seed: int, found: Found, out: Path | None = None) -> None:
    """One draw: trim by every method, train anew, test.

    Args:
        task: trained on the split's training rows under `seed`.
        split: the rows.
        curvature: of both measures.
        seed: of the trainings.
        found: gets the accuracies.
        out: gets a picture at the largest budget, where the split has two features and two classes.
    """
    orders, negative = trimming_orders(task, split, curvature, seed)
    found.before.append(accuracy(task, split.test))
    found.negative.append(negative)
    for budget in found.budgets:
        models = {name: refit_without(task, split, order[:budget], seed) for name, order in orders.items()}
        for name, model in models.items():
            found.after.setdefault((budget, name), []).append(accuracy(model, split.test))
    if out:
        drawn = ("FI", "IV")
        shown = ", ".join(f"after {n} {found.after[budget, n][-1]:.1f} %" for n in drawn)
        title = f"One draw: test accuracy {found.before[-1]:.1f} % before trimming, {shown}"
        removed = {name: orders[name][:budget] for name in drawn}
        draw_panels(split, removed, {"before": task, **{name: models[name] for name in drawn}}, title, out)


def show(title: str, found: Found, paper: Paper, paper_seeds: int, console: Console) -> None:
    """Our figures beside the paper's."""
    seeds = len(found.before)
    table = Table(
        title=f"{title}, {seeds} seeds",
        caption=f"test accuracy in %, mean ± standard deviation over seeds; before trimming {spread(found.before)}\n"
        f"IV is negative on {np.mean(found.negative):.0%} of the training rows",
    )
    for heading in ("rows deleted", "", "better than IV", "ties", "accuracy"):
        table.add_column(heading, justify="right")
    for budget in found.budgets:
        for name in METHODS:
            wins, ties = found.wins(budget, name)
            cells = ("", "") if name == "IV" else (f"{wins} of {seeds}", str(ties))
            table.add_row(str(budget) if name == "FI" else "", name, *cells, spread(found.after[budget, name]))
        better, *accuracies = paper[budget]
        table.add_row("", "paper, FI", f"{better} of {paper_seeds}", "", accuracies[0], style="dim")
        table.add_row("", "paper, IV", "", "", accuracies[1], style="dim", end_section=True)
    console.print(table)


def show_settings(rows: Sequence[tuple[Sequence[str], Found]], headings: Sequence[str], console: Console) -> None:
    """One budget under several settings."""
    (budget,) = rows[0][1].budgets
    table = Table(title=f"{budget} rows deleted, {len(rows[0][1].before)} seeds: accuracy by each")
    for heading in (*headings, "before", "FI better", "ties", *METHODS):
        table.add_column(heading, justify="right")
    for setting, found in rows:
        after = (f"{np.mean(found.after[budget, name]):.2f}" for name in METHODS)
        table.add_row(*setting, f"{np.mean(found.before):.2f}", *map(str, found.wins(budget)), *after)
    console.print(table)
