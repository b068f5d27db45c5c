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
        train: the rows to fit to: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`; Parquet is streamed.
        l2: the ridge, >= 0: `l2/2 ||theta||^2` is added to the mean loss.
        features: a column of vectors, or a list of numeric columns.
        label: the column of labels, integers or strings; the classes are the sorted labels.
        group: a column of groups that the task keeps, for fairness between them. None: there is none.
        row_id: the column of ids that the task keeps. None: the column `row_id`, where the table has it.

    Raises:
        RayinfError: a table that cannot be fitted, or no convergence.

    Cost: about ten passes of Newton's method up to 3,000 parameters; conjugate-gradient Newton steps above.
    """
    check_columns(features, label, group, row_id)
    l2 = number("l2", l2)
    columns = {"features": features, "label": label, "group": group, "row_id": row_id}
    return fit_logistic(train, columns, l2)
