"""A task from a table alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayinf.arguments import number
from rayinf.engine.fit import fit_logistic
from rayinf.task import Task, check_columns


def logistic_regression(
    train: Any,
    l2: float = 1e-3,
    features: str | Sequence[str] = "features",
    label: str = "label",
    group: str | None = None,
    row_id: str | None = None,
) -> Task:
    """A `Task` around a softmax regression with bias, fitted to `train` until its gradient's norm is under 1e-8.

    Minimises the mean cross-entropy + l2/2 ||theta||^2 over weights and bias, in float64.

    Args:
        train: a table of any form; Parquet is streamed.
        l2: the ridge.
        features: a column, or a list of numeric columns.
        label: integers or strings; the classes are the sorted labels.
        group: kept in the task.
        row_id: kept in the task.

    Raises:
        RayinfError: a table that cannot be fitted, or no convergence.

    Cost: about ten passes of Newton's method up to 3,000 parameters; conjugate-gradient Newton steps above.
    """
    check_columns(features, label, group, row_id)
    l2 = number("l2", l2)
    columns = {"features": features, "label": label, "group": group, "row_id": row_id}
    return fit_logistic(train, columns, l2)
