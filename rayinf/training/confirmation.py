"""The cross-fit of `pareto_reweight`: the best candidates again, judged on validation rows that did not choose them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from rayinf.pareto.cross_fit import gain_error, shows_gain
from rayinf.training.candidates import Evaluation, Training
from rayinf.training.generations import PLAIN, Calls, Candidate, Generations, evaluate


@dataclass(frozen=True)
class Confirmed:
    """A candidate by its cross-fit.

    Attributes:
        candidate: of the search, with the weights that all validation rows chose.
        crossed: the same with the cross-fitted accuracy: every validation row was measured once, under weights of the
            same alphas and radius that the other half of the rows chose; its `order` ranks it.
        error: standard error of `crossed.gain`.
        holds: whether `crossed.gain` is above 0 at 95%, as the best of those that are tried.
    """

    candidate: Candidate
    crossed: Candidate
    error: float
    holds: bool


def confirm(state: Generations, calls: Calls) -> dict[str, Confirmed]:
    """Cross-fit the best candidates of a search, `Search.confirm` of them.

    The accuracy by which the search ranks candidates is of the rows that chose their weights, and the best of many
    noisy measures is too good. Here each of the best is trained twice more, with weights that one half chose, and
    measured on the other half.

    Args:
        state: after its generations.
        calls: trains.

    Returns:
        By the candidates' keys, best of the search first. One whose alphas cannot be met by one half, or whose training
        diverges, is not in it.
    """
    best = sorted((c for c in state.found.values() if c.order > state.unweighted.order), key=lambda c: c.order)
    wanted = best[::-1][: state.search.confirm]
    trainings = {_file(c.key, h): replace(c.training, half=h) for c in wanted for h in range(2)}
    if wanted:
        trainings[_file(PLAIN, 0)] = Training(half=0)
    found = evaluate(state.steps, calls, trainings, _ignore)
    out = {}
    for c in wanted:
        halves = [found[_file(c.key, h)] for h in range(2)]
        if all(e.problem is None for e in halves):
            out[c.key] = _confirmed(state, c, halves, found[_file(PLAIN, 0)], len(wanted))
    return out


def choose(state: Generations, confirmed: Mapping[str, Confirmed] | None) -> Candidate:
    """The candidate that is chosen; the unweighted epoch where none is better.

    Args:
        state: after its generations.
        confirmed: of `confirm`: the best by cross-fit is chosen, of those whose targets gain. None: there is no
            cross-fit, and the best of the search is chosen.
    """
    if confirmed is None:
        return state.best
    held = [c for c in confirmed.values() if c.holds and c.crossed.order > state.unweighted.order]
    return max(held, key=lambda c: c.crossed.order).candidate if held else state.unweighted


def _confirmed(state: Generations, c: Candidate, halves: list[Evaluation], plain: Evaluation, tried: int) -> Confirmed:
    crossed = state.ranked(c.key, (c.generation, c.slot), c.training, _joined(halves))
    right, rows = (np.array([getattr(e, name) for e in halves]) for name in ("right", "rows"))
    # The unweighted epoch is measured on the second half; the first has what that leaves of all rows.
    second = np.asarray(plain.right)
    other = np.stack([second, np.asarray(state.plain.right) - second])
    seen = (rows > 0).all(0)
    if not seen.any():
        return Confirmed(c, crossed, np.inf, False)
    change = (right - other)[:, seen] / rows[:, seen]
    error = gain_error(change, state.targets)
    return Confirmed(c, crossed, error, shows_gain(crossed.gain, error, int(seen.sum()), tried))


def _joined(halves: list[Evaluation]) -> Evaluation:
    """Both halves' rows as one measure."""
    first, second = ({n: np.asarray(getattr(e, n)) for n in ("right", "rows", "loss", "predicted")} for e in halves)
    rows = first["rows"] + second["rows"]
    loss = (first["loss"] * first["rows"] + second["loss"] * second["rows"]) / rows
    right, predicted = first["right"] + second["right"], first["predicted"] + second["predicted"]
    return Evaluation(right.tolist(), rows.tolist(), loss.tolist(), predicted.tolist())


def _file(key: str, half: int) -> str:
    return str(PurePosixPath("confirmed") / f"{key}-{half + 1}.json")


def _ignore(name: str, held: Any) -> None:
    """Nothing is counted."""
