"""Regions and moments against counting row by row, and as sums over shards."""

from __future__ import annotations

from dataclasses import fields
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest

from rayinf.pareto.regions import Moments, Regions, jointly_harmful, jointly_helpful

RNG = np.random.default_rng(0)
# Small whole numbers, so that zeros and ties are frequent.
P = RNG.integers(-2, 3, (500, 3)).astype(float) * 0.7
CODES = RNG.integers(0, 4, 500)


def test_counts_are_those_of_a_loop() -> None:
    got = Regions.of(P, CODES)
    helpful = harmful = zero = 0
    joint = np.zeros((4, 3), int)
    for row, code in zip(P, CODES, strict=True):
        up, down = all(v > 0 for v in row), all(v <= 0 for v in row)
        helpful, harmful, zero = helpful + up, harmful + down, zero + all(v == 0 for v in row)
        joint[code, 0 if up else 1 if down else 2] += 1
    assert (got.rows, got.jointly_helpful, got.jointly_harmful, got.zero) == (500, helpful, harmful, zero)
    assert got.mixed == 500 - helpful - harmful
    assert min(helpful, harmful, zero, got.mixed) > 0
    np.testing.assert_array_equal(got.joint_from, joint)
    for k in range(3):
        assert got.helpful[k] == sum(row[k] > 0 for row in P)
        assert got.harmful[k] == sum(row[k] < 0 for row in P)
        for label in range(4):
            mine = P[label == CODES, k]
            assert got.helpful_from[label, k] == (mine > 0).sum()
            assert got.harmful_from[label, k] == (mine < 0).sum()
        for j in range(3):
            assert got.both_helpful[k, j] == sum(row[k] > 0 and row[j] > 0 for row in P)
            assert got.both_harmful[k, j] == sum(row[k] <= 0 and row[j] <= 0 for row in P)


def test_masks_and_counts_agree() -> None:
    got = Regions.of(P)
    assert jointly_helpful(P).sum() == got.jointly_helpful
    assert jointly_harmful(P).sum() == got.jointly_harmful
    assert got.helpful_from.shape == (0, 3)


@pytest.mark.parametrize("cuts", [[0, 500], [0, 1, 2, 499, 500], [0, 100, 350, 500]])
def test_counts_add_up_over_shards(cuts: list[int]) -> None:
    """Also where a later shard brings labels that no earlier one has."""
    order = np.argsort(CODES)
    p, codes = P[order], CODES[order]
    parts = [Regions.of(p[a:b], codes[a:b]) for a, b in pairwise(cuts)]
    got, want = reduce(Regions.merge, parts), Regions.of(p, codes)
    for f in fields(Regions):
        np.testing.assert_array_equal(getattr(got, f.name), getattr(want, f.name), err_msg=f.name)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_moments_are_numpys_whatever_the_shards(shift: float) -> None:
    """A mean that is a million times the spread must not drown it."""
    p = RNG.standard_normal((600, 4)) @ RNG.standard_normal((4, 4)) + shift
    parts = [Moments.of(p[a:b]) for a, b in pairwise([0, 1, 200, 203, 600])]
    got = reduce(Moments.merge, parts)
    values = np.linalg.eigvalsh(np.cov(p.T))[::-1]
    np.testing.assert_allclose(got.explained_variance, values / values.sum(), rtol=1e-6)
    np.testing.assert_allclose(got.correlation, np.corrcoef(p.T), atol=1e-6)
    np.testing.assert_allclose(got.mean, p.mean(0))


def test_moments_of_rows_that_agree() -> None:
    got = Moments.of(np.ones((5, 2)))
    np.testing.assert_array_equal(got.explained_variance, [0, 0])
    np.testing.assert_array_equal(got.correlation, np.zeros((2, 2)))
