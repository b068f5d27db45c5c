"""Solved queries in parts, a layer each: the inverse in float64, whoever makes which part, and after a crash."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine.parts_of_store import put_over_a_crash
from torch import nn

import rayinf
from rayinf.core.blocks import find_blocks
from rayinf.core.objectives import LABEL, Objective, make_targets
from rayinf.core.response import Damped
from rayinf.core.thin_queries import ThinQueries
from rayinf.engine import curvature
from rayinf.engine.column_tiles import Tile
from rayinf.engine.curvature import Solver
from rayinf.engine.decompositions import by_size
from rayinf.engine.solves import Solve, join_solved

ROWS, CLASSES = 50.0, 3


@pytest.fixture(scope="module")
def blocks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(8, 20), nn.Linear(20, 3), nn.Linear(3, 2))
    return find_blocks(model, "all")


def factors_of(blocks, reached, seed=0):
    """Eigenbases and EKFAC's eigenvalues of the blocks that a row has reached."""
    rng, held = np.random.default_rng(seed), {"rows": np.array(ROWS)}
    for block in reached:
        r, o, i = block.shape
        held[f"q_g/{block.name}"] = np.linalg.qr(rng.normal(size=(r, o, o)))[0]
        held[f"l_g/{block.name}"], held[f"l_a/{block.name}"] = rng.random((r, o)), rng.random((r, i))
        held[f"positions/{block.name}"], held[f"L/{block.name}"] = np.array(ROWS), ROWS * rng.random((r, o, i))
        if block.kind != "embedding":
            held[f"q_a/{block.name}"] = np.linalg.qr(rng.normal(size=(r, i, i)))[0]
    return held


def sums_of(blocks, size=1.0, rank=None):
    """Group sums of the gradients of three classes."""
    rng, held = (
        np.random.default_rng(1),
        {"S0": np.arange(3.0), "C0": np.full(3, 7.0), "H0": np.zeros(3), "fit/rows": np.array(21.0)},
    )
    for block in blocks:
        r, o, i = block.shape
        v = rng.normal(size=(CLASSES, r, o, i))
        if rank is not None:
            v = rng.normal(size=(CLASSES, r, o, rank)) @ rng.normal(size=(CLASSES, r, rank, i))
        held[f"V0/{block.name}"] = size * v
    return held


def stage(blocks, sums, factors, curv="ekfac", dtype="float64", tile=None, damping=0.3):
    """The stage in this process, and what joins its parts."""
    targets = make_targets((Objective("class", split=LABEL),), (0, 1, 2), {LABEL: (0, 1, 2)})
    job = SimpleNamespace(targets=targets, spec=SimpleNamespace(halves=False))
    solver = Solver(curv, tuple(blocks), int(ROWS), 0.01, Damped(damping), 1e-16, dtype)
    worker = SimpleNamespace(job=job, device=torch.device("cpu"))
    return Solve(worker, [sums, factors], solver, tile), solver


def whole(tile: Tile):
    return {"tile": np.array(tile)}


def truth(block, sums, factors, damping=0.3):
    """`Q_G (Q_G' V Q_A / (n (Lambda + l2 + damping))) Q_A'` of every class."""
    v, q_g, level = sums[f"V0/{block.name}"], factors[f"q_g/{block.name}"], factors[f"L/{block.name}"] / ROWS
    q_a = factors.get(f"q_a/{block.name}", np.eye(block.shape[2])[None])
    inner = np.swapaxes(q_g, 1, 2) @ v @ q_a / (ROWS * (level + 0.01 + damping))
    return q_g @ inner @ np.swapaxes(q_a, 1, 2)


def test_the_parts_of_all_layers_are_the_inverse_of_each_after_a_crash_too(blocks, tmp_path):
    sums, factors = sums_of(blocks), factors_of(blocks, blocks[:-1])
    make, solver = stage(blocks, sums, factors)
    items = by_size(blocks)
    store = put_over_a_crash(tmp_path, "solved", make, items)
    for _ in range(2):
        found = store.join_parts("solved", sorted(items), join_solved, solver, False)
        assert store._names() == ["solved"]
        for block in blocks[:-1]:
            np.testing.assert_allclose(found[f"U/{block.name}"], truth(block, sums, factors), rtol=1e-10, atol=1e-13)
        assert not found[f"U/{blocks[-1].name}"].any()  # no row has reached the last layer
    assert found["details/value"].tolist() == [0.0, 1.0, 2.0] and found["fit/rows"] == 21
    assert not [k for k in found if k.startswith(("moved/", "reached/", "flat/"))]


