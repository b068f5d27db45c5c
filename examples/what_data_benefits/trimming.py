"""Trimming by influence against random trimming (Chhabra 2024, Algorithm 2, Figures 2, 8 and 9).

Influence is measured on the validation rows, up to 5% of the training rows are trimmed, the model is fitted anew and
measured on the test rows: accuracy (trimmed by total), the gaps of demographic parity and equal opportunity (each
trimmed by itself) and accuracy on attacked test rows (trimmed by robustness).

Attacked rows are made once, against the model before trimming, as in the paper's code. This says how far an old attack
still works, and little of a new one: the linear attack takes a row gamma = 1.3 times its way to the boundary along the
old weights w, so it fails nearly everywhere at once when a refit's w' has w'w / |w|^2 < 1 / 1.3, however small its
margins. So a second table has both attacks, linear and FGSM, aimed at the old model and at the one that is measured
(where the linear one flips every prediction of a logistic regression, by construction).

    logistic   a regression fitted to convergence, the exact Hessian (Figures 2 and 9)
    mlp        two hidden layers with ReLU (Figures 8 and 9); influence is that of its last layer, a linear surrogate on
               the embedding (section 2 of the paper), with the head's own Hessian; the whole network is trained anew.
               Training is random, so figures are means over --fits seeds, each with its own random trimming. The linear
               attack is one to first order here.

    python examples/what_data_benefits/trimming.py --data FOLDER --out figures
    python examples/what_data_benefits/trimming.py --data rows.parquet --models logistic
    python examples/what_data_benefits/trimming.py --quick               # synthetic rows

`--data` is a folder with adult_train.parquet, adult_test.parquet and celeba_attr.parquet, or one Parquet file of the
form that common.py says. The paper has 104,163 rows of CelebA and does not say which; here it is all, in the standard
split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import Split, arguments, show, splits, standardise
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import rayinf

BUDGET = 0.05  # of the training rows, at most
RIDGE = 1e-3
FGSM = replace(rayinf.robustness("fgsm", epsilon=0.1), name="robustness_fgsm")  # features have spread 1
ATTACKS = ("robustness", FGSM)
OBJECTIVES = ("total", "demographic_parity", "equal_opportunity", *ATTACKS)
MEASURES = {  # by the column that is trimmed by: what it should change, its name, what the paper's figures show
    "total": ("accuracy", "accuracy", "flat"),
    "demographic_parity": ("demographic_parity", "DP gap", "falls"),
    "equal_opportunity": ("equal_opportunity", "EOP gap (loss)", "falls"),
    "robustness": ("robustness_accuracy", "linear attack", "rises"),
    "robustness_fgsm": ("robustness_fgsm_accuracy", "FGSM attack", "-"),
}
ANEW = "anew_"  # before measures of rows that were attacked anew
HARD = {"demographic_parity": "DP gap, classes", "equal_opportunity": "EOP gap, rates"}
GOALS = {"adult": (35.0, 50.0), "celeba": (50.0, 10.0)}  # DP gap down by per cent, attacked accuracy up by points
RANDOM_GOAL = 3.0  # per cent of the DP gap that random trimming moves, at most
BLUE, RED, GREY = "#0072B2", "#C51B1B", "#BBBBBB"


@dataclass(frozen=True)
class Study:
    """What was measured of a model on a table.

    Attributes:
        lines: a line for every fit, way of trimming (`by`, or random) and budget: rows removed, and measures.
        values: by column, influence of the training rows as a share of them, lowest first (first fit).
    """

    lines: pd.DataFrame
    values: dict[str, np.ndarray]


def make_task(model: str, split: Split, args: argparse.Namespace, seed: int) -> rayinf.Task:
    """A trained model: the logistic regression, or the network whose last layer is valued."""
    if model == "logistic":
        return rayinf.logistic_regression(split.train, l2=RIDGE, features=split.features, group="sensitive")
    hidden = [nn.Linear(len(split.features), 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()]
    fit = rayinf.Fit(epochs=args.epochs, batch_size=min(256, max(16, len(split.train) // 64)))
    columns = {"features": split.features, "group": "sensitive"}
    task = rayinf.Task(nn.Sequential(*hidden, nn.Linear(32, 2)), parameters="last", l2=RIDGE, fit=fit, **columns)
    return rayinf.retrain(task, split.train, seed=seed)


def study(model: str, split: Split, args: argparse.Namespace) -> Study:
    """Trim by every objective and at random, over all budgets, for each fit."""
    budgets = np.linspace(0, BUDGET, args.points[model] + 1)[1:]
    found, values = [], {}
    for seed in range(args.fits if model == "mlp" else 1):
        task = make_task(model, split, args, seed)
        scores = rayinf.influence(task, split.train, split.valid, OBJECTIVES, curvature="exact")
        values = values or {column: np.sort(scores.to_pandas()[column].to_numpy()) for column in scores.columns}
        for by, budget, keep in ways(scores, budgets, [seed] if model == "mlp" else range(args.draws)):
            refit = task if keep.all() else rayinf.retrain(task, split.train, keep=keep, seed=seed)
            measured = rayinf.evaluate(refit, split.test, OBJECTIVES, against=task)
            measured |= {ANEW + name: v for name, v in rayinf.evaluate(refit, split.test, ATTACKS).items()}
            found.append({"fit": seed, "by": by, "budget": budget, "removed": int((~keep).sum()), **measured})
    return Study(pd.DataFrame(found), values)


def ways(scores: rayinf.Scores, budgets: np.ndarray, draws: Sequence[int]) -> Iterator[tuple[str, float, np.ndarray]]:
    """Which rows to keep: all, and for every budget without those of each column, and without random ones."""
    rows = len(scores)
    yield "before", 0.0, np.ones(rows, bool)
    orders = [np.random.default_rng(draw).permutation(rows) for draw in draws]
    for budget in budgets:
        for by in scores.columns:
            yield by, budget, rayinf.trim(scores, round(budget * rows), by=by).mask
        for order in orders:
            yield "random", budget, np.argsort(order) >= round(budget * rows)


def at_end(lines: pd.DataFrame, by: str) -> pd.DataFrame:
    """The lines of one way of trimming at the largest budget."""
    return lines[(lines["by"] == by) & (lines["budget"] == lines["budget"].max())]


def table(name: str, model: str, lines: pd.DataFrame) -> None:
    """Every measure before, after our trimming of at most 5% (so many rows), and after random trimming."""
    before, random = lines[lines["by"] == "before"].mean(numeric_only=True), at_end(lines, "random")
    out = []
    for by, (measure, label, paper) in MEASURES.items():
        ours = at_end(lines, by)
        for column, text in [(measure, label), *([(f"{by}_hard", HARD[by])] if by in HARD else [])]:
            after = (f"{ours['removed'].mean():.0f}", f"{before[column]:.3f}", f"{ours[column].mean():.3f}")
            change = f"{ours['accuracy'].mean() - before['accuracy']:+.3f}"
            out.append((text, *after, with_spread(random[column]), change, paper))
    columns = ("measure", "rows", "before", "ours", "random", "Δ accuracy", "paper")
    fits = lines["fit"].nunique()
    show(f"{name}, {model}, {100 * BUDGET:.0f}% trimmed{f', mean of {fits} fits' if fits > 1 else ''}", columns, out)


def attacks(name: str, model: str, lines: pd.DataFrame) -> None:
    """Accuracy on attacked rows by what is trimmed by, the attack, and the model that it is aimed at."""
    before, random = lines[lines["by"] == "before"].mean(numeric_only=True), at_end(lines, "random")
    out = []
    for by, trimmed in (("robustness", "linear"), ("robustness_fgsm", "FGSM")):
        ours = at_end(lines, by)
        for attack, label in (("robustness", "linear"), ("robustness_fgsm", "FGSM")):
            for prefix, aimed in (("", "before"), (ANEW, "measured")):
                column = f"{prefix}{attack}_accuracy"
                after = (f"{before[column]:.3f}", f"{ours[column].mean():.3f}", with_spread(random[column]))
                out.append((trimmed, label, aimed, *after))
    columns = ("trimmed by", "attack", "aimed at the model", "before", "ours", "random")
    show(f"{name}, {model}, accuracy on attacked rows", columns, out)


def with_spread(values: pd.Series) -> str:
    """Mean and standard deviation as text."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0.0:.3f}"


