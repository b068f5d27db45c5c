"""Has a logistic regression reached its ceiling? The synthetic sets of Nahin 2025, Figures 2 and 5.

Set A (Figure 2 A-C): 300 blue and 300 orange rows, uniform in two discs that a line separates; 50 blue and 20 orange
labels are flipped. Set B (Figure 2 D-F): 350 and 350, no wrong labels; the orange disc's radius changes with the angle,
so that no line separates the classes. The paper does not give centres and radii: here the discs have radius 1 and
centres 2.2 (set A) and 1.8 (set B) apart, and the orange radius of set B is 1 + 0.8 cos 2 t. Rows of the same kind,
with right labels, are the validation and the test set. Logistic regression with l2 = 1/n, exact Hessian.

For both sets: regions, the in-sample and the cross-fitted gain, and Figure 2. For set A also Figure 5: rounds in which
the rows that harm both classes are removed and the model is fitted again, until none is left. The paper's figure shows
three rounds after which all 70 flipped rows are gone; how many there are to the end it leaves to the picture.

    python examples/pareto_ceiling/synthetic.py
    python examples/pareto_ceiling/synthetic.py --seeds 10
    python examples/pareto_ceiling/synthetic.py --quick
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import rayinf

Rows = tuple[np.ndarray, np.ndarray]  # features [n, 2] and labels [n]

BLUE, ORANGE, RED, GREEN = "#2F6DB5", "#E8862E", "#C8102E", "#1E9E4A"
NAMES = ("blue", "orange")
FLIPPED = (50, 20)
SHOWN_ROUNDS = 3  # of Figure 5, as in the paper


@dataclass(frozen=True)
class Problem:
    """Rows to train on, of which some have a wrong label, and clean ones to value on and to test on."""

    name: str
    train: Rows
    flipped: np.ndarray
    valid: Rows
    test: Rows


@dataclass(frozen=True)
class Valued:
    """A fitted model, the influence of every row on both classes, and what that leaves room for."""

    problem: Problem
    task: rayinf.Task
    values: np.ndarray
    ceiling: rayinf.Ceiling


def disc(rng: np.random.Generator, rows: int, centre: float, radius: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Rows around `(centre, 0)`: uniform angles, and uniform in area out to a radius that depends on the angle."""
    angle = rng.uniform(0, 2 * np.pi, rows)
    out = radius(angle) * np.sqrt(rng.random(rows))
    return np.stack([centre + out * np.cos(angle), out * np.sin(angle)], axis=1)


def rows_of(name: str, rng: np.random.Generator) -> Rows:
    """Clean rows of set A or B."""
    rows, apart = (300, 1.1) if name == "A" else (350, 0.9)

    def round_one(angle: np.ndarray) -> np.ndarray:
        return np.ones_like(angle)

    def lobed(angle: np.ndarray) -> np.ndarray:
        return 1 + 0.8 * np.cos(2 * angle)

    x = [disc(rng, rows, -apart, round_one), disc(rng, rows, apart, round_one if name == "A" else lobed)]
    return np.concatenate(x), np.repeat([0, 1], rows)


def make(name: str, seed: int) -> Problem:
    """A set with its clean validation and test rows."""
    rng = np.random.default_rng(seed)
    (x, y), valid, test = (rows_of(name, rng) for _ in range(3))
    flipped = np.zeros(len(y), bool)
    if name == "A":
        for k, count in enumerate(FLIPPED):
            flipped[rng.choice(np.flatnonzero(y == k), count, replace=False)] = True
    return Problem(name, (x, np.where(flipped, 1 - y, y)), flipped, valid, test)


def value(problem: Problem, task: rayinf.Task, keep: np.ndarray | None = None) -> Valued:
    """Influence of the rows that are kept, and the ceiling."""
    x, y = problem.train
    train = (x, y) if keep is None else (x[keep], y[keep])
    scores = rayinf.influence(task, train, problem.valid, "category", curvature="exact", halves=True)
    return Valued(problem, task, scores.to_numpy(), rayinf.ceiling(scores))


