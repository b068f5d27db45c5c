"""Accuracy against the number of training rows removed by FI, by IV and at random (Yu 2025, Figures 2, 8, 13).

"FI" has a step of 1/n, as Eq. A.7 there; "FI, sum" a step of 1, as its algorithms are printed.

Each seed samples 5,000 training rows, 2,100 validation and 2,100 test rows (the paper: 4,200 test rows; Chhabra 2024,
whose preparation it follows, halves its own into validation and test). A logistic regression is fitted (l2 0.01: the
paper's weight decay on Adult; the paper trains by SGD, here the fit converges), rows are removed, and it is fitted
anew. Features are standardised by the training rows.

    --noise      before that, white noise of variance 0.1 on 500 training rows; features that are all binary have six
                 columns flipped in those rows instead (appendix D.1)
    --folds 10   cross-validation (appendix E.5): the training rows in ten parts, each in turn the validation rows

Without --test, validation and test rows come from --data too. CelebA's label is also a feature, to be dropped:

    python examples/influence_measure/trimming.py                                 # synthetic rows
    python examples/influence_measure/trimming.py --data adult_train.parquet --test adult_test.parquet --out adult.png
    python examples/influence_measure/trimming.py --data celeba_attr.parquet --drop Smiling --out celeba.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import torch
from common import Rows, Split, accuracy, arguments, draw, read, refit_without, spread, standardise, trimming_orders
from rich.console import Console
from rich.table import Table
from sklearn.datasets import make_classification

import rayinf

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZES, QUICK_SIZES = (5000, 2100, 2100), (1000, 500, 500)
BUDGETS, QUICK_BUDGETS = range(50, 501, 50), (50, 100)
NOISY_ROWS, NOISE_VARIANCE, FLIPPED_COLUMNS = 500, 0.1, 6
COLOURS = {"FI": "#c51b1b", "FI, sum": "#e08a1e", "IV": "#2020c0", "random": "#777777"}
PAPER = {
    "seeds": "Paper (pictures, no figures): FI is above IV and random on all data; IV is above random on Adult and\n"
    "below it on CelebA; under noise FI and IV are both above random.",
    "folds": "Paper (a picture, no figures): FI is consistently above IV on Adult and Bank.",
}
Array = np.ndarray
Curves = dict[str, Array]  # by method, accuracies [draws, budgets]


def synthetic() -> Rows:
    """As many rows as `rows`, a fifth with a random label."""
    return make_classification(sum(SIZES), 40, n_informative=10, n_clusters_per_class=1, flip_y=0.2, random_state=0)


def noisy(split: Split, rng: np.random.Generator) -> Split:
    """The split with noise on some of its training rows."""
    x = split.train[0].copy()
    rows = rng.choice(len(x), min(NOISY_ROWS, len(x) // 10), replace=False)
    low, high = x.min(0), x.max(0)
    if ((x == low) | (x == high)).all():
        at = np.ix_(rows, rng.choice(x.shape[1], min(FLIPPED_COLUMNS, x.shape[1]), replace=False))
        x[at] = (low + high - x)[at]
    else:
        x[rows] += np.sqrt(NOISE_VARIANCE) * rng.standard_normal((len(rows), x.shape[1]))
    return Split((x, split.train[1]), split.valid, split.test)


def splits(data: Rows, test: Rows | None, args: argparse.Namespace) -> Iterator[tuple[Split, np.random.Generator]]:
    """Draws of the rows, or the folds of one draw; and what each draws from."""
    sizes = QUICK_SIZES if args.quick else SIZES
    for seed in range(1 if args.folds else args.seeds):
        rng = np.random.default_rng(seed)
        if test is None:
            train, valid, tested = draw(data, sizes, rng)
        else:
            (train,), (valid, tested) = draw(data, sizes[:1], rng), draw(test, sizes[1:], rng)
        if not args.folds:
            yield standardise(Split(train, valid, tested)), rng
            continue
        for held in np.array_split(np.arange(len(train[1])), args.folds):
            rest = np.setdiff1d(np.arange(len(train[1])), held)
            folds = ((train[0][rows], train[1][rows]) for rows in (rest, held))
            yield standardise(Split(*folds, tested)), rng


def measure(data: Rows, test: Rows | None, budgets: Sequence[int], args: argparse.Namespace) -> tuple[Curves, Array]:
    """The accuracies of every draw or fold after trimming, and before."""
    found: dict[str, list[list[float]]] = {}
    before = []
    for clean, rng in splits(data, test, args):
        split = noisy(clean, rng) if args.noise else clean
        task = rayinf.logistic_regression(split.train, l2=args.l2)
        orders = trimming_orders(task, split, "exact", len(before))[0]
        orders["random"] = rng.permutation(len(split.train[1]))
        before.append(accuracy(task, split.test))
        for name, order in orders.items():
            after = [accuracy(refit_without(task, split, order[:budget]), split.test) for budget in budgets]
            found.setdefault(name, []).append(after)
    return {name: np.array(values) for name, values in found.items()}, np.array(before)


def show(title: str, found: Curves, before: Array, budgets: Sequence[int], what: str) -> None:
    """A row a budget, and what the paper says; `what` is drawn anew: "seeds" or "folds"."""
    console = Console()
    table = Table(
        title=f"{title}: test accuracy after removing rows, {len(before)} {what}",
        caption=f"in %, mean ± standard deviation over {what}; before {spread(before)}",
    )
    for heading in ("rows removed", *found, "FI - IV", f"{what} FI better"):
        table.add_column(heading, justify="right")
    gap = found["FI"] - found["IV"]
    for k, budget in enumerate(budgets):
        cells = [spread(values[:, k]) for values in found.values()]
        table.add_row(str(budget), *cells, spread(gap[:, k], "+"), f"{(gap[:, k] > 0).sum()} of {len(gap)}")
    console.print(table)
    means = {name: values.mean(0) for name, values in found.items()}
    above = [f"{a} above {b} at {(means[a] > means[b]).sum()}" for a, b in combinations(found, 2)]
    console.print(f"Here: {', '.join(above)} of {len(budgets)} budgets.\n{PAPER[what]}")


def plot(title: str, found: Curves, before: Array, budgets: Sequence[int], out: Path) -> None:
    """How the accuracy changes: the mean over draws or folds, with its standard error."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, values in found.items():
        change = values - before[:, None]
        mean, error = change.mean(0), change.std(0) / np.sqrt(max(len(change) - 1, 1))
        axis.plot(budgets, mean, "o-", color=COLOURS[name], label=name)
        axis.fill_between(budgets, mean - error, mean + error, color=COLOURS[name], alpha=0.15, linewidth=0)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="training rows removed", ylabel="change of test accuracy (points)")
    axis.set_title(f"{title}: mean of {len(before)}, shaded its standard error")
    axis.legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Trim over all draws or folds, print and plot."""
    parser = arguments(__doc__, 5)
    parser.add_argument("--test", type=Path, help="Parquet of validation and test rows (default: rows of --data)")
    parser.add_argument("--noise", action="store_true", help="add noise to 500 training rows first")
    parser.add_argument("--folds", type=int, default=0, help="cross-validation with so many folds")
    parser.add_argument("--l2", type=float, default=1e-2, help="the ridge (default: 0.01)")
    parser.add_argument("--out", type=Path, help="PNG of the curves")
    args = parser.parse_args(argv)
    if args.folds == 1 or args.folds < 0 or args.seeds < 1:
        parser.error(f"--folds {args.folds} --seeds {args.seeds}: pass at least two folds, and one seed")
    torch.set_num_threads(1)  # products this small gain nothing from threads
    args.seeds = min(args.seeds, 2) if args.quick else args.seeds
    data = read(args.data, args.drop) if args.data else synthetic()
    budgets = QUICK_BUDGETS if args.quick else BUDGETS
    found, before = measure(data, read(args.test, args.drop) if args.test else None, budgets, args)
    title = (args.data.stem if args.data else "synthetic rows") + (" with noise" if args.noise else "")
    show(title, found, before, budgets, "folds" if args.folds else "seeds")
    if args.out:
        plot(title, found, before, budgets, args.out)


if __name__ == "__main__":
    main()
