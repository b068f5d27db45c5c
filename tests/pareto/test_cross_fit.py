"""The noise of a cross-fitted gain of accuracy: by hand, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from rayinf.pareto.cross_fit import gain_error, shows_gain


def test_the_error_by_hand() -> None:
    change = np.array([[0.03, 0.00, -0.01], [0.01, 0.02, -0.01]])
    pooled = (0.02**2 + 0.02**2 + 0.0) / 3 / 2
    assert gain_error(change, [0]) == pytest.approx((pooled / 2) ** 0.5)
    assert gain_error(change, [0, 1]) == pytest.approx((pooled / 4) ** 0.5)
    assert shows_gain(0.02, 0.005, 10) and not shows_gain(0.009, 0.005, 10)
    assert not shows_gain(0.02, 0.005, 1)  # with one degree of freedom t is 6.3
    assert not shows_gain(0.0, 0.0, 3)
    assert shows_gain(0.02, 0.01, 10) and not shows_gain(0.02, 0.01, 10, tried=4)  # t of 1.81, and of 2.63


@pytest.mark.parametrize("classes", [3, 10])
def test_a_gain_of_noise_is_shown_in_one_case_of_twenty_at_most(classes: int) -> None:
    rng, shown, errors, gains = np.random.default_rng(classes), 0, [], []
    for _ in range(4000):
        change = 0.02 * rng.standard_normal((2, classes))
        gain, error = float(change[:, :2].mean()), gain_error(change, [0, 1])
        shown += shows_gain(gain, error, classes)
        errors.append(error**2)
        gains.append(gain**2)
    assert 0.03 < shown / 4000 < 0.065
    assert np.mean(errors) == pytest.approx(np.mean(gains), rel=0.1)
