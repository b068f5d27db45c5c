"""The reweighting LP against scipy, its errors, and what it promises of its weights."""

import pickle

import numpy as np
import pytest
from pareto.reweight_cases import demanded, influences, largest_common, oracle
from scipy.optimize import linprog

from rayinf.errors import InputError
from rayinf.pareto.lp import InfeasibleError, ReweightLP


def checked(p, targets, alpha, upper=2.0, radius=None, slack="paper", lp=None):
    """Solve, and hold everything that is promised against the program as written."""
    found = (lp or ReweightLP(p, targets, slack)).solve(alpha, upper, radius)
    w, whole = found.weights, np.abs(p).sum(0)
    low, high = (0, upper) if radius is None else (1 - radius, 1 + radius)
    spare = w @ p - demanded(p, alpha, radius, slack)
    assert low <= w.min() and w.max() <= high
    assert (spare >= -1e-9 * whole).all()
    assert found.objective == pytest.approx((w @ p)[targets].sum(), rel=1e-12)
    np.testing.assert_allclose(found.predicted_change, w @ p - p.sum(0), atol=1e-10 * whole.max())
    assert set(found.binding) == set(np.flatnonzero((spare <= 1e-9 * whole) & (whole > 0)))
    # Complementary slackness, and the dual bound that the prices give.
    assert (found.prices >= 0).all()
    assert (found.prices * spare <= 1e-7 * whole.max()).all()
    reduced = p[:, targets].sum(1) + p @ found.prices
    bound = np.maximum(low * reduced, high * reduced).sum() - found.prices @ demanded(p, alpha, radius, slack)
    assert bound == pytest.approx(found.objective, rel=1e-8, abs=1e-9 * whole[targets].sum())
    return found


@pytest.mark.parametrize("seed", range(50))
def test_the_objective_is_scipys_from_loose_alphas_to_tight_ones_and_beyond(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(50, 400)), int(rng.integers(2, 8))
    p = influences(seed, n, k)
    targets = sorted(rng.choice(k, int(rng.integers(1, k)), replace=False).tolist())
    top = largest_common(p)
    assert np.isfinite(top)
    lp = ReweightLP(p, targets)
    for share in (0.5, 0.8, 0.95, 0.99):
        found = checked(p, targets, share * top, lp=lp)
        assert found.objective == pytest.approx(oracle(p, targets, share * top), rel=1e-7)
    assert oracle(p, targets, 1.01 * top) is None
    with pytest.raises(InfeasibleError) as caught:
        lp.solve(1.01 * top)
    assert caught.value.largest_alpha == pytest.approx(top, rel=1e-7)


