"""What errors, warnings and reports say, in the words of the command line: config keys and options instead of Python.

The library's messages name arguments as Python has them, `halves=True`. Here the same is `halves: true`, a key of the
config, or `--by total`, an option. What a config cannot hold stays as it is: a Task, its Fit and objectives of one's
own are written in the user's Python file on the command line too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import yaml

from rayinf.errors import RayinfError
from rayinf.keys import MAPPINGS, VERBS

# Verbs whose commands have other names.
_COMMANDS = {"influence_measure": "measure", "pareto_reweight": "reweight"}
_CALLED = ("acquire", "active_learning", "ceiling", "influence", "plan", "removal_check", "trim", *_COMMANDS)
_VALUE = r"\"[^\"]*\"|'[^']*'|True\b|False\b|None\b|\[[^\]\[]*\]|\{[^{}]*\}|\.\.\.|-?\d+(?:\.\d+)?(?:e-?\d+)?"
_ARGUMENT = re.compile(rf"(?<![\w.])\b([a-z_0-9]+)=({_VALUE})")
_CALL = re.compile(r"(?:\brayinf\.)?\b([A-Za-z_]\w*(?:\.[a-z_]+)*)\(")
# Words of Python that stand by themselves.
_LITERALS = {"or None": "or null", "pass None": "pass null", "True or False": "true or false"}
# Ways out that only Python has: what is left of the sentence says another.
_ONLY_PYTHON = re.compile(r",? or (?:pass |with )?(?:rayinf\.)?(?:Scores\.from_numpy|trim)\([^()]*\)")


def said(error: RayinfError, options: Sequence[str] = ()) -> str:
    """What an error says, on one line.

    Args:
        error: of the library.
        options: names that are options of the command at hand; all others are keys of its config.
    """
    what, fix = _translated(error.what, options, shown=True), _translated(error.fix, options, shown=False)
    return " ".join(f"{what} Fix: {fix}".split())


def translate(text: str, options: Sequence[str] = ()) -> str:
    """A text of the library, such as a report, line by line.

    Args:
        text: what the library says.
        options: as in `said`.
    """
    return _translated(text, options, shown=False)


def _translated(text: str, options: Sequence[str], shown: bool) -> str:
    """The text with calls and arguments replaced; `shown`: it says what was given, so that `key=value` may stay."""
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
    if section in MAPPINGS and name[0].isupper():
        if not pairs:
            return section
        equals = "=" if shown else ": "
        return ", ".join(f"{section}.{key}" + ("" if v == "..." else f"{equals}{_yaml(v)}") for key, v in pairs)
    if name in _CALLED:
        command = "rayinf " + _COMMANDS.get(name, name).replace("_", "-")
        keys = " and ".join(_argument(key, v, options) for key, v in pairs)
        return f"{command} with {keys}" if keys else command
    if name == "Scores.load":
        return "the folder of the run"
    return None


def _arguments(text: str, options: Sequence[str], shown: bool) -> str:
    """Arguments outside of calls."""

    def one(match: re.Match[str]) -> str:
        key, value = match[1], match[2]
        if key not in _keys() and key not in options:
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


def _keys() -> frozenset[str]:
    """Every key that a config of some verb has."""
    return frozenset(key for model in VERBS.values() for key in model.model_fields)
