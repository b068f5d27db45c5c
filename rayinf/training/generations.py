"""The generations of `pareto_reweight`: every candidate once, its result on disk as it comes, one after another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayinf.data.batches import Array
from rayinf.data.checked_folder import CheckedFolder
from rayinf.pareto.fitness import UNTRAINED, rank, relative_change
from rayinf.pareto.front import non_dominated, trade_off, value
from rayinf.training.candidates import Outcome, Trial
from rayinf.training.search import GENE, PAPER, Search

CHECKPOINT, PLAIN = "checkpoint", "unweighted"
_STORED = ("right", "rows", "loss", "predicted", "mean_weight", "problem", "conflict")


@dataclass(frozen=True)
class Wanted:
    """What a candidate is judged by.

    Attributes:
        targets: positions of the classes that are to gain.
        mode: "direct" (against the checkpoint) or "correct" (against the unweighted epoch).
        prefer: "paper", or a price of the other classes' loss.
    """

    targets: tuple[int, ...]
    mode: str
    prefer: str | float


@dataclass(frozen=True)
class Candidate:
    """One that was tried.

    Attributes:
        key: a short name for its genes.
        generation: in which it came up first.
        slot: where in that population.
        trial: its genes.
        outcome: what came of it.
        fitness: of line 7; minus infinity where it could not be trained.
        order: what ranks it, the higher the better.
        gain: mean change of the targets' accuracy against the unweighted epoch.
        others: that of the other classes.
    """

    key: str
    generation: int
    slot: int
    trial: Trial
    outcome: Outcome
    fitness: float
    order: tuple[float, float]
    gain: float
    others: float


@dataclass
class Generations:
    """Candidates by key, and the files that hold them."""

    files: CheckedFolder
    search: Search
    wanted: Wanted
    classes: int
    seed: int
    checkpoint: Outcome
    plain: Outcome

    def __post_init__(self) -> None:
        """Begin with the unweighted epoch, which is a candidate too: that of no weights."""
        self.found: dict[str, Candidate] = {}
        self.unweighted = self._judge(PLAIN, (-1, -1), Trial(), self.plain)

    def run(self, calls: Any) -> Iterator[tuple[int, list[Candidate], int]]:
        """Try all generations, from where the folder stands.

        Args:
            calls: trials by key -> (key, outcome) as they finish.

        Yields:
            After each: its number, its candidates best first, and how many of these were trained now.
        """
        breeding = self.search.breeding(self.classes)
        population = breeding.first(self.seed)
        for g in range(self.search.iterations):
            trials = {_key(genes): self._trial(genes) for genes in population}
            slots = {key: s for s, key in reversed(list(enumerate(_key(genes) for genes in population)))}
            todo = {}
            for key, trial in trials.items():
                held = self._read(key) if key not in self.found else None
                if held is not None:
                    self.found[key] = self._judge(key, (g, slots[key]), trial, held)
                elif key not in self.found:
                    todo[key] = trial
            for key, outcome in calls(todo):
                write_outcome(self.files, _file(key), outcome, trials[key])
                self.found[key] = self._judge(key, (g, slots[key]), trials[key], outcome)
            ranked = sorted((self.found[key] for key in trials), key=lambda c: c.order, reverse=True)
            self._write(g, [self.found[_key(genes)] for genes in population], ranked[0])
            yield g, ranked, len(todo)
            genes = {_key(row): row for row in population}
            if g + 1 < self.search.iterations:
                population = breeding.following(np.stack([genes[c.key] for c in ranked]), self.seed, g + 1)

    @property
    def best(self) -> Candidate:
        """The candidate that is preferred of all that were tried; the unweighted epoch where none is better."""
        return max([self.unweighted, *self.found.values()], key=lambda c: c.order)

    @property
    def front(self) -> set[str]:
        """Keys of the candidates that no other one beats, the unweighted epoch among them."""
        held = [c for c in (self.unweighted, *self.found.values()) if c.outcome.problem is None]
        on = non_dominated(np.array([c.gain for c in held]), np.array([c.others for c in held]))
        return {c.key for c, there in zip(held, on, strict=True) if there}

    def _trial(self, genes: Array) -> Trial:
        gene = self.search.radius == GENE
        radius = float(genes[-1]) if gene else self.search.radius
        alpha = tuple(genes[: self.classes].tolist())
        return Trial(alpha, None if radius is None else float(radius))

    def _judge(self, key: str, place: tuple[int, int], trial: Trial, outcome: Outcome) -> Candidate:
        if outcome.problem is not None:
            return Candidate(key, *place, trial, outcome, -np.inf, UNTRAINED, np.nan, np.nan)
        against = self.checkpoint if self.wanted.mode == "direct" else self.plain
        fitness, tie = rank(relative_change(outcome.accuracy, against.accuracy), self.wanted.targets)
        gain, others = trade_off(outcome.accuracy, self.plain.accuracy, self.wanted.targets)
        order = (fitness, tie)
        if self.wanted.prefer != PAPER:
            worth = value(gain, others, float(self.wanted.prefer))
            order = (float(np.isfinite(fitness) and worth > 0), worth)
        return Candidate(key, *place, trial, outcome, fitness, order, gain, others)

    def _read(self, key: str) -> Outcome | None:
        return read_outcome(self.files, _file(key))

    def _write(self, g: int, population: Sequence[Candidate], best: Candidate) -> None:
        told = [
            {"candidate": c.key, "fitness": _finite(c.fitness), "gain": _finite(c.gain), "others": _finite(c.others)}
            for c in population
        ]
        name, held = f"generations/{g:03d}.json", {"generation": g, "best": best.key, "population": told}
        if self.files.json(name) != held:
            self.files.put_json(name, held)


def write_outcome(files: CheckedFolder, name: str, outcome: Outcome, trial: Trial) -> None:
    """Keep what came of a trial, whole."""
    stored = {n: getattr(outcome, n) for n in _STORED}
    files.put_json(name, {"alpha": trial.alpha, "radius": trial.radius, **stored})


def read_outcome(files: CheckedFolder, name: str) -> Outcome | None:
    """What came of a trial, or None where it is not there or damaged."""
    held = files.json(name)
    if held is None:
        return None
    outcome = Outcome(**{n: held[n] for n in _STORED})
    return replace(outcome, conflict=tuple(outcome.conflict))


def _file(key: str) -> str:
    return f"candidates/{key}.json"


def _key(genes: Array) -> str:
    return hashlib.sha256(genes.tobytes()).hexdigest()[:16]


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
