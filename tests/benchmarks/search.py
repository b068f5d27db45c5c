"""Candidates a second of `pareto_reweight` on Ray, with one worker and with two of one thread each.

    python tests/benchmarks/search.py [--pairs 5] [--rows 6000]

A network of 784-256-10 on random pixels: a candidate is an LP, an epoch and a pass over the validation rows. Workers
are warm: the clock runs from the end of the first generation to the end of the last, in which every candidate is new.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import rayinf

RESULTS = Path(__file__).parent / "results"
SEARCH = rayinf.Search(elites=0, mutated_elites=0, randoms=8, crossover_children=0, iterations=4)


def pixels(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels, shifted by class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, rows)
    return (rng.standard_normal((rows, 784)) + 0.1 * np.eye(10, 784)[y]).astype(np.float32), y


def rate(task: rayinf.Task, tables: tuple, scores: rayinf.Scores, workers: int) -> float:
    """Candidates a second."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = rayinf.Cluster(workers=workers)
        rayinf.pareto_reweight(task, *tables, scores, [0, 1], search=SEARCH, cluster=cluster, out=f"{folder}/run")
        lines = [json.loads(line) for line in Path(f"{folder}/run/log.jsonl").read_text().splitlines()]
    ends = [line for line in lines if line["event"] == "generation"]
    assert all(line["trained"] == SEARCH.size for line in ends)
    return SEARCH.size * (len(ends) - 1) / (ends[-1]["time"] - ends[0]["time"])


def main() -> None:
    """Alternate the two, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6000)
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tables = pixels(options.rows, 0), pixels(options.rows // 2, 1)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    task = rayinf.Task(model, fit=rayinf.Fit(optimizer="sgd", lr=0.005, batch_size=64))
    scores = rayinf.influence(task, *tables, "category", curvature="identity")
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.pairs):
        for workers, rates in found.items():
            rates.append(rate(task, tables, scores, workers))
    ratios = [b / a for a, b in zip(found[1], found[2], strict=True)]
    table = Table("workers of one thread", "candidates/s (median)", "least", "most", "ratio (median of pairs)")
    for workers, rates in found.items():
        ratio = f"{np.median(ratios):.2f}" if workers == 2 else ""
        numbers = (np.median(rates), min(rates), max(rates))
        table.add_row(str(workers), *(f"{v:.2f}" for v in numbers), ratio)
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "search.json").write_text(json.dumps({str(k): v for k, v in found.items()}, indent=2))


if __name__ == "__main__":
    main()
