r"""Active learning on a table with logistic regression: FI against other strategies (Yu 2025, Figure 3, Table 4).

Each seed draws the first labelled rows, the pool, validation rows (for IV alone) and test rows. Every round, each
strategy picks rows of the pool, gets their labels, and the regression is fitted anew, to convergence. FI is
`rayinf.active_learning`'s default: the mean of the middle 80 % over the labelled rows, here with the exact curvature.
IV is recomputed every round. BALD is missing: it needs dropout, and a logistic regression has none. With two classes
margin picks what entropy picks.

The defaults are the paper's Adult: 300 labelled, a pool of 5,000, 12 rounds of 500. That is more than the pool has, so
the rounds end with the pool, after the tenth. CelebA's are below. The paper does not give the ridge, the size of the
validation set, nor how features are scaled: here l2 0.01, 2,100 rows, and features in units of their spread over the
labelled rows and the pool, whose features are known.

    python examples/influence_measure/active_tabular.py                           # synthetic rows
    python examples/influence_measure/active_tabular.py --data adult_train.parquet --test adult_test.parquet
    python examples/influence_measure/active_tabular.py --data celeba_attr.parquet --drop Smiling \
        --pool 3000 --n 150 --rounds 11
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import Rows, arguments, draw, read
from learning import joined, show
from rich.console import Console
from trimming import synthetic

import rayinf

STRATEGIES = ("fi", "iv", "entropy", "margin", "random")
VALID, TEST = 2100, 10_000
# Rows that must be left for validation and test.
LEAST = 50
ADULT = {"initial": 300, "pool": 5000, "n": 500, "rounds": 12}
QUICK = {"initial": 60, "pool": 300, "n": 30, "rounds": 2}
PAPER = (
    "FI is above all others on Adult, CelebA and Jigsaw Toxicity, most in the later rounds; BALD is near random;\n"
    "IV is under random at first, and near BALD later."
)


def rows_of(data: Rows, test: Rows | None, args: argparse.Namespace, seed: int) -> dict[str, Rows]:
    """Labelled, pool, validation and test rows of a seed, scaled by the first two."""
    rng = np.random.default_rng(seed)
    rest = len(data[1]) - args.initial - args.pool if test is None else 0
    labeled, pool, others = draw(data, (args.initial, args.pool, rest), rng)
    parts = [labeled, pool, *draw(others if test is None else test, (VALID, TEST), rng)]
    known = np.concatenate([labeled[0], pool[0]])
    deviation = np.where(known.std(0) > 0, known.std(0), 1.0)
    scaled = [((x - known.mean(0)) / deviation, y) for x, y in parts]
    return dict(zip(("labeled", "pool", "valid", "test"), scaled, strict=True))


def learn(rows: dict[str, Rows], classes: int, args: argparse.Namespace, seed: int) -> rayinf.History:
    """All strategies on the rows of a seed."""
    model = torch.nn.Linear(rows["pool"][0].shape[1], classes, dtype=torch.float64)
    return rayinf.active_learning(
        rayinf.Task(model, l2=args.l2, classes=range(classes)),
        rows["labeled"],
        rows["pool"],
        rows["pool"],
        rows["test"],
        args.rounds,
        args.n,
        args.strategies,
        rows["valid"],
        seed=seed,
        curvature="exact",
    )


def options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Rows, Rows | None]:
    """The options, the rows, and those of --test; the defaults are the paper's."""
    parser = arguments(__doc__, 4)
    parser.add_argument("--test", type=Path, help="Parquet of validation and test rows (default: rows of --data)")
    for name, what in (("initial", "first labelled rows"), ("pool", "rows to pick from"), ("n", "rows a round")):
        parser.add_argument(f"--{name}", type=int, help=f"{what} (default: {ADULT[name]})")
    parser.add_argument("--rounds", type=int, help=f"picks (default: {ADULT['rounds']}, or until the pool is empty)")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, help="besides fi, which is always there")
    parser.add_argument("--l2", type=float, default=1e-2, help="the ridge (default: 0.01)")
    parser.add_argument("--out", type=Path, help="PNG of the curves")
    args = parser.parse_args(argv)
    data = read(args.data, args.drop) if args.data else synthetic()
    for name, size in (QUICK if args.quick else ADULT).items():
        if getattr(args, name) is None:
            setattr(args, name, size)
    args.rounds = min(args.rounds, args.pool // max(args.n, 1))
    args.seeds = min(args.seeds, 2) if args.quick else args.seeds
    args.strategies = list(dict.fromkeys(["fi", *args.strategies]))
    spare = len(data[1]) - args.initial - args.pool
    if args.rounds < 1 or args.seeds < 1 or spare < (0 if args.test else LEAST):
        parser.error(
            f"--initial {args.initial} --pool {args.pool} --n {args.n} --seeds {args.seeds} of {len(data[1])} rows: "
            f"pass a round and a seed at least, and leave {LEAST} rows to test on"
        )
    return args, data, read(args.test, args.drop) if args.test else None


def main(argv: Sequence[str] | None = None) -> None:
    """Learn over all seeds, print the table and plot."""
    args, data, test = options(argv)
    torch.set_num_threads(1)  # products this small gain nothing from threads
    classes = 1 + int(max(y.max() for _, y in (data, *([test] if test else []))))
    history = joined(learn(rows_of(data, test, args, seed), classes, args, seed) for seed in range(args.seeds))
    title = args.data.stem if args.data else "synthetic rows"
    show(f"{title}, {args.initial} labelled, pool {args.pool}, {args.n} a round", history, PAPER, Console())
    if args.out:
        history.plot(args.out)


if __name__ == "__main__":
    main()