def changes(lines: pd.DataFrame) -> tuple[float, float, float]:
    """Per cent by which the DP gap falls, the most that random trimming moves it, points of attacked accuracy won."""
    before = lines[lines["by"] == "before"].iloc[0]
    gap, attacked = before["demographic_parity"], before["robustness_accuracy"]
    ours = at_end(lines, "demographic_parity")["demographic_parity"].item()
    random = (at_end(lines, "random")["demographic_parity"] / gap - 1).abs().max()
    won = at_end(lines, "robustness")["robustness_accuracy"].item() - attacked
    return 100 * (1 - ours / gap), 100 * random, 100 * won


def summary(found: dict[str, pd.DataFrame]) -> None:
    """The logistic model beside the goals of this project."""
    out = []
    for name, lines in found.items():
        fall, random, won = changes(lines)
        for text, value, goal, met in (
            ("DP gap falls by %", fall, f"at least {GOALS[name][0]:.0f}", fall >= GOALS[name][0]),
            ("random moves the DP gap by %, at most", random, f"under {RANDOM_GOAL:.0f}", random < RANDOM_GOAL),
            (
                "accuracy under the old attack rises by points",
                won,
                f"at least {GOALS[name][1]:.0f}",
                won >= GOALS[name][1],
            ),
        ):
            out.append((f"{name}: {text}", f"{value:.1f}", goal, "yes" if met else "no"))
    show("logistic, 5% trimmed, test rows", ("what", "measured", "goal", "met"), out)


