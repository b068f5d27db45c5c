"""Queries of a layer as products of two thin matrices, `U_q = L_q' R_q`, where their numerical rank is small.

With one position a row's gradient is `g a'`, so that the sum over the rows of a group has a rank of at most as many,
and an inverse that is a smooth function of K-FAC's eigenvalues multiplies it by little. A product with a row then costs
`k (o + i)` in place of `o i`. The range is found from products with random vectors, whose seed is fixed (Halko,
Martinsson and Tropp 2011, Algorithm 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from rayinf.core.layer_inputs import LayerInputs

# The share of a matrix's norm that may be left out: of gradients, whose products in float32 are rounded by about as
# much, and of solved queries.
GRADIENT_SHARE, SOLVED_SHARE = 2.0**-22, 2.0**-23
# The first rank that is tried is so much larger than that of the matrix before; after it comes twice as much.
_MORE = 8
# Width of the products of rows with queries that are computed at a time.
_WIDTH = 1024

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ThinQueries:
    """Queries of one layer, `U_q = L_q' R_q`, of rank k; smaller ones are filled up with zeros.

    Attributes:
        left_qko: L.
        right_qki: R, with orthonormal rows.
    """

    left_qko: Tensor
    right_qki: Tensor

    def __len__(self) -> int:
        return len(self.left_qko)

    @property
    def dtype(self) -> torch.dtype:
        """Of both matrices."""
        return self.left_qko.dtype

    @property
    def device(self) -> torch.device:
        """Of both matrices."""
        return self.left_qko.device

    def dense(self) -> Tensor:
        """The queries themselves, `[Q, 1, o, i]`."""
        return torch.matmul(self.left_qko.transpose(1, 2), self.right_qki)[:, None]

    def products(self, tile: LayerInputs) -> Tensor:
        """Products `[b, Q]` of a tile's row gradients with the queries."""
        b, _, t, i = tile.a_brti.shape
        q, k, o = self.left_qko.shape
        a, g = tile.a_brti.reshape(b * t, i), tile.g_brto.reshape(b * t, o)
        total, step = a.new_empty(b, q), max(1, _WIDTH // k)
        for at in range(0, q, step):
            some = slice(at, at + step)
            both = linear(g, self.left_qko[some].reshape(-1, o))
            both.mul_(linear(a, self.right_qki[some].reshape(-1, i)))
            total[:, some] = both.view(b, t, -1, k).sum((1, 3))
        return total


def most_rank(o: int, i: int) -> int:
    """The largest rank at which thin queries cost at most half of what dense ones do."""
    return o * i // (2 * (o + i))


def thin(u_oi: Tensor, most: int, share: float, usual: int = 0) -> Pair | None:
    """`L [k, o]` and `R [k, i]` whose product `L' R` is a matrix but for a share of its Frobenius norm.

    Args:
        u_oi: float64.
        most: the largest rank that is wanted.
        share: of the norm that may be left out, twice: of what lies outside the range, and of what lies within it.
        usual: the rank of matrices before.

    Returns:
        The two, R with orthonormal rows; or None where the rank is larger.
    """
    o, i = u_oi.shape
    size, rank = float(u_oi.norm()), 0
    if not size:
        return u_oi.new_zeros(1, o), u_oi.new_zeros(1, i)
    generator = torch.Generator().manual_seed(0)
    while rank < most:
        rank = min(max(2 * rank, usual + _MORE), most)
        start = torch.randn(i, rank, generator=generator, dtype=u_oi.dtype).to(u_oi.device)
        q_ok = torch.linalg.qr(u_oi @ start).Q
        inner_ki = q_ok.T @ u_oi
        # Not by the norms of U and of Q'U: their rounding hides what is left out.
        if float(torch.addmm(u_oi, q_ok, inner_ki, alpha=-1).norm()) <= share * size:
            return _shortened(q_ok, inner_ki, share * size)
    return None


def joined(pairs: list[Pair]) -> ThinQueries:
    """Pairs of all queries, filled up with zeros to their largest rank."""
    rank = max(len(left) for left, _ in pairs)
    filled = [[torch.nn.functional.pad(x, (0, 0, 0, rank - len(x))) for x in side] for side in zip(*pairs, strict=True)]
    return ThinQueries(*(torch.stack(side) for side in filled))


def _shortened(q_ok: Tensor, inner_ki: Tensor, lost: float) -> Pair:
    """`Q B` without its smallest singular values, whose squares add up to at most `lost` squared."""
    turned, values, right = torch.linalg.svd(inner_ki, full_matrices=False)
    rest = values.square().flip(0).cumsum(0).flip(0).sqrt()
    keep = max(1, int((rest > lost).sum()))
    return (q_ok @ (turned[:, :keep] * values[:keep])).T, right[:keep]
