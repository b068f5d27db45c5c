"""The leading right singular vectors of every row's matrix M, from products with `M'M` alone (Yu 2025, Algorithm 5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Further directions that are iterated with the wanted ones, and how often: the error of a direction falls with the
# ratio of its singular value to that of the first one left out, to the power of twice the iterations.
OVERSAMPLE = 8
ITERATIONS = 4

Gram = Callable[[Tensor], Tensor]


def right_subspace(gram: Gram, start_bdk: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` leading right singular vectors of every M, by subspace iteration (randomised SVD).

    Where singular values are equal their subspace is arbitrary, and the start decides.

    Args:
        gram: `F [B, d, k] -> M'M F`.
        start_bdk: standard normal, one block a row, `k >= rank` columns; with `k = d` the subspace is all there is.
        rank: directions to keep.

    Returns:
        V `[B, d, rank]` with orthonormal columns, and the share of M's Frobenius norm that they capture, `[B]`:
        `|M V| / |M|`. What all `k` directions leave of |M| is Hutchinson's estimate from the start (nothing for
        `k = d`).

    Cost: `k (ITERATIONS + 1)` products with M and with M' a row.
    """
    moved = gram(start_bdk)
    v = torch.linalg.qr(moved).Q
    for _ in range(ITERATIONS - 1):
        v = torch.linalg.qr(gram(v)).Q
    gram_v = gram(v)
    inner = v.transpose(1, 2) @ gram_v
    values, vectors = torch.linalg.eigh((inner + inner.transpose(1, 2)) / 2)
    values = values.clamp(min=0)
    along = v.transpose(1, 2) @ start_bdk
    left = ((start_bdk - v @ along) * (moved - gram_v @ along)).sum((1, 2)) / start_bdk.shape[2]
    total = values.sum(1) + left.clamp(min=0)
    share = (values[:, -rank:].sum(1) / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt()
    return v @ vectors[:, :, -rank:].flip(2), share


def project(x_bkd: Tensor, basis_bdr: Tensor) -> Tensor:
    """Rows `x V V'`."""
    return (x_bkd @ basis_bdr) @ basis_bdr.transpose(1, 2)
