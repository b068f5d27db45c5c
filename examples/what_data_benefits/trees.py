"""Influence trees, and the regions that they call helpful or harmful (Chhabra 2024, Algorithm 1, Figures 1, 11-22).

Adult and CelebA: a logistic regression's influence on total, demographic parity and robustness, and for each a tree of
it over the training rows' features and label, as text and as a drawing (Figures 11-13, 17-19; Bank and Jigsaw are not
among the data). The model is fitted to standardised features; the trees see the raw ones, so that they can be read.

Toy data (Figure 1): for the same three, the regions of a tree with the rows that are trimmed (at most 10) marked, and
the validation rows before and after: loss, DP gap, accuracy on attacked rows (made against the first model), accuracy.
On the published toy data accuracy is 1 before (the paper's picture has a few errors), so total is shown by its loss.

    python examples/what_data_benefits/trees.py --data FOLDER --out figures
    python examples/what_data_benefits/trees.py --quick --out figures        # synthetic rows, two features

`--data` is a folder with the Parquet files of adult, celeba and toy (common.py), or one file of the form it says, of
which trees are drawn, and regions too where it has two features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import Split, arguments, partition, show, splits, standardise, synthetic

import rayinf

OBJECTIVES = ("total", "demographic_parity", "robustness")
FIGURES = {
    "adult": dict(zip(OBJECTIVES, (11, 12, 13), strict=True)),
    "celeba": dict(zip(OBJECTIVES, (17, 18, 19), strict=True)),
}
# What the paper says of its toy data: robustness from 0.01 to 0.42; accuracy and fairness improve (a picture).
TOY = {
    "total": ("total", "total: loss", "better"),
    "demographic_parity": ("demographic_parity", "demographic parity: gap", "better"),
    "robustness": ("robustness_accuracy", "robustness: attacked acc.", "0.01->0.42"),
}
BUDGET = 10  # rows of the toy data, as in the paper


def trees(name: str, raw: Split, depth: int, out: Path | None) -> None:
    """A tree for each objective, printed and drawn."""
    split = standardise(raw)
    task = rayinf.logistic_regression(split.train, features=split.features, group="sensitive")
    scores = rayinf.influence(task, split.train, split.valid, OBJECTIVES, curvature="exact").to_pandas()
    for objective in OBJECTIVES:
        grown = rayinf.InfluenceTree(max_depth=depth)
        grown.fit(raw.train[raw.features], raw.train["label"], scores[objective])
        number = FIGURES.get(name, {}).get(objective)
        title = f"{name}: influence on {objective.replace('_', ' ')}" + (
            f" (Chhabra 2024, Figure {number})" if number else ""
        )
        print(f"\n{title}\n{grown.export_text()}")
        if out:
            grown.plot(out / f"tree_{name}_{objective}.png", title=title)


def regions(name: str, split: Split, depth: int, out: Path | None) -> None:
    """Trim by each objective, show the validation rows before and after, and draw regions with the trimmed rows."""
    task = rayinf.logistic_regression(split.train, features=split.features, group="sensitive")
    scores = rayinf.influence(task, split.train, split.valid, OBJECTIVES, curvature="exact")
    before = rayinf.evaluate(task, split.valid, OBJECTIVES)
    lines = []
    for objective, (measure, label, paper) in TOY.items():
        kept = rayinf.trim(scores, BUDGET, by=objective)
        after = rayinf.evaluate(
            rayinf.retrain(task, split.train, keep=kept.mask), split.valid, OBJECTIVES, against=task
        )
        changes = [f"{before[column]:.2f}->{after[column]:.2f}" for column in (measure, "accuracy")]
        lines.append((label, int((~kept.mask).sum()), *changes, paper))
        if out:
            values, x, y = scores.to_pandas()[objective], split.train[split.features], split.train["label"]
            grown = rayinf.InfluenceTree(max_depth=depth).fit(x, y, values)
            grown.plot_regions(
                out / f"regions_{name}_{objective}.png",
                x,
                y,
                groups=split.train["sensitive"],
                removed=~kept.mask,
                boundary=boundary(task),
                title=f"{name}: influence on {objective.replace('_', ' ')} (Chhabra 2024, Figure 1)",
            )
    columns = ("trimmed by: measure", "rows", "of it", "accuracy", "paper")
    show(f"{name}: validation rows, at most {BUDGET} training rows trimmed", columns, lines)


def boundary(task: rayinf.Task) -> tuple[np.ndarray, float]:
    """Where a two-class linear model is undecided, as `(w, b)`: `w'x + b = 0`."""
    head = next(m for m in task.build().modules() if isinstance(m, torch.nn.Linear))
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    return weight[1] - weight[0], float(bias[1] - bias[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Grow, print and draw."""
    parser = arguments(__doc__, "folder of the figures")
    parser.add_argument("--depth", type=int, default=3, help="of the trees (default: 3)")
    args = parser.parse_args(argv)
    for name, raw in splits(["adult", "celeba", "toy"], args.data, args.quick):
        if name != "toy":
            trees(name, raw, args.depth, args.out)
        if len(raw.features) == 2:
            regions(name, standardise(raw), args.depth, args.out)
    if args.quick and args.data is None:
        frame = synthetic(250)
        telling = frame.corr()["label"].drop(["label", "sensitive"]).abs().nlargest(2).index
        regions("synthetic", standardise(partition(frame[[*telling, "label", "sensitive"]])), args.depth, args.out)


if __name__ == "__main__":
    main()
