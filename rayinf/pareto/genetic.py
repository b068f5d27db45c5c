"""Genetic search over alphas (Nahin 2025, Algorithm 1, line 9; Table 2): a ranked population in, the next one out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# The first alphas are uniform from here to 1.
_LEAST_ALPHA = 0.5
# A sweep's alphas go from here to 1, with so many radii for each.
_LEAST_OF_LINE, _RADII_A_LINE = 0.75, 6
# The radius is mutated by an exponential of N(0, this).
_RADIUS_STRENGTH = 0.4
_LEAST_RADIUS = 1e-3


@dataclass(frozen=True)
class Breeding:
    """The settings of selection, crossover and mutation. The defaults are those of Nahin 2025, Table 2.

    Attributes:
        classes: K. A candidate's genes are K alphas and, with `radius`, one more: `[K + 1]`.
        elites: the best so many are kept as they are.
        mutated_elites: so many of the best, mutated.
        randoms: new ones.
        crossover_children: children of two parents.
        crossover_rate: how probably a child takes each gene from either parent at random; else it is its first parent.
        mutation_rate: how probably a gene mutates.
        strength: standard deviation of what is added to an alpha that mutates.
        upper: alphas are clipped to `[0, upper]`.
        radius: whether the trust region's radius is a gene, in (0, 1].
        sweep: whether the first population is a grid instead of random: one alpha for all classes, by radii.
    """

    classes: int
    elites: int = 6
    mutated_elites: int = 6
    randoms: int = 6
    crossover_children: int = 6
    crossover_rate: float = 1.0
    mutation_rate: float = 0.25
    strength: float = 0.25
    upper: float = 2.0
    radius: bool = True
    sweep: bool = False

    @property
    def size(self) -> int:
        """Candidates of a population."""
        return self.elites + self.mutated_elites + self.randoms + self.crossover_children

    def first(self, seed: int) -> Array:
        """The first population `[size, genes]`, random or a sweep (`grid`).

        Random: alphas are uniform in [0.5, 1], and radii are spread evenly over (0, 1]. One candidate, a third of the
        way up, has alphas of 1: a gain of the targets without a loss for any other class, to first order.
        """
        if self.sweep:
            found = grid(self.size, self.classes, self.radius)
            found[:, : self.classes] = np.minimum(found[:, : self.classes], self.upper)
            return found
        drawn = [self._random(_generator(seed, 0, s), s, self.size) for s in range(self.size)]
        population = np.stack(drawn)
        population[self.size // 3, : self.classes] = min(1.0, self.upper)
        return population

    def following(self, ranked: Array, seed: int, generation: int) -> Array:
        """The next population `[size, genes]`: elites, mutated elites, new ones, children.

        Args:
            ranked: the population before, best first, no candidate twice; at least one.
            seed: with the generation and the slot it fixes every draw, whichever process makes it.
            generation: of the population that is made, from 1.
        """
        out = [ranked[s % len(ranked)] for s in range(self.elites)]
        for k in range(self.mutated_elites):
            parent = ranked[k % min(len(ranked), max(self.elites, 1))]
            out.append(self._mutated(parent, _generator(seed, generation, len(out))))
        for k in range(self.randoms):
            out.append(self._random(_generator(seed, generation, len(out)), k, self.randoms))
        for _ in range(self.crossover_children):
            out.append(self._child(ranked, _generator(seed, generation, len(out))))
        return np.stack(out)

    def _random(self, rng: np.random.Generator, k: int, among: int) -> Array:
        """A new candidate: its radius lies in the k-th of so many equal parts of (0, 1]."""
        alphas = np.minimum(rng.uniform(_LEAST_ALPHA, 1.0, self.classes), self.upper)
        return np.append(alphas, (k + 1 - rng.uniform()) / among) if self.radius else alphas

    def _mutated(self, parent: Array, rng: np.random.Generator) -> Array:
        """A copy of which each gene has mutated with the rate's probability, and one at least."""
        genes = len(parent)
        hit, one = rng.uniform(size=genes) < self.mutation_rate, rng.integers(genes)
        if self.mutation_rate > 0 and not hit.any():  # an unchanged copy would waste a place in the population
            hit[one] = True
        steps, factor = rng.normal(0.0, self.strength, self.classes), np.exp(rng.normal(0.0, _RADIUS_STRENGTH))
        out = parent.copy()
        alphas = np.clip(parent[: self.classes] + steps, 0.0, self.upper)
        out[: self.classes] = np.where(hit[: self.classes], alphas, parent[: self.classes])
        if self.radius and hit[-1]:
            out[-1] = np.clip(parent[-1] * factor, _LEAST_RADIUS, 1.0)
        return out

    def _child(self, ranked: Array, rng: np.random.Generator) -> Array:
        """Uniform crossover of two parents, each the better of two that are drawn from the population."""
        first, second = (ranked[rng.integers(len(ranked), size=2).min()] for _ in range(2))
        crosses, mine = rng.uniform() < self.crossover_rate, rng.uniform(size=ranked.shape[1]) < 0.5
        return np.where(mine, first, second) if crosses else first.copy()


def grid(size: int, classes: int, radius: bool) -> Array:
    """Candidates of one alpha for all classes, on a line from 0.75 to 1, by radii spread evenly: `[size, genes]`.

    There are about six radii for an alpha, and two alphas at least; without radii, the alphas alone. The last
    candidates of a grid that is larger than `size` are left out.

    Args:
        size: how many.
        classes: K.
        radius: whether a radius is the last gene.
    """
    if not radius:
        return np.repeat(np.linspace(_LEAST_OF_LINE, 1.0, size)[:, None], classes, 1)
    lines = max(2, round((size / _RADII_A_LINE) ** 0.5))
    radii = -(-size // lines)
    pairs = [
        np.append(np.full(classes, alpha), (j + 0.5) / radii)
        for j in range(radii)
        for alpha in np.linspace(1.0, _LEAST_OF_LINE, lines)
    ]
    return np.stack(pairs[:size])


def _generator(seed: int, generation: int, slot: int) -> np.random.Generator:
    return np.random.default_rng([seed, generation, slot])
