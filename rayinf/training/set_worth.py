"""What a set of training rows is worth: the objectives on validation rows, of a model that is trained on it alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayinf.core.epochs import reinitialise
from rayinf.core.objectives import Objective
from rayinf.data.batches import Array
from rayinf.errors import InputError
from rayinf.task import Fit, Task
from rayinf.training.evaluation import Measurement
from rayinf.training.retraining import Retraining

# Sets whose costs a process remembers: of few rows, the same ones come up again and again.
_REMEMBERED = 4096


@dataclass
class SetCosts:
    """The costs of sets of training rows; picklable, for workers.

    Attributes:
        task: with its classes, and how it is trained.
        train: the table of the rows.
        valid: the table that the objectives are measured on.
        objectives: a cost each, or one a group of the validation rows.
        columns: the names of all costs.
        accuracy: whether a cost is minus the share of the group's rows that are classified right, not their loss.
        rows: of `train`: the ridge's sum stays that of a fit to all of them, as influence assumes.
    """

    task: Task
    train: Any
    valid: Any
    objectives: tuple[Objective, ...]
    columns: Sequence[str]
    accuracy: bool
    rows: int
    _known: OrderedDict[Any, list[float]] = field(default_factory=OrderedDict, repr=False)
    # The tables, opened in the process that works, at its first set.
    _opened: tuple[Retraining, Measurement] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Count what is classified right, where that is asked for."""
        if self.accuracy:
            self.objectives = tuple(replace(o, hard=_right) for o in self.objectives)

    def of(self, kept: Array, seed: int, paired: bool = False) -> list[float]:
        """The costs `[columns]` of a model trained on some rows.

        Args:
            kept: whether each row is in the set `[n]`; of no row, the model as it is before training is measured.
            seed: of the training.
            paired: the order and minibatches of all rows, with gaps (see `rayinf.retrain`).
        """
        key = (np.packbits(kept).tobytes(), seed, paired)
        if key not in self._known:
            if self._opened is None:
                measurement = Measurement(self.task, self.valid, self.objectives, several=True)
                self._opened = Retraining(self.task, self.train, several=True), measurement
            training, measurement = self._opened
            if kept.any():
                trained = training.train(kept, seed=seed, rows=self.rows, paired=paired)
            else:
                trained = replace(self.task, model=_untrained(self.task, seed))
            found = measurement.of(trained)
            self._known[key] = [
                -float(found[f"{c}_accuracy"]) if self.accuracy else float(found[c]) for c in self.columns
            ]
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]


def check_sums(objectives: Sequence[Objective], method: str) -> None:
    """Refuse objectives for which `utility="accuracy"` means nothing.

    Raises:
        InputError: one that is not the loss of rows.
    """
    for objective in objectives:
        if objective.rows is not None or objective.combine is not None:
            raise InputError(
                f'method={method!r} with utility="accuracy" counts rows that are classified right, and objective='
                f"{objective.name!r} is something else.",
                'pass utility="loss", or the objectives "total", "category" and "slice:<column>".',
            )


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).to(logits.dtype)


def _untrained(task: Task, seed: int) -> nn.Module:
    """The model before its first step: zeros for a head that is fitted to convergence, which has no first step."""
    model = task.build()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        if task.fit is None:
            for value in model.parameters():
                value.zero_()
        elif not isinstance(task.fit, Fit) or task.fit.fresh:
            reinitialise(model)
    return model.eval()
