"""How well `total` alone finds wrong labels, from the trained model and from checkpoints of its training.

    python tests/benchmarks/wrong_labels.py --mnist mnist_train.parquet --texts agnews_train.parquet [--seeds 3]

4,000 training rows with 10% wrong labels, 4,000 clean validation rows, a perceptron of 64 units, 12 epochs of SGD (rate
0.1 by a cosine, batches of 32). MNIST with labels that are wrong at random, and with 4 and 9, 3 and 5, 7 and 1 swapped;
AG News, the first 100 components of TF-IDF, each of variance 1. Printed is the area under the ROC curve a seed, of a
row's own loss, of `total` of the trained model and of the mean of checkpoints after some epochs, each with its `Fit`.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score
from torch import nn

import rayinf

RESULTS = Path(__file__).parent / "results"
ROWS, EPOCHS, RATE, BATCH = 4000, 12, 0.1, 32
SWAPPED = {4: 9, 9: 4, 3: 5, 5: 3, 7: 1, 1: 7}
CHECKPOINTS = ((12,), (2, 4, 6, 8, 10, 12), (1, 2, 4, 8, 12), (1, 2, 3, 4, 5, 6))
FIT = rayinf.Fit(epochs=EPOCHS, batch_size=BATCH, optimizer="sgd", lr=RATE, schedule="cosine")
Rows = tuple[np.ndarray, np.ndarray]


def images(path: Path) -> Rows:
    """Standardised pixels, and labels."""
    table = pq.read_table(path)
    pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(table.num_rows, -1)
    return ((pixels / 255 - 0.1307) / 0.3081).astype(np.float32), table["label"].to_numpy().astype(np.int64)


def texts(path: Path) -> Rows:
    """Components of TF-IDF, and labels from 0."""
    table = pq.read_table(path)
    words = TfidfVectorizer(stop_words="english", min_df=3, sublinear_tf=True).fit_transform(table["text"].to_pylist())
    x = TruncatedSVD(100, random_state=0).fit_transform(words)
    y = table["label"].to_numpy().astype(np.int64)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y - y.min()


def give_wrong_labels(y: np.ndarray, swaps: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a tenth is wrong, and which these are."""
    picked = rng.choice(np.flatnonzero(np.isin(y, list(SWAPPED))) if swaps else len(y), len(y) // 10, replace=False)
    given, classes = y.copy(), int(y.max()) + 1
    moved = (y[picked] + rng.integers(1, classes, len(picked))) % classes
    given[picked] = [SWAPPED[k] for k in y[picked]] if swaps else moved
    return given, np.isin(np.arange(len(y)), picked)


def train(rows: Rows, classes: int, seed: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The trained model, and its weights after every epoch."""
    torch.manual_seed(seed)
    x, y = (torch.from_numpy(a) for a in rows)
    model = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(x) // BATCH))
    states = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
        states.append(copy.deepcopy(model.state_dict()))
    return model.eval(), states


def areas(data: Rows, swaps: bool, seed: int) -> dict[str, float]:
    """The area under the curve of each way, of one seed."""
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(data[0]))[: 2 * ROWS]
    (x, y), valid = ((a[picked[:ROWS]] for a in data), tuple(a[picked[ROWS:]] for a in data))
    y, wrong = give_wrong_labels(y, swaps, rng)
    model, states = train((x, y), int(data[1].max()) + 1, seed)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y), reduction="none").numpy()
    found = {"own loss": float(roc_auc_score(wrong, loss))}
    for epochs in CHECKPOINTS:
        held = None if len(epochs) == 1 else [states[e - 1] for e in epochs]
        task = rayinf.Task(model, fit=FIT, checkpoints=held)
        values = rayinf.influence(task, (x, y), valid, "total").to_numpy()[:, 0]
        name = "total" if held is None else f"total, epochs {', '.join(map(str, epochs))}"
        found[name] = float(roc_auc_score(wrong, -values))
    return found


def main() -> None:
    """All sets and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    sets = {}
    if options.mnist:
        data = images(options.mnist)
        sets = {"MNIST, uniform": (data, False), "MNIST, confusable": (data, True)}
    if options.texts:
        sets["AG News"] = (texts(options.texts), False)
    found = {name: [areas(*given, seed) for seed in range(options.seeds)] for name, given in sets.items()}
    table = Table("", *found)
    for way in next(iter(found.values()))[0]:
        table.add_row(way, *[", ".join(f"{area[way]:.3f}" for area in areas) for areas in found.values()])
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "wrong_labels.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
