"""Leave-one-out by retraining: what really happens to each objective when one row goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rayinf.data.batches import Array
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import side_by_side
from rayinf.training.set_worth import SetCosts
from rayinf.training.steps import Steps

# The row that is left out, or None; and the seed.
Training = tuple[int | None, int]


@dataclass(frozen=True)
class _Without:
    """Trains without one row and measures; picklable, for workers."""

    costs: SetCosts

    def __call__(self, key: Training) -> dict[str, list[float]]:
        row, seed = key
        kept = np.ones(self.costs.rows, bool)
        if row is not None:
            kept[row] = False
        return {"costs": self.costs.of(kept, seed, paired=True)}


def leave_one_out(
    costs: SetCosts, positions: Array, seeds: Sequence[int], steps: Steps, cluster: Cluster | None
) -> tuple[Array, dict[str, Any]]:
    """The rise of every cost when a row goes, `[rows, columns]`: the mean over seeds of paired trainings.

    Args:
        costs: of sets of rows.
        positions: of the rows to leave out, one at a time.
        seeds: of the trainings.
        steps: where each training's costs are kept.
        cluster: where trainings run side by side.

    Returns:
        The values, and how many models were trained.
    """
    items = {_file(row, seed): (row, seed) for seed in seeds for row in [None, *positions.tolist()]}
    calls = partial(side_by_side, _Without(costs), cluster=cluster)
    done = steps.map(calls, items, lambda name, found: None, "leave one out", "trainings")
    held = {key: np.array(done[name]["costs"]) for name, key in items.items()}
    values = np.mean([[held[row, s] - held[None, s] for row in positions.tolist()] for s in seeds], axis=0)
    return values, {"trainings": len(items)}


def _file(row: int | None, seed: int) -> str:
    return f"trainings/{'all' if row is None else f'row-{row:08d}'}-seed{seed}.json"
