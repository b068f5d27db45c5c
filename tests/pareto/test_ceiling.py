"""Cross-fitting: weights chosen on one half, judged on the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pareto.vectors import drawn, options, source
from scipy.optimize import linprog

from rayinf.pareto.ceiling import CrossFit, find

Array = np.ndarray[Any, Any]


def halves(signal: Array, noise: float, seed: int = 0) -> tuple[Array, Array, Array]:
    """Both halves see the same signal through noise of their own."""
    rng = np.random.default_rng(seed)
    first, second = (signal + noise * rng.standard_normal(signal.shape) for _ in range(2))
    return first + second, first, second


def cross_fit(*parts: Array, **changed: Any) -> CrossFit:
    found = find(source(*parts), options(**changed)).cross_fit
    assert found is not None
    return found


def oracle(chosen: Array, judged: Array) -> float:
    """Choose by scipy on one half, judge on the other."""
    rows, classes = chosen.shape
    unit = chosen / np.abs(chosen).sum(0) * rows
    found = linprog(
        np.r_[np.zeros(rows), -1.0],
        A_ub=np.c_[-unit.T, np.ones(classes)],
        b_ub=np.zeros(classes),
        bounds=[(-1, 1)] * rows + [(None, None)],
    )
    return float((found.x[:rows] @ judged / np.abs(judged).sum(0)).min())


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_scipy_chooses_and_the_other_half_judges(seed: int) -> None:
    parts = halves(drawn("own", 250, 3, seed), 0.5, seed)
    got = cross_fit(*parts)
    want = (oracle(parts[1], parts[2]), oracle(parts[2], parts[1]))
    assert got.directions == pytest.approx(want, abs=1e-8)
    assert got.value == pytest.approx(np.mean(want), abs=1e-8)
    np.testing.assert_allclose(got.by_class.min(1), want, atol=1e-8)


def test_equal_halves_give_the_in_sample_gain() -> None:
    p = drawn("own", 300, 4)
    found = find(source(2 * p, p, p), options())
    assert found.cross_fit is not None and found.gain is not None
    assert found.cross_fit.value == pytest.approx(found.gain.value, abs=1e-9)
    assert found.cross_fit.gain == pytest.approx((found.gain.value,) * 2)


def test_noise_gives_nothing_though_the_in_sample_gain_is_large() -> None:
    values, covered = [], 0
    for seed in range(8):
        found = find(source(*halves(np.zeros((500, 3)), 1.0, seed)), options())
        assert found.gain is not None and found.cross_fit is not None
        assert 0.5 < found.gain.value < 0.65
        values.append(found.cross_fit.value)
        covered += found.cross_fit.interval[0] <= 0 <= found.cross_fit.interval[1]
    assert np.abs(values).max() < 0.15
    assert np.mean(values) <= 0.02
    assert covered >= 7


def test_a_signal_shows_through_noise() -> None:
    got = cross_fit(*halves(drawn("noise", 2000, 3), 0.5))
    assert got.value > 0.3
    assert got.interval[0] > 0
    assert got.interval[0] < got.value < got.interval[1] + 0.02


def test_pieces_agree_with_the_whole() -> None:
    parts = halves(drawn("own", 12_000, 5), 0.3)
    whole, pieces = cross_fit(*parts), cross_fit(*parts, sample=600, near=600)
    np.testing.assert_allclose(pieces.by_class, whole.by_class, atol=2e-3)
    assert pieces.gain == pytest.approx(whole.gain, rel=1e-8)


def test_a_class_that_one_half_lacks_is_judged_by_neither() -> None:
    p, first, second = halves(drawn("own", 200, 3), 0.2)
    second[:, 1] = 0.0
    found = find(source(p, first, second), options())
    assert found.gain is not None and found.cross_fit is not None
    assert found.gain.used.tolist() == [0, 1, 2]
    assert np.isnan(found.cross_fit.by_class[:, 1]).all()
    want = (oracle(first[:, [0, 2]], second[:, [0, 2]]), oracle(second[:, [0, 2]], first[:, [0, 2]]))
    assert found.cross_fit.directions == pytest.approx(want, abs=1e-8)
    second[:, 2] = 0.0
    assert find(source(p, first, second), options()).cross_fit is None


def test_a_class_without_influence_is_left_out() -> None:
    p = drawn("own", 200, 3)
    base = find(source(p), options()).gain
    got = find(source(np.insert(p, 1, 0.0, axis=1)), options()).gain
    assert base is not None and got is not None
    assert got.used.tolist() == [0, 2, 3]
    assert got.value == pytest.approx(base.value)
    assert (got.y[1], got.prices[1]) == (0, 0)
    assert find(source(np.c_[p[:, 0], np.zeros(200)]), options()).gain is None


def test_labels_are_counted() -> None:
    p = drawn("own", 300, 3)
    codes = np.random.default_rng(0).integers(0, 5, 300)
    regions = find(source(p, batch=70, codes=codes), options()).regions
    assert regions.joint_from.sum() == 300
    for label in range(5):
        np.testing.assert_array_equal(regions.helpful_from[label], (p[codes == label] > 0).sum(0))
