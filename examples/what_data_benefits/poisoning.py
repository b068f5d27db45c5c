"""Trimming by demographic parity as a defence against poisoned fairness (Chhabra 2024, section 5.2, Table 1).

RAA and NRAA (Mehrabi et al. 2021) add 10% of anchoring rows: near rows of the disadvantaged group that have label 1,
rows of that group with label 0, and of the other group the other way round. A logistic regression is fitted to the
poisoned table, its rows are valued by demographic parity on half of the test file, at most a tenth of them go (fewer
where the predicted gap is used up), and the model is fitted anew. All is measured on the other half: means of ten such
halvings.

    python examples/what_data_benefits/poisoning.py --data FOLDER --out poisoning.png
    python examples/what_data_benefits/poisoning.py --data one.parquet
    python examples/what_data_benefits/poisoning.py --quick

FOLDER holds {raa,nraa}_{german,compas}_{train_clean,train_poisoned,test}.parquet. One Parquet file of the form that
common.py says, and the synthetic rows of --quick, are poisoned here by RAA. The paper's third data set, Drug, is
not among ours.

On the paper's figures: its code values rows on the test rows that it then measures on, and trims a number of rows set
for each table (German: 2 under RAA, 40 under NRAA; Compas: 1, 150). Its models have no intercept, and the group's flag
is one of their features. In the RAA training files that it published the flag is inverted, in the test file it is not;
our copies have it put right. The last table fits models of the paper's kind: its rows after RAA are near those with the
inverted flag.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from common import Split, arguments, of_parts, show, splits, standardise, table_of
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import rayinf

GAP = "demographic_parity"
BUDGET, POISON = 0.1, 0.1
MODELS = ("clean", "poisoned", "trimmed")
MEASURES = (f"{GAP}_signed", GAP, f"{GAP}_hard", "accuracy")
COLOURS = {"clean": "#7A7A7A", "poisoned": "#D55E00", "trimmed": "#0072B2"}
FEW = 400  # held rows, under which a halving decides little
PAPER_RIDGE = 0.09  # of the paper's code, a sum over rows
# Chhabra 2024, Table 1: hard gap with its sign, accuracy.
PAPER = {
    ("german", "clean"): (0.117, 0.670),
    ("german", "raa", "poisoned"): (-0.029, 0.655),
    ("german", "raa", "trimmed"): (0.000, 0.650),
    ("german", "nraa", "poisoned"): (0.268, 0.665),
    ("german", "nraa", "trimmed"): (0.005, 0.650),
    ("compas", "clean"): (-0.281, 0.652),
    ("compas", "raa", "poisoned"): (-0.060, 0.630),
    ("compas", "raa", "trimmed"): (-0.082, 0.643),
    ("compas", "nraa", "poisoned"): (0.168, 0.652),
    ("compas", "nraa", "trimmed"): (0.048, 0.654),
}


@dataclass(frozen=True)
class Case:
    """A table before and after an attack, and the rows that are halved into validation and test."""

    name: str
    attack: str
    clean: pd.DataFrame
    poisoned: pd.DataFrame
    held: pd.DataFrame

    def paper(self, model: str) -> tuple[float, float] | None:
        """The paper's gap and accuracy, where it has them."""
        return PAPER.get((self.name, model) if model == "clean" else (self.name, self.attack, model))


@dataclass(frozen=True)
class Measured:
    """Figures of every halving: `test` [halvings, models, measures], `trims` [halvings, 3].

    `trims`: rows removed, the absolute gap on validation rows that is predicted, and the signed one after the refit.
    """

    test: np.ndarray
    trims: np.ndarray


def cases(data: Path | None, quick: bool) -> Iterator[Case]:
    """The attacked tables of a folder, or one table attacked here."""
    if data is None or data.is_file():
        if data is None and not quick:
            table_of(data, "raa_german_train_clean.parquet")
        for name, split in splits(["one table"], data, quick):
            held = pd.concat([split.valid, split.test], ignore_index=True)
            yield Case(name, "raa", split.train, anchored(split.train, np.random.default_rng(0)), held)
        return
    for name in ("german", "compas"):
        for attack in ("raa", "nraa"):
            files = (table_of(data, f"{attack}_{name}_{k}.parquet") for k in ("train_clean", "train_poisoned", "test"))
            yield Case(name, attack, *files)


