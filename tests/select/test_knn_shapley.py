"""KNN-Shapley against the definition of the Shapley value: all subsets, all orders of rows at the same distance."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from oracles_shapley import shapley, vote

from rayinf.select.knn_shapley import knn_shapley

Array = np.ndarray[Any, Any]


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
        truth = shapley(len(same), partial(vote, distances=distances, same=same, neighbors=neighbors))
        np.testing.assert_allclose(found, truth, atol=1e-10)


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
