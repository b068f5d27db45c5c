"""Trimming against unfairness under a distribution shift (Chhabra 2024, section 5.1, Figure 4): ACS income.

A logistic regression is fitted to California 2014 and tested on California 2018 (time) or Michigan 2014 (place). Half
of the other place's or year's rows are at hand for validation, as the paper's other methods have them too; the other
half is the test. Up to 600 of the 18,000 rows are trimmed (3.33%, as in the paper) by demographic parity or by equal
opportunity, fewer where the gap is used up. The base is the plain regression, and one that reweighs group and label to
independence (Kamiran and Calders 2012), each without trimming and fitted anew after it; the paper's other baselines
(FairBatch, correlation shift, RLL) are not here.

    python examples/what_data_benefits/shift.py --data FOLDER --out shift.png
    python examples/what_data_benefits/shift.py --quick               # synthetic rows, shifted

FOLDER holds dist_shift_adult_train_ca2014.parquet and dist_shift_adult_test_{ca2018,mi2014}.parquet, and, for the shift
in time and place that the paper has too, perhaps dist_shift_adult_test_mi2018.parquet, which is not among our data. A
Parquet file in the place of FOLDER has the form that common.py says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from common import HALVES_SEED, Split, arguments, of_parts, show, splits, standardise, synthetic, table_of
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split

import rayinf

SHIFTS = {"ca2018": "time", "mi2014": "place", "mi2018": "time and place"}
CATEGORICAL = ("COW", "SCHL", "MAR", "OCCP", "POBP", "RELP", "RAC1P")
GAPS = {"demographic_parity": "DP", "equal_opportunity": "EOP"}
BUDGET, L2 = 600, 1e-3
SHARE = BUDGET / 18_000
PAPER = (
    "Chhabra 2024 (a picture, no numbers): trimming lowers the gaps of the plain regression under every shift, at\n"
    "some accuracy under time and time and place, and helps the other methods' accuracy."
)


def encoded(train: pd.DataFrame, *others: pd.DataFrame) -> list[pd.DataFrame]:
    """Categories of the training rows as columns of 0 and 1; a category that these lack is 0 in all."""
    held = []
    for frame in (train, *others):
        columns = {c: frame[c] for c in frame if c not in CATEGORICAL}
        for c in CATEGORICAL:
            columns |= {f"{c}={v}": (frame[c] == v).astype(np.int8) for v in sorted(train[c].unique())}
        held.append(pd.DataFrame(columns))
    return held


def shifted(data: Path | None, quick: bool) -> Iterator[tuple[str, Split]]:
    """Name and rows of every shift."""
    if data is not None and data.is_file():
        yield from splits((), data)
    elif data is None and quick:
        rows = synthetic()
        source, other = rows[:900], rows[900:].assign(f1=lambda frame: frame["f1"] + 0.5 * frame["sensitive"])
        yield "synthetic", of_parts(source, other[:300], other[300:])
    else:
        train = table_of(data, "dist_shift_adult_train_ca2014.parquet")
        for name, what in SHIFTS.items():
            file = f"dist_shift_adult_test_{name}.parquet"
            if name == "mi2018" and not (data is not None and (data / file).is_file()):
                continue
            test, valid = train_test_split(table_of(data, file), test_size=0.5, random_state=HALVES_SEED)
            yield f"{what} ({name})", of_parts(*encoded(train, valid, test))


def reweighed(frame: pd.DataFrame) -> np.ndarray:
    """Weights that make group and label independent (Kamiran and Calders 2012)."""
    weights = np.ones(len(frame))
    for y in (0, 1):
        for g in (0, 1):
            rows = ((frame["label"] == y) & (frame["sensitive"] == g)).to_numpy()
            if rows.any():
                weights[rows] = (frame["label"] == y).mean() * (frame["sensitive"] == g).mean() / rows.mean()
    return weights


def measure(split: Split) -> list[tuple[str, str, int, dict[str, float]]]:
    """Base, how it was trimmed, rows removed, and what it does on the test rows."""
    task = rayinf.logistic_regression(split.train, l2=L2, features=split.features, group="sensitive")
    scores = rayinf.influence(task, split.train, split.valid, list(GAPS), curvature="exact")
    keeps = {"": np.ones(len(split.train), bool)}
    for by in GAPS:
        keeps[by] = rayinf.trim(scores, int(SHARE * len(split.train)), by=by).mask
    found = []
    for base in ("plain", "reweighed"):
        for by, keep in keeps.items():
            rows = split.train[keep].reset_index(drop=True)
            fitted = rayinf.retrain(task, rows, weights=reweighed(rows) if base == "reweighed" else None)
            found.append((base, by, int((~keep).sum()), rayinf.evaluate(fitted, split.test, list(GAPS))))
    return found


def plot(parts: dict[str, list[tuple[str, str, int, dict[str, float]]]], path: Path) -> None:
    """Figure 4: accuracy against each gap; an arrow from a base to what trimming by that gap makes of it."""
    figure = Figure(figsize=(4.6 * len(parts), 7.4), layout="constrained")
    panels = figure.subplots(len(GAPS), len(parts), squeeze=False)
    for column, (name, found) in enumerate(parts.items()):
        for row, gap in enumerate(GAPS):
            axes = panels[row][column]
            for base, colour in (("plain", "#0072B2"), ("reweighed", "#D55E00")):
                at = {by: (m[f"{gap}_hard"], 100 * m["accuracy"]) for b, by, _, m in found if b == base}
                axes.scatter(*at[""], color=colour, marker="o", label=base)
                axes.scatter(*at[gap], color=colour, marker="^", label=f"{base}, trimmed")
                axes.annotate("", at[gap], at[""], arrowprops={"arrowstyle": "->", "color": colour, "alpha": 0.6})
            axes.set(xlabel=f"{gap.replace('_', ' ')} gap of predictions", title=name if row == 0 else "")
            axes.grid(alpha=0.3)
            axes.margins(0.15)
        panels[0][column].legend(fontsize=8, frameon=False)
    for row in panels:
        row[0].set_ylabel("test accuracy, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure under every shift, print and plot."""
    parser = arguments(__doc__, "PNG of accuracy against the gaps")
    args = parser.parse_args(argv)
    parts = {name: measure(standardise(raw)) for name, raw in shifted(args.data, args.quick)}
    columns = ("base", "trimmed by", "rows", "accuracy", "DP", "DP hard", "EOP", "EOP hard")
    for name, found in parts.items():
        lines = [
            (base, GAPS.get(by, "-"), rows, m["accuracy"], *(m[g + s] for g in GAPS for s in ("", "_hard")))
            for base, by, rows, m in found
        ]
        show(f"shift: {name}, test rows", columns, lines)
    print(PAPER)
    if args.out:
        plot(parts, args.out)


if __name__ == "__main__":
    main()
