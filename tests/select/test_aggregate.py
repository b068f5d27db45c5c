"""Aggregates against numpy's sort and quantiles, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayinf.errors import InputError
from rayinf.select.aggregate import parse

Q = (0.0, 0.1, 0.25, 1 / 3, 0.5, 0.77, 0.9, 1.0)


def slow(aggregate: str | float, row: list[float]) -> float:
    values = sorted(row)
    if aggregate == "mean":
        return math.fsum(values) / len(values)
    if aggregate == "trimmed_mean":
        middle = values[math.floor(len(values) / 10) : math.ceil(9 * len(values) / 10)]
        return math.fsum(middle) / len(middle)
    return float(np.quantile(np.array(row), 0.5 if aggregate == "median" else float(aggregate)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10, 11, 19, 20, 21, 100, 257])
@pytest.mark.parametrize("aggregate", ["trimmed_mean", "mean", "median", *Q])
def test_against_a_sort(aggregate: str | float, n: int, dtype: type[np.floating]) -> None:
    values = np.random.default_rng(n).lognormal(0, 3, (7, n)).astype(dtype)
    values[3] = values[3, 0]  # ties
    values[4, ::2] = 0
    expected = [slow(aggregate, row) for row in values.astype(np.float64).tolist()]
    found = parse(aggregate, n).apply(values.copy())
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("aggregate", ["trimmed_mean", "mean", "median", 0.9])
@pytest.mark.parametrize("n", [7, 1000, 9001])
def test_a_row_does_not_know_its_tile(aggregate: str | float, n: int) -> None:
    values = np.random.default_rng(0).lognormal(0, 3, (150, n)).astype(np.float32)
    rule = parse(aggregate, n)
    whole = rule.apply(values.copy())
    for threads in (2, 3, 200):
        assert np.array_equal(rule.apply(values.copy(), threads), whole)
    for step in (1, 67):
        parts = [rule.apply(values[k : k + step].copy()) for k in range(0, 150, step)]
        assert np.array_equal(np.concatenate(parts), whole)
    wide = np.empty((150, n + 3), np.float32)
    wide[:, 1:-2] = values  # rows that lie apart, and elsewhere in memory
    assert np.array_equal(rule.apply(wide[:, 1:-2]), whole)


@pytest.mark.parametrize("aggregate", ["trimmed_mean", "mean", "median", 0.0, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 5, 50, 500])
def test_nan_is_never_trimmed_away(aggregate: str | float, n: int) -> None:
    values = np.random.default_rng(1).random((6, n)).astype(np.float32)
    values[2, n // 3] = np.nan
    found = parse(aggregate, n).apply(values)
    assert np.flatnonzero(np.isnan(found)).tolist() == [2]


def test_the_names_of_a_quantile() -> None:
    assert parse(0.9, 5) == parse("0.9", 5) == parse("quantile:0.9", 5) == parse("quantile: .9", 5)
    assert parse("median", 5).q == 0.5 and parse(1, 5).q == 1.0
    assert parse("trimmed_mean", 5).name == "trimmed_mean"


def test_no_rows_of_the_pool() -> None:
    for aggregate in ("trimmed_mean", "mean", 0.2):
        assert parse(aggregate, 5).apply(np.zeros((0, 5))).shape == (0,)


@pytest.mark.parametrize("aggregate", ["max", "quantile:", "quantile:a", "", 1.5, -0.1, "quantile:7", math.nan, True])
def test_others_are_refused(aggregate: str | float) -> None:
    with pytest.raises(InputError, match=r'aggregate=.*Fix: use "trimmed_mean", "mean", "median"'):
        parse(aggregate, 5)


def test_no_labelled_rows() -> None:
    with pytest.raises(InputError, match="0 labelled rows"):
        parse("trimmed_mean", 0)
