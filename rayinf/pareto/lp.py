"""The reweighting LP (A Algorithm 1, line 4): row weights that lift the targets and keep what the others must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import highspy
import numpy as np

from rayinf.errors import InputError, RunError
from rayinf.pareto.demands import Array, Demands, Sums

_TOLERANCE = 1e-9


class InfeasibleError(InputError):
    """No weights meet all demands.

    Attributes:
        classes: positions of a smallest set of classes whose demands conflict: without any one of them they do not.
        largest_alpha: the largest alpha that all classes can have in common (infinite where there is no largest).
    """

    def __init__(self, what: str, fix: str, classes: Sequence[int] = (), largest_alpha: float = np.nan) -> None:
        super().__init__(what, fix)
        self.classes = tuple(int(k) for k in classes)
        self.largest_alpha = float(largest_alpha)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:  # type: ignore[override]
        """Travel between processes with all parts."""
        return type(self), (self.what, self.fix, self.classes, self.largest_alpha)


@dataclass(frozen=True)
class Solution:
    """An optimum.

    Attributes:
        weights: `[n]`.
        prices: `[K]`, what one more unit of `w'P^k` demanded would take from the objective; 0 where it costs nothing.
        objective: `sum over targets of w'P^k`.
        predicted_change: `[K]`, `w'P^k - S_k`, the predicted fall of the class's summed validation loss.
        binding: positions of the classes whose demand is met with equality.
        total: `[K]`, `S_k`.
    """

    weights: Array = field(repr=False)
    prices: Array
    objective: float
    predicted_change: Array
    binding: tuple[int, ...]
    total: Array


class ReweightLP:
    """`max sum over targets of w'P^k, w'P^k >= floor_k, 0 <= w <= upper` or `|w - 1| <= radius`, for many alphas.

    Args:
        p_nk: influence vectors `[n, K]`, finite.
        targets: positions of the classes to lift.
        slack: "paper" or "scaled", see `Demands`.
        names: of the classes, for messages; None: their positions.
    """

    def __init__(
        self, p_nk: Array, targets: Sequence[int], slack: str = "paper", names: Sequence[str] | None = None
    ) -> None:
        self._p = np.ascontiguousarray(p_nk, float)
        self._targets, self._slack = [int(t) for t in targets], slack
        self._names = [str(k) for k in range(self._p.shape[1])] if names is None else [str(n) for n in names]
        self.sums = Sums.of([self._p])
        Demands.of(self.sums, 1.0, 2.0, None, slack)
        # Every class counts its influence in units of its mean absolute value: HiGHS's tolerances are absolute.
        self._unit = np.where(self.sums.absolute > 0, self.sums.absolute, 1.0) / self.sums.rows
        self._cost = self._p[:, self._targets].sum(1)
        self._cost_unit = max(float(np.abs(self._cost).mean()), np.finfo(float).tiny)
        self._highs: highspy.Highs | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The description without HiGHS's model, which is made anew where it arrives."""
        return {**self.__dict__, "_highs": None}

    def solve(self, alpha_k: Any, upper: float = 2.0, radius: float | None = None) -> Solution:
        """The optimal weights for one alpha a class (or one for all).

        Raises:
            InfeasibleError: no weights meet the demands.
            InputError: an alpha, upper or radius that makes no sense.
            RunError: HiGHS gave up.
        """
        demands = Demands.of(self.sums, alpha_k, upper, radius, self._slack)
        status = self._run(self._right_sides(demands))
        if status == highspy.HighsModelStatus.kInfeasible:
            raise self._conflict(demands)
        return self._solution(demands)

    def _right_sides(self, demands: Demands) -> Array:
        """`sum_i v_i P_i^k / unit_k` is at least this."""
        right: Array = (demands.floor - demands.centre * self.sums.total) / (demands.half * self._unit)
        return right

    def _run(self, right: Array) -> highspy.HighsModelStatus:
        if self._highs is None:
            self._highs = _model(self._p / self._unit, self._cost / self._cost_unit)
        highs, k = self._highs, len(right)
        highs.clearSolver()
        highs.changeRowsBounds(k, np.arange(k, dtype=np.int32), right, np.full(k, highspy.kHighsInf))
        highs.run()
        status = highs.getModelStatus()
        if status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kInfeasible):
            raise RunError(f"HiGHS gave up: {highs.modelStatusToString(status)}.", "report the scores that did it.")
        return status

    def _solution(self, demands: Demands) -> Solution:
        assert self._highs is not None
        found = self._highs.getSolution()
        weights = demands.centre + demands.half * np.clip(np.asarray(found.col_value), -1, 1)
        prices = np.maximum(-np.asarray(found.row_dual), 0) * self._cost_unit / self._unit
        got = weights @ self._p
        gap = (got - demands.floor) / (self._unit * self.sums.rows)
        return Solution(
            weights,
            prices,
            float(got[self._targets].sum()),
            got - self.sums.total,
            tuple(int(k) for k in np.flatnonzero(gap <= _TOLERANCE)),
            self.sums.total,
        )

    def _conflict(self, demands: Demands) -> InfeasibleError:
        """A smallest set of demands that conflict, by deletion; and how much can be asked of all."""
        right = self._right_sides(demands)
        conflicting = list(range(len(right)))
        for k in range(len(right)):
            rest = np.full(len(right), -highspy.kHighsInf)
            kept = [j for j in conflicting if j != k]
            rest[kept] = right[kept]
            if self._run(rest) == highspy.HighsModelStatus.kInfeasible:
                conflicting = kept
        largest = self._largest_alpha(demands)
        names = ", ".join(self._names[k] for k in conflicting)
        told = "no largest" if np.isinf(largest) else f"{largest:.4g}"
        return InfeasibleError(
            f"No weights give the classes {names} all that their alphas "
            f"({', '.join(f'{demands.alpha[k]:.4g}' for k in conflicting)}) demand.",
            f"lower one of these alphas; common to all classes, the largest that can be met is {told}.",
            conflicting,
            largest,
        )

    def _largest_alpha(self, demands: Demands) -> float:
        scaled = self._p / self._unit
        at_zero = demands.floor - demands.alpha * demands.slope
        right = (at_zero - demands.centre * self.sums.total) / (demands.half * self._unit)
        rise = demands.slope / (demands.half * self._unit)
        model = _model(np.vstack([scaled, -rise]), np.append(np.zeros(len(scaled)), 1.0))
        model.changeColBounds(len(scaled), -highspy.kHighsInf, highspy.kHighsInf)
        k = len(right)
        model.changeRowsBounds(k, np.arange(k, dtype=np.int32), right, np.full(k, highspy.kHighsInf))
        model.run()
        if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return np.inf
        return float(model.getSolution().col_value[-1])


def _model(a_nk: Array, cost: Array) -> highspy.Highs:
    """`max cost'v, |v| <= 1`, one row a class, from column-wise arrays."""
    n, k = a_nk.shape
    highs = highspy.Highs()
    for name, value in (
        ("output_flag", False),
        ("presolve", "off"),
        ("solver", "simplex"),
        ("simplex_strategy", 1),
        ("threads", 1),
        ("parallel", "off"),
        ("primal_feasibility_tolerance", _TOLERANCE),
        ("dual_feasibility_tolerance", _TOLERANCE),
    ):
        highs.setOptionValue(name, value)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = n, k
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = cost
    lp.col_lower_, lp.col_upper_ = np.full(n, -1.0), np.full(n, 1.0)
    lp.row_lower_, lp.row_upper_ = np.full(k, -highspy.kHighsInf), np.full(k, highspy.kHighsInf)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.arange(n + 1, dtype=np.int32) * k
    lp.a_matrix_.index_ = np.tile(np.arange(k, dtype=np.int32), n)
    lp.a_matrix_.value_ = a_nk.ravel()
    highs.passModel(lp)
    return highs