@pytest.mark.parametrize("slack", ["paper", "scaled"])
@pytest.mark.parametrize("radius", [None, 0.3, 1.0])
def test_slack_and_trust_region_are_as_written(slack, radius):
    p = influences(3, 300, 4, shift=0.0)
    for alpha in (np.full(4, 0.9), np.array([0.95, 1.0, 0.7, 1.02])):
        best = oracle(p, [1, 2], alpha, 3.0, radius, slack)
        found = checked(p, [1, 2], alpha, 3.0, radius, slack)
        assert found.objective == pytest.approx(best, rel=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_nasty_programs(seed):
    rng = np.random.default_rng(100 + seed)
    n, k = int(rng.integers(1, 200)), int(rng.integers(1, 6))
    p = rng.standard_t(3, (n, k)) * 10.0 ** rng.uniform(-8, 4, k)
    case = seed % 6
    if case == 0:
        p[:, 0] = 0  # a class without any influence
    elif case == 1:
        p[:, -1] = p[:, 0]
    elif case == 2:
        p[:, -1] = -p[:, 0]
    elif case == 3:
        p -= p.mean(0)  # S_k = 0
    elif case == 4:
        p = np.repeat(np.round(p / np.abs(p).max(0) * 3), 2, axis=0)  # ties everywhere
    targets = sorted(rng.choice(k, int(rng.integers(1, k + 1)), replace=False).tolist())
    for slack in ("paper", "scaled"):
        lp = ReweightLP(p, targets, slack)
        for alpha, upper, radius in ((0.9, 2.0, None), (1.3, 3.0, None), (0.9, 2.0, 0.3), (1.0, 0.7, None)):
            best = oracle(p, targets, np.full(k, alpha), upper, radius, slack)
            try:
                found = checked(p, targets, np.full(k, alpha), upper, radius, slack, lp)
            except InfeasibleError:
                assert best is None
                continue
            assert best is not None
            assert found.objective == pytest.approx(best, rel=1e-7, abs=1e-9 * np.abs(p[:, targets]).sum())


def test_history_never_changes_a_weight():
    p = influences(5, 30_000, 5)
    lp = ReweightLP(p, [0, 3])
    alpha = np.array([0.9, 1.1, 1.0, 0.95, 1.2])
    first = lp.solve(alpha).weights
    lp.solve(1.0, radius=0.2)
    with pytest.raises(InfeasibleError):
        lp.solve(1e6)
    lp.solve(0.5)
    assert lp.solve(alpha).weights.tobytes() == first.tobytes()
    other = pickle.loads(pickle.dumps(lp))
    assert other.solve(alpha).weights.tobytes() == first.tobytes()
    assert ReweightLP(p, [0, 3]).solve(alpha).weights.tobytes() == first.tobytes()


def test_prices_are_what_a_unit_more_demanded_costs():
    p = influences(8, 400, 4)
    top = largest_common(p)
    alpha = np.full(4, 0.9 * top)
    found = ReweightLP(p, [0]).solve(alpha)
    assert (found.prices > 0).any()
    for k in np.flatnonzero(found.prices):
        more = alpha.copy()
        step = 1e-6 * top
        more[k] += step
        slope = (ReweightLP(p, [0]).solve(more).objective - found.objective) / (step * p[:, k].sum())
        assert -slope == pytest.approx(found.prices[k], rel=1e-3)


def test_rows_without_influence_keep_their_weight():
    p = influences(1, 100, 3)
    p[::7] = 0
    assert (ReweightLP(p, [0]).solve(0.9, upper=3.0).weights[::7] == 1).all()
    assert (ReweightLP(p, [0]).solve(0.4, upper=0.5).weights[::7] == 0.5).all()


def feasible(p, floor, kept, upper=2.0):
    """Whether the demands of some classes can be met, by scipy."""
    unit = np.abs(p).mean(0)
    a, b = -(p / unit).T[kept], -(floor / unit)[kept]
    return linprog(np.zeros(len(p)), A_ub=a, b_ub=b, bounds=(0, upper), method="highs").status == 0


@pytest.mark.parametrize("seed", range(10))
def test_the_classes_named_conflict_and_without_any_one_of_them_do_not(seed):
    p = influences(seed, 200, 6)
    alpha = np.full(6, 1.05 * largest_common(p))
    with pytest.raises(InfeasibleError) as caught:
        ReweightLP(p, [0], names=list("abcdef")).solve(alpha)
    named = list(caught.value.classes)
    assert named and not feasible(p, alpha * p.sum(0), named)
    for k in named:
        rest = [j for j in named if j != k]
        assert not rest or feasible(p, alpha * p.sum(0), rest)
        assert f"{'abcdef'[k]} (alpha" in caught.value.what
    assert pickle.loads(pickle.dumps(caught.value)).classes == caught.value.classes


def test_two_classes_that_only_conflict_together_are_both_named():
    x = np.random.default_rng(0).standard_normal(100)
    p = np.c_[x, -x, np.ones(100)] + 0.01
    total = p.sum(0)
    alpha = np.array([30 / total[0], 30 / total[1], 1.0])  # each alone can have it
    with pytest.raises(InfeasibleError, match="together") as caught:
        ReweightLP(p, [2]).solve(alpha)
    assert caught.value.classes == (0, 1)


def test_a_class_of_negative_sum_must_gain_under_alpha_1_and_the_error_says_so():
    p = influences(2, 100, 2)
    p[:, 0] -= p[:, 0].mean() + np.abs(p[:, 0]).mean() * 0.2
    total = p.sum(0)
    assert total[0] < 0
    found = ReweightLP(p, [1]).solve(0.5)
    assert found.predicted_change[0] >= 0.5 * abs(total[0]) * (1 - 1e-9)
    with pytest.raises(InfeasibleError, match="negative: an alpha under 1 demands a gain") as caught:
        ReweightLP(p, [1]).solve([-1e6, 0.0])
    assert "raise the alpha of 0" in caught.value.fix
    # The common alpha can rise as the other class lets it.
    assert caught.value.largest_alpha == pytest.approx(largest_common(p), rel=1e-7)


def test_where_no_sum_is_positive_there_is_no_largest_alpha():
    p = -np.abs(influences(2, 100, 2))
    p[:10] *= -1
    assert (p.sum(0) < 0).all()
    with pytest.raises(InfeasibleError, match="any larger alpha in common") as caught:
        ReweightLP(p, [1]).solve(-1e6)
    assert caught.value.largest_alpha == np.inf


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"alpha_k": np.nan}, "not finite"),
        ({"alpha_k": [0.9, np.inf, 1]}, "not finite"),
        ({"alpha_k": [0.9, 0.9]}, r"shape \[2\] for 3 classes"),
        ({"alpha_k": "much"}, "alpha must be a number"),
        ({"alpha_k": 0.9, "upper": 0}, "upper must be"),
        ({"alpha_k": 0.9, "upper": -1.0}, "upper must be"),
        ({"alpha_k": 0.9, "upper": np.inf}, "upper must be"),
        ({"alpha_k": 0.9, "upper": "2"}, "upper must be"),
        ({"alpha_k": 0.9, "radius": 0}, "radius must be"),
        ({"alpha_k": 0.9, "radius": 1.5}, "radius must be"),
        ({"alpha_k": 0.9, "radius": np.nan}, "radius must be"),
        ({"alpha_k": 0.9, "radius": True}, "radius must be"),
    ],
)
def test_bad_numbers(given, expected):
    with pytest.raises(InputError, match=expected):
        ReweightLP(np.ones((5, 3)), [0]).solve(**given)


def test_bad_influences_and_slack():
    p = np.ones((5, 3))
    with pytest.raises(InputError, match="slack='loose' is unknown"):
        ReweightLP(p, [0], "loose")
    p[3, 1] = np.nan
    with pytest.raises(InputError, match="row 3 on class 1 is nan"):
        ReweightLP(p, [0])
    with pytest.raises(InputError, match="no influence vectors"):
        ReweightLP(np.ones((0, 3)), [0])
    with pytest.raises(InputError, match="shape"):
        ReweightLP(np.ones(3), [0])
