"""The interval of the cross-fit over validation rows: its parts in a naive form, and how often it holds the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pareto.vectors import drawn, options, source
from scipy.optimize import linprog

from rayinf.pareto.ceiling import CrossFit, find, validation_noise

Array = np.ndarray[Any, Any]


def cross_fit(*parts: Array) -> CrossFit:
    found = find(source(*parts), options(resamples=100)).cross_fit
    assert found is not None
    return found


def chosen(p: Array) -> tuple[Array, Array]:
    """Row weights and prices by scipy, which knows them from the program's dual."""
    rows, classes = p.shape
    b = np.abs(p).sum(0)
    found = linprog(
        np.r_[np.zeros(rows), -1.0],
        A_ub=np.c_[-(p / b).T * rows, np.full(classes, rows)],
        b_ub=np.zeros(classes),
        bounds=[(-1, 1)] * rows + [(None, None)],
    )
    y = -found.ineqlin.marginals
    return found.x[:rows], y / y.sum() / b


def naive(first: Array, second: Array) -> float:
    """The noise, row by row and class by class."""
    by_class, apart = np.zeros((2, first.shape[1])), np.zeros((2, first.shape[1]))
    for k, (own, other) in enumerate(((first, second), (second, first))):
        delta, pi = chosen(own)
        for j in range(own.shape[1]):
            b_own, b_other = np.abs(own[:, j]).sum(), np.abs(other[:, j]).sum()
            by_class[k, j] = sum(d * v for d, v in zip(delta, other[:, j], strict=True)) / b_other
            for p_own, p_other in zip(own, other, strict=True):
                w = np.sign(sum(pi[c] * p_own[c] for c in range(len(pi)) if c != j))
                apart[k, j] += w * (p_own[j] / b_own - p_other[j] / b_other)
    one = (apart**2).mean() / 2
    return float(np.sqrt(max(one - ((by_class[0] - by_class[1]) ** 2).mean() / 4, one / 2)))


@pytest.mark.parametrize("seed", range(3))
def test_the_noise_is_that_of_the_naive_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal = drawn("own", 150, 3, seed)
    first, second = (signal + rng.standard_normal(signal.shape) for _ in range(2))
    got = cross_fit(first + second, first, second)
    assert got.noise == pytest.approx(naive(first, second), rel=1e-7)
    # Halves of other sizes are no noise.
    assert cross_fit(first + 3 * second, first, 3 * second).noise == pytest.approx(got.noise, rel=1e-7)


def test_halves_that_are_equal_have_no_noise_and_the_interval_is_that_over_training_rows() -> None:
    p = drawn("own", 300, 4)
    got = cross_fit(2 * p, p, p)
    assert got.noise == pytest.approx(0, abs=1e-12)
    apart = np.array([[0.2, -0.2], [0.2, -0.2]])
    assert validation_noise(np.zeros((2, 2)), apart) == pytest.approx(0.2 / np.sqrt(2))
    assert validation_noise(np.array([[0.1, 0.1], [0.0, 0.0]]), apart) == pytest.approx(np.sqrt(0.02 - 0.0025))


@dataclass
class Drawn:
    """One draw of the validation rows: what was found, and the truth about the weights that it chose."""

    found: CrossFit
    truth: Array  # [2, K]

    @property
    def held(self) -> tuple[bool, bool]:
        """Whether the truth lies above the lower end, and under the upper one."""
        low, high = self.found.interval
        least = float(self.truth.min(1).mean())
        return low <= least, least <= high


def draw(signal: float, classes: int, seed: int) -> Drawn:
    """Gradients of the rows, times the classes' mean gradients, which each half sees through noise of its own.

    Unlike noise in the vectors themselves, it is the same for all rows: no bootstrap over rows can see it.
    """
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((120, 15)) * np.exp(rng.standard_normal((120, 1))) / np.sqrt(1 + np.arange(15))
    mean = signal * rng.standard_normal((classes, 15))
    halves = [g @ (mean + rng.standard_normal((classes, 15))).T for _ in range(2)]
    found = cross_fit(halves[0] + halves[1], *halves)
    truth = [chosen(own)[0] @ (g @ mean.T) / np.abs(other).sum(0) for own, other in (halves, halves[::-1])]
    return Drawn(found, np.stack(truth))


@pytest.mark.parametrize(("signal", "classes"), [(0.0, 2), (0.0, 4), (2.0, 3)])
def test_noise_of_the_validation_rows_is_in_the_interval(signal: float, classes: int) -> None:
    draws = [draw(signal, classes, seed) for seed in range(30)]
    held = np.mean([d.held for d in draws], 0)
    assert (held >= 0.95).all()
    # The standard error is that of the errors: neither a half of it nor twice as much.
    errors = np.mean([((d.found.by_class - d.truth).mean(0) ** 2).mean() for d in draws])
    assert 0.6 < np.sqrt(np.mean([d.found.noise**2 for d in draws]) / errors) < 1.7
    # Pure noise is never read as room.
    assert signal or not any(min(d.found.directions) > 0 and d.found.interval[0] > 0 for d in draws)


def test_without_that_part_the_interval_misses_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayinf.pareto.ceiling.validation_noise", lambda *_: 0.0)
    held = np.mean([draw(0.0, 3, seed).held for seed in range(20)], 0)
    assert held[1] < 0.7


def test_a_signal_far_above_the_noise_still_shows() -> None:
    draws = [draw(12.0, 2, seed) for seed in range(10)]
    assert sum(d.found.interval[0] > 0 for d in draws) >= 8
