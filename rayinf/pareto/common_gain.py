"""The LP of the certificate over rows in memory: the largest gain that weights can give all classes in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np

from rayinf.errors import RunError
from rayinf.pareto.highs import Highs

Array = np.ndarray[Any, Any]
_OPTIONS: dict[str, Any] = {
    "presolve": "off",  # dense and without structure: it would cost more than the solve
    "parallel": "off",
    "simplex_strategy": 1,
    "dual_feasibility_tolerance": 1e-9,
    "primal_feasibility_tolerance": 1e-9,
}


@dataclass(frozen=True)
class Optimum:
    """An optimum of the LP.

    Attributes:
        y: `[K]`, the dual, in the simplex.
        delta: `[n]`, the primal, in [-1, 1].
    """

    y: Array
    delta: Array


def common_gain(p_nk: Array, rest_k: Array | None = None) -> Optimum:
    """`max t : sum_i delta_i P_i^k + rest_k >= t for all k, |delta_i| <= 1`, whose dual is the best y in the simplex.

    Args:
        p_nk: influence vectors, each class in units of its `b_k`.
        rest_k: what rows that are not among them give.

    Raises:
        RunError: HiGHS gave up.

    Cost: dual simplex, about `5 K` steps of a pass over the rows each.
    """
    rows, classes = p_nk.shape
    # HiGHS's tolerances are absolute: bring the entries to about 1.
    scale = 1.0 / max(float(np.abs(p_nk).mean()) if rows else 0.0, np.finfo(float).tiny)
    rest = np.zeros(classes) if rest_k is None else rest_k * scale
    highs = Highs()
    for name, value in _OPTIONS.items():
        highs.setOptionValue(name, value)
    highs.passModel(_model(p_nk * scale, rest))
    highs.run()
    status = highs.getModelStatus()
    if status != highspy.HighsModelStatus.kOptimal:
        raise RunError(f"HiGHS gave up: {highs.modelStatusToString(status)}.", "report the scores that did it.")
    found = highs.getSolution()
    y = np.maximum(np.asarray(found.row_dual), 0.0)
    return Optimum(y / y.sum(), np.clip(np.asarray(found.col_value)[:rows], -1.0, 1.0))


def _model(p_nk: Array, rest_k: Array) -> highspy.HighsLp:
    """Columns: a delta a row, then t."""
    rows, classes = p_nk.shape
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = rows + 1, classes
    model.col_cost_ = np.r_[np.zeros(rows), -1.0]
    model.col_lower_ = np.r_[-np.ones(rows), -highspy.kHighsInf]
    model.col_upper_ = np.r_[np.ones(rows), highspy.kHighsInf]
    model.row_lower_, model.row_upper_ = -rest_k, np.full(classes, highspy.kHighsInf)
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.arange(rows + 2, dtype=np.int32) * classes
    model.a_matrix_.index_ = np.tile(np.arange(classes, dtype=np.int32), rows + 1)
    model.a_matrix_.value_ = np.r_[p_nk.ravel(), -np.ones(classes)]
    return model
