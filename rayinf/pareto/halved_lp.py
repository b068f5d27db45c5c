"""The reweighting LP over both halves of the validation rows: demands that hold in each half, and a cross-fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rayinf.errors import InputError
from rayinf.pareto.conflict import InfeasibleError
from rayinf.pareto.demands import Array
from rayinf.pareto.lp import ReweightLP, Solution

__all__ = ["HalvedLP", "by_class"]


class HalvedLP:
    """`max sum over targets of w'(P1^k + P2^k)`, with the demands of `ReweightLP` in both halves, h = 1 and 2.

    `w'P_h^k >= floor_h^k` for every class k, with `S_h^k` and `b_h^k` of that half: weights that keep a class on half
    of its validation rows and lose it on the others do not meet the demands. A demand of the sum alone,
    `w'(P1 + P2)`, is met at its edge, by weights that fit the noise of all rows.

    `of_half` gives the cross-fit: one half alone sets goal and demands, the other one predicts what the weights do.

    Args:
        p_n2k: `[n, 2 K]`, the influence vectors of the first half, then of the second; or a function that returns an
            iterator over batches `[B, 2 K]` of them, a new one at every call.
        targets: positions of the classes whose gain is maximised, among the K.
        slack: as in `ReweightLP`.
        names: of the K classes.

    Raises:
        InputError: as `ReweightLP`.

    Cost: that of `ReweightLP` with 2 K classes, and as much again for each half.
    """

    def __init__(
        self,
        p_n2k: Array | Callable[[], Iterator[Array]],
        targets: Sequence[int],
        slack: str,
        names: Sequence[str],
    ) -> None:
        self._p, self._targets, self._slack = p_n2k, tuple(int(t) for t in targets), slack
        self._classes = len(names)
        self._names = [f"{name}, {half} half" for half in ("first", "second") for name in names]
        self._both = ReweightLP(p_n2k, self._of(0) + self._of(1), slack, self._names)
        self._alone: dict[int, ReweightLP] = {}
        self.survey = self._both.survey

    def solve(
        self,
        alpha_k: Array,
        upper: float = 2.0,
        radius: float | None = None,
        take: Callable[[Array], None] | None = None,
    ) -> Solution:
        """The optimal weights that meet the demands in both halves.

        Args:
            alpha_k: `[K]`; the same in both halves.
            upper: as in `ReweightLP.solve`.
            radius: as in `ReweightLP.solve`.
            take: as in `ReweightLP.solve`.

        Returns:
            As of `ReweightLP`, but that all of a class is its sum over both halves (`by_class`); a class binds where
            it does in one.

        Raises:
            InfeasibleError: no weights meet the demands.
            InputError: as in `ReweightLP.solve`.
        """
        return self._folded(self._solved(self._both, alpha_k, upper, radius, take))

    def of_half(
        self,
        half: int,
        alpha_k: Array,
        upper: float = 2.0,
        radius: float | None = None,
        take: Callable[[Array], None] | None = None,
    ) -> Solution:
        """Weights that one half alone chooses, and the change that the *other* half predicts for them.

        Args:
            half: 0 or 1; its rows set the goal and the demands.
            alpha_k: `[K]`.
            upper: as in `ReweightLP.solve`.
            radius: as in `ReweightLP.solve`.
            take: as in `ReweightLP.solve`.

        Returns:
            A solution whose `predicted_change` `[K]` and `total` are those of the other half.

        Raises:
            InfeasibleError: no weights meet the demands of that half.
            InputError: as in `ReweightLP.solve`.
        """
        if half not in self._alone:
            demanded = range(half * self._classes, (half + 1) * self._classes)
            self._alone[half] = ReweightLP(self._p, self._of(half), self._slack, self._names, demanded)
        found = self._solved(self._alone[half], alpha_k, upper, radius, take)
        own, other = (slice(h * self._classes, (h + 1) * self._classes) for h in (half, 1 - half))
        return Solution(
            found.weights,
            found.prices[own],
            found.objective,
            found.predicted_change[other],
            self._places(found.binding),
            found.total[other],
            found.passes,
        )

    def _of(self, half: int) -> tuple[int, ...]:
        """Positions of the targets among the 2 K columns."""
        return tuple(half * self._classes + t for t in self._targets)

    def _places(self, columns: Sequence[int]) -> tuple[int, ...]:
        """Positions of the classes that some of the 2 K columns stand for."""
        return tuple(sorted({k % self._classes for k in columns}))

    def _solved(self, lp: ReweightLP, alpha_k: Array, upper: float, radius: float | None, take: Any) -> Solution:
        try:
            return lp.solve(np.tile(np.broadcast_to(alpha_k, self._classes), 2), upper, radius, take)
        except InfeasibleError as error:
            classes = self._places(error.classes)
            raise InfeasibleError(error.what, error.fix, classes, error.largest_alpha) from None

    def _folded(self, found: Solution) -> Solution:
        prices, change, total = (by_class(v) for v in (found.prices, found.predicted_change, found.total))
        binding = self._places(found.binding)
        return Solution(found.weights, prices, found.objective, change, binding, total, found.passes)


def by_class(value_2k: Array) -> Array:
    """`[K]`, the sums of what both halves have, `[2 K]`.

    Raises:
        InputError: an odd number of columns.
    """
    if len(value_2k) % 2:
        raise InputError(f"{len(value_2k)} columns are not two halves of the same classes.", "pass [n, 2 K].")
    first, second = value_2k.reshape(2, -1)
    return np.asarray(first + second)
