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
from torch import nn

import rayinf


class Vit(nn.Module):
    """ViT-B/16 of 224 x 224 pixels: 12 layers, 768 wide, 197 positions, attention written as linear layers."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, classes: int, tokens: int | None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 16, 16) if tokens is None else nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).flatten(2).transpose(1, 2) if isinstance(self.first, nn.Conv2d) else self.first(x.long())
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


class Layer(nn.Module):
    """A transformer's layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.a, self.b = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        b, t, w = h.shape
        q, k, v = self.qkv(self.a(h)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, w)
        h = h + self.out(mixed)
        return h + self.down(nn.functional.gelu(self.up(self.b(h))))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(i, o, 3, stride, 1), nn.Conv2d(o, o, 3, 1, 1)
        self.short = nn.Identity() if i == o and stride == 1 else nn.Conv2d(i, o, 1, stride)
        self.act, self.end = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.short(x) + self.two(self.act(self.one(x))))


def resnet18() -> nn.Module:
    """ResNet-18 of 224 x 224 pixels without its normalisations, whose affine parameters have no rule."""
    parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for o, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        parts.append(Residual(width, o, stride))
        width = o
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def case(name: str, rows: int) -> tuple[nn.Module, np.ndarray]:
    """A model, and features."""
    rng = np.random.default_rng(0)
    if name == "minilm":
        return Vit(6, 384, 12, 1536, 4, 30522), rng.integers(0, 30522, (rows, 64)).astype(np.float32)
    images = rng.standard_normal((rows, 3, 224, 224)).astype(np.float32)
    return (resnet18() if name == "resnet18" else Vit(12, 768, 12, 3072, 10, None)), images


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
