"""The leading right singular vectors of every row's matrix M, from products with `M'M` alone (B Algorithm 5)."""

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
        start_bdk: standard normal, one block a row, `k >= rank` columns; with `k = d` the result is exact.
        rank: directions to keep.

    Returns:
        V `[B, d, rank]` with orthonormal columns, and the share of M's Frobenius norm that they capture, `[B]`:
        `|M V| / |M|`, where |M| is exact for `k = d` and Hutchinson's estimate from the start otherwise.

    Cost: `k (ITERATIONS + 1)` products with M and with M' a row.
    """
    whole = start_bdk.shape[2] == start_bdk.shape[1]
    moved = gram(start_bdk) if not whole else None
    v = torch.linalg.qr(start_bdk if moved is None else moved).Q
    for _ in range(0 if whole else ITERATIONS - 1):
        v = torch.linalg.qr(gram(v)).Q
    inner = v.transpose(1, 2) @ gram(v)
    values, vectors = torch.linalg.eigh((inner + inner.transpose(1, 2)) / 2)
    kept = values[:, -rank:].clamp(min=0).sum(1)
    if moved is None:
        total = values.clamp(min=0).sum(1)
    else:
        total = torch.maximum((start_bdk * moved).sum((1, 2)) / start_bdk.shape[2], values.clamp(min=0).sum(1))
    share = (kept / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt()
    return v @ vectors[:, :, -rank:].flip(2), share


def project(x_bkd: Tensor, basis_bdr: Tensor) -> Tensor:
    """Rows `x V V'`."""
    return (x_bkd @ basis_bdr) @ basis_bdr.transpose(1, 2)
