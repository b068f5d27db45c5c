"""Batches that look at all their rows: log-determinants, k-means++, k-center and TypiClust against naive forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rayinf.errors import InputError
from rayinf.select import k_center, typiclust
from rayinf.select.badge import pick_badge
from rayinf.select.k_center import nearest_distance, pick_centers
from rayinf.select.log_determinant import pick_spanning
from rayinf.select.seeding import spread_out
from rayinf.select.typiclust import k_means, pick_typical, typicality


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d))


# --- Log-determinants


def log_det(vectors: np.ndarray, chosen: list[int], ridge: float) -> float:
    v = vectors[chosen].astype(np.float64)
    return float(np.linalg.slogdet(np.eye(len(chosen)) + v @ v.T / ridge)[1])


@pytest.mark.parametrize(("n", "m", "ridge"), [(40, 6, 1.0), (40, 6, 1e-3), (25, 60, 5.0), (12, 3, 1e4)])
def test_log_determinants_are_those_of_every_candidate_tried(n: int, m: int, ridge: float) -> None:
    vectors = rows(n, m)
    picked, gains = pick_spanning(vectors, 10, ridge)
    slow: list[int] = []
    for k in range(10):
        left = [i for i in range(n) if i not in slow]
        values = [log_det(vectors, [*slow, i], ridge) for i in left]
        assert gains[: k + 1].sum() == pytest.approx(max(values), rel=1e-8)
        slow.append(left[int(np.argmax(values))])
    assert picked.tolist() == slow


def test_a_small_ridge_takes_a_direction_once_and_a_large_one_the_longest() -> None:
    vectors = np.array([[3.0, 0, 0], [2.9, 0, 0], [2.8, 0, 0], [0, 1.0, 0], [0, 0, 0.5]])
    assert pick_spanning(vectors, 3, 1e-6)[0].tolist() == [0, 3, 4]
    assert pick_spanning(vectors, 3, 1e6)[0].tolist() == [0, 1, 2]
    assert pick_spanning(np.zeros((4, 2)), 3, 1.0)[0].tolist() == [0, 1, 2]


def test_float32_vectors_are_picked_as_in_float64() -> None:
    vectors = rows(300, 40)
    for ridge in (1e-2, 1e2):
        assert (
            pick_spanning(vectors.astype(np.float32), 50, ridge)[0].tolist()
            == pick_spanning(vectors, 50, ridge)[0].tolist()
        )


# --- BADGE


def slow_badge(g: np.ndarray, a: np.ndarray, n: int, seed: int) -> list[int]:
    """On gradients that are formed, with all distances, one uniform number a draw."""
    gradient = (g[:, :, None] * a[:, None]).reshape(len(g), -1)
    rng = np.random.default_rng(seed)
    picked = [int(np.argmax((gradient**2).sum(1)))]
    while len(picked) < n:
        nearest = np.array([min(((x - gradient[j]) ** 2).sum() for j in picked) for x in gradient])
        nearest[picked] = 0
        at = rng.random() * nearest.sum()
        picked.append(next(i for i, total in enumerate(np.cumsum(nearest)) if total > at))
    return picked


@pytest.mark.parametrize("seed", range(4))
def test_badge_is_k_means_plus_plus_on_gradients(seed: int) -> None:
    g, a = rows(50, 4, seed), rows(50, 7, seed + 10)
    assert pick_badge(g, a, 12, seed).tolist() == slow_badge(g, a, 12, seed)


def test_draws_follow_the_squared_distance() -> None:
    """Three groups of points: the second and third draws are from the others nearly always."""
    points = np.repeat([0.0, 10.0, 30.0], 20) + np.random.default_rng(0).normal(size=60) / 100
    generator = np.random.default_rng(1)
    second = []
    for _ in range(400):
        drawn = spread_out(lambda k: (points - points[k]) ** 2, 0, 3, generator)
        assert sorted(int(points[j] + 0.5) for j in drawn) == [0, 10, 30]
        second.append(points[drawn[1]] > 20)
    assert abs(np.mean(second) - 900 / 1000) < 0.05


def test_rows_on_one_point_are_drawn_once_each() -> None:
    assert spread_out(lambda k: np.zeros(5), 2, 5, np.random.default_rng(0)).tolist() == [2, 0, 1, 3, 4]


# --- K-center


@pytest.mark.parametrize("labeled", [0, 1, 9])
def test_centers_are_the_farthest_of_all(labeled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, known = rows(60, 5), rows(labeled, 5, 3).reshape(labeled, 5)
    expected = pick_centers(x, known, 12)
    centers, picked = [*known], []
    for _ in range(12):
        distance = [min((np.linalg.norm(v - c) for c in centers), default=np.inf) for v in x]
        picked.append(int(np.argmax(distance)))
        centers.append(x[picked[-1]])
    assert expected[0].tolist() == picked
    assert (np.diff(expected[1]) <= 1e-12).all()
    monkeypatch.setattr(k_center, "_TILE", 64)
    assert pick_centers(x, known, 12)[0].tolist() == picked


def test_near_points_far_from_the_origin_keep_their_distances() -> None:
    """In float32 products would lose them."""
    x = (1000 + rows(30, 6) / 100).astype(np.float32)
    truth = np.array([min(np.linalg.norm(v.astype(np.float64) - c) for c in x[:4].astype(np.float64)) for v in x])
    np.testing.assert_allclose(nearest_distance(x, x[:4]), truth, rtol=1e-9, atol=1e-12)
    picked, _ = pick_centers(x, x[:4], 3)
    assert not set(picked) & {0, 1, 2, 3}


# --- TypiClust


@pytest.mark.parametrize("n", [2, 5, 33, 90])
def test_typicality_is_of_the_nearest_neighbours(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(n, 4)
    count = min(20, n // 2)
    truth = [
        1 / np.sort([np.linalg.norm(v - w) for j, w in enumerate(x) if j != i])[:count].mean() for i, v in enumerate(x)
    ]
    np.testing.assert_allclose(typicality(x), truth, rtol=1e-6)
    monkeypatch.setattr(typiclust, "_TILE", 100)
    np.testing.assert_allclose(typicality(x), truth, rtol=1e-6)


def test_typical_rows_of_the_clusters_without_labels() -> None:
    """Six clusters, two of them labelled: the other four first, from the largest, each by its middle."""
    rng = np.random.default_rng(0)
    centers, sizes = 10 * np.eye(6), [30, 40, 12, 50, 25, 8]
    x = np.concatenate([c + rng.normal(size=(s, 6)) for c, s in zip(centers, sizes, strict=True)])
    cluster = np.repeat(range(6), sizes)
    labeled = centers[[1, 3]] + 0.1
    picked = pick_typical(x, labeled, 4, 0)
    assert cluster[picked].tolist() == [0, 4, 2, 5]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for k in picked:
        own = np.flatnonzero(cluster == cluster[k])
        assert k == own[np.argmax(typicality(unit[own]))]
    more = pick_typical(x, labeled, 165, 0)
    assert sorted(more.tolist()) == list(range(165)), "all rows, each once, where as many are wanted"


def test_k_means_finds_clusters_that_are_there() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([c + rng.normal(size=(40, 3)) for c in 20 * np.eye(3)])
    found = k_means(x, 3, 5).reshape(3, 40)
    assert all(len(set(group)) == 1 for group in found.tolist())
    assert len(np.unique(found)) == 3
    assert len(np.unique(k_means(np.repeat(x[:2], 10, axis=0), 4, 0))) == 2, "no more clusters than points"


@pytest.mark.parametrize(
    "call",
    [
        lambda x: pick_spanning(x, 9, 1.0),
        lambda x: pick_badge(x, x, 9, 0),
        lambda x: pick_centers(x, x[:2], 9),
        lambda x: pick_typical(x, x[:2], 9, 0),
    ],
)
def test_more_rows_than_there_are(call: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(InputError, match=r"A batch of 9 rows cannot be picked from 8 candidates.*Fix: pass n <= 8"):
        call(rows(8, 3))
