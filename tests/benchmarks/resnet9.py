"""ResNet-9 on CIFAR-10: ten category columns in training epochs, and every stage beside its floor in flops.

    python tests/benchmarks/resnet9.py --data cifar10_train.parquet [--rows 2000] [--fit-rows 256] [--threads 2]

Widths 64/128/256/512, batch 128. The floor counts multiply-adds that no exact way of doing the stage can avoid, as two
flops each; the peak is a large matrix product in the stage's own precision, measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from networks import resnet9
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rayinf

RESULTS = Path(__file__).parent / "results"
BATCH = 128


def to_images(raw: np.ndarray) -> np.ndarray:
    """Bytes of row-major RGB -> standardised `[B, 3, 32, 32]`."""
    images = raw.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2) / np.float32(255)
    return (images - np.float32(0.473)) / np.float32(0.251)


def train_epoch(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of one epoch of SGD."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    begin = time.perf_counter()
    for rows in torch.arange(len(x)).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return time.perf_counter() - begin


def peak(dtype: torch.dtype) -> float:
    """Flops a second of a large matrix product."""
    a = torch.randn(2048, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2 * 2048**3 / best


def floors(model: nn.Module, columns: int, queries: int) -> dict[str, tuple[float, torch.dtype]]:
    """Flops a row of each stage, and its precision."""
    shapes: list[tuple[int, int, int]] = []
    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            o, i = module.weight.shape[0], module.weight[0].numel() + (module.bias is not None)

            def hook(_: nn.Module, __: object, out: Tensor, o: int = o, i: int = i) -> None:
                shapes.append((out[0].numel() // o, o, i))

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    pass_ = 2.0 * sum(t * o * i for t, o, i in shapes)
    gram = sum(t * i * i + columns * t * o * o for t, o, i in shapes)  # symmetric: half the product
    turn = 2.0 * sum(
        min(t * i * i, columns * o * i * i) + columns * (min(t * o * o, o * o * i) + t * o * i) for t, o, i in shapes
    )
    products = 2.0 * sum((t * o * i if t > 1 else 0) + queries * o * i for t, o, i in shapes)
    return {
        # The passes in float32, the Gram matrices in float64: held against the faster of the two.
        "covariance": ((1 + columns) * pass_ + gram, torch.float32),
        "lambda": ((1 + columns) * pass_ + turn, torch.float32),
        "scores": (2 * pass_ + products, torch.float32),
    }


def main() -> None:
    """Train, fit, score; print epochs and flops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--fit-rows", type=int, default=256, help="rows that the factors are fitted on")
    parser.add_argument("--valid-rows", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fisher", choices=("true", "empirical"), default="true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    table = pq.read_table(options.data, columns=["image", "label"])
    train, valid = table.slice(0, options.rows), table.slice(table.num_rows - options.valid_rows)
    x = torch.tensor(to_images(np.frombuffer(b"".join(train["image"].to_pylist()), np.uint8)))
    y = torch.tensor(train["label"].to_numpy().astype(np.int64))
    model = resnet9()
    epochs = [train_epoch(model, x, y) for _ in range(3)]
    # The convolutions and the head: BatchNorm's own parameters have no rule.
    task = rayinf.Task(model, features="image", transform=to_images, parameters="supported")
    with tempfile.TemporaryDirectory() as out:
        few, options_of = train.slice(0, options.fit_rows), {"fisher": options.fisher, "batch_size": BATCH}
        fitted = rayinf.influence(task, few, valid, "category", out=f"{out}/a", **options_of)
        first = stages_of(fitted.path)
        again = rayinf.influence(task, train, valid, "category", factors=f"{out}/a", out=f"{out}/b", **options_of)
        second = stages_of(again.path)
    epochs.append(train_epoch(model, x, y))
    report(options, model, epochs, first, second)


def stages_of(folder: Path | None) -> dict[str, float]:
    """Seconds of every stage, from the run's log."""
    assert folder is not None
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["name"]: line["seconds"] for line in lines if line["event"] == "stage"}


def report(options: argparse.Namespace, model: nn.Module, epochs: list[float], *runs: dict[str, float]) -> None:
    """Tables, and JSON."""
    first, second = runs
    epoch = float(np.median(epochs))
    console = Console()
    console.print(f"training epoch: {epoch:.1f} s (median of {len(epochs)}: {', '.join(f'{e:.1f}' for e in epochs)})")
    scoring = Table("factors given", "seconds", "training epochs")
    for name in ("queries", "solved", "scores"):
        scoring.add_row(name, f"{second[name]:.1f}", f"{second[name] / epoch:.2f}")
    console.print(scoring)
    columns = 9 if options.fisher == "true" else 1
    peaks = {dtype: peak(dtype) for dtype in (torch.float32, torch.float64)}
    fitting = Table("stage", "rows", "seconds", "floor GFlop/row", "GFlop/s", "of peak")
    for name, (flops, dtype) in floors(model, columns, 10).items():
        seconds, rows = (second[name], options.rows) if name == "scores" else (first[name], options.fit_rows)
        rate = flops * rows / seconds
        row = (f"{rows:,}", f"{seconds:.1f}", f"{flops / 1e9:.2f}", f"{rate / 1e9:.0f}", f"{rate / peaks[dtype]:.0%}")
        fitting.add_row(name, *row)
    fitting.add_row("basis", "", f"{first['basis']:.1f}", "", "", "")
    console.print(fitting)
    RESULTS.mkdir(exist_ok=True)
    found = {
        "epochs": epochs,
        "fit": first,
        "score": second,
        "rows": options.rows,
        "fit_rows": options.fit_rows,
        "fisher": options.fisher,
    }
    (RESULTS / "resnet9.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
