r"""Online learning from a stream with wrong labels, each batch trimmed first (Chhabra 2024, section 5.4, Figure 6 A-D).

The training rows arrive in 10 batches, in each of which a third of the labels is flipped. A logistic regression and a
linear SVM (hinge loss) learn from every batch by stochastic gradient descent (scikit-learn's `SGDClassifier`, as in the
paper's code): once as it comes, once after `rayinf.trim_stream` has removed at most a tenth of its rows, and once after
as many random rows are gone. Each batch is valued on its own on the clean validation rows, under a surrogate that is
fitted to that batch: a logistic regression (appendix C.3), and for the SVM also a linear SVM with squared hinge loss
(the hinge itself has no curvature). Test accuracy after every batch, means over seeds.

    python examples/what_data_benefits/online.py --data FOLDER --out online.png        # Adult and CelebA
    python examples/what_data_benefits/online.py --data own.parquet                    # see common.py
    python examples/what_data_benefits/online.py --quick                               # synthetic rows

The paper's Bank and Jigsaw Toxicity are not among the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import Split, arguments, show, splits, standardise
from matplotlib.figure import Figure
from sklearn.linear_model import SGDClassifier
from torch import Tensor, nn

import rayinf

BATCHES, FLIPPED, BUDGET, L2 = 10, 1 / 3, 0.1, 1e-2
LEARNERS = {"logistic": "log_loss", "SVM": "hinge"}
WAYS = {
    "logistic": ("untrimmed", "random", "trimmed"),
    "SVM": ("untrimmed", "random", "trimmed", "trimmed by SVM"),
}
PAPER = "Chhabra 2024: trimming makes both learners much more accurate on Adult, CelebA and Jigsaw, not on Bank."


def squared_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the margin between both logits: hinge loss with a curvature."""
    sign = 2.0 * labels.to(logits.dtype) - 1
    return (1 - sign * (logits[:, 1] - logits[:, 0])).clamp(min=0).square()


