"""What a loop's run folder is, and what its identity says of the training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayinf.engine.digest import digest
from rayinf.engine.model_digest import model_digest
from rayinf.store.places import is_uri
from rayinf.task import Fit, Task

# Of the identity of a run of the engine, what says which task it is about.
TASK_IDENTITY = ("model", "loss", "features", "label", "transform", "mask", "version", "parameters", "l2", "classes")


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
