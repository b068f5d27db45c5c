"""Rows a second on one GPU, beside what the card can do: EKFAC of ResNet-18, ViT-B/16 and MiniLM's shape.

    python tests/benchmarks/gpu.py [--models resnet18 vit_b minilm] [--rows 4096] [--precision bf16]

Weights are random, since only shapes matter to the speed; nothing is downloaded. A stage's flops are counted from the
layers' shapes (`2 T o i` a product), and held against what a matrix product of 8192 x 8192 reaches on this card in the
same run, in the precision of the model's passes. Prints a line a model and stage, and the peak of the card's memory.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from networks import Transformer, resnet18
from torch import nn

import rayinf


def case(name: str, rows: int) -> tuple[nn.Module, np.ndarray]:
    """A model, and features."""
    rng = np.random.default_rng(0)
    if name == "minilm":
        return Transformer(6, 384, 12, 1536, 4, 30522), rng.integers(0, 30522, (rows, 64)).astype(np.float32)
    images = rng.standard_normal((rows, 3, 224, 224)).astype(np.float32)
    return (resnet18() if name == "resnet18" else Transformer()), images


def positions(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[int, int, int]]:
    """`(T, o, i)` of every layer with a weight."""
    found: dict[str, tuple[int, int, int]] = {}

    def hook(name: str, module: nn.Module) -> Any:
        def seen(_: Any, inputs: Any, out: torch.Tensor) -> None:
            o = module.weight.shape[0]
            found[name] = (out[0].numel() // o, o, module.weight[0].numel() + 1)

        return seen

    handles = [
        m.register_forward_hook(hook(n, m)) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def matrix_rate(dtype: torch.dtype) -> float:
    """Flops a second of a large product in this precision."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * 8192**3 / float(np.median(times[2:]))


def main() -> None:
    """Every model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit_b", "minilm"])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--precision", default=None)
    options = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision, torch.float32)
    print(torch.cuda.get_device_name(), f"float32 {matrix_rate(torch.float32) / 1e12:.0f} TFLOP/s,", end=" ")
    rate = matrix_rate(dtype)
    print(f"{dtype} {rate / 1e12:.0f} TFLOP/s, float64 {matrix_rate(torch.float64) / 1e12:.0f} TFLOP/s", flush=True)
    for name in options.models:
        torch.manual_seed(0)
        model, x = case(name, options.rows)
        model = model.eval().cuda()
        y = np.random.default_rng(1).integers(0, 4, len(x))
        shapes = positions(model, torch.from_numpy(x[:2]).cuda())
        forward = sum(2 * t * o * i for t, o, i in shapes.values())
        torch.cuda.reset_peak_memory_stats()
        task = rayinf.Task(model)
        few = (x[:64], y[:64])
        rayinf.influence(task, few, few, precision=options.precision)  # kernels are chosen and loaded once
        begin = time.perf_counter()
        scores = rayinf.influence(
            task, (x, y), (x[:256], y[:256]), objective="total", damping="layer_mean:0.1", precision=options.precision
        )
        seconds, total = scores.metadata["seconds"], time.perf_counter() - begin
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{name}: {millions:.0f}M parameters, {len(x)} rows in {total:.1f} s, "
            f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of {torch.cuda.mem_get_info()[1] / 2**30:.0f}"
        )
        columns = len(scores.metadata["classes"])
        flops = {"covariance": (1 + columns) * forward, "lambda": (2 + 2 * columns) * forward, "scores": 3 * forward}
        for stage, taken in seconds.items():
            share = f", {flops[stage] * len(x) / taken / rate:.1%} of the matrix rate" if stage in flops else ""
            print(f"   {stage:<12} {taken:8.2f} s {len(x) / max(taken, 1e-9):10,.0f} rows/s{share}", flush=True)


if __name__ == "__main__":
    main()
