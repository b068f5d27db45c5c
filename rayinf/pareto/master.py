"""The master of the decomposition: a linear program of a row a demand, some thousand columns, solved by HiGHS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np

from rayinf.errors import RunError
from rayinf.pareto.highs import Highs

Array = np.ndarray[Any, Any]
_DUAL, _PRIMAL = 1, 4
_OPTIONS: dict[str, bool | int | float | str] = {
    "presolve": "off",
    "solver": "simplex",
    "simplex_scale_strategy": 0,  # rows come in units that fit; HiGHS's own scaling has made it give up
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
    "small_matrix_value": 1e-12,
}


@dataclass(frozen=True)
class Goal:
    """What is maximised: `gain'x + height`, `x >= floor + height lift`, x the sums that the rows' v give.

    Attributes:
        gain: `[D]`, what a unit of each sum is worth.
        lift: `[D]`; None: there is no height.
        most: the greatest height.
    """

    gain: Array
    lift: Array | None = None
    most: float = np.inf


@dataclass(frozen=True)
class Mixture:
    """The optimum of a master.

    Attributes:
        value: of the goal.
        prices: `[D]`, of the demands; >= 0.
        v: `[R]`, of the explicit rows, in [-1, 1].
        shares: `[J]`, of the points; >= 0, sum 1.
        height: of the goal, where it has one.
    """

    value: float
    prices: Array
    v: Array
    shares: Array
    height: float


def solve(rows: Array, points: Array, floor: Array, goal: Goal) -> Mixture | None:
    """The best mixture of points, with some rows free in their bounds; None where the demands cannot be met.

    Args:
        rows: `[R, D]`, what a unit of each explicit row's v adds to the sums.
        points: `[J, D]`, sums of all other rows. None at all: then there are no other rows.
        floor: `[D]`; minus infinity: no demand.
        goal: what is maximised.

    Raises:
        RunError: HiGHS gave up.
    """
    free, mixed, demands = len(rows), len(points), len(floor)
    tall = goal.lift is not None
    n, m = free + mixed + tall, demands + (mixed > 0)
    a = np.zeros((n, m))
    a[:free, :demands], a[free : free + mixed, :demands] = rows, points
    a[free : free + mixed, demands:] = 1.0
    cost = a[:, :demands] @ goal.gain
    # A share is at most 1 anyway; with both bounds, any prices are a start for the dual simplex.
    lower, upper = np.r_[np.full(free, -1.0), np.zeros(n - free)], np.ones(n)
    if goal.lift is not None:
        a[-1, :demands], cost[-1], lower[-1], upper[-1] = -goal.lift, 1.0, -np.inf, goal.most
    sides = np.r_[floor, np.ones(m - demands)], np.r_[_infinite(demands), np.ones(m - demands)]
    highs = _model(a, cost, (lower, upper), sides)
    for strategy in (_DUAL, _PRIMAL):
        highs.setOptionValue("simplex_strategy", strategy)
        highs.clearSolver()
        status = highs.outcome()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        if status == highspy.HighsModelStatus.kOptimal:
            break
    else:
        raise RunError(
            f"HiGHS gave up on a program of {m} rows and {n} columns: {highs.modelStatusToString(status)}.",
            "scale the scores, or ask for less (a lower alpha).",
        )
    found = highs.getSolution()
    x, prices = np.asarray(found.col_value), np.maximum(-np.asarray(found.row_dual)[:demands], 0.0)
    return Mixture(
        highs.getInfo().objective_function_value,
        prices,
        np.clip(x[:free], -1.0, 1.0),
        np.maximum(x[free : free + mixed], 0.0),
        float(x[-1]) if tall else 0.0,
    )


def _infinite(count: int) -> Array:
    return np.full(count, highspy.kHighsInf)


def _model(a_nm: Array, cost: Array, columns: tuple[Array, Array], rows: tuple[Array, Array]) -> Highs:
    """`max cost'x`, from column-wise arrays."""
    n, m = a_nm.shape
    highs = Highs(_OPTIONS)
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = n, m
    program.sense_ = highspy.ObjSense.kMaximize
    program.col_cost_ = cost
    program.col_lower_, program.col_upper_ = columns
    program.row_lower_, program.row_upper_ = rows
    matrix = program.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    matrix.start_ = np.arange(n + 1, dtype=np.int32) * m
    matrix.index_ = np.tile(np.arange(m, dtype=np.int32), n)
    matrix.value_ = a_nm.ravel()
    highs.passModel(program)
    return highs
