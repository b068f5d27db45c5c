"""The linear program: a small one whose optimum is known, and what happens where HiGHS gives up."""

import highspy
import numpy as np
import pytest

from rayinf.errors import RunError
from rayinf.pareto import linear_program
from rayinf.pareto.linear_program import Goal, solve

UNKNOWN = highspy.HighsModelStatus.kUnknown


def statuses(monkeypatch, lies):
    """HiGHS reports the statuses `lies` first, and the true ones from then on."""
    truth, left = highspy.Highs.getModelStatus, list(lies)
    monkeypatch.setattr(linear_program.Highs, "getModelStatus", lambda self: left.pop(0) if left else truth(self))


def mixed():
    """Two points and a row: max 3 x0 + x1, x1 >= 1. The points alone reach x1 = 1 at an even mixture."""
    rows, points = np.array([[0.5, 0.0]]), np.array([[2.0, 0.0], [0.0, 2.0]])
    return solve(rows, points, np.array([-np.inf, 1.0]), Goal(np.array([3.0, 1.0])))


def test_a_mixture():
    found = mixed()
    np.testing.assert_allclose(found.shares, [0.5, 0.5])
    np.testing.assert_allclose(found.v, [1.0])
    assert found.value == pytest.approx(5.5)
    np.testing.assert_allclose(found.prices, [0.0, 2.0])  # of x1: 3 x0 lost, 1 gained


def test_a_height():
    """The largest h with x1 >= 1 + h, over mixtures of x1 = 0 and 2, and no more than 0.25."""
    points, floor = np.array([[0.0, 0.0], [0.0, 2.0]]), np.array([-np.inf, 1.0])
    assert solve(np.zeros((0, 2)), points, floor, Goal(np.zeros(2), np.ones(2))).height == pytest.approx(1.0)
    assert solve(np.zeros((0, 2)), points, floor, Goal(np.zeros(2), np.ones(2), 0.25)).height == pytest.approx(0.25)
    assert solve(np.zeros((0, 2)), points, np.array([-np.inf, 3.0]), Goal(np.ones(2))) is None


def test_where_the_dual_simplex_gives_up_the_primal_takes_over(monkeypatch):
    known = mixed()
    statuses(monkeypatch, [UNKNOWN])
    found = mixed()
    assert found.value == pytest.approx(known.value)
    np.testing.assert_allclose(found.prices, known.prices)


def test_where_both_give_up_an_error_is_raised(monkeypatch):
    statuses(monkeypatch, [UNKNOWN, UNKNOWN])
    with pytest.raises(RunError, match="HiGHS gave up on a program of 3 rows and 3 columns: Unknown"):
        mixed()


def test_nothing_is_printed(capfd):
    mixed()
    assert capfd.readouterr().out == ""
