"""Correlations and slopes against SciPy and NumPy, with ties, and resamples by counts against resamples by points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from rayinf.training.agreement import pearson, slope, spearman

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("ties", [False, True])
def test_against_scipy(ties: bool) -> None:
    for _ in range(20):
        p, m = RNG.normal(size=(2, 17))
        p, m = (np.round(p), np.round(m)) if ties else (p, p + m)
        assert spearman(p, m)[0] == pytest.approx(spearmanr(p, m).statistic, abs=1e-12)
        assert pearson(p, m) == pytest.approx(pearsonr(p, m).statistic, abs=1e-12)
        assert slope(p, m) == pytest.approx(np.polyfit(p, m, 1)[0], abs=1e-12)


def test_counts_are_resamples() -> None:
    p, m = np.round(RNG.normal(size=(2, 12)), 1)
    drawn = RNG.integers(0, 12, (30, 12))
    counts = np.stack([np.bincount(d, minlength=12) for d in drawn])
    expected = [spearmanr(p[d], m[d]).statistic for d in drawn]
    assert spearman(p, m, counts) == pytest.approx(np.array(expected), abs=1e-12)


def test_constants_have_no_correlation() -> None:
    held = np.full(7, 0.1)
    assert np.isnan(spearman(held, np.arange(7.0))[0]) and np.isnan(spearman(np.arange(7.0), held)[0])
    assert np.isnan(pearson(held, np.arange(7.0)))
    alone = np.eye(7, dtype=int)[:1] * 7  # a resample of one point
    assert np.isnan(spearman(np.arange(7.0), np.arange(7.0), alone)[0])
