"""Fits of EKFAC, and rows valued by rows, beside kronfluence 1.0.1: processor seconds, and how far fits agree.

    python tests/benchmarks/fits.py --data cifar10_train.parquet --network resnet9
    python tests/benchmarks/fits.py --network transformer
    python tests/benchmarks/fits.py --data mnist_train.parquet --network mlp --pairs

Trains the network (a ResNet-9 of half the width; a transformer of 3 layers, 256 wide, on 64 tokens; a 784-512-256-10
perceptron), and lets each side fit it in turn, in a process of its own with one thread, --rounds times, each with
another seed. `1 - rho` is of the scores of all rows by the loss of each class with the factors of two fits of one side:
the least Spearman correlation over the classes, the median over pairs of fits. With --pairs, the seconds are those of
valuing every training row for every validation row with factors that are there. The peer's environment is made on the
first run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from compare import peer_python
from networks import layers_of, network
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import nn

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIT = ("covariance", "basis", "lambda", "factors")
Rows = tuple[np.ndarray, np.ndarray]


def rows_of(options: argparse.Namespace) -> tuple[Rows, Rows]:
    """Training and validation rows: images, or sequences in which tokens of the label's own are twice as frequent."""
    n, m = options.rows, options.valid_rows
    if options.network == "transformer":
        rng = np.random.default_rng(0)
        y = rng.integers(0, 4, n + m)
        own = rng.random((n + m, 64)) < 0.2
        x = np.where(own, rng.integers(0, 500, (n + m, 64)) + 500 * y[:, None], rng.integers(0, 2000, (n + m, 64)))
        x = x.astype(np.float32)
    else:
        table = pq.read_table(options.data)
        table = table.take(np.random.default_rng(0).permutation(table.num_rows)[: n + m])
        pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(n + m, -1).astype(np.float32)
        if options.network == "resnet9":
            pixels = np.ascontiguousarray(pixels.reshape(n + m, 32, 32, 3).transpose(0, 3, 1, 2))
        x, y = (pixels / 255 - 0.4) / 0.3, table["label"].to_numpy().astype(np.int64)
    return (x[:n], y[:n]), (x[n:], y[n:])


def export(folder: Path, options: argparse.Namespace) -> None:
    """Train for some epochs; write the model and the rows that both sides read."""
    (x, y), (xv, yv) = rows_of(options)
    model = network(options.network)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.tensor(x)[rows]), torch.tensor(y)[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = float((model(torch.tensor(xv)).argmax(1) == torch.tensor(yv)).float().mean())
    print(f"{options.network}: {len(x)} rows, accuracy {right:.3f} on {len(xv)} others", flush=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    np.savez(folder / "rows.npz", train_x=x, train_y=y, valid_x=xv, valid_y=yv)


def ours(options: argparse.Namespace) -> None:
    """rayinf's side, in this process: as kronfluence/fits.py writes it."""
    time.perf_counter = time.process_time  # before the package takes it
    import rayinf

    folder = options.export
    model = network(options.network)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    held = np.load(folder / "rows.npz")
    train, valid = ((held[f"{name}_x"], held[f"{name}_y"]) for name in ("train", "valid"))
    task = rayinf.Task(model.eval(), parameters=layers_of(model))
    given = {"damping": "layer_mean:0.1", "seed": options.seed}
    if options.pairs:
        rayinf.influence(task, train, valid, out=folder / "fitted", **given)
        begin = time.process_time()
        rayinf.pairs(task, train, valid, top=10, factors=folder / "fitted", **given)
        scores, seconds = np.zeros(0), {"scores": time.process_time() - begin}
    else:
        found = rayinf.influence(task, train, valid, "category", **given)
        stages = found.metadata["seconds"]
        scores, seconds = found.to_numpy(), {"fit": sum(stages[k] for k in FIT), **{k: stages[k] for k in FIT}}
    np.savez(options.out, scores=scores, **{f"seconds_{k}": v for k, v in seconds.items()})


def one(side: str, python: str, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """One side's run in a process of its own."""
    out = folder / f"{side}-{seed}.npz"
    script = [str(HERE / "fits.py"), "--export"] if side == "rayinf" else [str(HERE / "kronfluence" / "fits.py")]
    command = [python, *script, str(folder), "--network", options.network, "--out", str(out), "--seed", str(seed)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if side == "kronfluence":
        env["PYTHONPATH"] = str(HERE)
    subprocess.run([*command, *(["--pairs"] if options.pairs else [])], check=True, env=env, stdout=subprocess.DEVNULL)
    return dict(np.load(out))


def disagreement(fits: list[np.ndarray]) -> float:
    """`1 - rho` of two fits: of the class in which they agree least; the median over pairs of fits."""
    pairs = itertools.combinations(fits, 2)
    return float(
        np.median([1 - min(spearmanr(p, q).statistic for p, q in zip(a.T, b.T, strict=True)) for a, b in pairs])
    )


def report(found: dict[str, list[dict[str, np.ndarray]]], options: argparse.Namespace) -> dict[str, object]:
    """Medians of seconds, their ratios, and agreement."""
    table = Table("", *found, "ratio")
    rows: dict[str, list[float]] = {}
    for key in [k for k in found["rayinf"][0] if k in found["kronfluence"][0] and k.startswith("seconds_")]:
        rows[key.removeprefix("seconds_")] = [float(np.median([r[key] for r in runs])) for runs in found.values()]
    for name, (mine, theirs) in rows.items():
        table.add_row(f"{name}, processor s", f"{mine:.2f}", f"{theirs:.2f}", f"{theirs / mine:.2f}")
    if not options.pairs and options.rounds > 1:
        rows["1 - rho"] = [disagreement([r["scores"] for r in runs]) for runs in found.values()]
        mine, theirs = rows["1 - rho"]
        table.add_row("1 - rho of two fits", f"{mine:.5f}", f"{theirs:.5f}", f"{theirs / mine:.2f}")
    Console().print(table)
    return {"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}


def main() -> None:
    """Both sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("resnet9", "transformer", "mlp"), required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--valid-rows", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--peer-python", help="an interpreter that has kronfluence already")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        ours(options)
        return
    python = options.peer_python or peer_python()
    found: dict[str, list[dict[str, np.ndarray]]] = {"rayinf": [], "kronfluence": []}
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), options)
        for seed in range(options.rounds):
            found["rayinf"].append(one("rayinf", sys.executable, Path(folder), seed, options))
            found["kronfluence"].append(one("kronfluence", python, Path(folder), seed, options))
    RESULTS.mkdir(exist_ok=True)
    name = f"fits-{options.network}{'-pairs' if options.pairs else ''}.json"
    (RESULTS / name).write_text(json.dumps(report(found, options), indent=2))


if __name__ == "__main__":
    main()
