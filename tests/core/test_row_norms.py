"""Lengths of row gradients and their cosines with queries, for every kind of layer, against one autograd call a row."""

from __future__ import annotations

import oracles
import pytest
import torch
from core import cases
from core.test_capture import forward_pass, random_like, rows_of

from rayinf.core import row_gradients
from rayinf.core.row_norms import row_cosines, row_norms


@pytest.mark.parametrize("slices", [row_gradients.SLICE_FLOATS, 40])
@pytest.mark.parametrize("name", cases.NAMES)
def test_norms_and_cosines(name: str, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_gradients, "SLICE_FLOATS", slices)
    case = cases.case(name)
    x, y = (v[:7] for v in case.train)
    truth = oracles.row_gradients(case.model, cases.cross_entropy, x, y)
    with forward_pass(case.model, x, y) as (found, cotangent):
        norms = row_norms(found, cotangent)
    torch.testing.assert_close(norms, truth.norm(dim=1))
    rows = rows_of(case.model, x, y)
    with forward_pass(case.model, x, y) as (found, cotangent):
        queries = random_like(found.blocks, 3)
        for q in queries.values():
            q[1] = 0
        cosines = row_cosines(found, cotangent, queries)
    flat = torch.cat([rows[n].flatten(1) for n in queries], 1)
    other = torch.cat([q.flatten(1) for q in queries.values()], 1)
    expected = torch.nn.functional.cosine_similarity(flat[:, None], other[None, [0, 2]], dim=2)
    torch.testing.assert_close(cosines[:, [0, 2]], expected)
    assert not cosines[:, 1].any()
