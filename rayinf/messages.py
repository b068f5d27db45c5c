"""The library's messages on the command line: config keys and options instead of Python, and the exit code.

The library names arguments as Python has them, `halves=True`. Here the same is `halves: true`, a key of the config, or
`--by total`, an option. What a config cannot hold stays as it is: a Task, its Fit and objectives of one's own are
written in the user's Python file on the command line too.
"""

from __future__ import annotations

import ast
import errno
import re
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
import yaml

from rayinf.config_keys import SECTIONS, VERBS, keys_of
from rayinf.errors import InputError, RayinfError
from rayinf.redaction import redact

_LONGEST_MESSAGE, _LONGEST_NAME = 500, 200
# Errors of the system about a path that the user gave.
_PATH_ERRORS = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
)
# Commands by the functions that they call.
_COMMANDS = {function: verb for verb, function in VERBS.items()} | {c: c for c in ("trim", "ceiling", "plan")}
_VALUE = r"\"[^\"]*\"|'[^']*'|True\b|False\b|None\b|\[[^\]\[]*\]|\{[^{}]*\}|\.\.\.|-?\d+(?:\.\d+)?(?:e-?\d+)?"
_ARGUMENT = re.compile(rf"(?<![\w.])\b([a-z_0-9]+)=({_VALUE})")
_CALL = re.compile(r"(?:\brayinf\.)?\b([A-Za-z_]\w*(?:\.[a-z_]+)*)\(")
# Words of Python that stand by themselves.
_LITERALS = {"or None": "or null", "pass None": "pass null", "True or False": "true or false"}
# Ways out that only Python has: the rest of the sentence names another.
_ONLY_PYTHON = re.compile(r",? or (?:pass |with )?(?:rayinf\.)?(?:Scores\.from_numpy|trim)\([^()]*\)")


@contextmanager
def exit_codes(debug: bool, options: Sequence[str] = ()) -> Generator[None, None, None]:
    """Print every error or warning as one line on stderr, and exit with the code that goes with it.

    Args:
        debug: whether to show the traceback too.
        options: arguments of the library that are options of this command, not keys of a config.

    Raises:
        typer.Exit: with code 2 where the user's input is wrong, 1 for anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            yield
    except KeyboardInterrupt:
        typer.echo("Stopped: run the same command again to go on.", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            typer.echo(redact(traceback.format_exc()), err=True)
        known = _as_input_error(error)
        typer.echo(f"Error: {_one_line(known, options)}", err=True)
        raise typer.Exit(2 if isinstance(known, InputError) else 1) from None


def _as_input_error(error: Exception) -> Exception:
    """An InputError for a path that cannot exist, or that this user may not read or write; else the same error."""
    if not isinstance(error, OSError) or error.errno not in _PATH_ERRORS or error.filename is None:
        return error
    name = redact(str(error.filename))
    name = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
    return InputError(f"{name}: {error.strerror}.", "check the path, and that this user may read and write there.")


def _print_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    typer.echo(f"Warning: {translate(redact(' '.join(str(message).split())))}", err=True)


def _one_line(error: Exception, options: Sequence[str]) -> str:
    if isinstance(error, RayinfError):
        return error_line(error, options)
    cause = getattr(error, "cause", None)  # what a worker on Ray raised; the error itself holds its whole traceback
    inner = cause if isinstance(cause, Exception) else error
    text = redact(" ".join(str(inner).split())).rstrip(".")
    short = text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
    what = f"{type(inner).__name__}: {short}, which rayinf did not expect."
    return f"{what} Fix: run again with --debug to see where; if your own code has no part in it, report it."


def error_line(error: RayinfError, options: Sequence[str] = ()) -> str:
    """An error of the library on one line.

    Args:
        error: of the library.
        options: names that are options of the command at hand; all others are keys of its config.
    """
    what, fix = _translated(error.what, options, shown=True), _translated(error.fix, options, shown=False)
    return " ".join(f"{what} Fix: {fix}".split())


def translate(text: str, options: Sequence[str] = ()) -> str:
    """A text of the library, such as a report, line by line.

    Args:
        text: of the library.
        options: as in `error_line`.
    """
    return _translated(text, options, shown=False)


def _translated(text: str, options: Sequence[str], shown: bool) -> str:
    """The text with calls and arguments replaced; `shown`: it shows what was given, so that `key=value` may stay."""
    text = _ONLY_PYTHON.sub("", text)
    out, at = "", 0
    for match in _CALL.finditer(text):
        if match.start() < at:
            continue
        end = _closing(text, match.end())
        new = None if end is None else _call(match[1], text[match.end() : end], options, shown)
        if end is None:
            continue
        out += _arguments(text[at : match.start()], options, shown)
        out += text[match.start() : end + 1] if new is None else new
        at = end + 1
    return out + _arguments(text[at:], options, shown)


def _closing(text: str, start: int) -> int | None:
    """Where the parenthesis closes that was opened before `start`."""
    depth = 1
    for k in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[k], 0)
        if depth == 0:
            return k
    return None


def _call(name: str, inside: str, options: Sequence[str], shown: bool) -> str | None:
    """What a call is on the command line; None where it is Python there too."""
    section = name.lower()
    pairs = re.findall(rf"\b([a-z_0-9]+)=({_VALUE})", inside)
    if section in SECTIONS and name[0].isupper():
        if not pairs:
            return section
        equals = "=" if shown else ": "
        return ", ".join(f"{section}.{key}" + ("" if v == "..." else f"{equals}{_yaml(v)}") for key, v in pairs)
    if name in _COMMANDS:
        command = f"rayinf {_COMMANDS[name]}"
        keys = " and ".join(_argument(key, v, options) for key, v in pairs)
        return f"{command} with {keys}" if keys else command
    if name == "Scores.load":
        return "the folder of the run"
    return None


def _arguments(text: str, options: Sequence[str], shown: bool) -> str:
    """Arguments outside of calls."""

    def one(match: re.Match[str]) -> str:
        key, value = match[1], match[2]
        if key not in options and not any(key in keys_of(verb) for verb in VERBS):
            return match[0]
        if shown:  # as it is written with --set
            return f"{key}={_yaml(value)}"
        return _argument(key, value, options)

    for python, words in _LITERALS.items():
        text = text.replace(python, words)
    return _ARGUMENT.sub(one, text)


def _argument(key: str, value: str, options: Sequence[str]) -> str:
    if key in options:
        return f"--{key.replace('_', '-')}" + ("" if value == "..." else f" {_yaml(value)}")
    return key if value == "..." else f"{key}: {_yaml(value)}"


def _yaml(value: str) -> str:
    """A Python literal as YAML on one line."""
    try:
        held: Any = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return yaml.safe_dump(held, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
