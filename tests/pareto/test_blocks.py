"""Blocks of fixed size, sums by groups, and the rows of smallest key."""

from __future__ import annotations

import numpy as np
import pytest

from rayinf.pareto.blocks import GROUPS, Nearest, blocks, group_sums


@pytest.mark.parametrize("cuts", [[100], [1] * 100, [7, 0, 30, 63], [33, 67]])
def test_blocks_do_not_depend_on_batches(cuts: list[int]) -> None:
    x, y = np.arange(200.0).reshape(100, 2), np.arange(100)
    ends = np.cumsum(cuts)
    batches = [(x[e - c : e], y[e - c : e]) for e, c in zip(ends, cuts, strict=True)]
    got = list(blocks(iter(batches), 30))
    assert [len(p) for p, _ in got] == [30, 30, 30, 10]
    np.testing.assert_array_equal(np.concatenate([p for p, _ in got]), x)
    np.testing.assert_array_equal(np.concatenate([q for _, q in got]), y)
    assert all(p.flags.c_contiguous for p, _ in got)


def test_no_rows_give_no_blocks() -> None:
    assert not list(blocks(iter([(np.zeros((0, 2)),)])))


@pytest.mark.parametrize("rows", [1, GROUPS, 2 * GROUPS + 5])
def test_group_sums(rows: int) -> None:
    values = np.random.default_rng(0).standard_normal((rows, 2))
    want = np.zeros((GROUPS, 2))
    np.add.at(want, np.arange(rows) % GROUPS, values)
    np.testing.assert_allclose(group_sums(values), want, atol=1e-12)


def test_the_nearest_rows_are_kept_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    key, name = rng.permutation(1000).astype(float), np.arange(1000)
    key[17] = np.inf
    for size in (1, 90, 1000):
        kept = Nearest(50)
        for start in range(0, 1000, size):
            kept.add(key[start : start + size], name=name[start : start + size])
        got = kept.take()
        np.testing.assert_array_equal(got["name"], np.flatnonzero(key < np.sort(key)[50]))
        np.testing.assert_array_equal(got["key"], key[got["name"]])
    assert Nearest(5).take() == {}