def figure_2(pairs: Sequence[Valued], path: Path) -> None:
    """A row a set: the rows, their influence on both classes, and the same on the map of the rows."""
    figure = Figure(figsize=(15.0, 3.9 * len(pairs)), layout="constrained")
    letters = iter("ABCDEF")
    for line, held in zip(figure.subplots(len(pairs), 3, squeeze=False), pairs, strict=True):
        (x, y), flipped = held.problem.train, held.problem.flipped
        for k, colour in enumerate((BLUE, ORANGE)):
            line[0].scatter(*x[(y == k) & ~flipped].T, s=14, color=colour, label=f"labelled {NAMES[k]}")
        if flipped.any():
            given = [(BLUE, ORANGE)[k] for k in y[flipped]]
            line[0].scatter(*x[flipped].T, s=26, c=given, edgecolors="black", linewidths=0.9, label="flipped label")
        boundary(line[0], held.task, "black")
        line[0].legend(loc="upper left", fontsize=8, framealpha=0.9)
        plane(line[1], held)
        on_map(line[2], held)
        ceiling = held.ceiling
        titles = (
            f"set {held.problem.name}: {len(y)} training rows",
            f"influence: gain {ceiling.gain:.2f}, cross-fitted {ceiling.cross_fit:+.2f}",
            "colour depth: size of the influence",
        )
        for axes, title in zip(line, titles, strict=True):
            axes.set_title(f"{next(letters)}   {title}", fontsize=11, loc="left")
    save(figure, path)


def plane(axes: Axes, held: Valued, gone: np.ndarray | None = None) -> None:
    """Rows by their influence on both classes, coloured by label; flipped rows ringed, or those that go."""
    y, values = held.problem.train[1], held.values
    if gone is None:
        colours = [(BLUE, ORANGE)[k] for k in y]
        flipped = held.problem.flipped
        axes.scatter(*values.T, s=14, c=colours, alpha=0.7, linewidths=0)
        if flipped.any():
            ring = {"s": 34, "facecolors": "none", "edgecolors": "black", "linewidths": 0.8}
            axes.scatter(*values[flipped].T, label="flipped label", **ring)
    else:
        axes.scatter(*values[~gone].T, s=12, color="#8A8A8A", alpha=0.7, linewidths=0)
        axes.scatter(*values[gone].T, s=20, color=GREEN, linewidths=0, label=f"harm both: {gone.sum()} rows go")
    total = np.abs(values).sum(0)
    reach = np.abs(values).max(0) * 1.05
    end = min(reach[0], reach[1] * total[0] / total[1])
    steep = end * total[1] / total[0]
    axes.plot([-end, end], [steep, -steep], "--", color=GREEN, linewidth=1.2, label="y = -x in units of b")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set(xlabel="influence on blue's summed loss", ylabel="influence on orange's summed loss")
    counts = held.ceiling.regions
    text = f"help both {counts.jointly_helpful}\nharm both {counts.jointly_harmful}\nmixed {counts.mixed}"
    axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=8, va="bottom")
    axes.legend(loc="upper right", fontsize=8)


def on_map(axes: Axes, held: Valued) -> None:
    """Rows where they lie: left half blue's share, right half orange's; red where it is negative."""
    x = held.problem.train[0]
    for k, (colour, marker) in enumerate(((BLUE, "left"), (ORANGE, "right"))):
        size = np.abs(held.values[:, k])
        depth = np.sqrt(np.clip(size / np.quantile(size, 0.98), 0.02, 1))
        shades = np.array([to_rgba(colour if v > 0 else RED) for v in held.values[:, k]])
        white = np.ones(4)
        mixed = white + depth[:, None] * (shades - white)
        half_discs(axes, x, mixed, marker)
    axes.set(xlabel="left half: for blue, right half: for orange; red: harms", ylabel="")
    boundary(axes, held.task, "black")


def half_discs(axes: Axes, x: np.ndarray, colours: np.ndarray, side: str) -> None:
    """A half disc a row."""
    turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 16) + (0 if side == "left" else np.pi)
    axes.scatter(*x.T, s=44, c=colours, marker=np.stack([np.cos(turn), np.sin(turn)], 1), linewidths=0)


def figure_5(problem: Problem, first: rayinf.Task, rounds: rayinf.TrimRounds, path: Path) -> None:
    """A row a round: the rows and the boundary, their influence with those that go, and what the refit does."""
    shown = min(SHOWN_ROUNDS, rounds.rounds)
    figure = Figure(figsize=(15.0, 3.7 * shown), layout="constrained")
    x, y = problem.train
    task, letters = first, iter("ABCDEFGHI")
    for r, line in enumerate(figure.subplots(shown, 3, squeeze=False), 1):
        here = (rounds.round_of == 0) | (rounds.round_of >= r)
        rest = here & (rounds.round_of != r)
        held = value(problem, task, here)
        scatter(line[0], problem, here)
        boundary(line[0], task, "black", accuracies(task, problem))
        plane(line[1], held, rounds.round_of[here] == r)
        task = rayinf.retrain(first, (x, y), keep=rest, rows=len(y))
        scatter(line[2], problem, rest)
        boundary(line[2], task, "black", accuracies(task, problem))
        wrong = [int((problem.flipped & mask).sum()) for mask in (here, rest)]
        titles = (f"round {r}: {wrong[0]} flipped rows left", "influence under this model", f"after: {wrong[1]} left")
        for axes, title in zip(line, titles, strict=True):
            axes.set_title(f"{next(letters)}   {title}", fontsize=11, loc="left")
        for axes in (line[0], line[2]):
            axes.legend(loc="upper left", fontsize=8, framealpha=0.9)
    save(figure, path)


