"""The decomposition: the same optimum as HiGHS on the whole program, on more rows than it holds one by one."""

import numpy as np
import pytest
from pareto.reweight_cases import demanded, influences, largest_common, oracle

from rayinf.errors import RunError
from rayinf.pareto import decomposition
from rayinf.pareto.lp import InfeasibleError, ReweightLP


@pytest.fixture
def few_rows(monkeypatch):
    """Far fewer explicit rows and a smaller sample than there are rows, so that points must represent the rest."""
    monkeypatch.setattr(decomposition, "SAMPLE", 100)
    monkeypatch.setattr(decomposition, "EXPLICIT", 30)


@pytest.mark.parametrize("seed", range(6))
def test_it_equals_highs_and_is_feasible(few_rows, seed):
    p = influences(seed, 4000, 5)
    lp, top = ReweightLP(p, [0, 2]), largest_common(p)
    for share in (0.3, 0.7, 0.95, 0.99):
        alpha = np.full(5, share * top)
        found = lp.solve(alpha)
        assert found.objective == pytest.approx(oracle(p, [0, 2], alpha), rel=1e-8)
        assert (found.weights @ p - demanded(p, alpha) >= -1e-9 * np.abs(p).sum(0)).all()
        # A vertex: as many rows between the bounds as demands bind.
        inside = (found.weights > 0) & (found.weights < 2)
        assert inside.sum() <= len(found.binding)
        assert found.passes < 80
    assert found.passes > 1
    with pytest.raises(InfeasibleError) as caught:
        lp.solve(1.001 * top)
    assert caught.value.largest_alpha == pytest.approx(top, rel=1e-7)


def test_few_passes_do_where_the_sizes_are_the_real_ones():
    p = influences(0, 60_000, 10)
    lp = ReweightLP(p, [0, 2])
    # A trust region and a tight class, 60,000 rows of which 2,000 become explicit in a pass.
    for alpha, radius in ((1.0, None), (1.0, 0.3), (np.r_[2.0, np.ones(9)], None)):
        assert lp.solve(alpha, radius=radius).passes <= 12


def test_points_alone_end_too(monkeypatch):
    """Plain Dantzig-Wolfe, with one explicit row a pass: many passes, the same optimum."""
    monkeypatch.setattr(decomposition, "SAMPLE", 20)
    monkeypatch.setattr(decomposition, "EXPLICIT", 1)
    p = influences(7, 1500, 3)
    alpha = np.full(3, 0.95 * largest_common(p))
    found = ReweightLP(p, [0]).solve(alpha)
    assert found.objective == pytest.approx(oracle(p, [0], alpha), rel=1e-8)
    assert found.passes > 5


def test_rows_that_the_prices_do_not_tell_apart(few_rows):
    """All rows alike but for their size: every row lies on the same hyperplane."""
    size = np.random.default_rng(0).exponential(size=3000)
    p = size[:, None] * np.array([1.0, -1.0])
    for alpha in (np.array([0.5, 1.3]), np.array([1.0, 1.0])):
        best = oracle(p, [0], alpha)
        assert ReweightLP(p, [0]).solve(alpha).objective == pytest.approx(best, rel=1e-8)


def test_batches_of_any_size_give_the_same_bytes(few_rows):
    p = influences(4, 20_000, 4)
    kept = ReweightLP(p, [1]).solve(1.0).weights

    def cut(size):
        return lambda: (p[s : s + size] for s in range(0, len(p), size))

    for size in (777, 8012, 50_000):
        parts = []
        found = ReweightLP(cut(size), [1]).solve(1.0, take=parts.append)
        assert len(found.weights) == 0
        assert np.concatenate(parts).tobytes() == kept.tobytes()


def test_too_many_passes_are_an_error(few_rows, monkeypatch):
    monkeypatch.setattr(decomposition, "_MOST_PASSES", 2)
    p = influences(0, 4000, 5)
    with pytest.raises(RunError, match="After 2 passes"):
        ReweightLP(p, [0, 2]).solve(0.95 * largest_common(p))


@pytest.mark.parametrize("broken", ["prices", "shares"])
def test_a_master_that_lies_is_found_out(few_rows, monkeypatch, broken):
    """Mutants: prices or shares that are off must not pass for an optimum."""
    from dataclasses import replace

    solve = decomposition.solve

    def lying(*given):
        found = solve(*given)
        if found is None:
            return None
        change = {"prices": found.prices * 1.01} if broken == "prices" else {"shares": found.shares * 0.99}
        return replace(found, **change)

    monkeypatch.setattr(decomposition, "solve", lying)
    monkeypatch.setattr(decomposition, "_MOST_PASSES", 40)
    p = influences(0, 4000, 5)
    with pytest.raises((RunError, InfeasibleError)):
        ReweightLP(p, [0, 2]).solve(0.95 * largest_common(p))