def fit_svm(task: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
    """The minimum of mean squared hinge + l2/2 ||theta||^2, by L-BFGS."""
    x = torch.tensor(np.stack([train.table[c].to_numpy() for c in task.feature_columns], 1), dtype=torch.float64)
    y = torch.tensor(train.table[task.label].to_numpy())
    model = nn.Linear(x.shape[1], 2, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    steps = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        steps.zero_grad()
        ridge = sum((p.square().sum() for p in model.parameters()), torch.zeros((), dtype=x.dtype))
        value = squared_hinge(model(x), y).mean() + task.l2 / 2 * ridge
        value.backward()
        return value

    steps.step(closure)
    return model.float()


def stream(split: Split, batches: int, rng: np.random.Generator) -> Iterator[pd.DataFrame]:
    """The training rows in random order, with labels flipped in each batch; `flipped` says which."""
    for rows in np.array_split(rng.permutation(len(split.train)), batches):
        batch = split.train.iloc[rows].reset_index(drop=True)
        flipped = np.zeros(len(batch), bool)
        flipped[rng.choice(len(batch), int(len(batch) * FLIPPED), replace=False)] = True
        yield batch.assign(label=np.where(flipped, 1 - batch["label"], batch["label"]), flipped=flipped)


def surrogate(split: Split, kind: str) -> rayinf.Task:
    """What a batch is valued under; `trim_stream` fits it to every batch."""
    if kind == "trimmed by SVM":
        model = nn.Linear(len(split.features), 2)
        return rayinf.Task(model, squared_hinge, split.features, l2=L2, fit=fit_svm, classes=(0, 1))
    return rayinf.Task(nn.Linear(len(split.features), 2), features=split.features, l2=L2, classes=(0, 1))


def trimmed(split: Split, batches: list[pd.DataFrame], way: str, seed: int) -> tuple[list[pd.DataFrame], float]:
    """The batches that a learner sees, and the share of flipped labels among the rows that were removed."""
    if way == "untrimmed":
        return batches, float("nan")
    if way == "random":
        return [b.sample(frac=1 - BUDGET, random_state=seed) for b in batches], FLIPPED
    kept, gone = [], []
    for part, batch in zip(
        rayinf.trim_stream(surrogate(split, way), batches, split.valid, BUDGET), batches, strict=True
    ):
        kept.append(part.table.to_pandas())
        gone.append(batch["flipped"].to_numpy()[part.selection.removed])
    return kept, float(np.concatenate(gone).mean())


def learn(split: Split, batches: int, seeds: int) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """A line for each seed, learner, way and batch: test accuracy in per cent; and the shares of flipped rows."""
    found, shares = [], {}
    x_test, y_test = split.test[split.features].to_numpy(), split.test["label"].to_numpy()
    for seed in range(seeds):
        arrived = list(stream(split, batches, np.random.default_rng(seed)))
        seen = {way: trimmed(split, arrived, way, seed) for way in WAYS["SVM"]}
        for way, (_, share) in seen.items():
            shares.setdefault(way, []).append(share)
        for learner, loss in LEARNERS.items():
            for way in WAYS[learner]:
                model = SGDClassifier(loss=loss, random_state=seed)
                for k, batch in enumerate(seen[way][0], 1):
                    model.partial_fit(batch[split.features].to_numpy(), batch["label"].to_numpy(), classes=[0, 1])
                    found.append((seed, learner, way, k, 100 * model.score(x_test, y_test)))
    return pd.DataFrame(found, columns=["seed", "learner", "way", "batch", "accuracy"]), shares


def show_batches(name: str, found: pd.DataFrame, shares: dict[str, list[float]], batches: int) -> None:
    """Mean accuracy over the stream and after the last batch, and what was removed."""
    lines = []
    for learner, ways in WAYS.items():
        for way in ways:
            held = found[(found["learner"] == learner) & (found["way"] == way)]
            last = held[held["batch"] == batches]["accuracy"]
            share = "" if way == "untrimmed" else f"{np.mean(shares[way]):.2f}"
            spread = last.std(ddof=1) if len(last) > 1 else 0.0
            lines.append((learner, way, f"{held['accuracy'].mean():.2f}", f"{last.mean():.2f} ± {spread:.2f}", share))
    columns = ("learner", "batches", "mean over the stream", "after the last", "flipped among the removed")
    show(f"{name}: test accuracy, {found['seed'].nunique()} seeds", columns, lines)


def plot(parts: dict[str, pd.DataFrame], path: Any) -> None:
    """A panel a table and learner: accuracy after each batch, with a band of one standard deviation."""
    figure = Figure(figsize=(9, 3.4 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 2, squeeze=False, sharey="row")
    for row, (name, found) in zip(panels, parts.items(), strict=True):
        for axes, (learner, ways) in zip(row, WAYS.items(), strict=True):
            for way in ways:
                held = found[(found["learner"] == learner) & (found["way"] == way)].groupby("batch")["accuracy"]
                mean, spread = held.mean(), held.std().fillna(0.0)
                axes.plot(mean.index, mean, marker="o", markersize=3, label=way)
                axes.fill_between(mean.index, mean - spread, mean + spread, alpha=0.12)
            axes.set(title=f"{name}: {learner}", xlabel="batch")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8, frameon=False)
        row[0].set_ylabel("test accuracy, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Learn from every table's stream, print and plot."""
    parser = arguments(__doc__, "PNG of the curves")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args(argv)
    batches, seeds = (3, 2) if args.quick else (BATCHES, args.seeds)
    parts = {}
    for name, raw in splits(("adult", "celeba"), args.data, args.quick):
        parts[name], shares = learn(standardise(raw), batches, seeds)
        show_batches(name, parts[name], shares, batches)
    print(PAPER)
    if args.out:
        plot(parts, args.out)


if __name__ == "__main__":
    main()
