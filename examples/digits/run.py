"""Which training digits harm a small network, and the recognition of which class they harm most.

Writes scikit-learn's digits (nothing to download) to Parquet, trains a small convolutional network on them, and values
every training row with one call of `rayinf.influence`: the column `total` is what the row does to all validation
digits, and `category_k` what it does to those of class k. Shows the most harmful rows as a table and as a picture.
A value predicts, to first order, what happens if that one row is removed; values of many rows do not simply add up.

    python examples/digits/run.py
    python examples/digits/run.py --flip 0.05 --out flipped    # with wrong labels among the training rows

The same command again finds its model and its run in the folder, and shows them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from task import FIT, OUT, make_model, make_task
from torch import nn

import rayinf

matplotlib.use("Agg")
from matplotlib import pyplot as plt

VALID_ROWS = 500
SHOWN = 12
SEED = 0
CATEGORIES = [f"category_{k}" for k in range(10)]
HARM, HELP = "#b2182b", "#2166ac"


def write_tables(out: Path, flip: float) -> None:
    """Write train.parquet and valid.parquet: row_id (the place in load_digits()), 64 pixels, label, true_label."""
    digits = load_digits()
    ids = np.arange(len(digits.target))
    train, valid = train_test_split(ids, test_size=VALID_ROWS, stratify=digits.target, random_state=SEED)
    labels = digits.target.astype(np.int64)
    rng = np.random.default_rng(SEED)
    flipped = rng.choice(train, round(flip * len(train)), replace=False)
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("valid", valid)):
        pixels = pa.array((digits.data[rows] / 16).astype(np.float32).reshape(-1))
        columns = {
            "row_id": rows,
            "pixels": pa.FixedSizeListArray.from_arrays(pixels, 64),
            "label": labels[rows],
            "true_label": digits.target[rows],
        }
        pq.write_table(pa.table(columns), out / f"{name}.parquet")


def read_tensors(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and labels of a table."""
    table = pq.read_table(file, columns=["pixels", "label"])
    pixels = table["pixels"].combine_chunks().flatten().to_numpy().reshape(-1, 64)
    return torch.tensor(pixels), torch.tensor(table["label"].to_numpy())


