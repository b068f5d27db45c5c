"""A random projection of row gradients to few dimensions, whose matrix is never held where it is large.

The matrix `P` `[p, k]` has entries 1 and -1 (Achlioptas 2003). It is drawn in tiles of rows that depend on the seed and
the tile's place alone: on no shard, batch, worker or device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# Parameters of a tile.
_TILE = 4096
# The matrix is kept between batches up to this many numbers (256 MB in float32).
_KEPT = 64_000_000


@dataclass(frozen=True)
class Projection:
    """A matrix of signs `[p, k]`.

    Attributes:
        parameters: p.
        dim: k.
        seed: of the draw.
    """

    parameters: int
    dim: int
    seed: int
    _held: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def down(self, rows_bp: Tensor) -> Tensor:
        """`rows P`, `[B, k]`, float64: products in the rows' precision, sums over tiles in float64."""
        out = rows_bp.new_zeros(len(rows_bp), self.dim, dtype=torch.float64)
        for where, signs in self._tiles(rows_bp):
            out += (rows_bp[:, where] @ signs).double()
        return out

    def up(self, low_qk: Tensor) -> Tensor:
        """`low P'`, `[Q, p]`."""
        return torch.cat([low_qk @ signs.T for _, signs in self._tiles(low_qk)], dim=1)

    def _tiles(self, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Places among the parameters, with their rows of the matrix."""
        for tile, start in enumerate(range(0, self.parameters, _TILE)):
            where = slice(start, min(start + _TILE, self.parameters))
            signs = self._held.get(tile)
            if signs is None or signs.dtype != like.dtype or signs.device != like.device:
                drawn = _signs(self.seed, tile, where.stop - where.start, self.dim)
                signs = torch.from_numpy(drawn).to(like.device, like.dtype)
                if self.parameters * self.dim <= _KEPT:
                    self._held[tile] = signs
            yield where, signs


def _signs(seed: int, tile: int, rows: int, dim: int) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """1 or -1 with equal chance, `[rows, dim]`, a bit of the generator each."""
    words = np.random.PCG64(np.random.SeedSequence([seed, tile])).random_raw(-(-rows * dim // 64))
    bits = np.unpackbits(np.asarray(words, "<u8").view(np.uint8), count=rows * dim)
    return (2 * bits.astype(np.int8) - 1).reshape(rows, dim)
