"""The largest gain that weights can give all classes in common, of rows in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import highspy
import numpy as np

from rayinf.pareto.linear_program import Goal, solve

Array = np.ndarray[Any, Any]
# With more rows, the solve starts from the optimum over a sample of one row in `_ONE_IN`.
_FEW, _ONE_IN = 2000, 8
_LOWER, _UPPER, _BASIC = (getattr(highspy.HighsBasisStatus, name) for name in ("kLower", "kUpper", "kBasic"))


@dataclass(frozen=True)
class Optimum:
    """An optimum of the LP.

    Attributes:
        y: `[K]`, the dual, in the simplex.
        delta: `[n]`, the primal, in [-1, 1].
        basis: of HiGHS: the rows, then t; the demands.
    """

    y: Array
    delta: Array
    basis: highspy.HighsBasis = field(repr=False)


def common_gain(p_nk: Array, rest_k: Array | None = None) -> Optimum:
    """`max t : sum_i delta_i P_i^k + rest_k >= t for all k, |delta_i| <= 1`, whose dual is the best y in the simplex.

    The dual simplex changes the sign of every row that the hyperplane of y moves across, at a cost that grows with the
    square of their number. So it starts from the y and the basis of a sample of the rows, from where few change.

    Args:
        p_nk: influence vectors, each class in units of its `b_k`.
        rest_k: the sums over all other rows, whose deltas are fixed.

    Raises:
        RunError: HiGHS gave up.

    Cost: about `5 K` steps of a pass over the rows each. At 100,000 rows and 10 classes the start saves 95%.
    """
    rows, classes = p_nk.shape
    # HiGHS's tolerances are absolute: bring the entries to about 1. It scales what is left of their spread itself.
    scale = 1.0 / max(float(np.abs(p_nk).mean()) if rows else 0.0, np.finfo(float).tiny)
    rest = np.zeros(classes) if rest_k is None else rest_k * scale
    start = _start(p_nk, rest_k) if rows > _FEW else None
    goal = Goal(np.zeros(classes), np.ones(classes))
    found = solve(p_nk * scale, np.zeros((0, classes)), -rest, goal, {}, start)
    assert found is not None  # feasible: any demand is met at some t
    return Optimum(found.prices / found.prices.sum(), found.v, found.basis)


def _start(p_nk: Array, rest_k: Array | None) -> highspy.HighsBasis:
    """A basis near the optimum: that of a sample of rows drawn by their size, the others at the bounds of their signs.

    It is dual feasible: the sample's weights scale its rows, and do not change on which side of the hyperplane they
    lie.
    """
    rows = len(p_nk)
    size, count = np.abs(p_nk).sum(1), max(_FEW, rows // _ONE_IN)
    uniform = 1.0 - np.random.default_rng(0).random(rows)
    key = np.divide(uniform, size, out=np.full(rows, np.inf), where=size > 0)
    order = np.argpartition(key, count)
    drawn = np.sort(order[:count])
    limit, tiny = key[order[count]], np.finfo(float).tiny  # the limit is infinite where few rows are more than zeros
    weight = np.maximum(1.0, 1.0 / (limit * np.maximum(size[drawn], tiny)))
    found = common_gain(p_nk[drawn] * weight[:, None], rest_k)
    columns = np.where(p_nk @ found.y > 0, np.array(_UPPER, object), np.array(_LOWER, object))
    columns[drawn[[s == _BASIC for s in found.basis.col_status[:-1]]]] = _BASIC
    basis = highspy.HighsBasis()
    basis.col_status, basis.row_status = [*columns.tolist(), _BASIC], found.basis.row_status
    basis.valid = True
    return basis
