"""The certificate: the LP against scipy, both bounds, the search over passes against the whole LP, exact cases."""

from __future__ import annotations

import numpy as np
import pytest
from pareto.vectors import drawn, on_plane, options, scipy_gain, source

from rayinf.pareto import certificate
from rayinf.pareto.blocks import GROUPS
from rayinf.pareto.ceiling import Gain, find
from rayinf.pareto.certificate import Sampler, thinned
from rayinf.pareto.common_gain import common_gain
from rayinf.pareto.pairwise import pairwise_gain

KINDS = ("noise", "heavy", "own", "plane")


def gain(p: np.ndarray, batch: int = 1000, **changed: object) -> Gain:  # type: ignore[type-arg]
    found = find(source(p, batch=batch), options(**changed)).gain
    assert found is not None
    return found


# --- The LP


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (40, 2), (300, 3), (500, 7)])
def test_the_gain_is_scipys_and_both_bounds_meet(kind: str, rows: int, classes: int) -> None:
    for seed in range(3):
        p = drawn(kind, rows, classes, seed)
        got = gain(p)
        assert got.value == pytest.approx(scipy_gain(p), rel=1e-6, abs=1e-9)
        assert got.value - got.lower == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_lp_gives_is_feasible_and_proves_itself(kind: str) -> None:
    p = drawn(kind, 400, 5)
    unit = p / np.abs(p).sum(0)
    found = common_gain(unit)
    assert (found.y >= 0).all() and found.y.sum() == pytest.approx(1)
    assert (np.abs(found.delta) <= 1).all()
    primal, dual = (found.delta @ unit).min(), np.abs(unit @ found.y).sum()
    assert primal == pytest.approx(dual, abs=1e-9)


def test_what_the_other_rows_give_counts() -> None:
    """The LP over some rows with the others' signs held is the whole LP, where these are the right signs."""
    p = drawn("own", 400, 4)
    unit = p / np.abs(p).sum(0)
    whole = common_gain(unit)
    near = np.abs(unit @ whole.y) < np.median(np.abs(unit @ whole.y))
    part = common_gain(unit[near], whole.delta[~near] @ unit[~near])
    np.testing.assert_allclose(part.y, whole.y, atol=1e-9)


def test_prices_say_what_weights_can_do() -> None:
    """`sum_k prices_k (delta'P)_k` is at most the gain, whatever the weights; classes that gain more are free."""
    p = drawn("own", 300, 4)
    p[:, 2] = (p[:, [0, 1, 3]] / np.abs(p[:, [0, 1, 3]]).sum(0)).sum(1)  # gains what the others gain together
    got = gain(p)
    assert got.prices @ got.total == pytest.approx(1)
    np.testing.assert_allclose(got.y, got.prices * got.total)
    rng = np.random.default_rng(0)
    for delta in rng.uniform(-1, 1, (50, 300)):
        assert (delta @ p) @ got.prices <= got.value + 1e-12
    delta = common_gain(p / got.total).delta
    gains = delta @ p / got.total
    assert got.y[2] == 0 and gains[2] > got.value
    np.testing.assert_allclose(gains[got.y > 0], got.value, rtol=1e-9)


# --- Over passes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("classes", "piece"), [(2, 300), (6, 500), (10, 1000)])
def test_pieces_agree_with_the_whole(kind: str, classes: int, piece: int) -> None:
    p = drawn(kind, 12_000, classes, seed=1)
    whole, parts = gain(p), gain(p, sample=piece, near=piece)
    assert parts.value - parts.lower <= 1e-9 * parts.value
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    np.testing.assert_allclose(parts.y, whole.y, atol=1e-6)
    assert 1 < parts.passes < 20


def test_a_wide_gap_is_stated_and_holds() -> None:
    p = drawn("noise", 12_000, 10)
    truth = gain(p).value
    rough = gain(p, sample=300, near=300, gap=0.02)
    assert rough.lower <= truth <= rough.value
    assert 0 < rough.value - rough.lower <= 0.02 * rough.value
    one = gain(p, sample=300, near=300, passes=1)
    assert one.passes == 1 and one.lower <= truth <= one.value


