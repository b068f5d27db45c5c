"""Which images FI asks for first, and how sure the network is of them (Yu 2025, Figure 5).

The network of active_images.py is trained on the labelled images, and the pool's images of highest FI are picked, as in
its first round. Printed are how sure the network is of these, of the images of highest entropy, of random ones and of
the whole pool, and how often it is right; `--out` draws the images with their class probabilities, as the paper does.

    python examples/influence_measure/highest.py                                  # scikit-learn's digits, 8 x 8
    python examples/influence_measure/highest.py --data mnist_train.parquet --test mnist_test.parquet --out highest.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from active_images import BATCH, L2, SIZES, STEPS, Split, pick, split_of, train
from common import arguments, spread
from images import cnn, digits, read_images
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import rayinf

WAYS = ("fi", "entropy", "random")
SHOWN, QUICK_SHOWN, QUICK_STEPS = 12, 5, 30
PAPER = "Yu 2025 (a picture): images of highest FI are those that the network can hardly tell apart."


def probabilities(task: rayinf.Task, x: np.ndarray) -> np.ndarray:
    """Class probabilities `[n, K]` of images, without dropout."""
    model = task.build().eval()
    with torch.no_grad():
        logits = [model(torch.from_numpy(x[k : k + BATCH])) for k in range(0, len(x), BATCH)]
    return torch.cat(logits).softmax(1).numpy()


def measured(p: np.ndarray, labels: np.ndarray) -> list[float]:
    """In per cent: mean probability of the likeliest class, its lead over the second, and how often it is right."""
    best = np.sort(p, axis=1)
    return [100 * v for v in (best[:, -1].mean(), (best[:, -1] - best[:, -2]).mean(), (p.argmax(1) == labels).mean())]


def study(split: Split, classes: int, args: argparse.Namespace, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Positions in the pool of what each way picks; and the pool's probabilities."""
    task = rayinf.Task(cnn(split["pool"][0].shape[1:], classes), l2=L2, classes=range(classes))
    task = train(task, split["labeled"], QUICK_STEPS if args.quick else STEPS, seed)
    tables = (split["labeled"], split["pool"], split["valid"])
    return {way: pick(task, tables, way, n=args.shown, seed=seed) for way in WAYS}, probabilities(
        task, split["pool"][0]
    )


def draw(split: Split, rows: np.ndarray, p: np.ndarray, path: Path) -> None:
    """The picked images above their class probabilities; the right class is dark."""
    x, y = split["pool"][0][rows], split["pool"][1][rows]
    figure = Figure(figsize=(1.3 * len(rows), 2.9), layout="constrained")
    for image, label, bars, (above, below) in zip(x, y, p[rows], figure.subplots(2, len(rows)).T, strict=True):
        low, high = image.min(), image.max()
        above.imshow(((image - low) / max(high - low, 1e-9)).transpose(1, 2, 0).squeeze(), cmap="gray")
        above.set(xticks=[], yticks=[], title=str(label))
        below.bar(np.arange(len(bars)), bars, color=np.where(np.arange(len(bars)) == label, "#0072B2", "#BBBBBB"))
        below.set(ylim=(0, 1), yticks=[], xticks=np.arange(len(bars)))
        below.tick_params(labelsize=6)
    figure.suptitle("Highest FI: label, and the network's class probabilities (dark: the label)", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> dict[str, list[list[float]]]:
    """Pick in every seed, print the table, draw the first seed's images."""
    parser = arguments(__doc__, 3)
    parser.add_argument("--test", type=Path, help="Parquet of validation images (default: some of --data)")
    parser.add_argument("--shown", type=int, default=SHOWN, help=f"images to pick (default: {SHOWN})")
    parser.add_argument("--out", type=Path, help="PNG of the images")
    args = parser.parse_args(argv)
    args.initial, args.pool, args.unbalanced, args.redundant = SIZES["initial"], SIZES["pool"], False, False
    if args.quick:
        args.seeds, args.shown = 1, min(args.shown, QUICK_SHOWN)
    if args.seeds < 1 or not 1 <= args.shown <= args.pool:
        parser.error(f"--seeds {args.seeds} --shown {args.shown}: pass a seed, and 1 to {args.pool} images")
    torch.set_num_threads(1)  # the network is too small to gain from threads
    data = read_images(args.data) if args.data else digits()
    test = read_images(args.test) if args.test else None
    found: dict[str, list[list[float]]] = {way: [] for way in (*WAYS, "whole pool")}
    for seed in range(args.seeds):
        split = split_of(data, test, args, seed)
        picked, p = study(split, 1 + int(data[1].max()), args, seed)
        for way, rows in {**picked, "whole pool": np.arange(len(p))}.items():
            found[way].append(measured(p[rows], split["pool"][1][rows]))
        if args.out and not seed:
            draw(split, picked["fi"], p, args.out)
    table = Table(title=f"{args.shown} images a way of {args.pool}, {args.seeds} seeds, in %")
    for heading in ("picked by", "likeliest class", "lead over the second", "right"):
        table.add_column(heading, justify="left" if heading == "picked by" else "right")
    for way, values in found.items():
        table.add_row(way, *(spread(column) for column in np.transpose(values)))
    Console().print(table)
    print(PAPER)
    return found


if __name__ == "__main__":
    main()
