"""The projection's matrix: signs, the same however it is used, and products with it."""

from __future__ import annotations

import pytest
import torch

from rayinf.core import projection
from rayinf.core.projection import Projection

P, K = 230, 12


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_TILE", 50)


def matrix(seed: int = 3, parameters: int = P) -> torch.Tensor:
    return Projection(parameters, K, seed).down(torch.eye(parameters, dtype=torch.float64))


def test_the_matrix_holds_signs_that_look_independent() -> None:
    m = matrix()
    assert m.shape == (P, K)
    assert set(m.unique().tolist()) == {-1.0, 1.0}
    gram = m.T @ m / P
    assert float((gram - torch.eye(K)).abs().max()) < 4 / P**0.5  # four standard errors of a mean of signs
    assert float((matrix(4) * m).mean().abs()) < 4 / (P * K) ** 0.5


def test_the_first_rows_do_not_depend_on_how_many_there_are() -> None:
    assert torch.equal(matrix()[:100], matrix(parameters=100))


@pytest.mark.parametrize("kept", [0, 10**9])
def test_products_down_and_up(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_KEPT", kept)
    m, given = matrix(), Projection(P, K, 3)
    rows, low = torch.randn(7, P, dtype=torch.float64), torch.randn(2, K, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(given.down(rows), rows @ m)
        torch.testing.assert_close(given.down(rows.float()), rows @ m, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(given.up(low), low @ m.T)
    assert bool(given._held) is bool(kept)
