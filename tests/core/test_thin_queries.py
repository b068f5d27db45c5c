"""Thin queries: those of the dense solve, in float64 to 1e-6; None where the rank is too large."""

from __future__ import annotations

import pytest
import torch

from rayinf.core.blocks import Block
from rayinf.core.inverse import eigen_inverse, solve_eigen, solve_thin
from rayinf.core.kfac import Basis, kfac_lambda
from rayinf.core.layer_inputs import LayerInputs
from rayinf.core.response import Damped
from rayinf.core.thin_queries import SOLVED_SHARE, ThinQueries, joined, most_rank, thin

OUT, IN, ROWS = 300, 200, 600
BLOCK = Block("head", "linear", (1, OUT, IN), ("weight", "bias"))


def rows(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and output gradients whose sizes fall by a thousand, in float64."""
    make = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(OUT, OUT, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    a = torch.randn(count, IN, generator=make, dtype=torch.float64) * torch.logspace(0, -2, IN, dtype=torch.float64)
    g = torch.randn(count, OUT, generator=make, dtype=torch.float64) * torch.logspace(0, -1, OUT, dtype=torch.float64)
    return a, g @ turn


def basis() -> Basis:
    a, g = rows(1, ROWS)
    (l_a, q_a), (l_g, q_g) = (torch.linalg.eigh(x.T @ x) for x in (a, g))
    return Basis(q_a[None], q_g[None], l_a[None].clamp(min=0), l_g[None].clamp(min=0), float(ROWS))


def gradients(counts: tuple[int, ...]) -> torch.Tensor:
    """Sums over so many rows each, rounded to float32."""
    parts = [rows(10 + k, count) for k, count in enumerate(counts)]
    return torch.stack([(g.T @ a)[None] for a, g in parts]).float()


@pytest.mark.parametrize("share", [0.1, 1e-3])
def test_products_are_those_of_the_dense_solve(share: float) -> None:
    """With training rows, in float64; an identity in place of the inverse is far away."""
    held, v = basis(), gradients((1, 2, 4, 0))
    inverse = eigen_inverse(kfac_lambda(held, ROWS), ROWS, 0.0, Damped(layer_mean=share))
    found = solve_thin(BLOCK, v, held, inverse, torch.float64)
    assert found is not None and found.left_qko.shape[1] < most_rank(OUT, IN)
    dense = solve_eigen(BLOCK, v, held, inverse)
    a, g = rows(2, 50)
    tile = LayerInputs(slice(0, 50), a[:, None, None], g[:, None, None])
    truth = torch.einsum("bo,qoi,bi->bq", g, dense[:, 0], a)
    size = truth.abs().amax(0).clamp(min=1e-300)
    assert float(((found.products(tile) - truth).abs() / size).max()) < 1e-6
    assert not bool(found.products(tile)[:, 3].any())
    plain = torch.einsum("bo,qoi,bi->bq", g, v[:, 0].double(), a)
    wrong = plain * (truth * plain).sum(0) / plain.square().sum(0).clamp(min=1e-300)
    assert float(((wrong - truth).abs() / size)[:, :3].max()) > 0.1


def test_a_thin_query_is_rotated_by_its_factors() -> None:
    """By EKFAC's inverse too, which is no function of K-FAC's eigenvalues; one whose rank is large is rotated whole."""
    held, v = basis(), gradients((1, 3, 200, 0))
    make = torch.Generator().manual_seed(3)
    values = kfac_lambda(held, ROWS) * torch.rand(1, OUT, IN, generator=make, dtype=torch.float64)
    inverse = eigen_inverse(values, ROWS, 0.0, Damped(layer_mean=0.01))
    truth, found = solve_eigen(BLOCK, v, held, inverse), solve_eigen(BLOCK, v, held, inverse, thin_rank=20)
    size = truth.flatten(1).norm(dim=1).clamp(min=1e-300)
    error = (found - truth).flatten(1).norm(dim=1) / size
    assert float(error.max()) < 1e-6
    assert float(error[0]) > 0 and float(error[2]) == 0.0


def test_a_large_rank_stays_dense() -> None:
    held, v = basis(), gradients((1, 200))
    inverse = eigen_inverse(kfac_lambda(held, ROWS), ROWS, 0.0, Damped(layer_mean=0.1))
    assert solve_thin(BLOCK, v, held, inverse, torch.float32) is None
    assert thin(torch.randn(OUT, IN, dtype=torch.float64), most_rank(OUT, IN), SOLVED_SHARE) is None
    assert thin(torch.ones(2, 2, dtype=torch.float64), most_rank(2, 2), SOLVED_SHARE) is None


def test_positions_add_up() -> None:
    """A row's gradient is the sum over its positions."""
    make = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(k, 7, generator=make), torch.randn(k, 5, generator=make)) for k in (2, 4, 3)]
    held = joined(pairs)
    assert isinstance(held, ThinQueries) and len(held) == 3 and held.left_qko.shape == (3, 4, 7)
    a, g = torch.randn(6, 1, 3, 5, generator=make), torch.randn(6, 1, 3, 7, generator=make)
    dense = torch.stack([left.T @ right for left, right in pairs])
    truth = torch.einsum("brto,qoi,brti->bq", g, dense, a)
    assert torch.allclose(held.products(LayerInputs(slice(0, 6), a, g)), truth, atol=1e-4)
