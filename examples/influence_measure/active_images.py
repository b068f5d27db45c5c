"""Active learning on images: FI of the last layer against BALD, IV and others (Yu 2025, Figures 4 and 10).

Every round trains the network of the paper's Table 6 anew, all of it, on the labelled images. FI and IV then take its
last layer alone (`Task(parameters="last")`), and FI perturbs what goes into it (`perturb=`), as in the paper. The other
strategies take the whole network; BALD and BatchBALD draw 20 dropout masks.

    --unbalanced   a class of the upper half comes ten times as often as one of the lower half: 27,500 MNIST images
                   (the paper's D.2); validation and test images keep all classes as they are
    --redundant    1 against 7, as many of both in the pool; all other digits there are labelled "neither", the third
                   class; validation and test images are of 1 and 7 alone

The defaults are the paper's MNIST (Tables 5 and 9): 60 labelled images, a pool of 420, 14 rounds of 30, which empty the
pool; so all strategies end on the same images. The paper gives no sizes for the two settings (the same here) and does
not say how the network is trained. Here: Adam with a cosine schedule from 0.002, 150 steps of 32 images whatever is
labelled, dropout 0.5, l2 0.0001, EKFAC; 500 images for IV's validation.

    python examples/influence_measure/active_images.py                            # scikit-learn's digits, 8 x 8
    python examples/influence_measure/active_images.py --data mnist_train.parquet --test mnist_test.parquet
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import Rows, arguments, draw
from images import cnn, digits, read_images, scaled
from learning import show
from rich.console import Console

import rayinf
from rayinf import evaluate, retrain

STRATEGIES = ("fi", "fi_batch", "iv", "bald", "batchbald", "badge", "coreset", "typiclust", "entropy", "random")
PERTURBING = ("fi", "fi_batch")
ON_LAST_LAYER = (*PERTURBING, "iv")
SIZES = {"initial": 60, "pool": 420, "n": 30, "rounds": 14}
QUICK = {"initial": 60, "pool": 120, "n": 20, "rounds": 2}
VALID, TEST, MOST_UNBALANCED, RATIO = 500, 5000, 27_500, 10
# Without --test, this share of the images is set aside for validation and test.
HELD_OUT = 0.3
STEPS, QUICK_STEPS, BATCH, L2 = 150, 30, 32, 1e-4
PAPER = (
    "FI is above BALD, IV and random on MNIST, EMNIST and CIFAR-10, and more so on unbalanced and\n"
    "redundant MNIST. Paper's time of a run on MNIST (Table 9): FI 19 s, IV 13 s, BALD 9 s."
)
Split = dict[str, Rows]  # labeled, pool, valid, test


def unbalanced(rows: Rows) -> Rows:
    """As many rows as give every class of the upper half ten times those of one of the lower half."""
    x, y = rows
    counts = np.bincount(y)
    wanted = np.where(np.arange(len(counts)) < len(counts) // 2, 1, RATIO)
    unit = min((counts // wanted).min(), MOST_UNBALANCED // wanted.sum())
    kept = np.concatenate([np.flatnonzero(y == k)[: unit * w] for k, w in enumerate(wanted)])
    return x[kept], y[kept]


def redundant(rows: Rows) -> Rows:
    """1, 7 and neither as classes 0, 1 and 2, with as many of 1 as of 7."""
    x, y = rows
    least = min((y == 1).sum(), (y == 7).sum())
    kept = np.sort(np.concatenate([np.flatnonzero(y == k)[: least if k in {1, 7} else None] for k in np.unique(y)]))
    return x[kept], np.where(y[kept] == 1, 0, np.where(y[kept] == 7, 1, 2))


def split_of(data: Rows, test: Rows | None, args: argparse.Namespace, seed: int) -> Split:
    """The images of a seed, in the setting of the options."""
    rng = np.random.default_rng(seed)
    rows = data[0], data[1]
    if test is None:
        held = int(HELD_OUT * len(data[1]))
        rows, test = draw(data, (len(data[1]) - held, held), rng)
    else:
        (rows,) = draw(data, (len(data[1]),), rng)
    if args.unbalanced:
        rows = unbalanced(rows)
    if args.redundant:
        rows, (x, y) = redundant(rows), redundant(test)
        test = x[y < 2], y[y < 2]
    parts = [*draw(rows, (args.initial, args.pool), rng), *draw(test, (VALID, TEST), rng)]
    known = np.concatenate([x for x, _ in parts[:2]])
    return dict(zip(("labeled", "pool", "valid", "test"), (scaled(p, known) for p in parts), strict=True))


def train(task: rayinf.Task, rows: Rows, steps: int, seed: int) -> rayinf.Task:
    """The network trained anew, in as many steps whatever is labelled."""
    batches = -(-len(rows[1]) // BATCH)
    fit = rayinf.Fit(lr=2e-3, batch_size=BATCH, epochs=max(1, steps // batches))
    return retrain(replace(task, fit=fit), rows, seed=seed)


def pick(task: rayinf.Task, tables: Sequence[Rows], strategy: str, **options: Any) -> np.ndarray:
    """Positions in the pool of the rows that a round picks; tables: labelled rows, pool, validation rows."""
    if strategy in ON_LAST_LAYER:
        task = replace(task, parameters="last")
    if strategy in PERTURBING:
        options["perturb"] = str(len(task.build()) - 1)
    labeled, pool, valid = tables
    return rayinf.acquire(task, labeled, pool, strategy=strategy, valid=valid, **options).row_ids


def learn(split: Split, strategy: str, first: rayinf.Task, args: argparse.Namespace, seed: int) -> list[dict]:
    """The rounds of a strategy: lines of a `rayinf.History`."""
    task, labeled, picked, lines = first, split["labeled"], np.empty(0, int), []
    for r in range(args.rounds + 1):
        seconds = None
        if r:
            begin = time.perf_counter()
            tables = (labeled, split["pool"], split["valid"])
            rows = pick(task, tables, strategy, n=args.n, seed=seed, exclude=picked.tolist())
            seconds = time.perf_counter() - begin
            picked = np.concatenate([picked, rows])
            labeled = tuple(np.concatenate([a, b[rows]]) for a, b in zip(labeled, split["pool"], strict=True))
            task = train(task, labeled, args.steps, seed)
        found = {"labeled": len(labeled[1]), "accuracy": evaluate(task, split["test"])["accuracy"]}
        lines.append({"strategy": strategy, "seed": seed, "round": r, **found, "acquire_seconds": seconds})
    mean = np.mean([line["accuracy"] for line in lines[1:]])
    print(f"{strategy}, seed {seed}: accuracy {mean:.2%}, mean over rounds", file=sys.stderr, flush=True)
    return lines


def run(data: Rows, test: Rows | None, args: argparse.Namespace) -> rayinf.History:
    """All strategies over all seeds; within a seed they share the images and the first network."""
    lines: list[dict] = []
    for seed in range(args.seeds):
        split = split_of(data, test, args, seed)
        classes = 3 if args.redundant else 1 + int(data[1].max())
        task = rayinf.Task(cnn(split["pool"][0].shape[1:], classes), l2=L2, classes=range(classes))
        first = train(task, split["labeled"], args.steps, seed)
        for strategy in args.strategies:
            lines += learn(split, strategy, first, args, seed)
    return rayinf.History(pa.Table.from_pylist(lines), {})


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; the defaults are the paper's."""
    parser = arguments(__doc__, 3)
    parser.add_argument("--test", type=Path, help="Parquet of validation and test images (default: some of --data)")
    setting = parser.add_mutually_exclusive_group()
    setting.add_argument("--unbalanced", action="store_true", help="some classes ten times as often as others")
    setting.add_argument("--redundant", action="store_true", help="1 against 7, all others are 'neither'")
    for name, what in (("initial", "first labelled images"), ("pool", "images to pick from"), ("n", "images a round")):
        parser.add_argument(f"--{name}", type=int, help=f"{what} (default: {SIZES[name]})")
    parser.add_argument("--rounds", type=int, help=f"picks (default: {SIZES['rounds']}, or until the pool is empty)")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, help="besides fi, which is always there")
    parser.add_argument("--out", type=Path, help="PNG of the curves")
    args = parser.parse_args(argv)
    for name, size in (QUICK if args.quick else SIZES).items():
        if getattr(args, name) is None:
            setattr(args, name, size)
    args.rounds = min(args.rounds, args.pool // max(args.n, 1))
    args.steps = QUICK_STEPS if args.quick else STEPS
    args.seeds = 1 if args.quick else args.seeds
    args.strategies = list(dict.fromkeys(["fi", *args.strategies]))
    if args.rounds < 1 or args.seeds < 1:
        parser.error(f"--pool {args.pool} --n {args.n} --seeds {args.seeds}: pass a round and a seed at least")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Learn over all seeds, print the table and plot."""
    args = options(argv)
    torch.set_num_threads(1)  # the network is too small to gain from threads
    data = read_images(args.data) if args.data else digits()
    history = run(data, read_images(args.test) if args.test else None, args)
    name = args.data.stem if args.data else "digits"
    setting = ", unbalanced" if args.unbalanced else ", redundant" if args.redundant else ""
    show(f"{name}{setting}, {args.initial} labelled, pool {args.pool}, {args.n} a round", history, PAPER, Console())
    if args.out:
        history.plot(args.out)


if __name__ == "__main__":
    main()
