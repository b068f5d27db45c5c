"""Does category-wise influence predict what removing rows does? (Nahin 2025, Figures 3, 4, 6 and 7).

10 % of the training labels are flipped. For each class, the top 10 % of the rows that help it are removed and a model
is trained on the rest; the same with the rows that harm it. The change of every class's test loss and accuracy is then
compared with the sum of the removed rows' influence on that class: one cell a pair of classes, two heat maps a side.

    convex     a logistic regression (images: on 40 principal components) with the exact Hessian
    network    a perceptron with one hidden layer of 64 and EKFAC, cosine schedule; two seeds averaged
    resnet9    cifar.py's ResNet-9 on images of 32 x 32 in RGB, EKFAC, trained as Table 2 of the paper says (25 epochs,
               batch 512, rate 0.4, weight decay 0.001); only where it is asked for, since it wants a GPU

`--data` and `--test` are Parquet files with a column `label` (integers 0 to K - 1) and either `image` (fixed-size
binary, a uint8 a pixel) or `text`, which becomes 100 components of TF-IDF. Validation rows come from `--data`.

    python examples/pareto_ceiling/removal.py --data mnist_train.parquet --test mnist_test.parquet
    python examples/pareto_ceiling/removal.py --data agnews_train.parquet --test agnews_test.parquet --model network
    python examples/pareto_ceiling/removal.py --data cifar10_train.parquet --test cifar10_test.parquet --model resnet9
    python examples/pareto_ceiling/removal.py --quick        # scikit-learn's digits instead, nothing to download

The paper (ResNet-9 on CIFAR-10 and STL-10, BERT on Emotion and AG News, EKFAC) reports a Spearman correlation above
0.8 for both sides, of influence and change of performance, and of the right sign all along the diagonal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

import rayinf

Rows = tuple[np.ndarray, np.ndarray]  # features [n, d] and labels [n]
Raw = tuple[np.ndarray | list[str], np.ndarray]  # pixels or texts, and labels

FLIPPED, SHARE, SEEDS, VALID_ROWS = 0.1, 0.1, 2, 10_000
ROWS = {"convex": 6000, "network": 3000, "resnet9": 16_000}
UNASKED = ("convex", "network")
CURVATURE = {"convex": "exact", "network": "ekfac", "resnet9": "ekfac"}
L2 = {"convex": 1e-2, "network": 1e-3}
COMPONENTS, TEXT_COMPONENTS, HIDDEN = 40, 100, 64
FIT = rayinf.Fit(optimizer="adam", lr=1e-3, schedule="cosine", epochs=10, batch_size=64)
RESNET_FIT = rayinf.Fit(optimizer="sgd", lr=0.4, schedule="cosine", epochs=25, batch_size=512, weight_decay=1e-3)
QUICK_ROWS = 700
PAPER = "> 0.8"
SIDES = ("helpful", "harmful")


@dataclass(frozen=True)
class Split:
    """Rows to train on, of which some have a wrong label; clean ones to value on, and to test on."""

    train: Rows
    valid: Rows
    test: Rows


def read(path: Path) -> Raw:
    """Pixels in [0, 1] or texts, and labels.

    Raises:
        SystemExit: columns are missing.
    """
    table = pq.read_table(path)
    labels = table["label"].to_numpy().astype(np.int64) if "label" in table.column_names else None
    if labels is not None and "text" in table.column_names:
        return table["text"].to_pylist(), labels
    if labels is None or "image" not in table.column_names or not pa.types.is_fixed_size_binary(table["image"].type):
        raise SystemExit(f"{path} needs label, and image (fixed-size binary) or text; it has {table.schema.names}.")
    pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(table.num_rows, -1)
    return pixels.astype(np.float32) / 255, labels


def digits() -> tuple[Raw, Raw]:
    """scikit-learn's digits, the last 400 to test on."""
    held = load_digits()
    x, y = (held.data / 16).astype(np.float32), held.target.astype(np.int64)
    return (x[:-400], y[:-400]), (x[-400:], y[-400:])


def take(x: np.ndarray | list[str], rows: np.ndarray) -> np.ndarray | list[str]:
    """Some rows."""
    return x[rows] if isinstance(x, np.ndarray) else [x[k] for k in rows]


def draw(data: Raw, test: Raw, model: str, rows: int, seed: int) -> Split:
    """Rows drawn from the data, features made of them, and some of the training labels flipped."""
    x, y = data
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(y))[: rows + min(VALID_ROWS, len(y) - rows)]
    train, valid = picked[:rows], picked[rows:]
    flipped = np.zeros(rows, bool)
    flipped[rng.choice(rows, round(FLIPPED * rows), replace=False)] = True
    classes = int(y.max()) + 1
    labels = np.where(flipped, (y[train] + rng.integers(1, classes, rows)) % classes, y[train])
    made = features([take(x, train), take(x, valid), test[0]], model, seed)
    return Split(*zip(made, (labels, y[valid], test[1]), strict=True))


