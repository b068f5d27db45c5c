"""Fisher columns combined with random signs: right on average, for every row, and exact where few columns are left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from rayinf.core import fisher
from rayinf.data.batches import signs


def fisher_of(logits: Tensor) -> Tensor:
    """`diag P - P P'` of every row, float64."""
    p = logits.double().softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


def outer(columns_sbc: Tensor) -> Tensor:
    return torch.einsum("sbc,sbe->bce", columns_sbc.double(), columns_sbc.double())


@pytest.mark.parametrize("draws", [1, 2, 4])
@pytest.mark.parametrize("way", ["columns", "softmax"])
def test_the_mean_over_all_signs_is_the_fisher(monkeypatch: pytest.MonkeyPatch, draws: int, way: str) -> None:
    """Over all patterns of signs, which are equally likely: no error of sampling is left."""
    monkeypatch.setattr(fisher, "SIGN_DRAWS", draws)
    torch.manual_seed(0)
    logits = 3 * torch.randn(3, 6, dtype=torch.float64)
    columns = fisher.columns(logits, torch.zeros(3, dtype=torch.long), "cross_entropy", "true", None)
    count = len(columns) if way == "columns" else 6
    total = torch.zeros(3, 6, 6, dtype=torch.float64)
    for pattern in itertools.product((-1, 1), repeat=count):
        e = torch.tensor(pattern, dtype=torch.int8).expand(3, -1)
        found = fisher.signed_columns(columns, e) if way == "columns" else fisher.signed_softmax(logits, e)
        assert found.shape == (draws, 3, 6)
        assert float(found.sum(2).abs().max()) < 1e-12
        total += outer(found)
    assert float((total / 2**count - fisher_of(logits)).abs().max()) < 1e-12


def test_two_columns_are_exact_and_the_largest_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.1, 0.2]], dtype=torch.float64)
    columns = fisher.columns(logits, torch.zeros(2, dtype=torch.long), "cross_entropy", "true", None)
    for pattern in itertools.product((-1, 1), repeat=2):
        e = torch.tensor(pattern).expand(2, -1)
        assert float((outer(fisher.signed_columns(columns, e)) - fisher_of(logits)).abs().max()) < 1e-12
    # Rows whose signs do not go by size: the product of the two largest columns stays.
    ordered = fisher._hadamard
    torch.manual_seed(1)
    logits = 2 * torch.randn(200, 8, dtype=torch.float64)
    e = torch.from_numpy(signs(np.arange(200, dtype=np.uint64), 0, 8))

    def error() -> float:
        return float((outer(fisher.signed_softmax(logits, e)) - fisher_of(logits)).square().sum())

    found = error()
    monkeypatch.setattr(fisher, "_hadamard", lambda s, rank, kind: ordered(s, torch.zeros_like(rank), kind))
    assert found < 0.6 * error()


def test_a_sure_row_keeps_its_digits() -> None:
    """With a margin of 60, 1 - P is 0 in float64; the combination is still right to its last digits."""
    logits = torch.tensor([[60.0, 0.0, -1.0, -2.0]])
    e = torch.ones(1, 4, dtype=torch.int8)
    u = fisher.signed_softmax(logits, e)[0, 0]
    root = (logits.double() - 60).exp().sqrt()[0, 1:] / fisher.SIGN_DRAWS**0.5
    assert torch.allclose(u[1:], root, rtol=1e-12, atol=0)
    assert float(u[0]) == pytest.approx(-float(root.sum()), rel=1e-12)


def test_signs_are_those_of_the_row() -> None:
    keys = np.arange(1000, dtype=np.uint64) * np.uint64(977)
    found = signs(keys, 5, 70)
    assert found.shape == (1000, 70)
    assert set(np.unique(found)) == {-1, 1}
    assert np.array_equal(found[::-1], signs(keys[::-1], 5, 70))
    assert (found != signs(keys, 6, 70)).mean() == pytest.approx(0.5, abs=0.01)
    correlation = np.corrcoef(found.T.astype(float)) - np.eye(70)
    assert np.abs(correlation).max() < 0.2
    assert np.abs(found.mean(0)).max() < 0.15
