"""How a command ends: one line for every error, and the exit code that goes with it."""

from __future__ import annotations

import errno
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from rayinf.cli import words
from rayinf.data.run_folder import RunFolder
from rayinf.errors import InputError, RayinfError
from rayinf.redaction import redact
from rayinf.store.places import AnyPath, open_place

_LONGEST_MESSAGE, _LONGEST_NAME = 500, 200
# What the system says of a path that was given wrongly.
_PATHS = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
)


@contextmanager
def telling_if_done(out: str | AnyPath) -> Generator[None, None, None]:
    """Say so where a run was finished and had nothing left to do: one that does anything writes its record anew."""
    folder = open_place(out, "out")
    file = folder / "run.json"
    finished = (RunFolder(folder).read() or {}).get("status") == "finished"
    before = file.stat().st_mtime_ns if finished else None
    yield
    if before is not None and file.stat().st_mtime_ns == before:
        typer.echo("already finished: nothing was computed")


@contextmanager
def exit_codes(debug: bool, options: Sequence[str] = ()) -> Generator[None, None, None]:
    """One line on stderr for every error or warning, and the exit code that goes with it.

    Args:
        debug: whether to show the traceback too.
        options: arguments of the library that are options of this command, not keys of a config.

    Raises:
        typer.Exit: with code 2 where the user's input is wrong, 1 for anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning
            yield
    except KeyboardInterrupt:
        typer.echo("Stopped: run the same command again to go on.", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            typer.echo(redact(traceback.format_exc()), err=True)
        known = _as_input(error)
        typer.echo(f"Error: {_one_line(known, options)}", err=True)
        raise typer.Exit(2 if isinstance(known, InputError) else 1) from None


def _as_input(error: Exception) -> Exception:
    """A path that cannot be, or that this user may not read or write, is wrong input."""
    if not isinstance(error, OSError) or error.errno not in _PATHS or error.filename is None:
        return error
    name = redact(str(error.filename))
    name = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
    return InputError(f"{name}: {error.strerror}.", "check the path, and that this user may read and write there.")


def _tell_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    typer.echo(f"Warning: {words.translate(redact(' '.join(str(message).split())))}", err=True)


def _one_line(error: Exception, options: Sequence[str]) -> str:
    if isinstance(error, RayinfError):
        return words.said(error, options)
    cause = getattr(error, "cause", None)  # what a worker on Ray raised; the error itself holds its whole traceback
    inner = cause if isinstance(cause, Exception) else error
    said = redact(" ".join(str(inner).split())).rstrip(".")
    short = said if len(said) <= _LONGEST_MESSAGE else said[: _LONGEST_MESSAGE - 3] + "..."
    what = f"{type(inner).__name__}: {short}, which rayinf did not expect."
    return f"{what} Fix: run again with --debug to see where; if your own code has no part in it, report it."
