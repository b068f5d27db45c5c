"""rayinf beside kronfluence 1.0.1: the same exported model and rows, the same threads, one run.

    python tests/benchmarks/compare.py --data mnist_train.parquet [--rows 10000] [--valid-rows 1000] [--threads 2]

Trains a 784-512-256-10 network, exports it with its rows, then lets each side fit EKFAC and score every row against
the ten classes, in a process of its own. The peer's environment is made on the first run (`kronfluence/.venv`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from networks import mlp
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import nn

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def read(path: str, rows: int, valid_rows: int) -> tuple[np.ndarray, ...]:
    """The first rows for training, the last for validation, standardised."""
    table = pq.read_table(path)
    if table.num_rows < rows + valid_rows:
        sys.exit(f"{path} has {table.num_rows} rows: pass fewer with --rows and --valid-rows")
    parts = []
    for part in (table.slice(0, rows), table.slice(table.num_rows - valid_rows)):
        pixels = np.frombuffer(b"".join(part["image"].to_pylist()), np.uint8).reshape(part.num_rows, -1)
        parts += [((pixels / 255 - 0.1307) / 0.3081).astype(np.float32), part["label"].to_numpy().astype(np.int64)]
    return tuple(parts)


def export(folder: Path, options: argparse.Namespace) -> None:
    """Train for a few epochs; write the model and the rows that both sides read."""
    x, y, xv, yv = read(options.data, options.rows, options.valid_rows)
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(5):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.tensor(x)[rows]), torch.tensor(y)[rows]).backward()
            optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    np.savez(folder / "rows.npz", train_x=x, train_y=y, valid_x=xv, valid_y=yv)


def peer_python() -> str:
    """The interpreter of the peer's own environment, made on the first run."""
    home = HERE / "kronfluence"
    python = home / ".venv" / "bin" / "python"
    if not python.exists():
        venv.create(home / ".venv", with_pip=True)
        for arguments in (["-r", "requirements.txt"], ["--no-deps", "-r", "requirements-no-deps.txt"]):
            subprocess.run([python, "-m", "pip", "install", "-q", *arguments], cwd=home, check=True)
    return str(python)


def side(python: str, script: Path, folder: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side; its seconds and scores."""
    out = RESULTS / f"{name}.json"
    fisher = "true" if name.endswith("true") else "empirical"
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONWARNINGS": "ignore"}
    command = [
        python,
        str(script),
        str(folder),
        "--fisher",
        fisher,
        "--threads",
        str(options.threads),
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    return {**json.loads(out.read_text()), "scores": np.load(out.with_suffix(".npz"))["scores"]}


def report(ours: dict[str, Any], true: dict[str, Any], peer: dict[str, Any], rows: int) -> dict[str, Any]:
    """Ratios of seconds, and the rank correlation of each class."""
    seconds = peer["seconds"]
    spearman = [float(spearmanr(a, b).statistic) for a, b in zip(ours["scores"].T, peer["scores"].T, strict=True)]
    found = {
        "fit, same (empirical) Fisher": (seconds["fit"], ours["seconds"]["fit"]),
        "fit, rayinf's default (true) Fisher": (seconds["fit"], true["seconds"]["fit"]),
        "score 10 columns, one run a class": (seconds["score_per_class"], ours["seconds"]["score"]),
        "score 10 columns, classes laid out as a sequence": (seconds["score_grouped"], ours["seconds"]["score"]),
    }
    table = Table("step", "kronfluence s", "rayinf s", "ratio", "rayinf rows/s")
    for name, (theirs, mine) in found.items():
        table.add_row(name, f"{theirs:.2f}", f"{mine:.2f}", f"{theirs / mine:.1f}", f"{rows / mine:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"Spearman of the scores, least over classes: {min(spearman):.6f} (same Fisher, equal damping)")
    return {
        "rows": {k: {"kronfluence": a, "rayinf": b, "ratio": a / b} for k, (a, b) in found.items()},
        "spearman": spearman,
    }


def main() -> None:
    """Export, run both sides, print and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--valid-rows", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", help="an interpreter that has kronfluence already")
    options = parser.parse_args()
    folder = RESULTS / "export"
    export(folder, options)
    python = options.peer_python or peer_python()
    ours = side(sys.executable, HERE / "rayinf_side.py", folder, "rayinf-empirical", options)
    peer = side(python, HERE / "kronfluence" / "peer.py", folder, "kronfluence", options)
    true = side(sys.executable, HERE / "rayinf_side.py", folder, "rayinf-true", options)
    (RESULTS / "compare.json").write_text(json.dumps(report(ours, true, peer, options.rows), indent=2))


if __name__ == "__main__":
    main()
