"""The rules of trimming, against a loop that goes row by row."""

from __future__ import annotations

import numpy as np
import pytest

from rayinf.select.trim import candidates, pick, worst_first


def slow(values: np.ndarray, signed: bool, budget: int, labels: np.ndarray, floor: int) -> list[int]:
    """Row by row: the worst that is left, unless its class is at its floor."""
    left = {c: int((labels == c).sum()) for c in labels.tolist()}
    gone: list[int] = []
    badness = [(-v if signed else v, -k) for k, v in enumerate(values.tolist())]
    for bad, minus in sorted([b for b in badness if not np.isnan(b[0])], reverse=True):
        c = labels[-minus]
        if len(gone) < budget and left[c] > floor and (bad > 0 or not signed):
            gone.append(-minus)
            left[c] -= 1
    return gone


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("floor", [0, 1, 5, 100])
@pytest.mark.parametrize("budget", [0, 1, 7, 20, 60])
def test_against_a_loop(signed: bool, floor: int, budget: int) -> None:
    """With ties, missing values and classes of very different sizes."""
    rng = np.random.default_rng(budget + floor)
    values = rng.integers(-5, 6, 60).astype(float)
    values[rng.choice(60, 5, replace=False)] = np.nan
    labels = np.array(["a", "b", "c"])[rng.choice(3, 60, p=[0.8, 0.15, 0.05])]
    order = worst_first(values, signed)
    trimmed = pick(order, candidates(values, signed), budget, labels, floor)
    expected = slow(values, signed, budget, labels, floor)
    assert np.flatnonzero(trimmed).tolist() == sorted(expected)
    assert [k for k in order if trimmed[k]] == expected


def test_rows_without_a_value_come_last() -> None:
    values = np.array([np.nan, 1.0, 3.0, np.nan, 2.0])
    assert worst_first(values, signed=False).tolist() == [2, 4, 1, 0, 3]
    assert worst_first(values, signed=True).tolist() == [1, 4, 2, 0, 3]


def test_no_rows() -> None:
    none = np.zeros(0)
    assert pick(worst_first(none, True), candidates(none, True), 3, np.zeros(0, int), 2).tolist() == []
