"""Influence finds wrong labels: 10 % of the training labels are flipped, and harmful rows turn out to be those.

Each seed draws training rows and clean validation rows from one Parquet file, gives 10 % of the training rows another
class, uniformly among the others, and fits a model to the result. Each method then ranks the rows without knowing
which were flipped. A ranking is measured by the area under its ROC curve: 1 puts every flipped row first, 0.5 is
chance.

    influence            -total of rayinf.influence: how much a row harms the loss of the clean validation rows
    without curvature    the same with curvature="identity": a product of gradients
    self-influence       rayinf.self_influence: how much a row holds up its own loss (needs no validation rows)
    gradient norm        the same with curvature="identity"
    training loss        of the row itself, from a forward pass

Flips that are uniform are the easy case, in which a row's own loss already finds them; influence also gives the class
that a row harms, and by how much (examples/digits). The models: `convex`, a logistic regression on 40 principal
components with the exact Hessian; `network`, a 784-64-10 perceptron with EKFAC. The Parquet needs `image` (fixed-size
binary, a uint8 a pixel) and `label`:

    python examples/wrong_labels/run.py --data mnist_train.parquet
    python examples/wrong_labels/run.py --quick          # scikit-learn's digits instead, nothing to download
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import nn

import rayinf

Rows = tuple[np.ndarray, np.ndarray]  # features [n, d] and labels [n]

SHARE = 0.1
SEEDS = 3
ROWS = {"convex": 6000, "network": 3000}
VALID_ROWS = 10_000  # with 2,000, the AUC of influence is 0.01 lower
QUICK_ROWS, QUICK_VALID_ROWS = 1000, 700
CURVATURE = {"convex": "exact", "network": "ekfac"}
L2 = {"convex": 1e-2, "network": 3e-3}
COMPONENTS = 40
HIDDEN, EPOCHS, BATCH, RATE = 64, 20, 64, 1e-3


@dataclass
class Result:
    """What the rankings of one model reached: a number a seed, by method."""

    model: str
    rows: int
    valid_rows: int
    accuracy: list[float] = field(default_factory=list)
    auc: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)


def read(path: Path | None) -> Rows:
    """Pixels in [0, 1] and labels, of the Parquet file or of scikit-learn's digits."""
    if path is None:
        digits = load_digits()
        return (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    table = pq.read_table(path)
    if not {"image", "label"} <= set(table.column_names) or not pa.types.is_fixed_size_binary(table["image"].type):
        raise SystemExit(f"{path} needs the columns image (fixed-size binary) and label; it has {table.schema.names}.")
    pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(table.num_rows, -1)
    return pixels.astype(np.float32) / 255, table["label"].to_numpy().astype(np.int64)


def draw(data: Rows, rows: int, valid_rows: int, seed: int) -> tuple[Rows, Rows, np.ndarray]:
    """Training rows, some with a flipped label; clean validation rows; and which training rows were flipped."""
    x, y = data
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(x))[: rows + valid_rows]
    train, valid = picked[:rows], picked[rows:]
    flipped = np.zeros(rows, bool)
    flipped[rng.choice(rows, round(SHARE * rows), replace=False)] = True
    classes = int(y.max()) + 1
    labels = np.where(flipped, (y[train] + rng.integers(1, classes, rows)) % classes, y[train])
    return (x[train], labels), (x[valid], y[valid]), flipped


def convex(train: Rows, valid: Rows, seed: int) -> tuple[rayinf.Task, Rows, Rows]:
    """A logistic regression on principal components of the training rows, in units of the first one's spread."""
    pca = PCA(COMPONENTS, random_state=seed).fit(train[0])
    unit = np.sqrt(pca.explained_variance_[0])
    train, valid = ((pca.transform(x) / unit, y) for x, y in (train, valid))
    return rayinf.logistic_regression(train, l2=L2["convex"]), train, valid


