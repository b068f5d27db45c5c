"""Line 7 of Algorithm 1 against the formula of Nahin 2025 written out, its branches and its ties."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayinf.pareto.fitness import UNTRAINED, fitness, rank, relative_change


def written_out(delta: list[float], targets: list[int]) -> float:
    """The sums of Nahin 2025, where an indicator of 0 contributes nothing."""
    first = sum(-math.inf for k in targets if delta[k] <= 0) / len(targets)
    others = [k for k in range(len(delta)) if k not in targets]
    second = sum(delta[k] for k in others if delta[k] < 0) / len(others) if others else 0.0
    return first + second


@pytest.mark.parametrize("seed", range(30))
def test_line_7(seed):
    rng = np.random.default_rng(seed)
    delta, targets = rng.normal(0.1, 0.1, 6), sorted(rng.choice(6, rng.integers(1, 7), replace=False).tolist())
    assert fitness(delta, targets) == pytest.approx(written_out(delta.tolist(), targets), abs=1e-15)


def test_a_target_that_stands_still_is_minus_infinity():
    assert fitness(np.array([0.0, 1.0, 1.0]), [0]) == -math.inf
    assert fitness(np.array([0.1, 0.2, 1.0]), [0, 1]) == 0.0


def test_gains_of_others_do_not_make_up_for_losses():
    assert fitness(np.array([0.5, -0.3, 0.9]), [0]) == pytest.approx(-0.15)


def test_all_targets_leave_nobody_to_lose():
    assert fitness(np.array([0.5, 0.1]), [0, 1]) == 0.0
    assert rank(np.array([0.5, 0.1]), [0, 1]) == (0.0, pytest.approx(0.3))


def test_ties_go_to_the_higher_mean_gain_of_the_targets():
    low, high = (rank(np.array([g, 0.1, 0.0]), [0]) for g in (0.1, 0.2))
    assert low[0] == high[0] == 0.0 and high > low


def test_at_minus_infinity_the_worst_target_ranks():
    better, worse = rank(np.array([-0.1, 0.9, 0]), [0, 1]), rank(np.array([-0.2, 5.0, 0]), [0, 1])
    assert better > worse > UNTRAINED and better[0] == worse[0] == -math.inf
    assert rank(np.array([0.1, 0.1, -5.0]), [0, 1]) > better


def test_relative_change_is_in_points_where_the_old_one_is_0():
    found = relative_change(np.array([0.3, 0.2, 0.5]), np.array([0.2, 0.0, 0.5]))
    np.testing.assert_allclose(found, [0.5, 0.2, 0.0])
