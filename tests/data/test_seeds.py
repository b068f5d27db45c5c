"""Seeds act with all of their bits, and what is out of range is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data.samples import VALID, X, Y, close, task

import rayinf
from rayinf.data.batches import uniforms
from rayinf.select.forest import RankForest

KEYS = np.arange(20_000, dtype=np.uint64)


def _splitmix(z: int) -> int:
    """The finaliser, in Python's own integers."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
def test_short_seeds_draw_what_they_always_drew(seed: int) -> None:
    expected = [[(_splitmix(k ^ _splitmix(d + (seed << 32))) >> 11) / 2**53 for d in range(3)] for k in (0, 5, 99)]
    np.testing.assert_array_equal(uniforms(np.array([0, 5, 99], np.uint64), seed, 3), expected)


def test_seeds_that_differ_in_any_bit_draw_something_else() -> None:
    seeds = [3, *(3 ^ 1 << bit for bit in range(64))]
    drawn = np.stack([uniforms(KEYS, seed, 1)[:, 0] for seed in seeds])
    off = np.abs(np.corrcoef(drawn) - np.eye(len(seeds)))
    assert off.max() < 6 / len(KEYS) ** 0.5
    for column in drawn:
        assert np.abs(np.histogram(column, 10, (0, 1))[0] - 2000).max() < 5 * 42


def test_halves_and_forests_of_long_seeds() -> None:
    arguments: dict[str, Any] = {"curvature": "identity", "halves": True}
    halves = [rayinf.influence(task(), (X, Y), VALID, seed=s, **arguments).halves for s in (5, 5 + 2**32, 5 + 2**61)]
    found = [h[0].to_numpy() for h in halves if h is not None]
    assert not close(found[0], found[1]) and not close(found[0], found[2]) and not close(found[1], found[2])
    rows, labels = np.random.default_rng(0).normal(size=(2, 60, 3))
    forests = [RankForest.fit(rows, labels[:, 0], None, s, 1).predict(rows, None) for s in (1, 1 + 2**32, 1 + 2**32)]
    assert not np.array_equal(forests[0], forests[1])
    np.testing.assert_array_equal(forests[1], forests[2])


@pytest.mark.parametrize("seed", [-1, 2**62 + 1, 2**64 + 1, 1.0, True, "0", None])
def test_seeds_out_of_range(seed: Any) -> None:
    with pytest.raises(rayinf.InputError, match=r"seed=.*must be an integer from 0 to 4611686018427387904.*Fix: "):
        rayinf.influence(task(), (X, Y), VALID, seed=seed)
