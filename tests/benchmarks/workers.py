"""Rows a second of Ray workers: 1 and 2 with one thread each, beside one process with two threads.

    python tests/benchmarks/workers.py [--rows 60000] [--pairs 5] [--fit [--network resnet9 --rows 600]]

A compute-bound job: ten columns of a 784-512-256-10 network, factors apart (`identity`), so that every second is the
scoring pass. Start-up is left aside: rates are counted from the shard at which every worker has finished two. With
`--fit` the rates are those of an EKFAC fit: rows by the seconds of covariance, decompositions and Lambda together, of
that network or of a ResNet-9 of half the width.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from networks import layers_of, network
from rich.console import Console
from rich.table import Table
from torch import nn

import rayinf

RESULTS = Path(__file__).parent / "results"
GROUP = 1000


def write(path: Path, rows: int, pixels: int) -> Path:
    """Random pixels and labels, in row groups of which a worker has many."""
    rng = np.random.default_rng(0)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(rows * pixels, dtype=np.float32)), pixels)
    table = pa.table({"features": flat, "label": rng.integers(0, 10, rows)})
    pq.write_table(table, path, row_group_size=min(GROUP, -(-rows // 60)))
    return path


def rate(task: rayinf.Task, folder: str, train: Path, valid: Path, cluster: rayinf.Cluster | None) -> float:
    """Rows a second of the scoring pass."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run = f"{out}/run"
        rayinf.influence(task, train, valid, "category", curvature="identity", cluster=cluster, out=run)
        lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if line["event"] == "shard"]
    skip = 2 * (cluster.workers if cluster else 1)
    return pq.ParquetFile(train).metadata.row_group(0).num_rows * (len(times) - 1 - skip) / (times[-1] - times[skip])


def fit_rate(task: rayinf.Task, folder: str, train: Path, valid: Path, cluster: rayinf.Cluster | None) -> float:
    """Rows a second of an EKFAC fit; workers have started when it begins."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run = f"{out}/run"
        options = {"damping": 0.1, "inverse": "damped", "cluster": cluster, "out": run}
        rayinf.influence(task, train, valid, curvature="ekfac", **options)
        lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    held = {line["name"]: line for line in lines if line["event"] == "stage"}
    return held["covariance"]["rows"] / sum(held[name]["seconds"] for name in ("covariance", "basis", "lambda"))


def main() -> None:
    """Alternate the three ways, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--network", choices=("mlp", "resnet9"), default="mlp")
    options = parser.parse_args()
    model = network(options.network)
    if options.network == "resnet9":
        model = nn.Sequential(nn.Unflatten(1, (3, 32, 32)), model)
    task = rayinf.Task(model.eval(), parameters=layers_of(model))
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    torch.set_num_threads(2)
    ways = {
        "1 Ray worker, 1 thread": rayinf.Cluster(workers=1),
        "2 Ray workers, 1 thread each": rayinf.Cluster(workers=2),
        "1 process, 2 threads": None,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        pixels = 3072 if options.network == "resnet9" else 784
        train, valid = (
            write(Path(folder) / f"{name}.parquet", rows, pixels)
            for name, rows in (("train", options.rows), ("valid", min(options.rows, 1000)))
        )
        for _ in range(options.pairs):
            for name, cluster in ways.items():
                found[name].append((fit_rate if options.fit else rate)(task, folder, train, valid, cluster))
    base = next(iter(found.values()))
    table = Table("", "rows/s (median)", "ratio to 1 worker (median of pairs)", "least", "most")
    for name, rates in found.items():
        ratios = [a / b for a, b in zip(rates, base, strict=True)]
        table.add_row(
            name, f"{np.median(rates):,.0f}", f"{np.median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}"
        )
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ("workers-fit.json" if options.fit else "workers.json")).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
