"""Training a task's model anew, on all rows of a table or some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayinf.arguments import shown
from rayinf.core.epochs import Recipe, train_epochs
from rayinf.data.batches import Array, BatchReader
from rayinf.data.tables import READ_ROWS
from rayinf.engine.fit import find_head, fit_head
from rayinf.engine.worker import Worker
from rayinf.errors import InputError
from rayinf.task import Fit, Task
from rayinf.training.open_table import TABLE, open_table
from rayinf.training.rows_to_keep import Keep, kept_mask
from rayinf.training.shuffle import Rows, Shuffled, hold
from rayinf.user_code import FIT, on_rows, user_code


def train_anew(
    task: Task,
    table: Any,
    keep: Keep = None,
    *,
    weights: Array | None = None,
    seed: int = 0,
    rows: int | None = None,
    paired: bool = False,
) -> Task:
    """What `rayinf.retrain` does, with arguments that are sound.

    Raises:
        InputError: a table, mask, weights or ids that do not fit it, or a model that no fit says how to train.
        RunError: training diverged or did not converge.
    """
    return Retraining(task, table).train(keep, weights=weights, seed=seed, rows=rows, paired=paired)


class Retraining:
    """A task's model trained anew on one table, as often as it is called for: the table is opened and checked once.

    Rows that fit the buffer of `shuffle` are read once where there are several trainings (`several`).

    Args:
        task: the model, its columns and its fit.
        table: of any form.
        several: whether there are.

    Raises:
        InputError: a table that does not fit the task.
    """

    def __init__(self, task: Task, table: Any, several: bool = False) -> None:
        self._task, self._given = task, table
        worker, self._scan = open_table(task, table, "train")
        self.job = worker.job
        shuffled = several and isinstance(task.fit, Fit)
        self._every = hold(self.job.tables[TABLE], self.job.columns[TABLE]) if shuffled else None

    def train(
        self,
        keep: Keep = None,
        *,
        weights: Array | None = None,
        seed: int = 0,
        rows: int | None = None,
        paired: bool = False,
    ) -> Task:
        """What `rayinf.retrain` does, with arguments that are sound.

        Raises:
            InputError: a mask, weights or ids that do not fit the table, or a model that no fit says how to train.
            RunError: training diverged or did not converge.
        """
        worker, task = Worker(self.job), self._task
        chosen = _choose(kept_mask(keep, self.job.tables[TABLE], task, self._scan), weights)
        over = chosen.rows if rows is None else int(rows)
        with_classes = self.job.task
        ridge = with_classes.l2 * over / chosen.rows
        if isinstance(task.fit, Fit):
            table, columns = self.job.tables[TABLE], self.job.columns[TABLE]
            shuffled = Shuffled(table, columns, chosen.keep, task.fit.batch_size, paired, self._every)
            train_in_place(worker, shuffled, chosen.weights, task.fit, ridge, int(seed))
            model = worker.model
        elif task.fit is not None:
            model = call_fit(replace(with_classes, l2=ridge), self._given, chosen.as_weights, int(seed))
        else:
            with on_rows(lambda: worker.rows_at_work):
                fit_head(
                    _head(worker.model, with_classes), lambda: _head_batches(worker, chosen), over, with_classes.l2
                )
            model = worker.model
        return replace(with_classes, model=model.eval(), checkpoints=None, ensemble=None)


@dataclass(frozen=True)
class _Chosen:
    """The rows to train on."""

    keep: Array
    weights: Array | None

    @property
    def rows(self) -> int:
        """How many are kept."""
        return int(self.keep.sum())

    @property
    def as_weights(self) -> Array | None:
        """The same as one weight a row, 0 on rows that are left out; None where all count once."""
        if self.weights is None and self.keep.all():
            return None
        return np.where(self.keep, 1.0 if self.weights is None else self.weights, 0.0)

    def of(self, positions: Array, like: torch.device) -> Tensor | None:
        """Weights of some rows."""
        return None if self.weights is None else torch.from_numpy(self.weights[positions]).to(like)


def _choose(mask: Array, weights: Array | None) -> _Chosen:
    """A mask and weights over the table's rows.

    Raises:
        InputError: weights that do not fit the table, or leave nothing to train on.
    """
    rows = len(mask)
    if weights is not None and (weights.shape != (rows,) or not np.isfinite(weights).all() or (weights < 0).any()):
        raise InputError(
            f"weights are {list(weights.shape)} for {rows} rows, or not all finite and >= 0.",
            "pass a weight for every row of the table, kept or not.",
        )
    if weights is not None and not weights[mask].any():
        raise InputError(f"None of the {rows} rows is left to train on.", "keep some, with a positive weight.")
    return _Chosen(mask, weights)


def train_in_place(worker: Worker, shuffled: Shuffled, weights: Array | None, fit: Fit, l2: float, seed: int) -> None:
    """Train the worker's model by minibatches of a table, with a weight `[n]` for each of its rows or None."""
    job, device = worker.job, worker.device
    at: list[Array] = [np.empty(0, np.int64)]

    def tensors(rows: Rows) -> tuple[Any, Tensor, Tensor | None]:
        at[0] = rows.positions
        y = torch.from_numpy(job.classes.encode(rows.labels)).to(device)
        w = None if weights is None else torch.from_numpy(weights[rows.positions]).to(device)
        return worker.input(rows.x), y, w

    def epoch(generator: torch.Generator) -> Iterator[tuple[Any, Tensor, Tensor | None]]:
        return map(tensors, shuffled.epoch(generator))

    ridged = frozenset(n for block in worker.blocks for n in block.parameters)
    steps = fit.epochs * shuffled.steps
    with on_rows(lambda: f"{len(at[0])} rows of {job.tables[TABLE].name} (positions {shown(at[0].tolist())})"):
        train_epochs(worker.model, epoch, Recipe(fit, job.task.row_loss, steps, seed, l2, ridged))


