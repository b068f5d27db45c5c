"""Eigenbases in parts, a layer each: the bits of all at once, whoever makes which part, and after a crash."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine.parts_of_store import put_over_a_crash
from torch import nn

from rayinf.core.blocks import find_blocks
from rayinf.engine import curvature
from rayinf.engine.decompositions import Decompose, by_size


@pytest.fixture(scope="module")
def blocks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(8, 20), nn.Linear(20, 3), nn.Linear(3, 2))
    return find_blocks(model, "all")


@pytest.fixture(scope="module")
def covariance(blocks):
    """Sums of all blocks but the last, which no row reached."""
    rng, held = np.random.default_rng(0), {"rows": np.array(50.0)}
    for block in blocks[:-1]:
        r, o, i = block.shape
        a, g = rng.normal(size=(r, i, 50)), rng.normal(size=(r, o, 50))
        held[f"G/{block.name}"] = g @ g.transpose(0, 2, 1)
        held[f"A/{block.name}"] = np.abs(a).sum(2) if block.kind == "embedding" else a @ a.transpose(0, 2, 1)
        held[f"N/{block.name}"] = np.array(50.0)
    return held


def test_the_parts_are_those_of_all_at_once(blocks, covariance, tmp_path):
    truth = curvature.basis(covariance, blocks)
    make = Decompose(SimpleNamespace(device=torch.device("cpu")), covariance, [b.name for b in blocks])
    items = by_size(blocks)
    store = put_over_a_crash(tmp_path, "basis", make, items)
    for _ in range(2):
        found = store.join_parts("basis", sorted(items))
        assert {k: v.tobytes() for k, v in found.items()} == {k: np.asarray(v).tobytes() for k, v in truth.items()}
        assert store._names() == ["basis"]
    store.put_part("basis", 0, make(items[0]))  # the second call of a part that was made twice
    assert store._names() == ["basis"] and store.missing_parts("basis", list(items)) == []


def test_the_largest_come_first(blocks):
    sizes = [max(b.shape[1], 0 if b.kind == "embedding" else b.shape[2]) for b in by_size(blocks).values()]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 21  # with the bias
    assert sorted(by_size(blocks)) == list(range(len(blocks)))
