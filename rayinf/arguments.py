"""Checks of single arguments: each refuses a wrong value in one sentence that names the argument and shows the value.

An argument is called `seed`, or `Cluster.workers` where it belongs to a class. NumPy scalars count as the numbers that
they hold, and come back as plain ones; truth values do not count as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rayinf.errors import InputError
from rayinf.redaction import redact
from rayinf.store.store_path import StorePath

_LONGEST = 80
# What a number may be, by how errors say it.
_RANGES: dict[str, Callable[[float], bool]] = {
    "any": lambda v: True,
    ">= 0": lambda v: v >= 0,
    "> 0": lambda v: v > 0,
    "> 1": lambda v: v > 1,
    "in (0, 1)": lambda v: 0 < v < 1,
    "in (0, 1]": lambda v: 0 < v <= 1,
    "in [0, 1]": lambda v: 0 <= v <= 1,
    "in [0, 1)": lambda v: 0 <= v < 1,
}


def refuse(name: str, value: object, expected: str, fix: str) -> NoReturn:
    """Raise the error of an argument, such as `seed=-1: seed must be an integer >= 0`.

    Args:
        name: of the argument.
        value: what was passed.
        expected: what it must be.
        fix: what to pass.

    Raises:
        InputError: always.
    """
    raise InputError(f"{given(name, value)}: {_field(name)} must be {expected}.", fix)


def given(name: str, value: object) -> str:
    """An argument with its value as a user wrote it: `seed=-1`, or `Cluster(workers=0)`."""
    owner, _, field = name.rpartition(".")
    return f"{owner}({field}={shown(value)})" if owner else f"{field}={shown(value)}"


def shown(value: object) -> str:
    """A value on one line: what it is where it is plain and short, else its type."""
    if isinstance(value, type):
        return f"<class {value.__name__}>"
    plain = isinstance(value, str | bytes | int | float | complex | np.generic | list | tuple | set | dict | Path)
    if value is None or plain:
        text = redact(" ".join(repr(value).split()))
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}... ({type(value).__name__})"
    if callable(value) and hasattr(value, "__name__"):
        return f"<function {value.__name__}>"
    return f"<{type(value).__name__}>"


def plain(value: Any) -> Any:
    """The plain number that a NumPy scalar holds; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def optional(check: Callable[..., Any], name: str, value: Any, *more: Any) -> Any:
    """None, or what a check gives.

    Raises:
        InputError: as the check does.
    """
    return None if value is None else check(name, value, *more)


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """An integer in a range.

    Raises:
        InputError: it is none, or out of range.
    """
    kind = isinstance(value, Integral) and not isinstance(value, bool)
    if kind and int(value) >= least and (most is None or int(value) <= most):
        return int(value)
    expected = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    field = _field(name)
    if isinstance(value, str) and value.strip().isdigit():
        refuse(name, value, expected, f"pass {field}={int(value)}, without quotes.")
    if isinstance(value, float) and value.is_integer() and value >= least:
        refuse(name, value, expected, f"pass {field}={int(value)}.")
    refuse(name, value, expected, f"pass {expected}, such as {max(least, 1)}.")


def number(name: str, value: Any, allowed: str = ">= 0") -> int | float:
    """A number that is in one of the ranges of `_RANGES`.

    Raises:
        InputError: it is none, or out of range.
    """
    kind = isinstance(value, Real) and not isinstance(value, bool)
    if kind and np.isfinite(float(value)) and _RANGES[allowed](float(value)):
        if isinstance(value, Integral):
            return int(value)
        return float(value)
    expected = f"a number {allowed}"
    if not allowed.startswith("in"):
        expected = "a finite number" if allowed == "any" else f"a finite number {allowed}"
    if isinstance(value, str):
        try:
            held = float(value)
        except ValueError:
            held = float("nan")
        if held == held:
            refuse(name, value, expected, f"pass {name.rpartition('.')[2]}={value.strip()}, without quotes.")
    refuse(name, value, expected, f"pass {expected}.")


def numbers(name: str, value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An array of numbers, as float64.

    Raises:
        InputError: it is something else.
    """
    try:
        held = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        refuse(name, value, "an array of numbers", f"pass {name} as an array or a list of numbers.")
    return held


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    refuse(name, value, "True or False", "pass True or False.")


def text(name: str, value: Any, what: str = "text") -> str:
    """Text that is not empty.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, str) and value.strip():
        return value
    refuse(name, value, what, f"pass {what}.")


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """One of some words, or None where that is among them.

    Raises:
        InputError: it is not.
    """
    if any(value is word or (isinstance(value, str) and value == word) for word in allowed):
        return
    expected = ", ".join("None" if word is None else f'"{word}"' for word in allowed)
    raise InputError(
        f"{given(name, value)} is unknown.", f"use one of {expected}." if "," in expected else f"use {expected}."
    )


def path(name: str, value: Any) -> None:
    """A path or URI, as text, a `Path` or what another verb gave.

    Raises:
        InputError: it is something else, or empty.
    """
    if not (isinstance(value, str | Path | StorePath) and str(value).strip()):
        refuse(name, value, "a path (text or a Path)", f"pass {name.rpartition('.')[2]}='path/to/folder'.")


def function(name: str, value: Any, what: str) -> None:
    """A function, or an object that can be called; a class is not one.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, type):
        refuse(name, value, what, f"pass an instance, {value.__name__}(...), or a function.")
    if not callable(value):
        refuse(name, value, what, f"pass {what}.")


def names(name: str, value: Any, what: str) -> None:
    """One name or several, each once.

    Raises:
        InputError: anything else, none, or one twice.
    """
    if isinstance(value, str) and value.strip():
        return
    held = list(value) if isinstance(value, list | tuple | np.ndarray) or is_index(value) else []
    if held and all(isinstance(v, str) and v.strip() for v in held):
        if len(set(held)) == len(held):
            return
        twice = next(v for k, v in enumerate(held) if v in held[:k])
        raise InputError(f"{given(name, value)} names {twice!r} twice.", "name it once.")
    more = " Names are text: rename integer columns, as with frame.columns = frame.columns.astype(str)."
    numbered = bool(held) and all(isinstance(v, Integral) for v in held)
    refuse(name, value, what, f"pass {what}.{more if numbered else ''}")


def is_index(value: Any) -> bool:
    """Whether it is an index or a series of pandas, whose items are values."""
    return type(value).__module__.startswith("pandas.") and hasattr(value, "tolist")


def _field(name: str) -> str:
    return name.rpartition(".")[2]