def network(train: Rows, valid: Rows, seed: int) -> tuple[rayinf.Task, Rows, Rows]:
    """A perceptron, trained with Adam, a cosine schedule and the ridge that `Task(l2=...)` names."""
    torch.manual_seed(seed)
    x, y = (torch.from_numpy(a) for a in train)
    model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, int(y.max()) + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=L2["network"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(x) // BATCH))
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return rayinf.Task(model, l2=L2["network"]), train, valid


def logits(task: rayinf.Task, x: np.ndarray) -> torch.Tensor:
    """The model's output, in the model's own precision."""
    model = task.build()
    with torch.no_grad():
        return model(torch.from_numpy(x).to(next(model.parameters()).dtype))


def rankings(task: rayinf.Task, train: Rows, valid: Rows, curvature: str) -> dict[str, Callable[[], np.ndarray]]:
    """The methods: each gives a number a training row, the higher, the more suspect."""

    def influence(kind: str) -> np.ndarray:
        return -rayinf.influence(task, train, valid, objective="total", curvature=kind).to_numpy()[:, 0]

    def self_influence(kind: str) -> np.ndarray:
        return rayinf.self_influence(task, train, curvature=kind).to_numpy()[:, 0]

    def loss() -> np.ndarray:
        return nn.functional.cross_entropy(logits(task, train[0]), torch.from_numpy(train[1]), reduction="none").numpy()

    return {
        f"influence ({curvature})": lambda: influence(curvature),
        "without curvature": lambda: influence("identity"),
        f"self-influence ({curvature})": lambda: self_influence(curvature),
        "gradient norm": lambda: self_influence("identity"),
        "training loss": loss,
    }


def measure(model: str, data: Rows, rows: int, valid_rows: int) -> Result:
    """Fit and rank, for every seed."""
    result = Result(model, rows, valid_rows)
    for seed in range(SEEDS):
        train, valid, flipped = draw(data, rows, valid_rows, seed)
        begin = time.perf_counter()
        task, train, valid = {"convex": convex, "network": network}[model](train, valid, seed)
        result.seconds.setdefault("fit", []).append(time.perf_counter() - begin)
        result.accuracy.append(float((logits(task, valid[0]).argmax(1).numpy() == valid[1]).mean()))
        for name, rank in rankings(task, train, valid, CURVATURE[model]).items():
            begin = time.perf_counter()
            suspicion = rank()
            result.seconds.setdefault(name, []).append(time.perf_counter() - begin)
            result.auc.setdefault(name, []).append(float(roc_auc_score(flipped, suspicion)))
    return result


def show(result: Result, console: Console) -> None:
    """One table a model."""
    table = Table(
        title=f"{result.model}: {result.rows:,} training rows, {SHARE:.0%} of the labels flipped",
        caption=f"means over {SEEDS} seeds; fitted in {np.mean(result.seconds['fit']):.1f} s; accuracy on\n"
        f"{result.valid_rows:,} clean validation rows {np.mean(result.accuracy):.1%}",
    )
    table.add_column("rows ranked by")
    for heading in ("area under ROC", "worst seed", "seconds"):
        table.add_column(heading, justify="right")
    for name, auc in result.auc.items():
        table.add_row(name, f"{np.mean(auc):.3f}", f"{min(auc):.3f}", f"{np.mean(result.seconds[name]):.2f}")
    table.add_row("chance", "0.500", "", "", style="dim")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure the models of the options, and print a table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Parquet with image and label, such as MNIST's training rows")
    parser.add_argument("--model", choices=list(ROWS), help="one model only")
    parser.add_argument("--rows", type=int, help=f"training rows (default: {ROWS})")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, if there is no --data; fewer rows")
    args = parser.parse_args(argv)
    if args.data is None and not args.quick:
        parser.error("pass --data FILE.parquet, or --quick for scikit-learn's digits")
    torch.set_num_threads(1)  # products this small gain nothing from threads
    data = read(args.data)
    results = []
    for model in [args.model] if args.model else list(ROWS):
        rows = args.rows or (QUICK_ROWS if args.quick else ROWS[model])
        valid_rows = min(QUICK_VALID_ROWS if args.quick else VALID_ROWS, len(data[0]) - rows)
        if rows < 2 * COMPONENTS or valid_rows < 1:
            parser.error(f"--rows {rows} of {len(data[0])} rows: pass at least {2 * COMPONENTS}, and leave some over")
        results.append(measure(model, data, rows, valid_rows))
        show(results[-1], Console())
    return results


if __name__ == "__main__":
    main()
