"""Wilson's interval against scipy's, and that it holds the share whatever the rounding."""

import numpy as np
from scipy.stats import binomtest

from rayinf.pareto.wilson import wilson


def test_against_scipy():
    right, rows = np.array([0, 1, 7, 12, 12]), np.array([5, 9, 12, 30, 12])
    low, high = wilson(right, rows)
    truth = [binomtest(int(r), int(n)).proportion_ci(0.95, method="wilson") for r, n in zip(right, rows, strict=True)]
    np.testing.assert_allclose(low, [t.low for t in truth], atol=1e-12)
    np.testing.assert_allclose(high, [t.high for t in truth], atol=1e-12)


def test_the_share_lies_inside():
    rows = np.arange(1, 2000)
    for right in (rows, 0 * rows, rows // 2):
        low, high = wilson(right, rows)
        assert (low <= right / rows).all() and (right / rows <= high).all()


def test_no_rows():
    assert np.isnan(wilson(np.array([0]), np.array([0]))).all()
