"""KNN-Shapley against the definition of the Shapley value: all subsets, all orders of rows at the same distance."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from rayinf.select.knn_shapley import knn_shapley

Array = np.ndarray[Any, Any]


def vote(rows: tuple[int, ...], distances: Array, same: Array, neighbors: int) -> float:
    """The expected share of the K nearest votes for the label, where ties are broken at random."""
    left, total = neighbors, 0.0
    for level in sorted({distances[i] for i in rows}):
        tied = [i for i in rows if distances[i] == level]
        taken = min(left, len(tied))
        total += taken * sum(same[i] for i in tied) / len(tied)
        left -= taken
    return total / neighbors


def brute_force(distances: Array, same: Array, neighbors: int) -> Array:
    n = len(distances)
    out = np.zeros(n)
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - 1 - size) / math.factorial(n)
            for rows in combinations(rest, size):
                gain = vote((*rows, i), distances, same, neighbors) - vote(rows, distances, same, neighbors)
                out[i] += weight * gain
    return out


def draw(seed: int, tied: bool) -> tuple[Array, Array, int]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    distances = rng.integers(0, 4, n).astype(float) if tied else rng.random(n)
    return distances, rng.integers(0, 2, n).astype(bool), int(rng.integers(1, 6))


@pytest.mark.parametrize("tied", [False, True])
def test_against_all_subsets(tied: bool) -> None:
    for seed in range(12):
        distances, same, neighbors = draw(seed, tied)
        found = knn_shapley(distances, same, np.zeros(len(same)), neighbors)
        np.testing.assert_allclose(found, brute_force(distances, same, neighbors), atol=1e-10)


def test_the_values_add_up_to_the_vote_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    distances, same = np.round(rng.random(500), 2), rng.random(500) < 0.3
    found = knn_shapley(distances, same, np.zeros(500), 7)
    assert found.sum() == pytest.approx(vote(tuple(range(500)), distances, same, 7))


def test_the_order_of_the_table_and_the_last_digits_change_nothing() -> None:
    rng = np.random.default_rng(1)
    distances, same = np.round(rng.random(200), 2), rng.random(200) < 0.5
    found, order = knn_shapley(distances, same, np.zeros(200), 5), rng.permutation(200)
    np.testing.assert_allclose(knn_shapley(distances[order], same[order], np.zeros(200), 5), found[order], atol=1e-14)
    rounded = distances * (1 + 1e-15 * rng.normal(size=200))
    np.testing.assert_allclose(knn_shapley(rounded, same, np.full(200, 1e-12), 5), found, atol=1e-14)
    assert np.abs(knn_shapley(rounded, same, np.zeros(200), 5) - found).max() > 1e-4
