"""The one linear program of reweighting and certificate: rows with values in [-1, 1], a demand a class, by HiGHS.

It is the master of the decomposition (`decomposition.py`), and with a height alone as its goal it is the largest gain
that all classes can have in common (`common_gain.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import highspy
import numpy as np

from rayinf.errors import RunError

Array = np.ndarray[Any, Any]
HighsOptions = Mapping[str, bool | int | float | str]
_DUAL, _PRIMAL = 1, 4
# Options of every program; for `threads` and `parallel` see `Highs`.
_COMMON: HighsOptions = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "presolve": "off",  # dense and without structure: it would cost more than the solve
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}
# Options of programs whose rows are scaled already: with its own scaling, HiGHS has failed on some of them.
MASTER: HighsOptions = {"solver": "simplex", "simplex_scale_strategy": 0, "small_matrix_value": 1e-12}


class Highs(highspy.Highs):
    """A serial solver that prints nothing.

    HiGHS has one scheduler a process. It refuses a number of threads other than the one that it was started with,
    perhaps by other code, unless `threads` is 0; without `parallel` the simplex is serial either way.

    Args:
        options: of HiGHS, by name.
    """

    def __init__(self, options: HighsOptions) -> None:
        super().__init__()
        for name, value in {**_COMMON, **options}.items():
            self.setOptionValue(name, value)

    def enableCallbacks(self) -> None:  # noqa: N802
        """No callbacks: setting them up prints a banner."""

    def outcome(self) -> highspy.HighsModelStatus:
        """Run, and return the status."""
        self.run()
        status = self.getModelStatus()
        if status == highspy.HighsModelStatus.kNotset:
            self.setOptionValue("threads", 0)
            self.run()
            status = self.getModelStatus()
        return status


@dataclass(frozen=True)
class Goal:
    """The objective to maximise: `gain'x + height`, `x >= floor + height lift`, x the sums that the rows' v give.

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
    """The optimum of a program.

    Attributes:
        value: of the goal.
        prices: `[D]`, of the demands; >= 0.
        v: `[R]`, of the explicit rows, in [-1, 1].
        shares: `[J]`, of the points; >= 0, sum 1.
        height: of the goal, where it has one.
        basis: of HiGHS: explicit rows, points, the height; the demands, then the sum of the shares.
    """

    value: float
    prices: Array
    v: Array
    shares: Array
    height: float
    basis: highspy.HighsBasis = field(repr=False, compare=False)


def solve(
    rows: Array,
    points: Array,
    floor: Array,
    goal: Goal,
    options: HighsOptions = MASTER,
    start: highspy.HighsBasis | None = None,
) -> Mixture | None:
    """The best mixture of points, with some rows free in their bounds; None where the demands cannot be met.

    Args:
        rows: `[R, D]`, what a unit of each explicit row's v adds to the sums.
        points: `[J, D]`, sums of all other rows. J = 0: there are no other rows.
        floor: `[D]`; minus infinity: no demand.
        goal: what is maximised.
        options: of HiGHS, beside those that every program has.
        start: a basis to start from.

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
    # A share is at most 1 anyway; with both bounds, the dual simplex can start from any prices.
    lower, upper = np.r_[np.full(free, -1.0), np.zeros(n - free)], np.ones(n)
    if goal.lift is not None:
        a[-1, :demands], cost[-1], lower[-1], upper[-1] = -goal.lift, 1.0, -np.inf, goal.most
    sides = np.r_[floor, np.ones(m - demands)], np.r_[np.full(demands, highspy.kHighsInf), np.ones(m - demands)]
    highs = Highs(options)
    highs.passModel(_model(a, cost, (lower, upper), sides))
    for strategy in (_DUAL, _PRIMAL):
        highs.setOptionValue("simplex_strategy", strategy)
        highs.clearSolver()
        if start is not None:
            highs.setBasis(start)
        status = highs.outcome()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        if status == highspy.HighsModelStatus.kOptimal:
            break
    else:
        raise RunError(
            f"HiGHS gave up on a program of {m} rows and {n} columns: {highs.modelStatusToString(status)}.",
            "scale the scores; where weights are looked for, ask for less (a lower alpha).",
        )
    found = highs.getSolution()
    x, prices = np.asarray(found.col_value), np.maximum(-np.asarray(found.row_dual)[:demands], 0.0)
    return Mixture(
        highs.getInfo().objective_function_value,
        prices,
        np.clip(x[:free], -1.0, 1.0),
        np.maximum(x[free : free + mixed], 0.0),
        float(x[-1]) if tall else 0.0,
        highs.getBasis(),
    )


def _model(a_nm: Array, cost: Array, columns: tuple[Array, Array], rows: tuple[Array, Array]) -> highspy.HighsLp:
    """`max cost'x`, from column-wise arrays and the bounds of columns and rows."""
    n, m = a_nm.shape
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
    return program
