"""Calls of the user's own code: whatever it raises becomes one error that names the code and the rows.

The code is called deep inside (a loss in `core`, say), where the rows' positions are unknown; the caller that reads the
rows adds them (`on_rows`). These errors can be pickled.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rayinf.errors import InputError, RayinfError, RowsError, RunError

_LONGEST = 300
# Which code raised, and how to fix it.
MODEL = ("The model", "mend the model's forward, or what it gets (Task(transform=...)).")
TRANSFORM = ("Task(transform=...)", "mend the transform: it gets the features of any number of rows, one row too.")
MASK = ("Task(mask=...)", "mend the mask: the model's input -> a boolean [B, T].")
LOSS = ("Task(loss=...)", "mend the loss: (logits [B, C], labels [B]) -> losses [B], of any number of rows.")
FIT = ("Task(fit=...), a function,", "mend it: (task, train, weights, seed) -> the trained nn.Module.")
ATTACK = "mend it: (predict, x, labels, loss) -> an input like x."
# The user's own code lies outside of these folders.
_NOT_THEIRS = (str(Path(torch.__file__ or "").parent), str(Path(__file__).parent))


class UserCodeError(RowsError):
    """The user's own code raised an error, or returned what cannot be used."""

    def __init__(self, what: str, fix: str, rows: str = "") -> None:
        """An error with the rows on which it happened, once they are known."""
        super().__init__(f"{what}, on {rows}." if rows else f"{what}.", fix)
        self.parts = (what, fix, rows)

    def __reduce__(self) -> tuple[type, Any]:
        """Travel between processes with all parts."""
        return type(self), self.parts


@contextmanager
def user_code(who: str, fix: str) -> Generator[None]:
    """Convert what the user's code raises into a UserCodeError.

    Args:
        who: the code, as a user calls it: "The model", "Task(transform=...)".
        fix: how to fix it.

    Raises:
        UserCodeError: what was raised, and where.
        RayinfError: raised inside; passes as it is.
        OutOfMemoryError: likewise, of a full accelerator.
    """
    try:
        yield
    except (RayinfError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserCodeError(f"{who} raised {one_line(error)}{_place(error)}", fix) from error


@contextmanager
def on_rows(rows: Callable[[], str]) -> Generator[None]:
    """Add the rows on which the user's code failed, unless the error names them already.

    Args:
        rows: gives "rows 0 to 63 of train", say, at the time of the error.

    Raises:
        UserCodeError: the same with the rows.
    """
    try:
        yield
    except UserCodeError as error:
        what, fix, known = error.parts
        if known:
            raise
        raise UserCodeError(what, fix, rows()) from error.__cause__


@contextmanager
def sendable() -> Generator[None]:
    """Convert an error of pickling the user's code into one with a fix.

    Raises:
        InputError: something that workers need cannot be pickled.
        RayinfError: raised inside; passes as it is.
    """
    try:
        yield
    except RayinfError:
        raise
    except Exception as error:
        text = str(error)
        reason = next((line.strip() for line in text.splitlines()[1:] if "cannot pickle" in line.lower()), "")
        what = reason or one_line(error.__cause__ or error)
        raise InputError(
            f"What the workers need (the Task, its functions, tables in memory) cannot be sent to them: {what}.",
            "let model be a function without arguments that builds the model, and keep open files, locks and "
            "generators out of functions; without a cluster nothing is sent.",
        ) from error


def from_worker(cause: BaseException) -> RayinfError:
    """An unexpected error of a worker, as an error on one line."""
    text = one_line(cause)
    if "No module named" in text or "Can't get attribute" in text or isinstance(cause, ImportError):
        return InputError(
            f"A worker cannot import the code of the Task: {_missing(text)}.",
            'send the code, Cluster(runtime_env={"working_dir": "folder/of/the/code"}), or install it on every node.',
        )
    return RunError(
        f"A worker raised {text}, which rayinf did not expect.",
        "look at the worker's log for where; if your own code has no part in it, report it.",
    )


def _missing(text: str) -> str:
    at = max(text.rfind("No module named"), text.rfind("Can't get attribute"))
    return text[at:] if at >= 0 else text


def torch_said(error: RuntimeError | UserCodeError) -> str:
    """Torch's message about a model that it cannot differentiate, on one line.

    Args:
        error: as torch raised it, or from within the model.

    Raises:
        UserCodeError: the model itself raised something else.
    """
    if isinstance(error, UserCodeError) and not isinstance(error.__cause__, RuntimeError):
        raise error
    return one_line(error.__cause__ or error)


def one_line(error: BaseException) -> str:
    """The type and the message of an error, on one line without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def _place(error: BaseException) -> str:
    """The file and line of the user's own code at which an error was raised; empty without one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*_NOT_THEIRS, "<"))]
    theirs = [f for f in frames if "site-packages" not in f.filename]
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