def test_where_the_model_promises_too_much_half_a_step_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows of a poor sample: the search still ends at the optimum."""
    p = drawn("heavy", 6000, 8, seed=3)
    truth, halved = gain(p).value, []
    opened = certificate.Certifier._open

    def spy(self: certificate.Certifier, y: np.ndarray, rows: np.ndarray, delta: np.ndarray) -> None:  # type: ignore[type-arg]
        halved.append(not len(rows))
        opened(self, y, rows, delta)

    monkeypatch.setattr(certificate.Certifier, "_open", spy)
    got = gain(p, sample=40, near=60)
    assert any(halved)
    assert got.lower - 1e-12 <= truth <= got.value + 1e-12
    assert got.value == pytest.approx(truth, rel=1e-4)


# --- Exact cases


@pytest.mark.parametrize("piece", [10**6, 500])
@pytest.mark.parametrize("normal", [[1.0, 1.0], [1.0, 3.0, 0.2], [2.0, 0.0, 1.0]])
def test_zero_on_a_hyperplane_and_positive_with_one_helpful_row(normal: list[float], piece: int) -> None:
    q = np.array(normal)
    p = on_plane(drawn("noise", 4000, len(q)), q)
    got = gain(p, sample=piece, near=piece)
    assert abs(got.value) < 1e-9
    np.testing.assert_allclose(got.prices / got.prices.sum(), q / q.sum(), atol=1e-7)
    more = gain(np.r_[p, np.full((1, len(q)), 0.5)], sample=piece, near=piece)
    assert more.value > 1e-6
    assert more.lower == pytest.approx(more.value, rel=1e-6)


def test_a_normal_with_both_signs_leaves_room() -> None:
    p = on_plane(drawn("noise", 500, 2), np.array([1.0, -1.0]))
    assert gain(p).value == pytest.approx(1)


def test_one_where_every_row_serves_all_or_none() -> None:
    p = np.abs(drawn("noise", 100, 3)) * np.sign(np.random.default_rng(0).standard_normal((100, 1)))
    assert gain(p).value == pytest.approx(1)


# --- Invariance


@pytest.mark.parametrize("piece", [10**6, 700])
def test_order_batches_and_scales_do_not_matter(piece: int) -> None:
    p = drawn("own", 9000, 5)
    base = gain(p, sample=piece, near=piece)
    order = np.random.default_rng(0).permutation(len(p))
    moved = gain(p[order], sample=piece, near=piece)
    assert moved.value == pytest.approx(base.value, rel=1e-8)
    np.testing.assert_allclose(moved.y, base.y, atol=1e-6)
    for batch in (1, 977, 9000):
        cut = gain(p, batch, sample=piece, near=piece)
        assert (cut.value, cut.lower, cut.interval, cut.y.tolist()) == (
            base.value,
            base.lower,
            base.interval,
            base.y.tolist(),
        )
    scale = np.array([1e-6, 1.0, 1e7, 3.0, 0.01])
    scaled = gain(p * scale, sample=piece, near=piece)
    assert scaled.value == pytest.approx(base.value, rel=1e-8)
    np.testing.assert_allclose(scaled.y, base.y, atol=1e-6)
    np.testing.assert_allclose(scaled.prices * scale, base.prices, rtol=1e-5, atol=1e-12)


def test_rows_of_zeros_change_nothing() -> None:
    p = drawn("own", 3000, 3)
    base = gain(p, sample=400, near=400)
    more = gain(np.insert(p, 50 * np.arange(60), 0.0, axis=0), sample=400, near=400)
    assert more.value == pytest.approx(base.value, rel=1e-8)


# --- The sample


def test_the_sample_estimates_sums_and_keeps_the_largest_rows() -> None:
    p = drawn("heavy", 20_000, 3)
    rng = np.random.default_rng(0)
    y = np.array([0.5, 0.2, 0.3])
    truth, found = np.abs(p @ y).sum(), []
    for _ in range(20):
        sampler = Sampler(500, 3)
        for start in range(0, len(p), 1000):
            sampler.add(p[start : start + 1000], 1 - rng.random(1000), start)
        drawn_rows = sampler.take()
        assert len(drawn_rows.rows) == 500 and (np.diff(drawn_rows.rows) > 0).all()
        np.testing.assert_array_equal(drawn_rows.p, p[drawn_rows.rows])
        found.append(drawn_rows.weight @ np.abs(drawn_rows.p @ y))
        assert np.abs(p).sum(1).argmax() in drawn_rows.rows
    error = np.std(found, ddof=1) / np.sqrt(20)
    assert abs(np.mean(found) - truth) < 4 * error
    assert np.std(found) < 0.06 * truth
    uniform = [20_000 / 500 * np.abs(p[rng.choice(20_000, 500, False)] @ y).sum() for _ in range(20)]
    assert np.std(found) < 0.5 * np.std(uniform)


def test_few_rows_are_all_in_the_sample() -> None:
    sampler = Sampler(10, 2)
    p = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]])
    sampler.add(p, np.array([0.5, 0.5, 0.5]), 0)
    got = sampler.take()
    np.testing.assert_array_equal(got.rows, [0, 2])
    np.testing.assert_array_equal(got.weight, [1, 1])
    assert thinned(got, 5, 0) is got
    assert len(thinned(got, 1, 0).rows) == 1
    assert len(Sampler(10, 2).take().rows) == 0


# --- Pairs


@pytest.mark.parametrize("kind", KINDS)
def test_the_gain_of_pairs_is_the_lps(kind: str) -> None:
    p = drawn(kind, 200, 4)
    got = pairwise_gain(p, np.ones(200))
    for k in range(4):
        assert got[k, k] == 1
        for j in range(k):
            assert got[k, j] == got[j, k] == pytest.approx(scipy_gain(p[:, [k, j]]), abs=1e-8)
    assert scipy_gain(p) <= np.min(got) + 1e-9
    # A row that stands for two is two rows.
    weight = np.where(np.arange(200) < 50, 2.0, 1.0)
    np.testing.assert_allclose(pairwise_gain(p, weight), pairwise_gain(np.r_[p, p[:50]], np.ones(250)), atol=1e-12)


def test_pairs_with_an_empty_class_or_equal_ones() -> None:
    p = drawn("noise", 50, 2)
    got = pairwise_gain(np.c_[p, np.zeros(50), p[:, 0]], np.ones(50))
    assert np.isnan(got[2]).all()
    assert got[0, 3] == pytest.approx(1)


# --- The interval


def test_the_interval_covers_the_truth() -> None:
    """95% intervals over 60 tables of 400 rows hold the gain of the population at least 50 times."""
    truth = gain(drawn("own", 60_000, 3, seed=99), sample=5000, near=5000).value
    held = 0
    for seed in range(60):
        low, high = gain(drawn("own", 400, 3, seed), resamples=300).interval
        held += low <= truth <= high
        assert 0 < high - low < 0.3
    assert 50 <= held <= 60


def test_groups_do_not_change_the_intervals_width() -> None:
    """Above `GROUPS` rows whole groups are drawn: as wide as of single rows."""
    p = drawn("own", 5 * GROUPS, 3)
    got = gain(p)
    low, high = got.interval
    value, most = np.abs(p @ got.prices), np.abs(p) @ got.prices
    error = np.sqrt(((value - got.value * most) ** 2).sum())
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_from_a_sample_changes_no_optimum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = drawn(kind, 6000, 6)
    unit = p / np.abs(p).sum(0)
    rest = 0.01 * np.random.default_rng(0).standard_normal(6)
    started = common_gain(unit, rest)
    monkeypatch.setattr("rayinf.pareto.common_gain._FEW", 10**9)
    cold = common_gain(unit, rest)
    np.testing.assert_allclose(started.y, cold.y, atol=1e-9)
    assert (started.delta @ unit + rest).min() == pytest.approx((cold.delta @ unit + rest).min(), abs=1e-10)


def test_a_start_where_few_rows_are_more_than_zeros() -> None:
    p = np.zeros((5000, 3))
    p[::50] = drawn("own", 100, 3)
    unit = p / np.abs(p).sum(0)
    found = common_gain(unit)
    assert np.abs(unit @ found.y).sum() == pytest.approx(scipy_gain(p[::50]), abs=1e-9)