def features(parts: list[np.ndarray | list[str]], model: str, seed: int) -> list[np.ndarray]:
    """Numbers of pixels or texts, made by what the first part, the training rows, holds."""
    if not isinstance(parts[0], np.ndarray):
        words = TfidfVectorizer(min_df=3, sublinear_tf=True, stop_words="english").fit(parts[0])
        svd = TruncatedSVD(TEXT_COMPONENTS, random_state=seed).fit(words.transform(parts[0]))
        found = [svd.transform(words.transform(part)) for part in parts]
        return [(part / found[0].std()).astype(np.float32) for part in found]
    if model != "convex":
        return parts
    pca = PCA(COMPONENTS, random_state=seed).fit(parts[0])
    return [pca.transform(part) / np.sqrt(pca.explained_variance_[0]) for part in parts]


def fitted(model: str, train: Rows) -> rayinf.Task:
    """The model, trained on all rows."""
    if model == "convex":
        return rayinf.logistic_regression(train, l2=L2[model])
    torch.manual_seed(0)
    if model == "resnet9":
        return rayinf.retrain(residual(), train)
    layers = nn.Linear(train[0].shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, int(train[1].max()) + 1)
    return rayinf.retrain(rayinf.Task(nn.Sequential(*layers), l2=L2[model], fit=FIT), train)


def residual() -> rayinf.Task:
    """ResNet-9, untrained, over images as `read` gives them."""
    from cifar import resnet9

    network = resnet9().to("cuda" if torch.cuda.is_available() else "cpu")
    return rayinf.Task(network, transform=images, parameters="supported", fit=RESNET_FIT)


def images(pixels: np.ndarray) -> np.ndarray:
    """Pixels `[B, 3072]` in [0, 1], RGB and row by row -> standardised `[B, 3, 32, 32]`."""
    return ((pixels - np.float32(0.473)) / np.float32(0.251)).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def check(model: str, split: Split, seeds: int, workers: int) -> rayinf.RemovalCheck:
    """Value the rows, remove each class's top ones, and train again."""
    task = fitted(model, split.train)
    scores = rayinf.influence(task, split.train, split.valid, objective="category", curvature=CURVATURE[model])
    cluster = rayinf.Cluster(workers=workers) if workers else None
    return rayinf.removal_check(task, split.train, split.valid, split.test, scores, SHARE, seeds, cluster)


def show(name: str, model: str, split: Split, found: rayinf.RemovalCheck, console: Console) -> None:
    """One table a model."""
    seeds = found.metadata["seeds"]
    table = Table(
        title=f"{name}, {model}: {len(split.train[1]):,} training rows, {FLIPPED:.0%} of the labels flipped, "
        f"top {SHARE:.0%} removed",
        caption=f"predicted against measured change of each class's test loss; {seeds} seed{'s' * (seeds > 1)}; test "
        f"accuracy with all rows {np.mean(found.baseline['accuracy']):.1%} (mean of classes)",
    )
    table.add_column("rows removed")
    for heading in ("a class", "Spearman, loss", "paper", "Spearman, accuracy", "sign, loss", "sign, accuracy"):
        table.add_column(heading, justify="right")
    for side in SIDES:
        s, rows = found.summary[side], found.to_pandas().query("side == @side")["rows"]
        signs = [f"{s[key]} of {s['classes']}" for key in ("sign_loss", "sign_accuracy")]
        shown = ["-" if s[k] is None else f"{s[k]:.3f}" for k in ("spearman_loss", "spearman_accuracy")]
        table.add_row(side, f"{rows.min()}-{rows.max()}", shown[0], PAPER, shown[1], *signs)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> dict[str, rayinf.RemovalCheck]:
    """Check the models of the options; print a table and draw a figure each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Parquet to train and value on")
    parser.add_argument("--test", type=Path, help="Parquet to test on")
    parser.add_argument("--model", choices=list(ROWS), help="one model only")
    parser.add_argument("--rows", type=int, help=f"training rows (default: {ROWS})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings of the network that are averaged")
    parser.add_argument("--seed", type=int, default=0, help="which rows are drawn, and which labels are flipped")
    parser.add_argument("--workers", type=int, default=0, help="trainings side by side on Ray (0: in this process)")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, the convex model, fewer rows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="a folder for the figures")
    args = parser.parse_args(argv)
    if not args.quick and (args.data is None or args.test is None):
        parser.error("pass --data FILE.parquet --test FILE.parquet, or --quick for scikit-learn's digits")
    torch.set_num_threads(1)  # products this small gain nothing from threads
    data, test = (read(args.data), read(args.test)) if args.data and args.test else digits()
    name = args.data.stem if args.data else "digits"
    found = {}
    for model in [args.model] if args.model else ["convex"] if args.quick else UNASKED:
        rows = args.rows or (QUICK_ROWS if args.quick else ROWS[model])
        if not 2 * TEXT_COMPONENTS <= rows < len(data[1]):
            parser.error(f"--rows {rows} of {len(data[1])}: pass at least {2 * TEXT_COMPONENTS}, and leave some over")
        if model == "resnet9" and (not isinstance(data[0], np.ndarray) or data[0].shape[1] != 3072):
            parser.error("--model resnet9 takes images of 32 x 32 pixels in RGB: pass a --data that has them")
        split = draw(data, test, model, rows, args.seed)
        found[model] = check(model, split, args.seeds, args.workers)
        show(name, model, split, found[model], Console())
        print(f"  {found[model].plot(args.out / f'removal-{name}-{model}.png')}")
    return found


if __name__ == "__main__":
    main()
