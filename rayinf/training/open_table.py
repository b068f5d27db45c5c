"""One table opened for training or measuring a task's model: checked, with the task's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rayinf.core.objectives import LABEL, Objective
from rayinf.data.batches import Columns, check_columns
from rayinf.data.changes import have_changed
from rayinf.data.known_scans import known
from rayinf.data.labels import Classes, check_known, make_classes
from rayinf.data.scan import TableScan
from rayinf.data.tables import READ_ROWS, Table, as_table
from rayinf.engine.job import Job
from rayinf.engine.probe import probe
from rayinf.engine.spec import InfluenceSpec
from rayinf.engine.worker import Worker
from rayinf.errors import RunError
from rayinf.task import Task

# The one table of the worker's job; it measures batches on the table of this name.
TABLE = "train"


def open_table(task: Task, given: Any, name: str, objectives: Sequence[Objective] = ()) -> tuple[Worker, TableScan]:
    """A worker on a table that is checked, with the task's classes; and the table's scan.

    Args:
        task: around a model.
        given: the table, of any form.
        name: of the table, for errors.
        objectives: whose columns are read too.

    Raises:
        InputError: a table that does not fit the task, or a label that is no class.
    """
    table = as_table(given, task.feature_columns, [task.label, *([task.group] if task.group else [])], name)
    splits = dict.fromkeys(o.split for o in objectives if o.split not in (None, LABEL))
    extra = tuple(s for s in splits if s is not None)
    columns = Columns(tuple(task.feature_columns), isinstance(task.features, str), task.label, None, extra)
    check_columns(table, columns)
    spec = InfluenceSpec(task=task, train=given, valid=None, curvature="identity")
    job = Job(task, {TABLE: table}, {TABLE: columns}, Classes(()), spec)
    logits = probe(job, objectives).logits
    scan = known.scan(table, columns, READ_ROWS)
    classes = make_classes(scan.counts[task.label], logits, task.classes)
    check_known(classes, scan.counts[task.label], table.name)
    with_classes = replace(task, classes=classes.labels)
    return Worker(replace(job, task=with_classes, classes=classes)), scan


def check_unchanged(table: Table, given: Any, name: str) -> None:
    """Refuse to go on over a table that was rewritten meanwhile.

    Args:
        table: as it was opened.
        given: what it was opened from.
        name: of the table, for errors.

    Raises:
        RunError: a Parquet file changed since the run began.
    """
    if have_changed(table.stat, given, name):
        raise RunError(
            f"{name} ({given}) changed while the run was going.",
            "leave the table as it is during a run, and run again into a new folder.",
        )