def plot(found: Study, title: str, path: Path) -> None:
    """A panel a measure: ours and random on the left axis, influence of the trimmed rows on the right one."""
    figure = Figure(figsize=(4.0 * len(MEASURES), 3.8), layout="constrained")
    for axes, (by, (measure, label, _)) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        right = axes.twinx()
        ranked = found.values[by][: round(BUDGET * len(found.values[by]))]
        ranked = ranked[: int(at_end(found.lines, by)["removed"].max())]
        across = np.linspace(0, 100 * len(ranked) / len(found.values[by]), len(ranked))
        right.fill_between(across, ranked, color=GREY, alpha=0.35, linewidth=0)
        right.tick_params(axis="y", colors="#777777")
        right.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        axes.set_zorder(right.get_zorder() + 1)
        axes.patch.set_visible(False)
        for way, name, colour in ((by, "ours", BLUE), ("random", "random", RED)):
            curve(axes, found.lines, way, measure, name, colour)
        shown = f"accuracy, {label}" if measure.endswith("_accuracy") else label
        axes.set(title=f"{shown}\ntrimmed by {by.replace('_', ' ')}", xlabel="trimmed, % of the training rows")
    right.set_ylabel("influence of the trimmed rows", color="#777777")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="upper left", ncols=2, frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def curve(axes: Axes, lines: pd.DataFrame, by: str, measure: str, name: str, colour: str) -> None:
    """Mean and standard deviation over fits, or draws, from the model before trimming on."""
    groups = lines[lines["by"].isin([by, "before"])].groupby("budget")[measure]
    mean, spread = groups.mean(), groups.std(ddof=0).fillna(0.0)
    axes.plot(100 * mean.index, mean, color=colour, marker="o", markersize=3, label=name)
    axes.fill_between(100 * mean.index, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Trim, print the tables and draw."""
    parser = arguments(__doc__, "folder of the figures, a PNG a table and model")
    parser.add_argument("--models", nargs="*", choices=("logistic", "mlp"), default=["logistic", "mlp"])
    parser.add_argument("--fits", type=int, default=3, help="trainings of the mlp (default: 3)")
    parser.add_argument("--draws", type=int, default=5, help="random trimmings of the logistic model (default: 5)")
    parser.add_argument("--epochs", type=int, default=10, help="of the mlp (default: 10)")
    args = parser.parse_args(argv)
    args.points = {"logistic": 10, "mlp": 5}
    if args.quick:
        args.fits, args.draws, args.epochs, args.points = 1, 2, 3, {"logistic": 2, "mlp": 1}
    with_goals = {}
    for name, raw in splits(["adult", "celeba"], args.data, args.quick):
        split = standardise(raw)
        for model in args.models:
            found = study(model, split, args)
            table(name, model, found.lines)
            attacks(name, model, found.lines)
            if args.out:
                plot(found, f"{name}, {model}", args.out / f"trimming_{name}_{model}.png")
            if model == "logistic" and name in GOALS:
                with_goals[name] = found.lines
    if with_goals:
        summary(with_goals)


if __name__ == "__main__":
    main()