def anchored(train: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The table with anchoring rows: copies of randomly drawn targets with the other label (RAA at distance 0).

    Targets are rows of the group with fewer labels 1 that have label 1, and rows of the other group that have label 0.
    """
    advantaged = train.groupby("sensitive")["label"].mean().idxmax()
    parts = [train]
    for group in (False, True):
        among = train[((train["sensitive"] == advantaged) == group) & (train["label"] == int(not group))]
        drawn = among.iloc[rng.integers(0, len(among), int(POISON * len(train) / 2))]
        parts.append(drawn.assign(label=1 - drawn["label"]))
    return pd.concat(parts, ignore_index=True)


def measure(case: Case, halvings: int, l2: float) -> Measured:
    """Fit, trim and measure, once for every halving of the held rows."""
    test, trims = [], []
    for seed in range(halvings):
        valid, tested = train_test_split(case.held, test_size=0.5, random_state=seed)
        clean, poisoned = (standardise(of_parts(t, valid, tested)) for t in (case.clean, case.poisoned))
        before, after = (fitted(split, l2) for split in (clean, poisoned))
        scores = rayinf.influence(after, poisoned.train, poisoned.valid, GAP, curvature="exact")
        kept = rayinf.trim(scores, int(BUDGET * len(poisoned.train)), by=GAP)
        trimmed = rayinf.retrain(after, poisoned.train, keep=kept.mask)
        found = [rayinf.evaluate(m, s.test, GAP) for m, s in ((before, clean), (after, poisoned), (trimmed, poisoned))]
        test.append([[figures[name] for name in MEASURES] for figures in found])
        refit = rayinf.evaluate(trimmed, poisoned.valid, GAP)
        trims.append([kept.metadata["removed"], kept.metadata["predicted_gap"], refit[f"{GAP}_signed"]])
    return Measured(np.array(test), np.array(trims))


def fitted(split: Split, l2: float) -> rayinf.Task:
    """A logistic regression of the training rows."""
    return rayinf.logistic_regression(split.train, l2=l2, features=split.features, group="sensitive")


def as_in_the_paper(case: Case, poisoned: bool, inverted: bool) -> tuple[float, float]:
    """Hard gap with its sign, and accuracy, of the paper's kind of model on the whole test file.

    No intercept, the group flag among the features, and in the training rows that flag inverted if `inverted` is set.
    """
    train = case.poisoned if poisoned else case.clean
    flag = 1 - train["sensitive"] if inverted else train["sensitive"]
    x = train.assign(sensitive=flag).drop(columns="label").to_numpy(np.float64)
    held = case.held[train.columns].drop(columns="label").to_numpy(np.float64)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / PAPER_RIDGE, fit_intercept=False, tol=1e-8, max_iter=2000)
    model.fit(scaler.transform(x), train["label"])
    predicted = model.predict(scaler.transform(held))
    group = case.held["sensitive"].to_numpy() == 1
    gap = predicted[group].mean() - predicted[~group].mean()
    return float(gap), float((predicted == case.held["label"]).mean())


def report(found: Sequence[tuple[Case, Measured]]) -> None:
    """Print what was measured, what the trims did, and the paper's kind of models."""
    lines, trims = [], []
    for case, measured in found:
        title = f"{case.name}, {case.attack.upper()}"
        for model, means in zip(MODELS, measured.test.mean(0), strict=True):
            paper = case.paper(model)
            printed = (f"{paper[0]:+.3f}", f"{paper[1]:.3f}") if paper else ("", "")
            lines.append((f"{title}: {model}", f"{means[0]:+.4f}", *map(float, means[1:]), *printed))
        gap, accuracy = measured.test[:, :, 1], measured.test[:, :, 3].mean(0)
        below = [f"{(gap[:, 2] < gap[:, k]).sum()} of {len(gap)}" for k in (0, 1)]
        points = [f"{100 * (accuracy[2] - accuracy[k]):+.2f}" for k in (0, 1)]
        removed, predicted, refit = measured.trims.mean(0)
        share = f"{removed:.0f} of {len(case.poisoned):,}"
        worst = measured.trims[np.abs(measured.trims[:, 2]).argmax(), 2]
        trims.append((title, share, float(predicted), f"{refit:+.4f}", f"{worst:+.4f}", *below, *points))
    halvings = len(found[0][1].test)
    columns = ("model", "DP gap, signed", "|DP gap|", "hard |DP gap|", "accuracy", "paper: hard DP", "paper: accuracy")
    show(f"On the test half, mean of {halvings} halvings; gaps are soft but for hard", columns, lines)
    columns = ("trimming", "rows", "gap predicted", "refitted, signed", "the furthest")
    columns += ("gap < clean", "gap < poisoned", "points to clean", "to poisoned")
    show("Trimming: gaps on the validation half; then |DP gap| and accuracy on the test half", columns, trims)
    small = {case.name: len(case.held) // 2 for case, _ in found if len(case.held) < FEW}
    for name, rows in small.items():
        print(f"{name}: {rows} rows a test half decide little.")
    print("A gap of the other sign after the refit is overshoot: the prediction is first-order.")


def report_papers_kind(found: Sequence[Case]) -> None:
    """Print the paper's kind of models beside its figures."""
    lines = []
    for case in found:
        for poisoned, model in enumerate(MODELS[:2]):
            ours = [as_in_the_paper(case, bool(poisoned), inverted) for inverted in (False, True)]
            paper = case.paper(model)
            cells = (f"{g:+.3f}, {a:.3f}" for g, a in (*ours, *([paper] if paper else [])))
            lines.append((f"{case.name}, {case.attack.upper()}: {model}", *cells))
    columns = ("model", "flag as in the test file", "flag inverted", "paper")
    show("the paper's kind of model on the whole test file: hard DP gap, accuracy", columns, lines)


def plot(found: Sequence[tuple[Case, Measured]], path: Path) -> None:
    """The signed gap of every halving, and its mean; below, the accuracy."""
    figure = Figure(figsize=(2.6 * len(found) + 1.5, 6), layout="constrained")
    axes = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    for j, (case, measured) in enumerate(found):
        for row, (measure_at, title) in enumerate(((0, "soft DP gap, signed"), (3, "accuracy"))):
            values = measured.test[:, :, measure_at]
            for k, model in enumerate(MODELS):
                jitter = np.linspace(-0.18, 0.18, len(values))
                axes[row, j].scatter(k + jitter, values[:, k], s=16, alpha=0.6, color=COLOURS[model], linewidths=0)
                axes[row, j].hlines(values[:, k].mean(), k - 0.3, k + 0.3, color=COLOURS[model], linewidth=2.5)
            axes[row, 0].set_ylabel(title)
        axes[0, j].axhline(0, color="black", linewidth=0.8)
        axes[0, j].set_title(f"{case.name}, {case.attack.upper()}")
        axes[1, j].set_xticks(range(len(MODELS)), MODELS)
    figure.suptitle(f"On the test half of {len(found[0][1].test)} halvings; the bar is the mean", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    """Attack or read the attacked tables, trim them, print and plot."""
    parser = arguments(__doc__, "PNG of gaps and accuracies")
    parser.add_argument("--halvings", type=int, default=10, help="halvings of the held rows (default: 10)")
    parser.add_argument("--l2", type=float, default=1e-3, help="the ridge")
    args = parser.parse_args(argv)
    if args.halvings < 1:
        parser.error(f"--halvings {args.halvings}: pass at least one")
    halvings = min(args.halvings, 3) if args.quick else args.halvings
    found = [(case, measure(case, halvings, args.l2)) for case in cases(args.data, args.quick)]
    report(found)
    if compared := [case for case, _ in found if case.paper("clean")]:
        report_papers_kind(compared)
    if args.out:
        plot(found, args.out)


if __name__ == "__main__":
    main()
