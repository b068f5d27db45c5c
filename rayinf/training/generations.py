"""The generations of `pareto_reweight`: every candidate is trained once, and is on disk as soon as it is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from rayinf.data.batches import Array
from rayinf.pareto.fitness import UNTRAINED, rank, relative_change
from rayinf.pareto.front import non_dominated, trade_off, value
from rayinf.training.candidates import Evaluation, Training
from rayinf.training.search import GENE, PAPER, Search
from rayinf.training.steps import Steps

CHECKPOINT, PLAIN = "checkpoint", "unweighted"
# Trainings by name -> (name, evaluation) as they finish.
Calls = Callable[[Mapping[str, Training]], Iterator[tuple[str, Evaluation]]]


@dataclass(frozen=True)
class Candidate:
    """One that was trained.

    Attributes:
        key: a short name for its genes.
        generation: in which it came up first.
        slot: where in that population.
        training: its alphas and radius.
        evaluation: how it does.
        fitness: of line 7; minus infinity where it could not be trained.
        order: what ranks it, the higher the better.
        gain: mean change of the targets' accuracy against the unweighted epoch.
        others: that of the other classes.
    """

    key: str
    generation: int
    slot: int
    training: Training
    evaluation: Evaluation
    fitness: float
    order: tuple[float, float]
    gain: float
    others: float


@dataclass
class Generations:
    """Candidates by key, and the steps that keep them.

    Attributes:
        steps: keep every candidate and every generation.
        search: how populations are made, and what ranks a candidate.
        targets: positions of the classes that are to gain.
        mode: "direct" (they gain against the checkpoint) or "correct" (against the unweighted epoch).
        classes: K.
        seed: of all draws.
        checkpoint: before the epoch.
        plain: after the unweighted epoch.
    """

    steps: Steps
    search: Search
    targets: tuple[int, ...]
    mode: str
    classes: int
    seed: int
    checkpoint: Evaluation
    plain: Evaluation

    def __post_init__(self) -> None:
        """Begin with the unweighted epoch, which is a candidate too: that of no weights."""
        self.found: dict[str, Candidate] = {}
        self.trained = 0
        self.unweighted = self.ranked(PLAIN, (-1, -1), Training(), self.plain)

    def run(self, calls: Calls) -> Iterator[tuple[int, list[Candidate], int]]:
        """All generations. Every draw is fixed by the seed, the generation and the slot: later ones change none.

        Yields:
            After each: its number, its candidates best first, and how many of these were trained now.
        """
        breeding = self.search.breeding(self.classes)
        population = breeding.first(self.seed)
        for g in range(self.search.iterations):
            keys = [_key(genes) for genes in population]
            trainings = {key: self._training(genes) for key, genes in zip(keys, population, strict=True)}
            new = {f"candidates/{key}.json": t for key, t in trainings.items() if key not in self.found}
            before = self.trained
            found = evaluate(self.steps, calls, new, self._count)
            for (name, training), evaluation in zip(new.items(), found.values(), strict=True):
                key = PurePosixPath(name).stem
                self.found[key] = self.ranked(key, (g, keys.index(key)), training, evaluation)
            ranked = sorted((self.found[key] for key in trainings), key=lambda c: c.order, reverse=True)
            self.steps.write(f"generations/{g:03d}.json", _summary(g, [self.found[key] for key in keys], ranked[0]))
            yield g, ranked, self.trained - before
            genes = dict(zip(keys, population, strict=True))
            population = breeding.following(np.stack([genes[c.key] for c in ranked]), self.seed, g + 1)

    @property
    def best(self) -> Candidate:
        """The candidate that is preferred of all that were trained; the unweighted epoch where none is better."""
        return max([self.unweighted, *self.found.values()], key=lambda c: c.order)

    @property
    def front(self) -> set[str]:
        """Keys of the candidates that no other one beats, the unweighted epoch among them."""
        held = [c for c in (self.unweighted, *self.found.values()) if c.evaluation.problem is None]
        on = non_dominated(np.array([c.gain for c in held]), np.array([c.others for c in held]))
        return {c.key for c, there in zip(held, on, strict=True) if there}

    def _count(self, name: str, held: Any) -> None:
        self.trained += 1

    def _training(self, genes: Array) -> Training:
        radius = float(genes[-1]) if self.search.radius == GENE else self.search.radius
        alpha = tuple(genes[: self.classes].tolist())
        return Training(alpha, None if radius is None else float(radius))

    def ranked(self, key: str, place: tuple[int, int], training: Training, found: Evaluation) -> Candidate:
        """A candidate with what ranks it.

        Where a price is preferred: above the unweighted epoch stand those that are worth more and whose targets gain in
        the mean, of these first those in which every target gains (against the checkpoint in "direct"); all others
        stand below it.
        """
        if found.problem is not None:
            return Candidate(key, *place, training, found, -np.inf, UNTRAINED, np.nan, np.nan)
        against = self.checkpoint if self.mode == "direct" else self.plain
        fitness, tie = rank(relative_change(found.accuracy, against.accuracy), self.targets)
        gain, others = trade_off(found.accuracy, self.plain.accuracy, self.targets)
        order = (fitness, tie)
        if self.search.prefer != PAPER:
            worth = value(gain, others, float(self.search.prefer))
            level = 1 + np.isfinite(fitness) if worth > 0 and gain > 0 else 0
            order = (0.5 if key == PLAIN else float(level), worth)
        return Candidate(key, *place, training, found, fitness, order, gain, others)


def evaluate(
    steps: Steps, calls: Calls, trainings: Mapping[str, Training], on_new: Callable[[str, Any], None]
) -> dict[str, Evaluation]:
    """How candidates do, by the names of their files; those that are not on disk are trained now.

    Args:
        steps: keep what is found.
        calls: trains.
        trainings: what is wanted.
        on_new: called with the name and the evaluation of each that is trained now, before it is kept.
    """

    def to_json(missing: Mapping[str, Training]) -> Iterator[tuple[str, Any]]:
        return ((name, found.to_json(missing[name])) for name, found in calls(missing))

    return {name: Evaluation.from_json(held) for name, held in steps.map(to_json, trainings, on_new).items()}


def _summary(g: int, population: Sequence[Candidate], best: Candidate) -> dict[str, Any]:
    lines = [
        {"candidate": c.key, "fitness": _finite(c.fitness), "gain": _finite(c.gain), "others": _finite(c.others)}
        for c in population
    ]
    return {"generation": g, "best": best.key, "population": lines}


def _key(genes: Array) -> str:
    return hashlib.sha256(genes.tobytes()).hexdigest()[:16]


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
