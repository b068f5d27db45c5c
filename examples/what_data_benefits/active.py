r"""Active learning by an influence tree (Chhabra 2024, section 5.5, Figure 6 E): ten rounds.

Diabetic retinopathy, 10 labels a round. Every round values the labelled rows on the validation rows, grows a tree of
these values on the features alone, and asks for the labels of the pool's rows that the tree values most (strategy
"tree"); beside it isal, entropy (with two classes margin and uncertainty pick the same) and random. The strategies
choose with a logistic regression. Accuracy on the test rows is that of a linear SVM on the labelled rows, as in the
paper, and of the logistic regression itself.

The first seed takes the rows' own split (column `split`: init, pool, val, test, as in the paper); the others draw the
same numbers of rows anew, since one test set of 101 rows shows little.

    python examples/what_data_benefits/active.py --data diabetic_retinopathy.parquet --out active.png
    python examples/what_data_benefits/active.py --quick          # synthetic rows

`--data` is a Parquet file with a column `label` (0 or 1), numeric features, and perhaps `split`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import rayinf

STRATEGIES = ("tree", "isal", "entropy", "random")
NAMES = ("init", "pool", "val", "test")
SIZES = {"init": 150, "pool": 800, "val": 100, "test": 101}
PAPER = (
    "Chhabra 2024: influence sampling is above the others in most rounds, and best after the last (means of 5 runs)."
)


def synthetic(rows: int = 1151) -> pd.DataFrame:
    """Two overlapping classes in 19 features, where no data is given."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, rows)
    x = rng.normal(size=(rows, 19)) + 0.35 * y[:, None] * rng.normal(size=19)
    return pd.DataFrame(x, columns=[f"f{k}" for k in range(19)]).assign(label=y)


def partition(frame: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """The rows' own split for seed 0, where they have one; else as many rows each at random."""
    if seed == 0 and "split" in frame and set(NAMES) <= set(frame["split"]):
        return {n: frame[frame["split"] == n].drop(columns="split").reset_index(drop=True) for n in NAMES}
    shuffled = frame.drop(columns="split", errors="ignore").sample(frac=1, random_state=seed).reset_index(drop=True)
    sizes = np.array([SIZES[n] for n in NAMES]) / sum(SIZES.values()) * len(frame)
    ends = [0, *np.cumsum(sizes).round().astype(int)]
    return {n: shuffled[ends[k] : ends[k + 1]].reset_index(drop=True) for k, n in enumerate(NAMES)}


def svm_accuracy(parts: dict[str, pd.DataFrame], history: rayinf.History, strategy: str, seed: int) -> list[float]:
    """Of a linear SVM on the labelled rows of every round, in per cent."""
    features = [c for c in parts["init"] if c != "label"]
    picked = [np.zeros(0, int), *history.picked[(strategy, seed)]]
    out = []
    for r in range(len(picked)):
        rows = pd.concat([parts["init"], parts["pool"].iloc[np.concatenate(picked[: r + 1])]])
        svm = make_pipeline(StandardScaler(), SVC(kernel="linear")).fit(rows[features], rows["label"])
        out.append(100 * svm.score(parts["test"][features], parts["test"]["label"]))
    return out


def learn(frame: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """A line for each seed, strategy and round: accuracy of the SVM and of the logistic regression."""
    found = []
    for seed in range(args.seeds):
        parts = partition(frame, seed)
        features = [c for c in parts["init"] if c != "label"]
        known = pd.concat([parts["init"], parts["pool"]])[features]
        for part in parts.values():
            part[features] = (part[features] - known.mean()) / known.std().replace(0, 1)
        task = rayinf.logistic_regression(parts["init"], l2=args.l2, features=features)
        given = (parts["pool"], parts["pool"], parts["test"], args.rounds, args.n, STRATEGIES, parts["val"])
        history = rayinf.active_learning(task, parts["init"], *given, seed=seed, curvature="exact")
        lines = history.to_pandas().set_index(["strategy", "round"])["accuracy"]
        for strategy in STRATEGIES:
            for r, svm in enumerate(svm_accuracy(parts, history, strategy, seed)):
                found.append((seed, strategy, r, svm, 100 * lines[strategy, r]))
    return pd.DataFrame(found, columns=["seed", "strategy", "round", "SVM", "logistic"])


def show(found: pd.DataFrame, rounds: int, console: Console) -> None:
    """Mean over rounds and after the last, and in how many rounds the tree is above each other strategy."""
    for learner in ("SVM", "logistic"):
        means = found.groupby(["strategy", "round"])[learner].mean().unstack("strategy")
        last = found[found["round"] == rounds].groupby("strategy")[learner]
        table = Table(title=f"test accuracy of the {learner}, {found['seed'].nunique()} seeds")
        for name in ("strategy", "mean over rounds", f"after round {rounds}", "rounds in which tree is above"):
            table.add_column(name, justify="left" if name == "strategy" else "right")
        for strategy in STRATEGIES:
            after = last.get_group(strategy)
            above = "" if strategy == "tree" else f"{(means['tree'] > means[strategy])[1:].sum()} of {rounds}"
            table.add_row(
                strategy,
                f"{means[strategy][1:].mean():.2f}",
                f"{after.mean():.2f} ± {after.std(ddof=1) if len(after) > 1 else 0.0:.2f}",
                above,
            )
        console.print(table)
    console.print(PAPER)


def plot(found: pd.DataFrame, n: int, path: Path) -> None:
    """Figure 6 E: a line a strategy, means over seeds with their standard error."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, learner in zip(figure.subplots(1, 2, sharey=True), ("SVM", "logistic"), strict=True):
        for strategy in STRATEGIES:
            groups = found[found["strategy"] == strategy].groupby("round")[learner]
            mean, error = groups.mean(), groups.sem().fillna(0.0)
            style = {"linewidth": 2.2} if strategy == "tree" else {"linestyle": "--", "linewidth": 1.4}
            axes.plot(mean.index * n, mean, label=strategy, **style)
            axes.fill_between(mean.index * n, mean - error, mean + error, alpha=0.12)
        axes.set(xlabel="labels used", title=f"{learner} on the labelled rows")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Learn over all seeds, print the tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Parquet with label, numeric features and perhaps split")
    parser.add_argument("--seeds", type=int, default=10, help="partitions of the rows (default: 10; the paper: 5 runs)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--n", type=int, default=10, help="labels a round")
    parser.add_argument("--l2", type=float, default=1e-2, help="the ridge of the logistic regression")
    parser.add_argument("--quick", action="store_true", help="two rounds of two seeds")
    parser.add_argument("--out", type=Path, help="PNG of the curves")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.rounds = 2, 2
    frame = pd.read_parquet(args.data) if args.data else synthetic(300 if args.quick else 1151)
    found = learn(frame, args)
    show(found, args.rounds, Console())
    if args.out:
        plot(found, args.n, args.out)


if __name__ == "__main__":
    main()
