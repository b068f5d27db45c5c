"""Pareto-LP-GA on CIFAR-10 in both settings (Nahin 2025, section 5.2, Table 1), judged on unseen rows.

A checkpoint is trained; its two weakest classes on the search half of the validation rows are the targets. Every row's
influence on every class is taken on that half (EKFAC), and `rayinf.pareto_reweight` searches row weights for one epoch
more; the best are cross-fitted within that half. What it finds is judged on the other half, beside the unweighted epoch
and plain class weights of 1.0 to 3.0 for the targets, and so is the trade-off of the LP alone over the radius of its
trust region.

    direct     direct improvement: changes are counted from the checkpoint, whose influence vectors guide the search
    correct    course correction: the unweighted epoch is known and is to be bettered; influence vectors are those
               of the model after it

`--data` and `--test` are Parquet files with `image` (fixed-size binary, 3,072 bytes: 32 x 32, RGB, row-major) and
`label` (integers from 0). The first rows of `--data` (shuffled by the seed) are trained on, all others and those of
`--test` are validation rows.

    python examples/pareto_ceiling/cifar.py --data cifar10_train.parquet --test cifar10_test.parquet --quick
    python examples/pareto_ceiling/cifar.py --data cifar10_train.parquet --test cifar10_test.parquet  # ResNet-9: a GPU
    python examples/pareto_ceiling/cifar.py --quick        # synthetic images instead, nothing to download

The paper (ResNet-9, all of CIFAR-10, one run, its own validation rows) is printed beside. It does not say how plain
class weights would have done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rayinf

RADII = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
CLASS_WEIGHTS = (1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
CONSOLE = Console(width=110)
# Eight other classes for two targets: at this price a candidate is worth what it adds to the mean over all ten.
PRICE = 4.0
# Table 1 of Nahin 2025, change of accuracy in %: of the targets, and of the other classes.
PAPER = {
    "direct": ({0: 16.02, 2: 11.39}, {1: -0.78, 3: -2.31, 4: -1.2, 5: 0.0, 6: 5.73, 7: -0.11, 8: -2.90, 9: 0.12}),
    "correct": ({5: 1.65, 7: 1.31, 9: 2.77}, {0: 1.48, 1: 0.23, 2: -0.67, 3: -0.14, 4: 0.25, 6: -0.46, 8: -1.29}),
}


@dataclass(frozen=True)
class Size:
    """What one run takes.

    Attributes:
        rows: that are trained on.
        valid: validation rows, half to search by and half to judge by.
        first: how the checkpoint is trained.
        fit: how the epoch after it is.
        search: the genetic search.
    """

    rows: int
    valid: int
    first: rayinf.Fit
    fit: rayinf.Fit
    search: rayinf.Search


FULL = Size(
    16_000,
    9_000,
    rayinf.Fit(optimizer="sgd", lr=0.1, epochs=10, batch_size=512, weight_decay=1e-3),
    rayinf.Fit(optimizer="sgd", lr=0.005, schedule="constant", batch_size=512, weight_decay=1e-3),
    rayinf.Search(prefer=PRICE),
)
QUICK = Size(
    4_000,
    20_000,
    rayinf.Fit(optimizer="sgd", lr=0.05, epochs=10, batch_size=64, weight_decay=5e-4),
    rayinf.Fit(optimizer="sgd", lr=0.005, schedule="constant", batch_size=64, weight_decay=5e-4),
    rayinf.Search(elites=2, mutated_elites=2, randoms=2, crossover_children=2, iterations=4, prefer=PRICE),
)
# Of synthetic images, to see that all of it runs.
TINY = replace(
    QUICK,
    rows=300,
    valid=400,
    first=replace(QUICK.first, epochs=3),
    search=rayinf.Search(elites=1, mutated_elites=1, randoms=1, crossover_children=1, iterations=2),
)


@dataclass(frozen=True)
class Split:
    """Images as bytes and labels: rows to train on, to search by, and to judge by."""

    train: pa.Table
    search: pa.Table
    judge: pa.Table


def to_images(raw: np.ndarray) -> np.ndarray:
    """Bytes of row-major RGB -> standardised `[B, 3, 32, 32]`."""
    images = raw.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2) / np.float32(255)
    return (images - np.float32(0.473)) / np.float32(0.251)


def small_cnn() -> nn.Sequential:
    """Three convolutions and a linear layer."""
    convs = [
        part
        for i, o, pool in ((3, 12, 2), (12, 24, 2), (24, 48, 4))
        for part in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(pool))
    ]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(48 * 4, 10))


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Input plus what the convolutions make of it."""
        return x + self.inner(x)


