"""Measures of a model on a table."""

from __future__ import annotations

from typing import Any

from rayinf.core.objective_parser import parse
from rayinf.engine.entry import check, require_one_model
from rayinf.task import Task
from rayinf.training.evaluation import measure_model


def evaluate(task: Task, table: Any, objective: Any = (), *, against: Task | None = None) -> dict[str, Any]:
    """Loss, accuracy and other measures of the task's model on a table, which is streamed.

    Args:
        task: the trained model and its columns.
        table: the rows to measure on: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`.
        objective: further measures beside loss and accuracy: "total" (the summed loss), "category" (a column a class),
            "slice:<column>" (a column a value); "demographic_parity" and "equal_opportunity" (gaps between the groups
            of `Task(group=...)`); "robustness" (the linear attack); an `Objective` (`demographic_parity(...)`,
            `robustness("pgd", epsilon=...)`, your own), a function `(logits [B, C], labels [B]) -> [B]`, or a list of
            these. The empty default: none.
        against: the task around the model that attacks are aimed at. None: the one that is measured. Influence on
            `robustness` predicts the loss on inputs that were attacked *before* a refit: to compare a refit with it, or
            two models on the same attacked rows, pass the first model's task. (The linear attack on the model itself
            flips every prediction, so that its accuracy is one minus that on clean rows.)

    Returns:
        `rows`, `loss` (mean), `accuracy`, and `accuracy_<label>` of every class (None where no row is of it). Of every
        column of the objectives its value under its name, and beside it `<gap>_signed` and `<gap>_hard`
        (the gap between predicted classes, or true-positive rates), `robustness_accuracy`.

    Raises:
        InputError: a table that does not fit the task, a label that is not a class, or an objective that `influence`
            refuses.

    Cost: one forward pass over the rows, and one an attack beside the attack's own.
    """
    check(task=task, against=against)
    require_one_model(task, "evaluate")
    return measure_model(task, table, parse(objective, task.group) if objective != () else (), against)
