"""The LP over both halves: scipy on the whole program, rows that did not choose, noise that is no gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pareto.reweight_cases import demanded
from pareto.vectors import drawn
from scipy.optimize import linprog

from rayinf.errors import InputError
from rayinf.pareto.halved_lp import HalvedLP, by_class
from rayinf.pareto.lp import InfeasibleError, ReweightLP

Array = np.ndarray[Any, Any]
NAMES = ("cat", "dog", "emu", "fox")


def halves(seed: int, rows: int = 800, noise: float = 1.0) -> tuple[Array, Array]:
    """Both halves see the same signal through noise of their own."""
    p, rng = drawn("own", rows, 4, seed), np.random.default_rng(seed + 100)
    size = np.abs(p).mean(0)
    first, second = (p + noise * size * rng.standard_normal(p.shape) for _ in range(2))
    return first, second


def naive(parts: list[Array], demands: list[Array], targets: list[int], radius: float, alpha: float) -> Array:
    """The best weights by scipy: the summed influence of `parts` on the targets, and a demand of each of `demands`."""
    unit = np.concatenate([np.abs(p).mean(0) for p in demands])
    least = np.concatenate([demanded(p, alpha, radius, "scaled") for p in demands]) / unit
    cost = sum(p[:, targets].sum(1) for p in parts)
    found = linprog(
        -cost / np.abs(cost).mean(),
        A_ub=-(np.concatenate(demands, 1) / unit).T,
        b_ub=-least,
        bounds=(1 - radius, 1 + radius),
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.status == 0
    return found.x


@pytest.mark.parametrize("alpha", [0.97, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_demands_of_both_halves_are_met_at_scipys_optimum(seed: int, alpha: float) -> None:
    first, second = halves(seed)
    found = HalvedLP(np.c_[first, second], [0, 2], "scaled", NAMES).solve(np.full(4, alpha), radius=0.4)
    w = naive([first, second], [first, second], [0, 2], 0.4, alpha)
    assert found.objective == pytest.approx(w @ (first + second)[:, [0, 2]].sum(1), rel=1e-7)
    change = found.weights @ (first + second) - (first + second).sum(0)
    np.testing.assert_allclose(found.predicted_change, change, atol=1e-9)
    np.testing.assert_allclose(found.total, (first + second).sum(0))
    least = [demanded(p, alpha, 0.4, "scaled") for p in (first, second)]
    spare = [(found.weights @ p - d) / np.abs(p).sum(0) for p, d in zip((first, second), least, strict=True)]
    assert np.min(spare) > -1e-9
    assert found.binding == tuple(np.flatnonzero(np.min(spare, 0) < 1e-9))
    assert ((found.prices > 0) <= (np.min(spare, 0) < 1e-9)).all()
    # A demand of the sum alone is the weaker one: it leaves a half without what it asks.
    alone = ReweightLP(first + second, [0, 2], "scaled").solve(alpha, radius=0.4)
    assert alone.objective > found.objective
    missed = [(alone.weights @ p - d) / np.abs(p).sum(0) for p, d in zip((first, second), least, strict=True)]
    assert np.min(missed) < -1e-4


@pytest.mark.parametrize("half", [0, 1])
def test_one_half_chooses_and_the_other_predicts(half: int) -> None:
    parts = halves(3)
    lp = HalvedLP(np.hstack(parts), [1], "scaled", NAMES)
    found = lp.of_half(half, np.full(4, 0.98), radius=0.3)
    own, other = parts[half], parts[1 - half]
    w = naive([own], [own], [1], 0.3, 0.98)
    assert found.objective == pytest.approx(w @ own[:, 1], rel=1e-7)
    np.testing.assert_allclose(found.weights @ own[:, 1], w @ own[:, 1], rtol=1e-7)
    np.testing.assert_allclose(found.predicted_change, found.weights @ other - other.sum(0))
    np.testing.assert_allclose(found.total, other.sum(0))
    # The other half has no part in the choice.
    moved = list(parts)
    moved[1 - half] = other[::-1] * 3
    again = HalvedLP(np.hstack(moved), [1], "scaled", NAMES).of_half(half, np.full(4, 0.98), radius=0.3)
    assert again.objective == pytest.approx(found.objective, rel=1e-9)


def test_noise_is_no_gain_though_its_own_rows_predict_one() -> None:
    within, across = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        parts = [rng.standard_normal((600, 4)) for _ in range(2)]
        lp = HalvedLP(np.hstack(parts), [0], "scaled", NAMES)
        size = [np.abs(p[:, 0]).sum() for p in parts]
        for half in range(2):
            found = lp.of_half(half, np.full(4, 0.95), radius=0.5)
            own = parts[half][:, 0]
            within.append((found.weights @ own - own.sum()) / size[half])
            across.append(found.predicted_change[0] / size[1 - half])
    assert np.mean(within) > 0.4
    assert abs(np.mean(across)) < 0.02
    assert np.std(across) < 0.05


def test_demands_that_conflict_name_the_class_and_the_half() -> None:
    first = np.random.default_rng(0).standard_normal((300, 4))
    second = first.copy()
    second[:, 1] = -first[:, 1]  # what one half gains the other loses
    lp, alpha = HalvedLP(np.hstack([first, second]), [0], "scaled", NAMES), np.array([0.5, 1.1, 0.5, 0.5])
    with pytest.raises(InfeasibleError, match=r"dog, first half.* and dog, second half") as caught:
        lp.solve(alpha, radius=0.5)
    assert caught.value.classes == (1,)
    assert lp.of_half(0, alpha, radius=0.5).predicted_change[1] < 0


def test_streamed_is_the_same_bytes() -> None:
    p = np.hstack(halves(5, rows=20_000))
    held = HalvedLP(p, [0], "scaled", NAMES)
    streamed = HalvedLP(lambda: iter(np.array_split(p, 7)), [0], "scaled", NAMES)
    for call in ("solve", "of_half"):
        given = (np.full(4, 0.97),) if call == "solve" else (1, np.full(4, 0.97))
        a, b = (getattr(lp, call)(*given, radius=0.3) for lp in (held, streamed))
        assert a.weights.tobytes() == b.weights.tobytes()
    with pytest.raises(InputError, match="3 columns"):
        by_class(np.ones(3))
