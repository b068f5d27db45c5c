"""Training a task's model anew, on all rows of a table or some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayinf.core.epochs import Recipe, train_epochs
from rayinf.data.batches import Array, BatchReader
from rayinf.data.tables import READ_ROWS
from rayinf.engine.fit import fit_head
from rayinf.engine.worker import Worker
from rayinf.errors import InputError
from rayinf.loops.kept_rows import Keep, kept_mask
from rayinf.loops.opened import TABLE, open_table
from rayinf.loops.shuffle import Rows, Shuffled
from rayinf.task import Fit, Task


def retrain(
    task: Task,
    table: Any,
    *,
    keep: Keep = None,
    weights: Array | None = None,
    seed: int = 0,
    rows: int | None = None,
    paired: bool = False,
) -> Task:
    """Train the task's model anew, as `task.fit` says: minimise `sum_i w_i l_i / n + l2/2 ||theta||^2`.

    Without a fit, a linear softmax head (`rayinf.logistic_regression`) is fitted to convergence.

    Args:
        task: what to train, from what.
        table: of any form; a Parquet table is streamed.
        keep: the rows to train on: a `Selection` (of `trim` or `acquire`, from this table), a boolean mask `[n]`, or
            row ids. Integers are always row ids, never positions: those of the column `Task(row_id=...)` or `row_id`
            where the table has it, else the rows' positions. None: all rows.
        weights: a weight >= 0 for every row of the table, kept or not.
        seed: of the first parameters, the order of rows, and dropout.
        rows: n. None: the kept rows, whatever their weights, so that `l2` is a ridge on their mean. Influence predicts
            refits that keep the *sum* of the ridge: pass the rows of the first fit, to compare with a prediction.
        paired: take the order and the minibatches of a fit to all rows under this seed, with gaps where rows are left
            out. The two fits then differ by these rows, and far less by the noise of training. Of a `Fit` only:
            a function as fit sees to that itself, and a head goes to convergence.

    Returns:
        A copy of the task around the new model, with its classes settled.

    Raises:
        InputError: a table, mask or weights that do not fit; ids that are unknown or doubled; nothing to keep; a
            selection from another table, or of a model with other code (keep its `mask` to train another model on
            these rows); or a model that no fit says how to train.
        RunError: training diverged or did not converge.

    Cost: `fit.epochs` passes over the rows; about ten for a head. Up to 65,536 rows (256 MB) of features are kept and
    shuffled as a whole.
    """
    worker, scan = open_table(task, table, "train")
    if not (isinstance(seed, Integral) and seed >= 0):
        raise InputError(f"seed={seed!r} is no seed.", "pass an integer >= 0.")
    if rows is not None and not (isinstance(rows, Integral) and rows >= 1):
        raise InputError(f"rows={rows!r} is no number of rows.", "pass a positive integer, or leave it out.")
    mask = kept_mask(keep, worker.job.tables[TABLE], task, scan)
    chosen = _choose(mask, weights)
    over = chosen.rows if rows is None else int(rows)
    settled = worker.job.task
    if isinstance(task.fit, Fit):
        job, ridge = worker.job, settled.l2 * over / chosen.rows
        shuffled = Shuffled(job.tables[TABLE], job.columns[TABLE], chosen.keep, task.fit.batch_size, paired)
        train_in_place(worker, shuffled, chosen.weights, task.fit, ridge, int(seed))
        model = worker.model
    elif task.fit is not None:
        asked = replace(settled, l2=settled.l2 * over / chosen.rows)
        model = task.fit(asked, table, chosen.as_weights, int(seed))
        if not isinstance(model, nn.Module):
            raise InputError(
                f"Task(fit=...) is a function that returned a {type(model).__name__}.", "return the trained nn.Module."
            )
    else:
        fit_head(_head(worker.model, settled), lambda: _head_batches(worker, chosen), over, settled.l2)
        model = worker.model
    return replace(settled, model=model.eval())


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
    if weights is not None:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != (rows,) or not np.isfinite(weights).all() or (weights < 0).any():
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

    def tensors(rows: Rows) -> tuple[Any, Tensor, Tensor | None]:
        y = torch.from_numpy(job.classes.encode(rows.labels)).to(device)
        w = None if weights is None else torch.from_numpy(weights[rows.positions]).to(device)
        return worker.input(rows.x), y, w

    def epoch(generator: torch.Generator) -> Iterator[tuple[Any, Tensor, Tensor | None]]:
        return map(tensors, shuffled.epoch(generator))

    ridged = frozenset(n for block in worker.blocks for n in block.parameters)
    steps = fit.epochs * shuffled.steps
    train_epochs(worker.model, epoch, Recipe(fit, job.task.row_loss, steps, seed, l2, ridged))


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
    layers: list[nn.Module] = list(model) if type(model) is nn.Sequential else [model]
    if len(layers) == 2 and type(layers[0]) is nn.Flatten:
        layers = layers[1:]
    head = layers[0]
    if len(layers) == 1 and type(head) is nn.Linear and head.bias is not None and task.is_cross_entropy:
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
                x = worker.input(batch.x[at]).cpu().to(torch.float64).flatten(1)
                y = torch.from_numpy(worker.job.classes.encode(batch.labels[at]))
                yield x, y, chosen.of(batch.start + at, cpu)