def conv(i: int, o: int, pool: bool = False) -> nn.Sequential:
    """Convolution, norm, ReLU, and a pooling by choice."""
    parts: list[nn.Module] = [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*parts, *([nn.MaxPool2d(2)] if pool else []))


def resnet9() -> nn.Sequential:
    """ResNet-9 of widths 64, 128, 256 and 512."""
    body = [conv(3, 64), conv(64, 128, True), Residual(128), conv(128, 256, True), conv(256, 512, True), Residual(512)]
    return nn.Sequential(*body, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 10))


def synthetic(rows: int, seed: int = 0) -> pa.Table:
    """Ten classes of noisy images, each with a colour and a place of its own; two are nearly alike."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(rows) % 10)
    base = np.random.default_rng(1).normal(0, 25, (10, 8, 8, 3))
    base[3] = base[2] + np.random.default_rng(2).normal(0, 6, (8, 8, 3))
    x = 120 + base[y].repeat(4, 1).repeat(4, 2) + rng.normal(0, 60, (rows, 32, 32, 3))
    flat = np.clip(x, 0, 255).astype(np.uint8).reshape(rows, -1)
    return pa.table({"image": pa.array([r.tobytes() for r in flat], pa.binary(3072)), "label": y})


def partition(data: pa.Table, test: pa.Table | None, size: Size, seed: int) -> Split:
    """Rows at random.

    Raises:
        SystemExit: there are too few.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(data.num_rows)
    rest = [data.take(order[size.rows :]), *([test] if test is not None else [])]
    held = pa.concat_tables([t.select(["image", "label"]) for t in rest])
    if order.size < size.rows or held.num_rows < size.valid:
        raise SystemExit(f"{size.rows} + {size.valid} rows are needed, and there are {order.size} + {held.num_rows}.")
    held = held.take(rng.permutation(held.num_rows)[: size.valid])
    train = data.select(["image", "label"]).take(order[: size.rows])
    return Split(train, held.slice(0, size.valid // 2), held.slice(size.valid // 2))


@dataclass(frozen=True)
class Study:
    """One seed in one setting.

    Attributes:
        lines: a line for each way of weighting, judged on rows that the search never saw: `way`, `knob`, `gain` and
            `others` (mean change of accuracy in points against the unweighted epoch).
        result: of the search.
        judged: label -> accuracy on those rows `[before, unweighted, chosen]`.
        seconds: in all.
    """

    lines: pd.DataFrame
    result: rayinf.Reweighting
    judged: dict[str, list[float]]
    seconds: float


def study(split: Split, size: Size, mode: str, seed: int, args: argparse.Namespace) -> Study:
    """Train a checkpoint, value its rows, search, and judge."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    model = small_cnn() if args.quick else resnet9().to("cuda" if torch.cuda.is_available() else "cpu")
    columns = {"features": "image", "transform": to_images, "parameters": "all" if args.quick else "supported"}
    fresh = rayinf.Task(model, fit=replace(size.first, fresh=False), **columns)
    trained = rayinf.retrain(fresh, split.train, seed=seed)
    checkpoint = replace(trained, fit=replace(size.fit, fresh=False, epochs=1))
    before = rayinf.evaluate(checkpoint, split.search)
    targets = sorted(range(10), key=lambda k: before[f"accuracy_{k}"])[:2]
    valued = checkpoint if mode == "direct" else rayinf.retrain(checkpoint, split.train, seed=seed)
    scores = rayinf.influence(valued, split.train, split.search, "category", halves=True)
    cluster = rayinf.Cluster(workers=args.workers) if args.workers else None
    result = rayinf.pareto_reweight(
        checkpoint, split.train, split.search, scores, targets, mode, size.search, cluster, seed=seed
    )
    judge = Judge(checkpoint, split, targets, [seed + 1000 * k for k in range(args.shuffles)])
    lines = [judge.line("unweighted", 0.0, None)]
    aimed = np.isin(split.train["label"].to_numpy(), targets)
    lines += [judge.line("class weights", weight, np.where(aimed, weight, 1.0)) for weight in CLASS_WEIGHTS]
    for radius in RADII:
        weights = rayinf.reweight_lp(scores, targets, args.alpha, radius=radius, slack="scaled").weights
        lines.append(judge.line("LP", radius, weights))
    lines.append(judge.line("chosen", result.radius or 0.0, result.weights))
    start = rayinf.evaluate(checkpoint, split.judge)
    judged = {str(k): [start[f"accuracy_{k}"], judge.plain[k], judge.last[k]] for k in range(10)}
    frame = pd.DataFrame(lines).assign(seed=seed, mode=mode)
    return Study(frame, result, judged, time.perf_counter() - begin)


class Judge:
    """Trains with weights under some orders of the rows, and measures on rows that the search never saw."""

    def __init__(self, task: rayinf.Task, split: Split, targets: list[int], seeds: list[int]) -> None:
        self._task, self._split, self._targets, self._seeds = task, split, targets, seeds
        self.plain = self.last = self._accuracy(None)

    def line(self, way: str, knob: float, weights: np.ndarray | None) -> dict[str, object]:
        """The mean changes against the unweighted epochs in the same orders."""
        self.last = self.plain if weights is None else self._accuracy(weights)
        change = 100 * (self.last - self.plain)
        others = np.delete(change, self._targets).mean()
        return {"way": way, "knob": knob, "gain": change[self._targets].mean(), "others": others}

    def _accuracy(self, weights: np.ndarray | None) -> np.ndarray:
        found = []
        for seed in self._seeds:
            measured = rayinf.evaluate(
                rayinf.retrain(self._task, self._split.train, weights=weights, seed=seed), self._split.judge
            )
            found.append([measured[f"accuracy_{k}"] for k in range(10)])
        return np.mean(found, 0)


def of_class_weights(lines: pd.DataFrame, others: pd.Series) -> np.ndarray:
    """The gain of class weights at equal change of the others, between those that were tried.

    Past the largest weight it is that one's gain; where the others gain, it is the unweighted epoch's, 0.
    """
    plain = lines[lines["way"].isin(["unweighted", "class weights"])].sort_values("others")
    return np.interp(others, plain["others"], plain["gain"])


def above(lines: pd.DataFrame) -> float:
    """By how many points the LP's gain lies above that of class weights at equal loss, averaged over its curve.

    Points of the LP that cost more than the largest class weight are left out.
    """
    end = lines[lines["way"] == "class weights"]["others"].min()
    curve = lines[(lines["way"] == "LP") & (lines["others"] >= end)]
    return float((curve["gain"] - of_class_weights(lines, curve["others"])).mean())


def dominated(lines: pd.DataFrame) -> bool:
    """Whether the unweighted epoch or a class weight, of those tried or between them, does better in both."""
    chosen = lines[lines["way"] == "chosen"]
    if chosen["others"].item() > 0:  # better than the unweighted epoch, and all class weights cost something
        return False
    return bool((chosen["gain"] < of_class_weights(lines, chosen["others"]) - 1e-9).item())


def report(found: list[Study], mode: str) -> None:
    """The trade-off by way of weighting, over seeds; the chosen candidates; the paper's Table 1 beside ours."""
    lines = pd.concat([s.lines for s in found])
    table = Table(title=f"{mode}: change against the unweighted epoch, points, on rows that were never seen")
    for name in ("way", "weight or radius", "targets", "others"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for (way, knob), part in lines[lines["way"] != "chosen"].groupby(["way", "knob"], sort=False):
        table.add_row(way, f"{knob:.1f}", spread(part["gain"]), spread(part["others"]))
    CONSOLE.print(table)
    gaps = np.array([above(s.lines) for s in found])
    free, chosen = sum(not dominated(s.lines) for s in found), lines[lines["way"] == "chosen"]
    CONSOLE.print(f"goal: >= 0 points above, in the mean over seeds: {gaps.mean():+.2f}")
    CONSOLE.print(f"goal: the targets gain in 9 of 10 runs: {(chosen['gain'] > 0).sum()} of {len(found)}")
    CONSOLE.print(f"goal: dominated in none: {len(found) - free} of {len(found)}")
    paper(found[0], mode)


def show_chosen(s: Study) -> None:
    """The chosen candidate of one seed."""
    line = s.lines[s.lines["way"] == "chosen"].iloc[0]
    CONSOLE.print(
        f"{line['mode']}, seed {line['seed']}: chosen radius {line['knob']:.2f}, targets {line['gain']:+.2f}, others "
        f"{line['others']:+.2f}, {'dominated' if dominated(s.lines) else 'not dominated'} by the unweighted epoch or a "
        f"class weight; the LP's curve lies {above(s.lines):+.2f} points above that of class weights; {s.seconds:.0f} s"
    )


def paper(s: Study, mode: str) -> None:
    """The paper's Table 1 beside the chosen candidate of one seed: changes in %, as the paper counts them."""
    targets, others = PAPER[mode]
    table = Table(
        title=f"{mode}: change of accuracy in % (Nahin 2025, Table 1; ours: first seed, rows never seen)",
        show_lines=False,
    )
    for name in ("class", "paper", "from", "to", "ours"):
        table.add_column(name, justify="right")
    picked = s.result.classes.filter(s.result.classes["target"])["class"].to_pylist()
    for name, (before, plain, after) in s.judged.items():
        old = before if mode == "direct" else plain
        mark = " *" if name in picked else ""
        theirs = {**targets, **others}[int(name)]
        marked = f"{theirs:+.2f}{' *' if int(name) in targets else ''}"
        table.add_row(
            name, marked, f"{old:.3f}", f"{after:.3f}", f"{100 * (after / old - 1):+.2f}{mark}" if old else "-"
        )
    CONSOLE.print(table)
    CONSOLE.print("* a target. The paper does not say on which rows it measures.")


def spread(values: pd.Series) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():+.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def plot(found: dict[str, list[Study]], path: Path) -> None:
    """A panel a setting: the curve of the LP over its radius and that of class weights, over seeds."""
    figure = Figure(figsize=(5.6 * len(found), 4.6), layout="constrained")
    for axes, (mode, studies) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        lines = pd.concat([s.lines for s in studies])
        for way, colour, marker in (("class weights", "#D55E00", "s"), ("LP", "#0072B2", "o")):
            curve(axes, lines, way, colour, marker)
        chosen = lines[lines["way"] == "chosen"]
        axes.scatter(
            chosen["others"], chosen["gain"], marker="*", s=130, color="#009E73", zorder=4, label="chosen, a seed"
        )
        axes.scatter([0], [0], marker="D", s=36, color="black", zorder=4, label="unweighted epoch")
        axes.axhline(0, color="#BBBBBB", linewidth=0.8)
        axes.axvline(0, color="#BBBBBB", linewidth=0.8)
        kind = {"direct": "Direct improvement", "correct": "Course correction"}[mode]
        axes.set(title=kind, xlabel="other classes: change of accuracy, points")
        axes.set_ylabel("targets: change of accuracy, points")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(f"Rows that the search never saw; mean and standard deviation of {len(studies)} seeds", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def curve(axes: Axes, lines: pd.DataFrame, way: str, colour: str, marker: str) -> None:
    """Means over seeds by weight or radius, from the unweighted epoch on."""
    groups = lines[lines["way"].isin([way, "unweighted"])].groupby("knob")[["others", "gain"]]
    mean, std = groups.mean(), groups.std(ddof=1).fillna(0.0)
    label = "plain class weights" if way == "class weights" else "LP, over the radius"
    axes.errorbar(
        mean["others"], mean["gain"], std["gain"], std["others"], color=colour, marker=marker, ms=4, lw=1.4,
        elinewidth=0.7, label=label,
    )  # fmt: skip
    last = mean.iloc[-1]
    text = f"{mean.index[-1]:.1f}"
    axes.annotate(
        text, (last["others"], last["gain"]), xytext=(-6, 5), textcoords="offset points", color=colour, fontsize=9
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Study every seed in every setting, print the tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="Parquet of images to train on; left out, with --quick: synthetic ones"
    )
    parser.add_argument("--test", type=Path, help="Parquet of further validation images")
    parser.add_argument("--out", type=Path, help="the figure (.png)")
    parser.add_argument("--quick", action="store_true", help="a small CNN and a small search, for a CPU")
    parser.add_argument("--modes", nargs="*", choices=("direct", "correct"), default=["direct", "correct"])
    parser.add_argument("--seeds", type=int, default=3, help="checkpoints, each with its own rows (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of these seeds (default: 0)")
    parser.add_argument("--shuffles", type=int, default=2, help="orders of the rows that judging averages (default: 2)")
    parser.add_argument("--alpha", type=float, default=0.9, help="of all classes, for the LP's curve (default: 0.9)")
    parser.add_argument("--workers", type=int, default=0, help="of Ray; 0: this process")
    args = parser.parse_args(argv)
    if args.data is None and not args.quick:
        raise SystemExit("Pass --data and --test, or --quick alone for synthetic images.")
    size, test = QUICK if args.quick else FULL, pq.read_table(args.test) if args.test else None
    data = pq.read_table(args.data) if args.data else synthetic(TINY.rows + TINY.valid)
    size = size if args.data else TINY
    found: dict[str, list[Study]] = {mode: [] for mode in args.modes}
    for mode, studies in found.items():
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            studies.append(study(partition(data, test, size, seed), size, mode, seed, args))
            show_chosen(studies[-1])
        report(studies, mode)
    if args.out:
        plot(found, args.out)


if __name__ == "__main__":
    main()