def train_model(out: Path, fit: rayinf.Fit) -> nn.Module:
    """Train the network in plain PyTorch."""
    torch.manual_seed(SEED)
    x, y = read_tensors(out / "train.parquet")
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=fit.lr, weight_decay=fit.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fit.epochs * -(-len(x) // fit.batch_size))
    for _ in range(fit.epochs):
        for batch in torch.randperm(len(x)).split(fit.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


def prepare(out: Path, flip: float, epochs: int, console: Console) -> None:
    """Tables and a trained model in the folder, unless they are there from an earlier run.

    Raises:
        SystemExit: the folder holds those of other settings.
    """
    settings = {"flip": flip, "epochs": epochs}
    file = out / "model.pt"
    if file.exists():
        held = torch.load(file, weights_only=True)["settings"]
        if held != settings:
            raise SystemExit(f"{out} holds a model of {held}, not of {settings}: pass another --out, or delete it.")
        return
    write_tables(out, flip)
    begin = time.perf_counter()
    model = train_model(out, replace(FIT, epochs=epochs))
    torch.save({"weights": model.state_dict(), "settings": settings}, file)
    x, y = read_tensors(out / "valid.parquet")
    with torch.no_grad():
        wrong = int((model(x).argmax(1) != y).sum())
    seconds = time.perf_counter() - begin
    console.print(f"Trained for {epochs} epochs in {seconds:.1f} s: {wrong} of {len(y)} validation digits are wrong.")


def show_rows(frame: pd.DataFrame, console: Console) -> None:
    """The most harmful rows, and the class that each harms most."""
    worst = frame.nsmallest(SHOWN, "total")
    was_flipped = (frame.label != frame.true_label).any()
    table = Table(title=f"The {SHOWN} most harmful of {len(frame):,} training rows", title_justify="left")
    for heading in (
        "row_id",
        "label",
        *(["true label"] if was_flipped else []),
        "total",
        "harms most",
        "on that class",
    ):
        table.add_column(heading, justify="right")
    for row in worst.itertuples():
        values = np.array([getattr(row, name) for name in CATEGORIES])
        true = [str(row.true_label) if row.true_label != row.label else ""] if was_flipped else []
        k = int(values.argmin())
        table.add_row(str(row.row_id), str(row.label), *true, f"{row.total:+.3f}", f"class {k}", f"{values[k]:+.3f}")
    console.print(table)
    if was_flipped:
        console.print(f"{(worst.label != worst.true_label).sum()} of these {SHOWN} have a wrong label.")


def show_classes(frame: pd.DataFrame, losses: dict[str, float], console: Console) -> None:
    """What the training rows do to each class in sum."""
    table = Table(title="All training rows, by the validation class that they help or harm", title_justify="left")
    for heading in ("class", "validation loss", "sum of helpful", "sum of harmful", "harmful rows"):
        table.add_column(heading, justify="right")
    for name in [*CATEGORIES, "total"]:
        values = frame[name].to_numpy()
        helps, harms = values[values > 0].sum(), values[values < 0].sum()
        label = name.removeprefix("category_")
        table.add_row(
            label,
            f"{losses[name]:.2f}",
            f"{helps:+.2f}",
            f"{harms:+.2f}",
            f"{(values < 0).mean():.0%}",
            end_section=name == CATEGORIES[-1],
        )
    console.print(table)


def draw(frame: pd.DataFrame, pixels: dict[int, np.ndarray], file: Path) -> None:
    """The most harmful and the most helpful digits as a picture."""
    figure = plt.figure(figsize=(11, 11.5), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.13, hspace=0.06)
    figure.suptitle("What each training digit does to the recognition of others", fontsize=19, fontweight="bold")
    sides = (
        ("Most harmful: without it, the validation loss would fall", "harms", HARM, frame.nsmallest(SHOWN, "total")),
        ("Most helpful: without it, the validation loss would rise", "helps", HELP, frame.nlargest(SHOWN, "total")),
    )
    for part, (title, verb, colour, rows) in zip(figure.subfigures(2, 1), sides, strict=True):
        part.suptitle(title, fontsize=15, color=colour)
        for axis, row in zip(part.subplots(2, SHOWN // 2).flat, rows.itertuples(), strict=True):
            values = np.array([getattr(row, name) for name in CATEGORIES])
            k = int(values.argmin() if verb == "harms" else values.argmax())
            axis.imshow(pixels[row.row_id].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axis.set_axis_off()
            true = f" (is a {row.true_label})" if row.label != row.true_label else ""
            axis.set_title(f"label {row.label}{true}", fontsize=13)
            below = f"{row.total:+.2f}".replace("-", "\u2212") + f"\n{verb} class {k}"
            place = {"transform": axis.transAxes, "ha": "center", "va": "top"}
            axis.text(0.5, -0.05, below, fontsize=12, color=colour, linespacing=1.3, **place)
    figure.supxlabel(
        "Each value is the predicted change of the loss, summed over all validation digits (in nats),\n"
        "if that one digit is removed from training; the class named is the one whose loss changes most that way.",
        fontsize=12,
    )
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, value, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of everything that is written")
    parser.add_argument("--flip", type=float, default=0.0, help="share of the training rows that get a wrong label")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args(argv)
    if not 0 <= args.flip <= 1:
        parser.error(f"--flip {args.flip} is not a share of rows: pass a number from 0 to 1")
    torch.set_num_threads(1)  # products this small gain nothing from threads
    console, out = Console(), args.out
    prepare(out, args.flip, 3 if args.quick else FIT.epochs, console)

    scores = rayinf.influence(
        make_task(out),
        out / "train.parquet",
        out / "valid.parquet",
        objective=["total", "category"],
        curvature="ekfac",
        out=out / "run",
    )

    train = pq.read_table(out / "train.parquet").to_pandas()
    frame = scores.to_pandas().merge(train.drop(columns="pixels"), on="row_id", validate="one_to_one")
    show_rows(frame, console)
    show_classes(frame, scores.metadata["objective_values"], console)
    console.print(f"Unit: {scores.metadata['unit']}; {scores.metadata['sign']}.")
    draw(frame, dict(zip(train.row_id, train.pixels, strict=True)), out / "most_harmful.png")
    for what, name in (("tables and model", ""), ("run and scores", "run"), ("picture", "most_harmful.png")):
        console.print(f"{what:>17}: {out / name}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
