"""The linear datamodelling score of a small network, and a training of it beside a plain torch loop.

    python tests/benchmarks/lds.py --data MNIST_TRAIN.parquet --test MNIST_TEST.parquet [--subsets 40] [--seeds 2]

A 784-64-10 network on --rows rows (15 epochs of batch 32, SGD, cosine), a column for each of --valid validation rows,
by the default inverse, by others that --damping names, and by gradient products. Ours and the plain loop are trained on
the same rows and alternated in this process, which has one thread; the figure is the median of the ratios of their
processor times.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import rayinf
from rayinf.training.evaluation import Measurement
from rayinf.training.retraining import Retraining

RESULTS = Path(__file__).parent / "results"
FIT = rayinf.Fit("sgd", lr=0.1, schedule="cosine", epochs=15, batch_size=32, momentum=0.0, weight_decay=1e-3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def read(path: str, rows: int) -> pa.Table:
    """The first rows, with a column `one` that numbers them."""
    held = pq.read_table(path, columns=["image", "label"]).slice(0, rows)
    x = np.frombuffer(b"".join(held["image"].to_pylist()), np.uint8).astype(np.float32) / 255
    features = pa.FixedSizeListArray.from_arrays(pa.array(x), 784)
    return pa.table({"features": features, "label": held["label"].cast(pa.int64()), "one": np.arange(rows)})


def tensors(table: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    flat = table["features"].combine_chunks().flatten().to_numpy()
    return torch.tensor(flat).view(-1, 784), torch.tensor(table["label"].to_numpy())


def plain(x: torch.Tensor, y: torch.Tensor, valid: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The same training as a user would write it, and the losses of the validation rows."""
    model, order = network(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=FIT.lr, weight_decay=FIT.weight_decay)
    steps, step = FIT.epochs * -(-len(x) // FIT.batch_size), 0
    for _ in range(FIT.epochs):
        for at in torch.randperm(len(x), generator=order).split(FIT.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = FIT.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
            step += 1
    with torch.no_grad():
        return nn.functional.cross_entropy(model(valid[0]), valid[1], reduction="none")


def seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def ratios(task: rayinf.Task, train: pa.Table, valid: pa.Table, times: int) -> dict[str, float]:
    """Processor seconds of a training with its measurement, ours and the plain loop's."""
    keep = np.random.default_rng(0).permutation(len(train)) < len(train) // 2
    x, y = (held[torch.from_numpy(keep)] for held in tensors(train))
    retraining, measurement = Retraining(task, train, several=True), Measurement(task, valid, several=True)
    others = tensors(valid)

    def ours() -> None:
        measurement.of(retraining.train(keep, rows=len(train)), [])

    found = np.array([(seconds(ours), seconds(lambda: plain(x, y, others))) for _ in range(times + 1)])[1:]
    both = np.median(found, axis=0)
    return {"ours": both[0], "plain": both[1], "ratio": float(np.median(found[:, 0] / found[:, 1]))}


def main() -> None:
    """Ratios, then the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--valid", type=int, default=300)
    parser.add_argument("--subsets", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--damping", type=float, nargs="*", default=[0.01])
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, valid = read(options.data, options.rows), read(options.test, options.valid)
    task = rayinf.retrain(rayinf.Task(network(), fit=FIT), train)
    speed = ratios(task, train, valid, options.times)
    print(f"a training and its measurement: {speed['ours']:.2f} s, plain {speed['plain']:.2f} s: {speed['ratio']:.2f}")
    wanted = ["total", "category", "slice:one"]
    settings: dict[str, dict[str, Any]] = {f"damping {d:g}": {"damping": d} for d in options.damping}
    settings = {"default": {}, **settings, "identity": {"curvature": "identity"}}
    scores = {name: rayinf.influence(task, train, valid, wanted, **more) for name, more in settings.items()}
    begin = time.perf_counter()
    found = rayinf.lds(task, train, valid, scores, options.subsets, seeds=options.seeds, out=options.out)
    print(found)
    print(f"{time.perf_counter() - begin:.0f} s")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lds.json").write_text(json.dumps({"speed": speed, "summary": found.summary}, indent=1))


if __name__ == "__main__":
    main()
