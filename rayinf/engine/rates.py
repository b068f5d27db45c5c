"""How fast this machine is at what a plan cannot try at its true size: decompositions, products, copies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rayinf.engine.curvature import fixed_threads, is_large

# Sides of the matrices that are tried, and bytes that are copied.
_SIDE, _BYTES = 512, 8 << 20


@dataclass
class Rates:
    """Seconds of work of any size, from a piece that is small enough to try once."""

    _known: dict[str, float] = field(default_factory=dict)

    def eigh(self, side: int) -> float:
        """Seconds of a symmetric eigendecomposition in float64."""
        tried = min(side, _SIDE)

        def decompose() -> object:
            matrix = torch.randn(tried, tried, dtype=torch.float64)
            return torch.linalg.eigh(matrix + matrix.T)

        return self._seconds(f"eigh {tried} {is_large(side)}", decompose, is_large(side)) * (side / tried) ** 3

    def products(self, multiply_adds: float, large: bool) -> float:
        """Seconds of so many multiply-adds of matrix products in float64.

        Args:
            multiply_adds: in all.
            large: whether the store gives them several threads.
        """
        a = torch.randn(_SIDE, _SIDE, dtype=torch.float64)
        return self._seconds(f"product {large}", lambda: a @ a, large) * multiply_adds / _SIDE**3

    def copies(self, size: int) -> float:
        """Seconds in which so many bytes are copied."""
        held = torch.ones(_BYTES, dtype=torch.uint8)
        return self._seconds("copy", held.clone, False) * size / _BYTES

    def files(self, size: int) -> float:
        """Seconds in which so many bytes are written: their checksum and a copy; the disk itself is not tried."""
        held = bytes(_BYTES)
        return self.copies(2 * size) + self._seconds("sha", lambda: hashlib.sha256(held), False) * size / _BYTES

    def _seconds(self, name: str, work: Callable[[], object], large: bool) -> float:
        """Of the second call: the first one may load code."""
        if name not in self._known:
            with fixed_threads(large):
                work()
                begin = time.perf_counter()
                work()
                self._known[name] = time.perf_counter() - begin
        return self._known[name]
