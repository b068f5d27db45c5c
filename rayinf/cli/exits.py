"""How a command ends: one line for every error, and the exit code that goes with it."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from rayinf.cli import words
from rayinf.data.run_folder import RunFolder
from rayinf.errors import InputError, RayinfError

_LONGEST_MESSAGE = 500


@contextmanager
def telling_if_done(out: str | Path) -> Generator[None, None, None]:
    """Say so where a run was finished and had nothing left to do: one that does anything writes its record anew."""
    file = Path(out) / "run.json"
    finished = (RunFolder(Path(out)).read() or {}).get("status") == "finished"
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
            traceback.print_exc()
        typer.echo(f"Error: {_one_line(error, options)}", err=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


def _tell_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    typer.echo(f"Warning: {words.translate(' '.join(str(message).split()))}", err=True)


def _one_line(error: Exception, options: Sequence[str]) -> str:
    if isinstance(error, RayinfError):
        return words.said(error, options)
    cause = getattr(error, "cause", None)  # what a worker on Ray raised; the error itself holds its whole traceback
    inner = cause if isinstance(cause, Exception) else error
    said = " ".join(str(inner).split()).rstrip(".")
    short = said if len(said) <= _LONGEST_MESSAGE else said[: _LONGEST_MESSAGE - 3] + "..."
    what = f"{type(inner).__name__}: {short}, which rayinf did not expect."
    return f"{what} Fix: run again with --debug to see where; if your own code has no part in it, report it."