def scatter(axes: Axes, problem: Problem, rows: np.ndarray) -> None:
    """Some training rows in the colours of their labels."""
    (x, y), flipped = problem.train, problem.flipped
    for k, colour in enumerate((BLUE, ORANGE)):
        axes.scatter(*x[rows & (y == k)].T, s=12, color=colour, linewidths=0)
    axes.scatter(*x[rows & flipped].T, s=30, facecolors="none", edgecolors="black", linewidths=0.8, label="flipped")


def accuracies(task: rayinf.Task, problem: Problem) -> str:
    """Test accuracy of both classes."""
    found = rayinf.evaluate(task, problem.test)
    return f"test: blue {found['accuracy_0']:.1%}, orange {found['accuracy_1']:.1%}"


def boundary(axes: Axes, task: rayinf.Task, colour: str, label: str | None = None) -> None:
    """Where both classes are as likely."""
    head = next(m for m in task.build().modules() if isinstance(m, torch.nn.Linear))
    w = np.diff(head.weight.detach().numpy(), axis=0)[0]
    b = float(np.diff(head.bias.detach().numpy())[0])
    low, high = axes.get_ylim()
    limits = axes.get_xlim(), (low, high + 0.22 * (high - low))  # room for the legend
    up = np.array(limits[1])
    axes.plot(-(w[1] * up + b) / w[0], up, color=colour, linewidth=1.4, label=label)
    axes.set(xlim=limits[0], ylim=limits[1])


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"drawn: {path}")


def run(seed: int, out: Path | None) -> tuple[list[str], list[str]]:
    """Both sets of a seed: a line of the certificates, and one of the rounds."""
    held = []
    for name in ("A", "B"):
        problem = make(name, seed)
        task = rayinf.logistic_regression(problem.train, l2=1 / len(problem.train[1]))
        held.append(value(problem, task))
    if out is not None:
        figure_2(held, out / f"figure_2_seed{seed}.png")
        held[0].ceiling.plot(out / f"plane_A_seed{seed}.png", title="set A")
        for one in held:
            print(f"\nset {one.problem.name}, seed {seed}\n{one.ceiling.to_text()}\n")
    certificate = [str(seed)]
    for one in held:
        ceiling = one.ceiling
        certificate += [f"{ceiling.gain:.3f}", f"{ceiling.cross_fit:+.3f}", "room" if ceiling.room else "none"]
    a = held[0]
    rounds = rayinf.trim_rounds(a.task, a.problem.train, a.problem.valid, test=a.problem.test, rounds=30)
    if out is not None and rounds.rounds:
        figure_5(a.problem, a.task, rounds, out / f"figure_5_seed{seed}.png")
    gone, lines = ~rounds.mask, [line for line in rounds.table.to_pylist() if not line["undone"]]
    change = [f"{lines[0][c]:.1%}->{lines[-1][c]:.1%}" for c in ("test_accuracy_0", "test_accuracy_1")]
    wrong = int((gone & a.problem.flipped).sum())
    return certificate, [str(seed), str(rounds.rounds), f"{wrong} of 70", str(int(gone.sum()) - wrong), *change]


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the seeds, print both tables, draw the first seed's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="draws of the sets (default: 4)")
    parser.add_argument("--quick", action="store_true", help="one seed")
    here = Path(__file__).parent / "out"
    parser.add_argument("--out", type=Path, default=here, help="folder of the first seed's figures")
    args = parser.parse_args(argv)
    found = [run(seed, args.out if seed == 0 else None) for seed in range(1 if args.quick else args.seeds)]
    columns = [f"{name}: {what}" for name in "AB" for what in ("gain", "cross-fit", "room?")]
    show("The certificate (expected: room in set A, none in set B)", ["seed", *columns], [line for line, _ in found])
    columns = ["seed", "rounds", "flipped gone", "clean gone", "test, blue", "test, orange"]
    show(
        "Set A: rows that harm both classes removed in rounds (paper: 70 of 70)",
        columns,
        [line for _, line in found],
    )


if __name__ == "__main__":
    main()
