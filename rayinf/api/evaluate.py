"""How a model does on a table."""

from __future__ import annotations

from typing import Any

from rayinf.core.objective_parser import parse
from rayinf.engine.entry import check
from rayinf.task import Task
from rayinf.training.evaluation import measure_model


def evaluate(task: Task, table: Any, objective: Any = (), *, against: Task | None = None) -> dict[str, Any]:
    """How the task's model does on a table, streamed.

    Args:
        task: around a trained model.
        table: of any form.
        objective: what else to measure, as in `influence`.
        against: the task around the model that attacks are aimed at; None: the one that is measured. Influence on
            `robustness` predicts the loss on inputs that were attacked *before* a refit: to compare a refit with it, or
            two models on the same attacked rows, pass the first model's task. (The linear attack on the model itself
            flips every prediction, so that its accuracy is one minus that on clean rows.)

    Returns:
        `rows`, `loss` (mean), `accuracy`, and `accuracy_<label>` of every class (None where no row is of it). Of every
        column of the objectives its value under its name, and what is told beside it: `<gap>_signed` and `<gap>_hard`
        (the gap between predicted classes, or true-positive rates), `robustness_accuracy`.

    Raises:
        InputError: a table that does not fit the task, a label that is no class, or as `influence` says of objectives.

    Cost: one forward pass over the rows, and one an attack beside the attack's own.
    """
    check(task=task, against=against)
    return measure_model(task, table, parse(objective, task.group) if objective != () else (), against)
