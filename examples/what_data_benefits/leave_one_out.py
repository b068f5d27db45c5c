"""Predicted against actual change when one training row is left out (Chhabra 2024, appendix B, Figure 7).

A logistic regression on the toy data (150 rows, two features). Every row in turn is left out and the model fitted anew
with the sum of the ridge unchanged, as influence has it; the change of each objective over the validation rows is set
against the row's influence. Attacked rows are those of the first model, as in the paper's Eq. 3. The paper leaves out
125 of the 150 rows; here all are. Total and robustness are sums of losses, the gaps are differences of means.

    python examples/what_data_benefits/leave_one_out.py --data FOLDER --out leave_one_out.png
    python examples/what_data_benefits/leave_one_out.py --quick        # 40 synthetic rows

`--data` is a folder with toy_train.parquet and toy_test.parquet, or one Parquet file of the form that common.py says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Split, arguments, show, splits, standardise
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import rayinf

OBJECTIVES = ("total", "demographic_parity", "equal_opportunity", "robustness")
PAPER = {"total": "0.99", "demographic_parity": "0.99", "equal_opportunity": "not shown", "robustness": "0.99"}
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # by objective, predicted and actual changes [rows]


def changes(split: Split, rows: np.ndarray, l2: float) -> Pairs:
    """Predicted and actual change of every objective when each of the rows is left out of the fit."""
    task = rayinf.logistic_regression(split.train, l2=l2, features=split.features, group="sensitive")
    scores = rayinf.influence(task, split.train, split.valid, OBJECTIVES, curvature="exact").to_pandas()
    before = rayinf.evaluate(task, split.valid, OBJECTIVES)
    actual = np.zeros((len(rows), len(OBJECTIVES)))
    for k, row in enumerate(rows):
        keep = np.arange(len(split.train)) != row
        refit = rayinf.retrain(task, split.train, keep=keep, rows=len(keep))
        after = rayinf.evaluate(refit, split.valid, OBJECTIVES, against=task)
        actual[k] = [after[name] - before[name] for name in OBJECTIVES]
    return {name: (scores[name].to_numpy()[rows], actual[:, j]) for j, name in enumerate(OBJECTIVES)}


def spearman(pair: tuple[np.ndarray, np.ndarray]) -> float:
    """Rank correlation of predicted and actual changes."""
    return float(spearmanr(*pair).statistic)


def plot(found: Pairs, path: Path) -> None:
    """A panel an objective; on the line the prediction is exact."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axes, (name, pair) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        ends = [min(map(np.min, pair)), max(map(np.max, pair))]
        axes.plot(ends, ends, color="#888888", linewidth=1, zorder=1)
        axes.scatter(*pair, s=14, color="#0072B2", alpha=0.7, linewidths=0)
        axes.set_title(f"{name.replace('_', ' ')}\nSpearman {spearman(pair):.4f}", fontsize=11)
        axes.set_xlabel("predicted change")
        axes.ticklabel_format(axis="both", scilimits=(-2, 2), useMathText=True)
    figure.axes[0].set_ylabel("actual change")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Refit without every row, print the correlations and plot."""
    parser = arguments(__doc__, "PNG of the four panels")
    parser.add_argument("--rows", type=int, default=150, help="rows to leave out, drawn at random of more")
    parser.add_argument("--l2", type=float, default=1e-3, help="the ridge")
    args = parser.parse_args(argv)
    for name, raw in splits(["toy"], args.data, args.quick):
        limit = min(len(raw.train), 40 if args.quick else args.rows)
        rows = np.sort(np.random.default_rng(0).permutation(len(raw.train))[:limit])
        found = changes(standardise(raw), rows, args.l2)
        lines = [
            (column, spearman(pair), float(np.corrcoef(*pair)[0, 1]), PAPER[column]) for column, pair in found.items()
        ]
        title = f"{name}: {limit} of {len(raw.train):,} rows left out in turn"
        show(title, ("objective", "Spearman", "Pearson", "paper (Spearman, 125 rows)"), lines)
        if args.out:
            plot(found, args.out)


if __name__ == "__main__":
    main()
