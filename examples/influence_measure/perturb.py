"""Noise on the training rows of highest FI costs more accuracy than on those of lowest FI (Yu 2025, Table 7).

A logistic regression is fitted. White noise (`--spread` of a feature's own spread) is added to the b training rows of
highest FI, in another run to the b rows of lowest FI, and in a third to b rows by chance; the model is fitted anew and
tested. The paper does this (without chance) on Bank, 5,000 training rows, and does not say how strong the noise is; the
default here is 1, on features that are standardised by the training rows, and l2 is 0.01, the paper's weight decay.

    python examples/influence_measure/perturb.py                                  # scikit-learn's breast cancer
    python examples/influence_measure/perturb.py --data adult_train.parquet
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from common import Split, accuracy, arguments, draw, read, spread, standardise, trimming_orders, with_train
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer

import rayinf

SIZES, SMALL_SIZES = (5000, 2100, 2100), (369, 100, 100)
BUDGETS = (50, 100, 150, 200, 250, 300)
L2 = 1e-2
SIDES = ("top FI", "bottom FI", "random")
# Change of accuracy after noise on the b rows of highest and of lowest FI.
PAPER = {
    50: ("-0.77", "+0.14"),
    100: ("-1.17", "-0.03"),
    150: ("-1.29", "-0.91"),
    200: ("-2.89", "-0.93"),
    250: ("-2.93", "-1.17"),
    300: ("-2.91", "-1.31"),
}


def changes(split: Split, noise_spread: float, budgets: Sequence[int], seed: int) -> tuple[float, dict]:
    """The accuracy before, and how it changes: a number by budget and side."""
    task = rayinf.logistic_regression(split.train, l2=L2)
    orders = trimming_orders(task, split, "exact", seed)[0]
    highest_first, by_chance = orders["FI"], orders["random"]
    before = accuracy(task, split.test)
    x = split.train[0]
    noise = noise_spread * np.random.default_rng(seed).standard_normal(x.shape)
    found = {}
    for budget in budgets:
        chosen = (highest_first[:budget], highest_first[-budget:], by_chance[:budget])
        for side, rows in zip(SIDES, chosen, strict=True):
            shaken = x.copy()
            shaken[rows] += noise[rows]
            fitted = rayinf.logistic_regression(with_train(split, shaken).train, l2=L2)
            found[budget, side] = accuracy(fitted, split.test) - before
    return before, found


def show(title: str, before: Sequence[float], found: dict[tuple[int, str], list[float]], console: Console) -> None:
    """Our figures beside the paper's."""
    table = Table(
        title=f"{title}: change of test accuracy after noise on b rows, {len(before)} seeds",
        caption=f"points of accuracy, mean ± standard deviation over seeds; before noise {spread(before)} %",
    )
    for heading in ("b", *SIDES, "paper, top FI", "paper, bottom FI"):
        table.add_column(heading, justify="right")
    for budget in sorted({b for b, _ in found}):
        table.add_row(str(budget), *(spread(found[budget, side], "+") for side in SIDES), *PAPER[budget])
    console.print(table)
    worse = sum(np.mean(found[b, SIDES[0]]) < np.mean(found[b, SIDES[1]]) for b in {b for b, _ in found})
    console.print(
        f"Noise on the top rows costs more at {worse} of {len(found) // len(SIDES)} budgets; in the paper, at all 6."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Perturb over all seeds, and print the table."""
    parser = arguments(__doc__, 5)
    parser.add_argument("--spread", type=float, default=1.0, help="of the noise, to a feature's own (default: 1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # products this small gain nothing from threads
    data = read(args.data, args.drop) if args.data else load_breast_cancer(return_X_y=True)
    budgets = BUDGETS[::5] if args.quick else BUDGETS
    before: list[float] = []
    found: dict[tuple[int, str], list[float]] = {}
    for seed in range(2 if args.quick else args.seeds):
        split = Split(*draw(data, SIZES if args.data else SMALL_SIZES, np.random.default_rng(seed)))
        if len(split.train[1]) <= budgets[-1]:
            parser.error(f"{len(split.train[1])} training rows are too few to perturb {budgets[-1]}: pass more rows")
        accuracy_before, changed = changes(standardise(split), args.spread, budgets, seed)
        before.append(accuracy_before)
        for key, value in changed.items():
            found.setdefault(key, []).append(value)
    show(str(args.data.stem) if args.data else "breast cancer", before, found, Console())


if __name__ == "__main__":
    main()
