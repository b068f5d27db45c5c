"""Training a task's model anew, on all rows of a table or some."""

from __future__ import annotations

from typing import Any

from rayinf.arguments import numbers, optional
from rayinf.data.batches import Array
from rayinf.engine.entry import check
from rayinf.task import Task
from rayinf.training.retraining import train_anew
from rayinf.training.rows_to_keep import Keep


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
    """Train the task's model anew by `task.fit`: minimise `sum_i w_i l_i / n + l2/2 ||theta||^2`.

    The sum is over the kept rows. Without a fit, a linear softmax head (`rayinf.logistic_regression`) is fitted to
    convergence.

    Args:
        task: the model, its columns and how to train it (`Task(fit=...)`; a linear softmax head needs none).
        table: the rows: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or arrays
            `(X, y)`. A Parquet table is streamed.
        keep: the rows to train on: a `Selection` (of `trim` or `acquire`, from this table), a boolean mask `[n]`, or
            row ids. Integers are always row ids, never positions: those of the column `Task(row_id=...)` or `row_id`
            where the table has it, else the rows' positions. None: all rows.
        weights: a weight >= 0 for every row of the table `[n]`, kept or not. None: 1 for each.
        seed: an integer >= 0 that fixes the first parameters, the order of rows, and dropout.
        rows: the n that the sum of losses is divided by, >= 1. None: the number of kept rows, whatever their weights,
            so that `l2` is a ridge on their mean. Influence predicts refits that keep the *sum* of the ridge: pass the
            rows of the first fit, to compare with a prediction.
        paired: whether the order and the minibatches are those of a fit to all rows under this seed, with gaps where
            rows are left out. The two fits then differ by these rows, and far less by the noise of training. It applies
            to a `Fit` only: a function as fit does this itself, and a head goes to convergence.

    Returns:
        A copy of the task around the new model, with its classes settled.

    Raises:
        InputError: a table, mask or weights that do not fit; ids that are unknown or doubled; nothing to keep; a
            selection from another table, or of a model with other code (keep its `mask` to train another model on
            these rows); or a task without a fit whose model is not a linear softmax head.
        RunError: training diverged or did not converge.

    Cost: `fit.epochs` passes over the rows; about ten for a head. Up to 65,536 rows (256 MB) of features are kept and
    shuffled as a whole.
    """
    check(task=task, seed=seed, rows=rows, paired=paired)
    weights = optional(numbers, "weights", weights)
    return train_anew(task, table, keep, weights=weights, seed=seed, rows=rows, paired=paired)
