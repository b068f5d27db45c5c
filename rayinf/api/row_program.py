"""The linear program of `reweight_lp`, as its terms have it: of all validation rows or of both halves, with gaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rayinf.data.vectors import Vectors
from rayinf.pareto.conflict import InfeasibleError
from rayinf.pareto.demands import Array, Demands
from rayinf.pareto.halved_lp import HalvedLP, by_class
from rayinf.pareto.lp import ReweightLP, Solution
from rayinf.pareto.pull_back import share


@dataclass(frozen=True)
class Terms:
    """The terms of the linear program: `alpha [K]`, the bounds, the slack, and positions of the targets."""

    alpha: Array
    upper: float
    radius: float | None
    slack: str
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The program with what its demands come to.

    Attributes:
        lp: solves it.
        terms: of the call.
        gaps: how wide they are, by positions of columns.
        total: `[K]`, `S_k`.
        absolute: `[K]`, `b_k`; of two halves the sum of theirs.
        floor: `[K]`, the least `w'P^k`; of two halves the sum of theirs.
    """

    lp: ReweightLP | HalvedLP
    terms: Terms
    gaps: dict[int, float]
    total: Array
    absolute: Array
    floor: Array

    @classmethod
    def of(cls, vectors: Vectors, terms: Terms, held: bool, halved: bool) -> Program:
        """The program of some scores.

        Args:
            vectors: the columns that take part.
            terms: of the call.
            held: whether the rows are in memory, rather than read at every pass.
            halved: whether both halves of the validation rows have demands.
        """
        names = short_names(vectors)
        if not halved:
            lp = ReweightLP(vectors.to_numpy() if held else vectors.batches, terms.targets, terms.slack, names)
            demands = Demands.of(lp.survey, terms.alpha, terms.upper, terms.radius, terms.slack)
            return cls(lp, terms, vectors.gaps, lp.survey.total, lp.survey.absolute, demands.floor)
        source = np.concatenate(list(vectors.both_halves())) if held else vectors.both_halves
        both = HalvedLP(source, terms.targets, terms.slack, names)
        alpha = np.tile(terms.alpha, 2)
        demands = Demands.of(both.survey, alpha, terms.upper, terms.radius, terms.slack)
        folded = (by_class(v) for v in (both.survey.total, both.survey.absolute, demands.floor))
        return cls(both, terms, {}, *folded)

    @property
    def halved(self) -> bool:
        """Whether both halves have demands."""
        return isinstance(self.lp, HalvedLP)

    def solve(self, take: Callable[[Array], None] | None = None) -> Solution:
        """The weights, moved back towards 1 where the optimum would open a gap on its other side.

        Args:
            take: is called with the weights in row order, some thousand at a time; then they are not collected.
        """
        terms = self.terms
        box = (terms.alpha, terms.upper, terms.radius)
        if not self.gaps or (terms.radius is None and terms.upper < 1):
            return self.lp.solve(*box, take)
        found = self.lp.solve(*box, _drop)
        t = share(found.predicted_change, self.total, self.floor, self.gaps)
        kept: list[Array] = []

        def moved(weights: Array) -> None:
            (take or kept.append)(weights if t == 1 else 1.0 + t * (weights - 1.0))

        found = self.lp.solve(*box, moved)
        if t < 1:
            change = t * found.predicted_change
            objective = float((self.total + change)[list(terms.targets)].sum())
            free = np.zeros_like(found.prices)
            found = replace(found, objective=objective, predicted_change=change, prices=free, binding=())
        return replace(found, weights=np.concatenate([np.zeros(0), *kept]))

    def crossed(self) -> Array | None:
        """`[2, K]`: what the second half predicts for weights that the first alone chose; and the other way round.

        None of a program without halves, or where one half's demands cannot be met.
        """
        if not isinstance(self.lp, HalvedLP):
            return None
        box = (self.terms.alpha, self.terms.upper, self.terms.radius)
        try:
            return np.stack([self.lp.of_half(h, *box, _drop).predicted_change for h in range(2)])
        except InfeasibleError:
            return None


def short_names(vectors: Vectors) -> list[str]:
    """The labels as text; of columns whose labels the scores do not hold, the columns' names without their prefix."""
    return [name.removeprefix("category_") for name in vectors.names]


def _drop(weights: Array) -> None:
    """Weights that are not kept."""
