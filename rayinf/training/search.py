"""How `pareto_reweight` searches: the population, what its candidates may be, and which one is chosen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rayinf.arguments import number, one_of, optional, refuse, whole
from rayinf.errors import InputError
from rayinf.pareto.demands import SLACKS
from rayinf.pareto.genetic import Breeding

_PARTS = ("elites", "mutated_elites", "randoms", "crossover_children")
GENE = "gene"
RANDOM = "random"
SWEEP = "sweep"
PAPER = "paper"


@dataclass(frozen=True)
class Search:
    """The genetic search. The defaults are Table 2 of Nahin 2025, but for the trust region and the choice.

    See Nahin 2025, Algorithm 1.

    Args:
        elites: candidates of a population that are the best of the one before, >= 0.
        mutated_elites: candidates that are mutated copies of the elites, >= 0.
        randoms: candidates that are drawn anew, >= 0.
        crossover_children: candidates that are children of two parents, >= 0.
        population: the sum of the four numbers above, which is checked. None: it is not.
        iterations: populations that are trained, >= 1.
        first: the first population: "random" (Nahin 2025) or "sweep", one alpha for all classes on a line from 0.75 to
            1, by radii spread evenly. With `iterations=1` that is the linear program's sweep, without genetics.
        crossover_rate: the probability with which a child takes each gene from either parent at random, in [0, 1].
        mutation_rate: the probability with which a gene mutates, in [0, 1].
        strength: the standard deviation of the noise that is added to an alpha that mutates, >= 0.
        upper: the largest alpha, > 0; without a radius, the largest weight too.
        radius: the radius of the trust region `|w - 1| <= radius`: "gene" searches it in (0, 1]; a number in (0, 1]
            fixes it; None is the paper's box `0 <= w <= upper`. Influence predicts small changes, and the optimum over
            the box sits at its corners.
        slack: what a class may lose at its alpha: "scaled" (a share of `b_k = sum_i |P_i^k|`) or "paper" (a share of
            `S_k = sum_i P_i^k`). None: "scaled" with a trust region, "paper" in the box.
        prefer: "paper" or a number >= 0: which candidate is chosen. "paper" takes the paper's fitness (line 7), which
            is 0 for all that cost no other class anything, so that doing nothing reaches it. A number is a price: the
            candidate of largest `gain of the targets + price * change of the others` is chosen (means over classes,
            against the unweighted epoch), among those in which every target gains, where some of these are worth more
            than the unweighted epoch.
        confirm: the best candidates that are cross-fitted where the scores have halves, >= 0: each is trained twice
            more, with weights that one half of the validation rows chooses, and measured on the other half. The best by
            these measures is chosen, if its targets' gain is above 0 at 95%. 0: the best of the search is chosen.
        epochs: epochs that a candidate is trained for, >= 1.
        lr: the learning rate, > 0. None: that of `Task(fit=...)`. Influence predicts an epoch that stays near the
            checkpoint (Nahin 2025: 1e-4).
        threads: threads of a candidate's training, >= 1. Another number changes the last bits, so it is a part of the
            run's identity.
    """

    elites: int = 6
    mutated_elites: int = 6
    randoms: int = 6
    crossover_children: int = 6
    population: int | None = None
    iterations: int = 20
    first: str = RANDOM
    crossover_rate: float = 1.0
    mutation_rate: float = 0.25
    strength: float = 0.25
    upper: float = 2.0
    radius: str | float | None = GENE
    slack: str | None = None
    prefer: str | float = 2.0
    confirm: int = 4
    epochs: int = 1
    lr: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse a search that could not go on.

        Raises:
            InputError: a number out of range, or parts that do not add up.
        """
        held: dict[str, Any] = {}
        for name in _PARTS:
            held[name] = whole(f"Search.{name}", getattr(self, name))
        for name in ("iterations", "epochs", "threads"):
            held[name] = whole(f"Search.{name}", getattr(self, name), 1)
        for name in ("crossover_rate", "mutation_rate"):
            held[name] = number(f"Search.{name}", getattr(self, name), "in [0, 1]")
        held["confirm"] = whole("Search.confirm", self.confirm)
        held["population"] = optional(whole, "Search.population", self.population)
        held["strength"] = number("Search.strength", self.strength)
        held["upper"] = number("Search.upper", self.upper, "> 0")
        held["lr"] = optional(number, "Search.lr", self.lr, "> 0")
        if self.radius is not None and not (isinstance(self.radius, str) and self.radius == GENE):
            held["radius"] = _named("radius", self.radius, '"gene", a number in (0, 1], or None', "in (0, 1]")
        if not (isinstance(self.prefer, str) and self.prefer == PAPER):
            held["prefer"] = _named("prefer", self.prefer, '"paper", or a number >= 0', ">= 0")
        one_of("Search.first", self.first, (RANDOM, SWEEP))
        one_of("Search.slack", self.slack, (None, *SLACKS))
        for name, value in held.items():
            object.__setattr__(self, name, value)
        self._check_parts()

    @property
    def size(self) -> int:
        """Candidates of a population."""
        return sum(getattr(self, name) for name in _PARTS)

    @property
    def demand(self) -> str:
        """The slack, where None means one of the two."""
        return self.slack or ("paper" if self.radius is None else "scaled")

    def breeding(self, classes: int) -> Breeding:
        """The same as the genetic operators take it."""
        own = ("classes", "radius", "sweep")
        shared = {f.name: getattr(self, f.name) for f in fields(Breeding) if f.name not in own}
        return Breeding(classes, radius=self.radius == GENE, sweep=self.first == SWEEP, **shared)

    def _check_parts(self) -> None:
        parts = " + ".join(f"{getattr(self, name)} {name}" for name in _PARTS)
        if self.population is not None and self.population != self.size:
            smaller = "less than the elites" if self.population < self.elites else "another number"
            raise InputError(
                f"Search(population={self.population!r}) is {smaller}: {parts} = {self.size}.",
                "pass parts that add up to the population, or leave population out.",
            )
        if self.size < 1 or (self.iterations > 1 and self.size == self.elites):
            raise InputError(
                f"Search of {parts} has no one new in a population.",
                "pass mutated_elites, randoms or crossover_children.",
            )


def _named(name: str, given: Any, expected: str, allowed: str) -> int | float:
    """A number in a range, where a word would have done too.

    Raises:
        InputError: it is neither.
    """
    try:
        return number(f"Search.{name}", given, allowed)
    except InputError:
        refuse(f"Search.{name}", given, expected, f"pass {expected}.")
