"""Where CIFAR-10's influence vectors lie (Nahin 2025, section 5.2 and Figure 8): components, regions, classes.

A checkpoint is trained as in cifar.py, and the influence of every training row on every class is taken on the search
half of the validation rows (EKFAC). Printed are the share of the vectors' variance along their first component, which
the paper reads as room for all classes where it is above 0.2 (with ten classes it is 0.1 at least); the rows that help
all classes, harm all, or do both; the cross-fitted gain; and, as in Figure 8, of which class the rows are that help and
harm each class. `--out` draws the last as heat maps.

    python examples/pareto_ceiling/vectors.py --data cifar10_train.parquet --test cifar10_test.parquet --quick
    python examples/pareto_ceiling/vectors.py --data cifar10_train.parquet --test cifar10_test.parquet  # ResNet-9: GPU
    python examples/pareto_ceiling/vectors.py --quick        # synthetic images instead, nothing to download

`--data` and `--test` are those of cifar.py. `--damping layer_mean:0.1` is the inverse of Grosse et al. 2023, which the
paper uses; left out, it is rayinf's default.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
from cifar import FULL, QUICK, TINY, Size, Split, partition, resnet9, small_cnn, synthetic, to_images
from rich.console import Console
from rich.table import Table

import rayinf

PAPER = "Nahin 2025: the first component is above 0.2 in all cases; helpful rows come mainly from a class's own rows, "
PAPER += "harmful ones from other classes (Figure 8, a picture)."


def vectors(split: Split, size: Size, seed: int, args: argparse.Namespace) -> rayinf.Ceiling:
    """The ceiling of a checkpoint's influence vectors."""
    torch.manual_seed(seed)
    model = small_cnn() if args.quick else resnet9().to("cuda" if torch.cuda.is_available() else "cpu")
    columns = {"features": "image", "transform": to_images, "parameters": "all" if args.quick else "supported"}
    fresh = rayinf.Task(model, fit=replace(size.first, fresh=False), **columns)
    trained = rayinf.retrain(fresh, split.train, seed=seed)
    damping = {"damping": args.damping} if args.damping else {}
    return rayinf.ceiling(rayinf.influence(trained, split.train, split.search, "category", halves=True, **damping))


def helped(ceiling: rayinf.Ceiling) -> tuple[float, float]:
    """Of the rows, the share that helps its own class; and the share that helps another class, a mean over those."""
    helpful, columns = ceiling.regions.helpful_from, ceiling.names
    own = sum(helpful[k, columns.index(str(label))] for k, label in enumerate(ceiling.row_labels))
    rows = ceiling.regions.rows
    return float(own / rows), float((helpful.sum() - own) / (rows * (len(columns) - 1)))


def show(found: Sequence[rayinf.Ceiling], console: Console) -> None:
    """A line a seed."""
    table = Table(title="Influence vectors of the training rows")
    for name in (
        "seed", "first component", "help all", "harm all", "mixed", "cross-fitted gain", "help own class",
        "help another",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for seed, ceiling in enumerate(found):
        regions = ceiling.regions
        counts = (f"{n:,}" for n in (regions.jointly_helpful, regions.jointly_harmful, regions.mixed))
        gain = "-" if ceiling.cross_fit is None else f"{ceiling.cross_fit:+.3f}"
        shares = (f"{share:.1%}" for share in helped(ceiling))
        table.add_row(str(seed), f"{ceiling.explained_variance[0]:.2f}", *counts, gain, *shares)
    console.print(table)
    console.print("Help another: the share of rows that helps a class other than its own, a mean over those classes.")
    console.print(PAPER)


def main(argv: Sequence[str] | None = None) -> list[rayinf.Ceiling]:
    """Value the rows of every seed, print the table, draw the first seed's maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Parquet of images to train on; left out, with --quick: synthetic")
    parser.add_argument("--test", type=Path, help="Parquet of further validation images")
    parser.add_argument("--out", type=Path, help="the figure (.png)")
    parser.add_argument("--quick", action="store_true", help="a small CNN, for a CPU")
    parser.add_argument("--seeds", type=int, default=3, help="checkpoints, each with its own rows (default: 3)")
    parser.add_argument("--damping", help="of influence, as layer_mean:0.1 (default: rayinf's)")
    args = parser.parse_args(argv)
    if args.data is None and not args.quick:
        raise SystemExit("Pass --data and --test, or --quick alone for synthetic images.")
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: pass at least one")
    size = (QUICK if args.quick else FULL) if args.data else TINY
    test = pq.read_table(args.test) if args.test else None
    data = pq.read_table(args.data) if args.data else synthetic(TINY.rows + TINY.valid)
    found = [vectors(partition(data, test, size, seed), size, seed, args) for seed in range(args.seeds)]
    show(found, Console(width=120))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        print(f"drawn: {found[0].plot_classes(args.out)}")
    return found


if __name__ == "__main__":
    main()
