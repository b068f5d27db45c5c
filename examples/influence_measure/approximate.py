"""FI of a share of the rows, and a forest for the rest, against FI of all rows (Yu 2025, Table 8).

Each method ranks the training rows; the twentieth of highest FI is removed, the model is trained anew and tested; and
once more without as many rows by chance. "forest" measures a fifth of the rows: half of them by chance, the others
where a random forest on these puts the top (the paper measures the whole share by chance); it ranks the rest. "forest,
rank k" also takes every row's derivative by a truncated SVD, as the paper's Algorithms 5 and 6 do (`--rank k`). The SVD
saves no time over rayinf's exact form, which never makes the derivative that it would shorten.

A file with a column `image` is taken by the network of the paper's Table 6, with all its parameters, EKFAC and
perturbed pixels; any other by logistic regression with the exact curvature. The paper says neither how many rows it
measures nor which rank it takes, nor which task its accuracies are of. Here: 6,000 images or 5,000 rows to train on,
1,000 for validation.

    python examples/influence_measure/approximate.py                              # scikit-learn's digits, 8 x 8
    python examples/influence_measure/approximate.py --data mnist_train.parquet --seeds 1
    python examples/influence_measure/approximate.py --data celeba_attr.parquet --drop Smiling --rank 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pyarrow.parquet as pq
import torch
from common import Rows, Split, accuracy, arguments, draw, read, spread, standardise
from images import cnn, digits, read_images, scaled
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

import rayinf
from rayinf import retrain

SHARE, TOP = 0.2, 0.05
IMAGES, TABLE, QUICK = (6000, 1000, 5000), (5000, 1000, 10_000), (400, 100, 200)
FIT = rayinf.Fit(lr=2e-3, epochs=5, batch_size=32)
L2 = {"images": 1e-4, "table": 1e-2}
PAPER = (
    "Paper: MNIST, exact 94.0 % in 1228 s, approximate 93.8 % in 393 s (0.32 of the time);\n"
    "CelebA, exact 78.1 % in 1058 s, approximate 80.9 % in 269 s (0.25)."
)


@dataclass(frozen=True)
class Ranked:
    """What a method made of the training rows of a draw.

    Attributes:
        seconds: of `rayinf.influence_measure`.
        measuring: of these, what FI and the forest took; the others are the curvature's.
        rank: of every row, the higher the sooner it goes.
        measured: whether each row was measured itself.
        accuracy: in per cent, after the rows of highest rank are gone.
        forest: the forest's out-of-bag rank correlation; NaN without a forest.
    """

    seconds: float
    measuring: float
    rank: np.ndarray
    measured: np.ndarray
    accuracy: float
    forest: float

    @property
    def top(self) -> np.ndarray:
        """The rows that are removed."""
        return np.argsort(-self.rank, kind="stable")[: int(TOP * len(self.rank))]


def split_of(data: Rows, args: argparse.Namespace, seed: int) -> Split:
    """Rows of a seed, in the units that the model has them in."""
    is_images = data[0].ndim == 4
    sizes = QUICK if args.quick else (IMAGES if is_images else TABLE)
    sizes = (args.rows or sizes[0], *sizes[1:])
    split = Split(*draw(data, sizes, np.random.default_rng(seed)))
    if not is_images:
        return standardise(split)
    return Split(*(scaled(rows, split.train[0]) for rows in (split.train, split.valid, split.test)))


def task_of(split: Split, classes: int, seed: int) -> rayinf.Task:
    """The trained model."""
    x = split.train[0]
    if x.ndim == 2:
        return rayinf.logistic_regression(split.train, l2=L2["table"])
    model = cnn(x.shape[1:], classes)
    task = rayinf.Task(model, l2=L2["images"], fit=FIT, classes=range(classes))
    return retrain(task, split.train, seed=seed)


def rank(task: rayinf.Task, split: Split, subsample: float, svd: int | None, seed: int) -> Ranked:
    """FI of all rows, or of a share with a forest for the rest; and the model without the rows of highest rank."""
    curvature = "exact" if split.train[0].ndim == 2 else "ekfac"
    begin = time.perf_counter()
    scores = rayinf.influence_measure(
        task, split.train, split.valid, curvature, subsample=subsample, rank=svd, seed=seed
    )
    seconds = time.perf_counter() - begin
    frame = scores.to_pandas()
    kept = rayinf.trim(scores, int(TOP * len(frame)), by="fi_rank" if subsample < 1 else "fi").mask
    return Ranked(
        seconds,
        sum(scores.metadata["seconds"].get(stage, 0.0) for stage in ("scores", "forest", "ranks")),
        frame["fi_rank" if subsample < 1 else "fi"].to_numpy(),
        frame["fi"].notna().to_numpy(),
        accuracy(retrain(task, split.train, keep=kept, seed=seed), split.test),
        scores.metadata.get("forest_rank_correlation", np.nan),
    )


def warm_up(task: rayinf.Task, split: Split) -> None:
    """Import what the first calls would import while they are timed."""
    few = (split.train[0][:100], split.train[1][:100])
    rayinf.influence_measure(task, few, few, "identity")
    import_module("sklearn.ensemble")


def compare(data: Rows, args: argparse.Namespace) -> tuple[dict[str, list[Ranked]], list[float], list[float]]:
    """Every method over all seeds, and the accuracies before and after as many rows are removed by chance."""
    methods: dict[str, tuple[float, int | None]] = {"exact": (1.0, None), "forest": (SHARE, None)}
    if args.rank:
        methods[f"forest, rank {args.rank}"] = (SHARE, args.rank)
    found: dict[str, list[Ranked]] = {name: [] for name in methods}
    before, by_chance = [], []
    for seed in range(1 if args.quick else args.seeds):
        split = split_of(data, args, seed)
        task = task_of(split, 1 + int(data[1].max()), seed)
        before.append(accuracy(task, split.test))
        if seed == 0:
            warm_up(task, split)
        for name, (share, svd) in methods.items():
            found[name].append(rank(task, split, share, svd, seed))
        kept = np.ones(len(split.train[1]), bool)
        kept[np.random.default_rng([seed, 1]).permutation(len(kept))[: int(TOP * len(kept))]] = False
        by_chance.append(accuracy(retrain(task, split.train, keep=kept, seed=seed), split.test))
    return found, before, by_chance


def against(ranked: Ranked, exact: Ranked) -> tuple[float, ...]:
    """Share of the time, rank correlations of the forest: out of bag, and of rows not measured; overlap of the top."""
    others = ~ranked.measured
    unseen = spearmanr(ranked.rank[others], exact.rank[others]).statistic
    overlap = len(np.intersect1d(ranked.top, exact.top)) / len(exact.top)
    return ranked.seconds / exact.seconds, ranked.forest, unseen, overlap


def show(
    title: str, found: dict[str, list[Ranked]], before: Sequence[float], by_chance: Sequence[float], console: Console
) -> None:
    """A line a method, beside the paper's figures."""
    exact = found["exact"]
    rows = len(exact[0].rank)
    table = Table(
        title=f"{title}: {len(exact[0].top)} of {rows} rows removed, {len(before)} seeds",
        caption=f"mean ± standard deviation over seeds; before {spread(before)} %; rank correlation of the forest: out "
        "of bag, and of the rows that were not measured",
    )
    table.add_column("method")
    for heading in (
        "accuracy, %",
        "seconds",
        "without curvature",
        "of exact",
        "forest's rank correlation",
        "of others",
    ):
        table.add_column(heading, justify="right")
    table.add_column("overlap of the top 5 %", justify="right")
    for name, runs in found.items():
        cells = [name, *(spread([getattr(r, what) for r in runs]) for what in ("accuracy", "seconds", "measuring"))]
        if name != "exact":
            beside = np.array([against(r, e) for r, e in zip(runs, exact, strict=True)])
            cells += [spread(column) for column in beside.T]
        table.add_row(*cells)
    table.add_row("random", spread(by_chance))
    console.print(table)
    console.print(f"A random choice overlaps in {TOP:.2f}.\n{PAPER}")


def main(argv: Sequence[str] | None = None) -> None:
    """Rank by every method over all seeds, and print the table."""
    parser = arguments(__doc__, 3)
    parser.add_argument("--rank", type=int, help="also with a truncated SVD of this rank (Yu 2025, Algorithm 5)")
    parser.add_argument("--rows", type=int, help=f"to train on (default: {IMAGES[0]} images, else {TABLE[0]})")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # so that times compare
    if args.data is None:
        data = digits()
    elif "image" in pq.read_schema(args.data).names:
        data = read_images(args.data)
    else:
        data = read(args.data, args.drop)
    show(args.data.stem if args.data else "digits", *compare(data, args), Console())


if __name__ == "__main__":
    main()
