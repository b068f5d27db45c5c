"""What the scripts of this folder share: reading a table, drawing rows from it, trimming by FI and by IV.

The Parquet that `--data` names has a column `label` (integers 0 to K - 1) and numeric features: every other column but
`row_id`, `sensitive`, `split` and those that `--drop` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import rayinf
from rayinf import evaluate, retrain

Rows = tuple[np.ndarray, np.ndarray]  # features [n, d] and labels [n]

# FI with a step of 1/n (Yu 2025, Eq. A.7), FI with a step of 1 (as its algorithms are printed), IV, and chance.
METHODS = ("FI", "FI, sum", "IV", "random")
NOT_FEATURES = {"label", "row_id", "sensitive", "split"}


@dataclass(frozen=True)
class Split:
    """Rows to train on, to measure influence on, and to test on."""

    train: Rows
    valid: Rows
    test: Rows


def arguments(doc: str | None, seeds: int) -> argparse.ArgumentParser:
    """A parser of what every script takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Parquet with label (integers) and numeric features")
    parser.add_argument("--drop", nargs="*", default=[], help="columns of --data that are not features")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"draws of the rows (default: {seeds})")
    parser.add_argument("--quick", action="store_true", help="few draws and few budgets")
    return parser


def read(path: Path, drop: Sequence[str] = ()) -> Rows:
    """Features and labels of a Parquet file.

    Raises:
        SystemExit: there is no label, or a feature that is not a number.
    """
    frame = pq.read_table(path).to_pandas()
    features = frame.drop(columns=[c for c in frame if c in NOT_FEATURES | set(drop)])
    words = features.select_dtypes(exclude=["number", "bool"]).columns.tolist()
    if "label" not in frame or frame["label"].dtype.kind not in "iu" or words or features.empty:
        raise SystemExit(
            f"{path} needs a column label of integers and numeric features; it has {list(frame)}, of which "
            f"{words} are not numbers: encode them, or name them after --drop."
        )
    return features.to_numpy(np.float64), frame["label"].to_numpy(np.int64)


def draw(data: Rows, sizes: Sequence[int], rng: np.random.Generator) -> list[Rows]:
    """Random rows without overlap: so many for each part, or as large a share of what there is."""
    x, y = data
    share = min(1.0, len(x) / sum(sizes))
    ends = np.floor(np.cumsum(sizes) * share + 1e-9).astype(int)
    return [(x[at], y[at]) for at in np.split(rng.permutation(len(x))[: ends[-1]], ends[:-1])]


def standardise(split: Split) -> Split:
    """Every feature in units of its spread over the training rows, from their mean."""
    mean, spread = split.train[0].mean(0), split.train[0].std(0)
    spread = np.where(spread > 0, spread, 1.0)
    return Split(*(((x - mean) / spread, y) for x, y in (split.train, split.valid, split.test)))


def trimming_orders(task: rayinf.Task, split: Split, curvature: str, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """The order in which each of `METHODS` removes the training rows, and the share of rows whose IV is negative.

    FI removes the largest values, as `rayinf.trim` does. IV removes the lowest ones as Yu 2025 does: always as many
    as the budget, also where they are positive, so not by `rayinf.trim`, which stops at the last negative value.
    """
    tables = (task, split.train, split.valid)
    mean, total = (
        rayinf.influence_measure(*tables, curvature=curvature, scale=scale).to_numpy()[:, 0]
        for scale in ("mean", "sum")
    )
    iv = rayinf.influence(*tables, objective="total", curvature=curvature).to_numpy()[:, 0]
    by_chance = np.random.default_rng([seed, 1]).permutation(len(iv))
    orders = [*(np.argsort(-fi, kind="stable") for fi in (mean, total)), np.argsort(iv, kind="stable"), by_chance]
    return dict(zip(METHODS, orders, strict=True)), float((iv < 0).mean())


def refit_without(task: rayinf.Task, split: Split, removed: np.ndarray, seed: int = 0) -> rayinf.Task:
    """The model trained anew without some rows."""
    keep = np.ones(len(split.train[1]), bool)
    keep[removed] = False
    return retrain(task, split.train, keep=keep, seed=seed)


def accuracy(task: rayinf.Task, rows: Rows) -> float:
    """In per cent."""
    return 100 * evaluate(task, rows)["accuracy"]


def with_train(split: Split, features: np.ndarray) -> Split:
    """The split with other features on its training rows."""
    return replace(split, train=(features, split.train[1]))


def spread(values: Sequence[float] | np.ndarray, sign: str = "") -> str:
    """Mean and standard deviation as text."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):{sign}.2f} ± {deviation:.2f}"
