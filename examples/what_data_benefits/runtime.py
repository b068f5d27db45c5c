"""Seconds to value all training rows (Chhabra 2024, Table 2), for one objective and for all of them in one pass.

A logistic regression on Adult and on CelebA, the exact Hessian, tables read from Parquet, one process. Both runs are
alternated and the median of their ratios is printed: total alone, and total, both categories, demographic parity, equal
opportunity and robustness together. The fit of the model is not in it. The paper's seconds are those of its own code on
another machine (Xeon Silver 4114) and, for CelebA, on 62,497 training rows where here are 162,770. TMC-Shapley is not
run.

    python examples/what_data_benefits/runtime.py --data FOLDER
    python examples/what_data_benefits/runtime.py --quick               # synthetic rows

`--data` is a folder with adult_train.parquet, adult_test.parquet and celeba_attr.parquet, or one Parquet file of the
form that common.py says.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import arguments, show, splits, standardise

import rayinf

ALL = ("total", "category", "demographic_parity", "equal_opportunity", "robustness")
PAPER = {"adult": ("4.061", "> 96 h"), "celeba": ("2.301", "> 96 h")}
GOAL = 1.3


def seconds(task: rayinf.Task, train: Path, valid: Path, objective: Sequence[str]) -> float:
    """Of one valuation of all training rows."""
    start = time.perf_counter()
    rayinf.influence(task, str(train), str(valid), objective, curvature="exact")
    return time.perf_counter() - start


def alternated(task: rayinf.Task, train: Path, valid: Path, repeats: int) -> np.ndarray:
    """Seconds `[repeats, 2]` of total alone and of all objectives; a first run of each is not counted."""
    runs = [[seconds(task, train, valid, objective) for objective in (["total"], ALL)] for _ in range(repeats + 1)]
    return np.array(runs[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Time and print."""
    parser = arguments(__doc__, "not used: there is no figure")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs (default: 9)")
    args = parser.parse_args(argv)
    lines = []
    for name, raw in splits(["adult", "celeba"], args.data, args.quick):
        split = standardise(raw)
        task = rayinf.logistic_regression(split.train, features=split.features, group="sensitive")
        with tempfile.TemporaryDirectory() as folder:
            train, valid = Path(folder) / "train.parquet", Path(folder) / "valid.parquet"
            split.train.to_parquet(train)
            split.valid.to_parquet(valid)
            taken = alternated(task, train, valid, 2 if args.quick else args.repeats)
        total, together = np.median(taken, axis=0)
        ratio = float(np.median(taken[:, 1] / taken[:, 0]))
        influence, shapley = PAPER.get(name, ("-", "-"))
        times = (f"{total:.2f}", f"{together:.2f}", f"{ratio:.2f}")
        lines.append((name, f"{len(split.train):,}", *times, influence, shapley))
    columns = ("table", "rows", "total, s", "all, s", "all/total", "paper, s", "paper: Shapley")
    show("Seconds to value all training rows, medians", columns, lines)
    print(
        f"Goal: all objectives together at most {GOAL} times total alone. The paper's seconds are of another machine."
    )


if __name__ == "__main__":
    main()
