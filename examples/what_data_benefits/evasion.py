"""Trimming by robustness as a defence against an evasion attack (Chhabra 2024, section 5.3, Figure 5).

A run: the attacker picks 5 to 25% of the test rows at random and moves each across the boundary of a logistic
regression, to the closest point of the other side and 0.3 times that way further (gamma 1.3, as in the paper's
code). The defender does not know which rows. It has trimmed 2.5% of the training rows, those of lowest robustness on
the validation rows, and fitted anew. Accuracies are on all test rows, attacked and clean, over ten runs.

    python examples/what_data_benefits/evasion.py --data FOLDER --out evasion.png
    python examples/what_data_benefits/evasion.py --data one.parquet
    python examples/what_data_benefits/evasion.py --quick

FOLDER holds adult_train.parquet, adult_test.parquet and celeba_attr.parquet; Bank and Jigsaw are not among our data.
One Parquet file has the form that common.py says.

The model that is attacked: `trimmed` stands for attacks aimed at the first model, as in the paper's code, on which both
models are measured; `aimed at trimmed` for an attacker who knows the defence and aims at the trimmed model, which then
errs on every attacked row that it had right. `paper's code`: there the defender values training rows by their utility
(`total`) on the attacked test rows themselves, with their labels, and is then measured on these rows. Such a defence
cannot exist, and is here for comparison. The paper says that accuracy rises well beyond that before the attack, and
gives pictures without figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from common import Split, arguments, show, splits, standardise
from matplotlib.figure import Figure

import rayinf

SHARES = (0.05, 0.25)  # of the test rows, attacked
TRIMMED = 0.025  # of the training rows
GAMMA = 1.3
AFTER = ("post-attack", "trimmed", "aimed at trimmed", "random trim", "paper's code")
COLOURS = ("#D55E00", "#0072B2", "#56B4E9", "#999999", "#CC79A7")


class Defence:
    """The model, and the same without the training rows of lowest robustness on the validation rows."""

    def __init__(self, split: Split, l2: float) -> None:
        self.split, self.budget = split, int(TRIMMED * len(split.train))
        self.task = rayinf.logistic_regression(split.train, l2=l2, features=split.features)
        self.trimmed = self.without("robustness", split.valid)

    def without(self, objective: str, valid: pd.DataFrame) -> rayinf.Task:
        """The model fitted anew without the rows that an objective on some rows calls the worst."""
        scores = rayinf.influence(self.task, self.split.train, valid, objective, curvature="exact")
        kept = rayinf.trim(scores, self.budget, by=objective)
        return rayinf.retrain(self.task, self.split.train, keep=kept.mask)

    def run(self, rng: np.random.Generator) -> list[float]:
        """The share of test rows that is attacked, and the accuracies named in AFTER."""
        test, n = self.split.test, len(self.split.train)
        rows = rng.choice(len(test), rng.integers(*(int(s * len(test)) for s in SHARES)), replace=False)
        attacked = attack(self.task, self.split, rows)
        aimed = attack(self.trimmed, self.split, rows)
        random = rayinf.retrain(self.task, self.split.train, keep=rng.permutation(n)[self.budget :])
        measured = (
            (self.task, attacked),
            (self.trimmed, attacked),
            (self.trimmed, aimed),
            (random, attacked),
            (self.without("total", attacked), attacked),
        )
        return [len(rows) / len(test), *(accuracy(task, table) for task, table in measured)]


def attack(task: rayinf.Task, split: Split, rows: np.ndarray) -> pd.DataFrame:
    """The test rows, some of them beyond the boundary: `x - gamma m(x) / |w|^2 w`, w the slope of the margin m."""
    weight, bias = (p.detach().numpy() for p in (task.model.weight, task.model.bias))
    w = weight[1] - weight[0]
    x = split.test[split.features].to_numpy(np.float64, copy=True)
    margin = x[rows] @ w + bias[1] - bias[0]
    x[rows] -= GAMMA * np.outer(margin / (w @ w), w)
    return pd.DataFrame(x, columns=split.features).assign(label=split.test["label"])


def accuracy(task: rayinf.Task, table: pd.DataFrame) -> float:
    """The share of rows that the model gets right."""
    return float(rayinf.evaluate(task, table)["accuracy"])


def report(name: str, defence: Defence, runs: np.ndarray) -> float:
    """Print the accuracies of all runs; return that before the attack."""
    test = defence.split.test
    before, clean = accuracy(defence.task, test), accuracy(defence.trimmed, test)
    lines: list[tuple[object, ...]] = [
        ("pre-attack", before, "", "", ""),
        ("trimmed, no attack", clean, "", "", f"{100 * (clean - before):+.2f}"),
    ]
    for k, label in enumerate(AFTER, 1):
        values = runs[:, k]
        points = f"{100 * (values.mean() - before):+.2f}"
        lines.append((label, float(values.mean()), float(values.min()), float(values.max()), points))
    title = (
        f"{name}: accuracy on {len(test):,} test rows, {len(runs)} runs, "
        f"{100 * runs[:, 0].min():.0f} to {100 * runs[:, 0].max():.0f}% of them attacked; {defence.budget:,} of "
        f"{len(defence.split.train):,} training rows trimmed"
    )
    show(title, ("", "mean", "lowest", "highest", "points to pre-attack"), lines)
    return before


def plot(found: Sequence[tuple[str, float, np.ndarray]], path: Path) -> None:
    """Boxes of the accuracies after the attack, a panel a table; the line is the accuracy before."""
    figure = Figure(figsize=(5.2 * len(found) + 0.6, 4.4), layout="constrained")
    for axes, (name, before, runs) in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        boxes = axes.boxplot(runs[:, 1:], widths=0.6, patch_artist=True, medianprops={"color": "black"})
        for box, colour in zip(boxes["boxes"], COLOURS, strict=True):
            box.set_facecolor(colour)
        axes.axhline(before, color="black", linestyle="--", linewidth=1.2, label=f"pre-attack, {before:.3f}")
        labels = [label.replace(" ", "\n", 1) for label in AFTER]
        axes.set_xticks(range(1, len(AFTER) + 1), labels, fontsize=9)
        axes.set(title=name, ylabel="accuracy on the test rows")
        axes.margins(y=0.08)
        axes.legend(loc="best", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    """Attack and defend, print and plot."""
    parser = arguments(__doc__, "PNG of the box plots")
    parser.add_argument("--runs", type=int, default=10, help="attacks (default: 10)")
    parser.add_argument("--l2", type=float, default=1e-3, help="the ridge")
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error(f"--runs {args.runs}: pass at least one")
    found = []
    for name, raw in splits(["adult", "celeba"], args.data, args.quick):
        defence = Defence(standardise(raw), args.l2)
        runs = [
            defence.run(np.random.default_rng(seed)) for seed in range(min(args.runs, 3 if args.quick else args.runs))
        ]
        found.append((name, report(name, defence, np.array(runs)), np.array(runs)))
    if args.out:
        plot(found, args.out)


if __name__ == "__main__":
    main()
