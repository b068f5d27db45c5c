"""Trimming two crescents under a network: FI against IV where the boundary is a curve (Yu 2025, Table 2).

Each seed draws 500 training, 250 validation and 250 test rows of scikit-learn's `make_moons` and trains a 2-16-16-2
network with ReLU. FI (`rayinf.influence_measure`) and IV (`rayinf.influence`, the column "total"), both with EKFAC,
each remove 5, 10 or 20 rows; the network is trained anew from the same first weights, and tested.

The paper gives neither the noise of its crescents nor the width or the training of its network. Here: noise 0.3, with
which accuracy is near the paper's 90 %; Adam with a cosine schedule from 0.01, 30 epochs of 10 batches; l2 0.001;
features standardised by the training rows.

    python examples/influence_measure/crescents.py
    python examples/influence_measure/crescents.py --data toy.parquet    # rows of your own, of two classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import Rows, Split, arguments, draw, read, standardise
from compare import Found, compare, show
from rich.console import Console
from sklearn.datasets import make_moons
from torch import nn

import rayinf
from rayinf import retrain

SIZES = (500, 250, 250)
NOISE, HIDDEN, L2 = 0.3, 16, 1e-3
FIT = rayinf.Fit(optimizer="adam", lr=1e-2, schedule="cosine", epochs=30, batch_size=50)
PAPER = {
    5: (17, "89.90 ± 2.16", "87.50 ± 2.46"),
    10: (17, "90.24 ± 2.05", "88.02 ± 2.62"),
    20: (15, "90.32 ± 1.67", "87.80 ± 2.54"),
}


def network(features: int) -> nn.Module:
    """Two hidden layers, untrained."""
    return nn.Sequential(
        nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)
    )


def split_of(data: Rows | None, noise: float, seed: int) -> Split:
    """Rows of the crescents, or of the user's table, in float32 as the network has them."""
    rows = make_moons(sum(SIZES), noise=noise, random_state=seed) if data is None else data
    split = standardise(Split(*draw(rows, SIZES, np.random.default_rng(seed))))
    return Split(*((x.astype(np.float32), y) for x, y in (split.train, split.valid, split.test)))


def main(argv: Sequence[str] | None = None) -> None:
    """Trim over all seeds, and print the table."""
    parser = arguments(__doc__, 20)
    parser.add_argument("--noise", type=float, default=NOISE, help=f"of the crescents (default: {NOISE})")
    parser.add_argument("--out", type=Path, help="PNG of the first draw, for two features")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # products this small gain nothing from threads
    data = read(args.data, args.drop) if args.data else None
    fit, found = replace(FIT, epochs=5) if args.quick else FIT, Found()
    for seed in range(2 if args.quick else args.seeds):
        split = split_of(data, args.noise, seed)
        features = split.train[0].shape[1]
        task = retrain(rayinf.Task(network(features), l2=L2, fit=fit), split.train, seed=seed)
        compare(task, split, "ekfac", seed, found, args.out if seed == 0 and features == 2 else None)
    title = "Network on two crescents" if data is None else str(args.data)
    show(title, found, PAPER, 20, Console())


if __name__ == "__main__":
    main()
