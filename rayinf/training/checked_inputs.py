"""The inputs of a verb that trains, opened and checked, and what its run's identity says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rayinf.data.scan import TableScan
from rayinf.engine.digest import digest
from rayinf.engine.job import Job
from rayinf.engine.model_digest import model_digest
from rayinf.engine.run import open_run
from rayinf.engine.spec import InfluenceSpec
from rayinf.store.places import is_uri
from rayinf.task import Fit, Task

# Of the identity of a run of the engine, what says which task it is about.
TASK_IDENTITY = ("model", "loss", "features", "label", "transform", "mask", "version", "parameters", "l2", "classes")


@dataclass(frozen=True)
class CheckedInputs:
    """A task and tables that fit each other.

    Attributes:
        job: the task with its classes, and the tables, opened.
        scans: of the tables.
        identity: of both: what they must share with another run to be the same.
    """

    job: Job
    scans: Mapping[str, TableScan]
    identity: dict[str, Any]


def check_tables(task: Task, tables: Mapping[str, Any], objective: Any = "category") -> CheckedInputs:
    """Open tables for a verb that needs values by objective, before any work.

    Args:
        task: the model.
        tables: "train", "valid" and more, of any form.
        objective: as in `influence`, whose targets the job has.

    Raises:
        InputError: what does not fit: by category, validation rows of every class are needed too.

    Cost: a pass over all tables.
    """
    task = replace(task, checkpoints=None, ensemble=None)  # what trains starts from the one model
    others = {name: table for name, table in tables.items() if name not in ("train", "valid")}
    spec = InfluenceSpec(
        task=task, train=tables["train"], valid=tables["valid"], objective=objective, curvature="identity"
    )
    with open_run(spec, **others) as run:
        job = replace(run.job, task=replace(task, classes=run.job.classes.labels))
        return CheckedInputs(job, run.scans, {name: run.identity[name] for name in (*TASK_IDENTITY, *tables)})


def absolute(given: Any) -> Any:
    """A table's path, or each of several, the same in any process; anything else as it is."""
    if isinstance(given, list):
        return [absolute(path) for path in given]
    return _absolute(given) if isinstance(given, str | Path) else given


def _absolute(path: str | Path) -> str:
    return str(path) if is_uri(path) else str(Path(path).expanduser().absolute())


def fit_identity(task: Task) -> dict[str, Any]:
    """How the model is trained: `fit`; and, where training starts anew, the model without its parameters: `model`.

    Raises:
        InputError: a function or a model that cannot be digested, without `Task(version=...)`.
    """
    starts_anew = task.fit is None or (isinstance(task.fit, Fit) and task.fit.fresh)
    anew = {"model": model_digest(task.build(), task.version).architecture} if starts_anew else {}
    return {"fit": fit_name(task), **anew}


def fit_name(task: Task) -> dict[str, Any] | str | None:
    """A `Fit` by its numbers, a function by its digest.

    Raises:
        InputError: a function that cannot be digested, without `Task(version=...)`.
    """
    if isinstance(task.fit, Fit):
        return asdict(task.fit)
    return None if task.fit is None else digest(task.fit, "Task(fit=...)", task.version)
