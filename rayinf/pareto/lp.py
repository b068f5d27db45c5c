"""The reweighting LP: row weights that raise the targets' gain and meet a demand for every class.

See Nahin 2025, Algorithm 1, line 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayinf.errors import InputError, RunError
from rayinf.pareto.blocks import ROWS, blocks
from rayinf.pareto.conflict import InfeasibleError, conflict
from rayinf.pareto.decomposition import InfeasibleDemands, Search, Survey
from rayinf.pareto.demands import Array, Demands, check_slack

__all__ = ["InfeasibleError", "ReweightLP", "Solution"]
# In units of a class's `b_k`: a demand that is exceeded by less binds; one that is missed by more is an error.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Solution:
    """An optimum.

    Attributes:
        weights: `[n]`; empty where they were passed to `take`, block by block.
        prices: `[K]`, by how much the objective would fall for one more unit of `w'P^k` demanded; 0 where the demand
            does not bind.
        objective: `sum over targets of w'P^k`.
        predicted_change: `[K]`, `w'P^k - S_k`: by how much the class's summed validation loss is predicted to fall.
        binding: positions of the classes whose demand is met with equality.
        total: `[K]`, `S_k = sum_i P_i^k`.
        passes: over the rows.
    """

    weights: Array = field(repr=False)
    prices: Array
    objective: float
    predicted_change: Array
    binding: tuple[int, ...]
    total: Array
    passes: int


class ReweightLP:
    """`max sum over targets of w'P^k, w'P^k >= floor_k, 0 <= w <= upper` or `|w - 1| <= radius`, for many alphas.

    A solve depends on its arguments alone and gives the same bits everywhere: it has no state, uses one thread, and
    starts from a fixed sample of the rows. Optimal to about 1e-12 of the rows' summed worth, feasible to 1e-9 of each
    `b_k` (checked). All weights are at a bound, except for as many rows as demands bind. A row without any influence
    has the weight 1 (or `upper`, where that is less).

    Cost: 4 to 15 passes over `P` and as many linear programs of some thousand columns: 0.2 s for 200,000 rows and ten
    classes, 1 s where the demands are nearly infeasible. Memory: `P`, or none of it where it streams.

    Args:
        p_nk: influence vectors `[n, K]`, finite; or a function that returns an iterator over batches `[B, K]` of them,
            a new one at every call.
        targets: positions of the classes whose gain is maximised.
        slack: "paper" or "scaled", see `Demands`.
        names: of the classes, for messages; None: their positions.
        demanded: positions of the classes that have a demand; None: all. Of the others, `predicted_change` alone says
            what the weights do to them.

    Raises:
        InputError: an influence that is not finite, no rows, or an unknown slack.
    """

    def __init__(
        self,
        p_nk: Array | Callable[[], Iterator[Array]],
        targets: Sequence[int],
        slack: str = "paper",
        names: Sequence[str] | None = None,
        demanded: Sequence[int] | None = None,
    ) -> None:
        check_slack(slack)
        self._source = p_nk if callable(p_nk) else np.ascontiguousarray(p_nk, dtype=float)
        self._targets, self._slack = [int(t) for t in targets], slack
        self.survey = Survey.of(self._blocks)
        classes = len(self.survey.total)
        self._names = tuple(map(str, range(classes) if names is None else names))
        self._free = np.ones(classes, bool)
        self._free[slice(None) if demanded is None else list(demanded)] = False

    def solve(
        self,
        alpha_k: Any,
        upper: float = 2.0,
        radius: float | None = None,
        take: Callable[[Array], None] | None = None,
    ) -> Solution:
        """The optimal weights for one alpha a class (or one for all).

        Args:
            alpha_k: `[K]`, or one number.
            upper: of the weights, where there is no radius.
            radius: of the trust region.
            take: is called with the weights in row order, some thousand at a time; then they are not collected.

        Raises:
            InfeasibleError: no weights meet the demands.
            InputError: an alpha, upper or radius out of its range.
            RunError: HiGHS gave up, or the weights miss a demand.
        """
        survey, demands = self.survey, Demands.of(self.survey, alpha_k, upper, radius, self._slack)
        demands.floor[self._free] = -np.inf
        root = np.sqrt(survey.rows)
        # In these units the absolute influences on a class add up to the root of n: the geometric mean of the two
        # scales in the master, that of one row and that of all.
        unit = np.where(survey.absolute > 0, survey.absolute, 1.0) / root
        cost = float(survey.absolute[self._targets].sum()) / root or 1.0
        gain = np.zeros(len(unit))
        gain[self._targets] = unit[self._targets] / cost
        search = Search(self._blocks, survey, unit)
        try:
            found = search.best(gain, demands.of_v(demands.floor, survey.total, unit))
        except InfeasibleDemands as proof:
            error: InfeasibleError = conflict(search, demands, survey, unit, (self._names, self._slack), proof.prices)
            raise error from None
        kept: list[Array] = []
        got, start = np.zeros(len(unit)), 0
        for block in self._blocks():
            weights = demands.centre + demands.half * found.of_block(block, start)
            weights[~block.any(1)] = min(1.0, demands.centre + demands.half)
            got += np.einsum("b,bk->k", weights, block)
            start += len(block)
            (take or kept.append)(weights)
        spare = (got - demands.floor) / (unit * root)
        if spare.min() < -_EQUAL:
            k = int(spare.argmin())
            raise RunError(
                f"The weights miss the demand of class {self._names[k]} by {-spare[k]:.3g} of its summed influence.",
                "ask for less (a lower alpha), or scale the scores.",
            )
        return Solution(
            np.concatenate([np.zeros(0), *kept]),
            found.prices * cost / unit,
            float(got[self._targets].sum()),
            got - survey.total,
            tuple(int(k) for k in np.flatnonzero((spare <= _EQUAL) & (survey.absolute > 0))),
            survey.total,
            found.passes,
        )

    def _blocks(self) -> Iterator[Array]:
        if callable(self._source):
            yield from (block for (block,) in blocks((batch,) for batch in self._source()))
            return
        if self._source.ndim != 2:
            raise InputError(f"Influence vectors of shape {self._source.shape}.", "pass [n, K].")
        for start in range(0, len(self._source), ROWS):
            yield self._source[start : start + ROWS]
