"""Does the genetic search of `pareto_reweight` pay? Beside a plain sweep of the linear program, at equal trainings.

    python tests/benchmarks/search_size.py --data mnist_train.parquet [--seeds 1] [--processes 1]

A CNN of 12 and 24 channels on MNIST at 14 x 14, 2,000 training rows, its two weakest classes as targets. The genetic
search has 24 candidates and 20 generations (Nahin 2025, Table 2), or 8 and 4. The sweep trains as many candidates as it
did: one alpha for all classes on a line from 0.75 to 1, by radii spread evenly over (0, 1], all from one linear
program. Each way takes the candidate that is worth most on the 2,000 rows that it searched by (mean gain of the two
targets + 4 times the mean change of the eight others, which is five times the mean over all ten classes), and is judged
on 6,000 other rows, over two orders of the training rows. The last column compares with plain class weights of 1.2 to
3 for the targets.

What is done is kept in the folder of --out: the same call goes on where it stopped. With --processes, several seeds and
modes are searched side by side, each by one thread. A GPU would not help: a candidate's epoch is 32 steps of a very
small network.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import rayinf

RESULTS = Path(__file__).parent / "results" / "search_size"
TRAIN, SEARCHED, JUDGED = 2_000, 2_000, 6_000
PRICE = 4.0
ORDERS = 2
CLASS_WEIGHTS = (1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
PARTS = {"elites": 0, "mutated_elites": 0, "crossover_children": 0}
SIZES = {
    "8 x 4": rayinf.Search(2, 2, 2, 2, iterations=4, prefer=PRICE, confirm=0),
    "24 x 20": rayinf.Search(iterations=20, prefer=PRICE, confirm=0),
}
Rows = tuple[np.ndarray, np.ndarray]


@dataclass
class Setting:
    """One checkpoint in one mode, with the influence of its rows.

    Attributes:
        data: images `[n, 1, 14, 14]` and labels.
        seed: of the rows, the model and the search.
        mode: of `pareto_reweight`.
        out: where results of all settings are kept.
    """

    data: Rows
    seed: int
    mode: str
    out: Path

    @property
    def folder(self) -> Path:
        """Where its results are kept."""
        return self.out / f"{self.mode}-{self.seed}"

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Rows to train on, to search by and to judge by."""
        order = np.random.default_rng(self.seed).permutation(len(self.data[1]))
        parts = np.split(order[: TRAIN + SEARCHED + JUDGED], [TRAIN, TRAIN + SEARCHED])
        return {k: (self.data[0][p], self.data[1][p]) for k, p in zip(("train", "search", "judge"), parts, strict=True)}

    @cached_property
    def task(self) -> rayinf.Task:
        """The checkpoint, of two epochs; candidates train one more, at a tenth of the rate."""
        torch.manual_seed(self.seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 10)),
        )
        first = rayinf.Fit(optimizer="sgd", lr=0.1, epochs=2, batch_size=64, schedule="constant")
        task = rayinf.retrain(rayinf.Task(model, fit=first), self.rows["train"], seed=self.seed)
        return replace(task, fit=replace(first, fresh=False, epochs=1, lr=0.01))

    @cached_property
    def targets(self) -> list[int]:
        """The two weakest classes on the rows that are searched by."""
        return np.argsort(self.accuracy(self.task, "search"))[:2].tolist()

    @cached_property
    def scores(self) -> rayinf.Scores:
        """Of the checkpoint ("direct"), or of the model after the unweighted epoch ("correct")."""
        valued = self.task if self.mode == "direct" else rayinf.retrain(self.task, self.rows["train"], seed=self.seed)
        return rayinf.influence(valued, self.rows["train"], self.rows["search"], "category", halves=True)

    def accuracy(self, task: rayinf.Task, rows: str) -> np.ndarray:
        """`[10]`."""
        found = rayinf.evaluate(task, self.rows[rows])
        return np.array([found[f"accuracy_{k}"] for k in range(10)])

    def trained(self, weights: np.ndarray | None, order: int = 0) -> rayinf.Task:
        """The checkpoint after one epoch with weights; `order` 0 is that of the search."""
        return rayinf.retrain(self.task, self.rows["train"], weights=weights, seed=self.seed + 1000 * order)

    def change(self, accuracy: np.ndarray, plain: np.ndarray) -> tuple[float, float]:
        """Mean change of the targets and of the others, points."""
        change = 100 * (accuracy - plain)
        return float(change[self.targets].mean()), float(np.delete(change, self.targets).mean())

    @cached_property
    def judged_plain(self) -> np.ndarray:
        """The same on the judging rows, a line an order."""
        return np.stack([self.accuracy(self.trained(None, k), "judge") for k in range(ORDERS)])

    def judge(self, weights: np.ndarray) -> tuple[float, float]:
        """On rows never seen, over several orders."""
        found = np.stack([self.accuracy(self.trained(weights, k), "judge") for k in range(ORDERS)])
        return self.change(found.mean(0), self.judged_plain.mean(0))