def call_fit(task: Task, table: Any, weights: Array | None, seed: int) -> nn.Module:
    """The model that a fit of the user's, a function, returns.

    Raises:
        InputError: it raises, or returns something else.
    """
    assert callable(task.fit)
    with user_code(*FIT):
        model = task.fit(task, table, weights, seed)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Task(fit=...) is a function that returned a {type(model).__name__}.", "return the trained nn.Module."
        )
    return model


def check_trainable(task: Task) -> None:
    """Refuse a task that does not say how its model is trained, before any work is done that leads up to that.

    Raises:
        InputError: there is no fit, and the model is no linear softmax head.
    """
    if task.fit is None:
        _head(task.build(), task)


def _head(model: nn.Module, task: Task) -> nn.Linear:
    """The one linear layer of a softmax regression, the model that has a fit of its own.

    Raises:
        InputError: the model is another.
    """
    head = find_head(model, task)
    if head is not None:
        return head
    raise InputError(
        "The Task does not say how its model is trained, and only a linear softmax head can do without.",
        "pass Task(fit=rayinf.Fit(optimizer=..., lr=..., epochs=...)).",
    )


def _head_batches(worker: Worker, chosen: _Chosen) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The kept rows as the head sees them, flat and in float64."""
    table, columns = worker.job.tables[TABLE], worker.job.columns[TABLE]
    reader, cpu = BatchReader(table, columns), torch.device("cpu")
    for shard in table.shards:
        for batch in reader.read(shard, READ_ROWS):
            at = np.flatnonzero(chosen.keep[batch.start : batch.start + len(batch)])
            if len(at):
                worker.begin(TABLE, batch)
                x = worker.input(batch.x[at]).cpu().to(torch.float64).flatten(1)
                y = torch.from_numpy(worker.job.classes.encode(batch.labels[at]))
                yield x, y, chosen.of(batch.start + at, cpu)
