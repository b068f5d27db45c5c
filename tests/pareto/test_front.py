"""The front against every pair compared, and intervals against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from rayinf.pareto.front import non_dominated, trade_off, value
from rayinf.pareto.wilson import wilson


def pairs_compared(gain: np.ndarray, others: np.ndarray) -> list[bool]:
    out = []
    for i in range(len(gain)):
        beaten = any(
            (gain[j] >= gain[i] and others[j] >= others[i] and (gain[j] > gain[i] or others[j] > others[i]))
            or (gain[j] == gain[i] and others[j] == others[i] and j < i)
            for j in range(len(gain))
        )
        out.append(not beaten)
    return out


@pytest.mark.parametrize("seed", range(40))
def test_front(seed):
    rng = np.random.default_rng(seed)
    gain, others = rng.integers(-4, 5, (2, 30)) / 4 if seed % 2 else rng.normal(size=(2, 30))
    assert non_dominated(gain, others).tolist() == pairs_compared(gain, others)


def test_one_point_is_its_own_front():
    assert non_dominated(np.array([0.0]), np.array([-1.0])).tolist() == [True]


def test_trade_off():
    accuracy, plain = np.array([0.5, 0.6, 0.7, 0.2]), np.array([0.4, 0.65, 0.7, 0.0])
    assert trade_off(accuracy, plain, [0, 3]) == (pytest.approx(0.15), pytest.approx(-0.025))
    assert trade_off(accuracy, plain, [0, 1, 2, 3])[1] == 0.0


def test_price():
    assert value(0.05, -0.02, 2.0) == pytest.approx(0.01)
    assert value(0.05, 0.02, 2.0) == pytest.approx(0.09)


def test_wilson_ends_are_where_the_score_test_rejects():
    z = 1.959963984540054
    right, rows = np.array([3, 50, 0, 20]), np.array([10, 400, 7, 20])
    low, high = wilson(right, rows)
    for ends in (low, high):
        inside = (ends > 1e-9) & (ends < 1 - 1e-9)
        gap = np.abs(right / rows - ends) / np.sqrt(np.maximum(ends * (1 - ends) / rows, 1e-300))
        np.testing.assert_allclose(gap[inside], z, rtol=1e-9)
    assert low[2] == pytest.approx(0.0, abs=1e-12) and high[3] == pytest.approx(1.0) and 0 < high[2] < 1


def test_wilson_covers():
    rng = np.random.default_rng(0)
    right = rng.binomial(60, 0.9, 4000)
    low, high = wilson(right, np.full(4000, 60))
    assert 0.93 < ((low <= 0.9) & (high >= 0.9)).mean() < 0.97
