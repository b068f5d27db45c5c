"""What a loop's run folder is, and what its identity says of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayinf.errors import InputError
from rayinf.task import Fit, Task


def local_folder(out: str | Path) -> Path:
    """The run's folder.

    Raises:
        InputError: it is no local one.
    """
    if "://" in str(out):
        raise InputError(f"out={str(out)!r} is a URI.", "pass a local or mounted folder, and copy the run from there.")
    return Path(out).expanduser().absolute()


def absolute(given: Any) -> Any:
    """A table's path, or each of several, the same in any process; anything else as it is."""
    if isinstance(given, list):
        return [absolute(path) for path in given]
    return _absolute(given) if isinstance(given, str | Path) else given


def _absolute(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).expanduser().absolute())


def fit_identity(task: Task) -> dict[str, Any]:
    """How the model is trained: `fit`; and, where training starts anew, the model without its parameters: `model`."""
    starts_anew = task.fit is None or (isinstance(task.fit, Fit) and task.fit.fresh)
    return {"fit": _fit_name(task), **({"model": repr(task.build())} if starts_anew else {})}


def _fit_name(task: Task) -> str | None:
    if task.fit is None or isinstance(task.fit, Fit):
        return repr(task.fit) if task.fit else None
    return getattr(task.fit, "__qualname__", type(task.fit).__qualname__)