@pytest.mark.parametrize("size", [1e-30, 1e25, 1e44])
def test_queries_that_float32_does_not_hold_have_one_scale(blocks, size):
    """In all layers, or in one alone; what is small beside the largest of its own query may be lost."""
    sums, factors = sums_of(blocks, min(size, 1.0)), factors_of(blocks, blocks)
    sums[f"V0/{blocks[1].name}"] *= max(size, 1.0)
    make, solver = stage(blocks, sums, factors, dtype="float32")
    found = join_solved(*(make(b) for b in blocks), solver, False)
    truths = {b.name: truth(b, sums, factors) for b in blocks}
    largest = np.max([np.abs(u).max((1, 2, 3)) for u in truths.values()], axis=0)
    for name, u in truths.items():
        value = found[f"U/{name}"]
        assert value.dtype == np.float32 and np.abs(value).max() <= 1
        error = np.abs(value * found["scale"][:, None, None, None] - u).max((1, 2, 3))
        assert (error <= 1e-6 * largest).all()


@pytest.mark.parametrize("rank", [1, None])
def test_a_tile_has_thin_queries_where_their_rank_is_small(rank):
    blocks = find_blocks(nn.Linear(40, 30), "all")
    sums, factors = sums_of(blocks, rank=rank), factors_of(blocks, blocks)
    # One eigenvalue in all: the inverse adds nothing to the rank.
    for key in ("l_g", "l_a"):
        factors[f"{key}/{blocks[0].name}"][:] = 5.0
    factors[f"L/{blocks[0].name}"][:] = ROWS * 25.0 / (ROWS * ROWS)
    make, solver = stage(blocks, sums, factors, "kfac", "float32", whole(((0, 3),)))
    found = join_solved(make(blocks[0]), solver, True)
    name = blocks[0].name
    assert (f"left/{name}" in found) == (rank == 1) and found[
        "tile-moved" if "tile-moved" in found else curvature.MOVED
    ]
    u = (
        ThinQueries(*(torch.from_numpy(found[f"{side}/{name}"]) for side in ("left", "right"))).dense().numpy()
        if rank == 1
        else found[f"U/{name}"]
    )
    np.testing.assert_allclose(u, truth(blocks[0], sums, factors), rtol=2e-4, atol=1e-7)


def test_objectives_without_a_gradient_and_layers_without_curvature(blocks):
    factors = factors_of(blocks, blocks)
    make, solver = stage(blocks, sums_of(blocks, size=0.0), factors)
    with pytest.raises(rayinf.InputError, match="None of the 21 validation rows has a gradient"):
        join_solved(*map(make, blocks), solver, False)
    assert not join_solved(*map(make, blocks), solver, True)[curvature.MOVED]
    flat = {k: v * 0 if k.startswith("L/") else v for k, v in factors.items()}
    make, solver = stage(blocks, sums_of(blocks), {**flat, f"L/{blocks[1].name}": factors[f"L/{blocks[1].name}"]})
    found = join_solved(*map(make, blocks), solver, False)
    assert sorted(k for k in found if k.startswith("flat/")) == sorted(
        f"flat/{b.name}" for b in blocks if b != blocks[1]
    )
    make, solver = stage(blocks, sums_of(blocks), flat)
    with pytest.raises(rayinf.InputError, match="The curvature of every layer is 0"):
        join_solved(*map(make, blocks), solver, False)


def _refused(cluster=None):
    """Rows of twelve features that vary in four directions, and validation rows that vary in the others."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 4)) @ rng.normal(size=(4, 12))).astype(np.float32)
    y, other = rng.integers(0, 3, 60), rng.normal(size=(20, 12)).astype(np.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.raises(rayinf.InputError, match=r"is singular, and .* lies in its null space"):
        rayinf.influence(rayinf.Task(model), (x, y), (other, y[:20]), damping=0.0, cluster=cluster)


def test_a_singular_curvature_is_refused():
    _refused()


def test_a_singular_curvature_is_refused_by_workers(ray_session):
    _refused(rayinf.Cluster(workers=2))