def kept(path: Path, make: Any) -> Any:
    """A result in JSON, made now unless it is on disk."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.rename(path)
    return json.loads(path.read_text())


def searched(setting: Setting, name: str, search: rayinf.Search) -> dict[str, float]:
    """A search, and its best candidate judged."""
    s = setting
    tables = s.rows["train"], s.rows["search"]
    found = rayinf.pareto_reweight(
        s.task, *tables, s.scores, s.targets, s.mode, search, out=s.folder / name, seed=s.seed
    )
    line = found.chosen
    return outcome(s, found.candidates.num_rows - 1, (100 * line["gain"], 100 * line["others"]), found.weights)


def sweep(size: str, count: int) -> rayinf.Search:
    """As many candidates as a search trained, all of them of a grid."""
    return replace(SIZES[size], first="sweep", iterations=1, **PARTS, randoms=count)


def outcome(setting: Setting, count: int, best: tuple[float, float], chosen: np.ndarray) -> dict[str, float]:
    """A way's choice, on the searched rows and on others."""
    gain, others = setting.judge(chosen)
    return {
        "trainings": count,
        "searched": best[0] + PRICE * best[1],
        "gain": gain,
        "others": others,
        "worth": gain + PRICE * others,
    }


def class_weights(setting: Setting) -> list[tuple[float, float]]:
    """Plain weights for the rows of the targets, judged."""
    mine = np.isin(setting.rows["train"][1], setting.targets)
    return [setting.judge(np.where(mine, weight, 1.0)) for weight in CLASS_WEIGHTS]


def above(found: dict[str, float], plain: Sequence[tuple[float, float]]) -> float:
    """By how much the gain exceeds that of class weights at equal change of the others; at no loss, that of none."""
    line = sorted([(0.0, 0.0), *((others, gain) for gain, others in plain)])
    return found["gain"] - float(np.interp(found["others"], *zip(*line, strict=True)))


def studied(setting: Setting, sizes: Sequence[str]) -> dict[str, dict[str, float]]:
    """All ways of one setting."""
    out = {}
    for size in sizes:
        name = f"genetic {size}"
        out[name] = kept(setting.folder / f"{name}.json", lambda n=name, s=size: searched(setting, n, SIZES[s]))
        name, search = f"sweep, as many as {size}", sweep(size, int(out[name]["trainings"]))
        out[name] = kept(setting.folder / f"{name}.json", lambda n=name, s=search: searched(setting, n, s))
    plain = kept(setting.folder / "class weights.json", lambda: class_weights(setting))
    for found in out.values():
        found["above"] = above(found, plain)
    return out


def report(found: list[dict[str, dict[str, float]]]) -> None:
    """Means over settings, with standard errors."""
    table = Table(title=f"means of {len(found)} checkpoints and modes (standard error), points", title_justify="left")
    columns = ("trainings", "searched", "worth", "gain", "others", "above")
    for name in (
        "way",
        "trainings",
        "worth, searched rows",
        "worth, unseen",
        "targets",
        "others",
        "above class weights",
    ):
        table.add_column(name, justify="left" if name == "way" else "right")
    for way in found[0]:
        cells = []
        for column in columns:
            values = np.array([f[way][column] for f in found])
            error = f" ({values.std(ddof=1) / len(values) ** 0.5:.2f})" if len(values) > 1 else ""
            cells.append(f"{values.mean():.0f}" if column == "trainings" else f"{values.mean():+.2f}{error}")
        table.add_row(way, *cells)
    Console(width=130).print(table)


def images(path: Path) -> Rows:
    """MNIST at 14 x 14, means of 2 x 2 pixels, in [0, 1]."""
    table = pq.read_table(path)
    raw = np.stack([np.frombuffer(b, np.uint8) for b in table["image"].to_pylist()]).reshape(-1, 14, 2, 14, 2)
    return (raw.mean((2, 4)) / 255).astype(np.float32)[:, None], table["label"].to_numpy()


def one(options: argparse.Namespace, seed: int, mode: str) -> dict[str, dict[str, float]]:
    """One setting, by one thread."""
    torch.set_num_threads(1)
    return studied(Setting(images(options.data), seed, mode, options.out), options.sizes)


def all_of(options: argparse.Namespace) -> Iterator[dict[str, dict[str, float]]]:
    """Every setting as it is finished."""
    settings = list(itertools.product(range(options.seeds), options.modes))
    if options.processes == 1:
        yield from (one(options, *setting) for setting in settings)
        return
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(one, options, *setting) for setting in settings]):
            yield future.result()


def main() -> None:
    """Every seed in every mode; a table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--modes", nargs="*", choices=("direct", "correct"), default=["direct", "correct"])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options, found = parser.parse_args(), []
    for setting in all_of(options):
        found.append(setting)
        report(found)


if __name__ == "__main__":
    main()
