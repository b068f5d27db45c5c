"""The YAML of a run: its values, the objects that they name, and errors that name the key and how to mend it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

import rayinf
from rayinf.config_keys import SECTIONS, VERBS, in_short, keys_of, kind_of, verbs_with
from rayinf.config_model import SECTION_MODELS, model_of
from rayinf.errors import InputError
from rayinf.references import Places
from rayinf.signatures import arguments_of

_SHOWN_PROBLEMS = 3
_SHOWN_VALUE = 80
# Mappings and lists inside each other; a config needs four.
_DEEPEST = 32
_UNKNOWN = ("extra_forbidden", "invalid_key")
_QUOTE = (
    "mend the YAML there; put quotes around a value that starts with *, [, { or @, or that holds a colon and a space."
)


def read_config(path: str | Path, overrides: Sequence[str] = (), verb: str = "influence") -> dict[str, Any]:
    """The arguments of a verb that a config file gives; imports the user's code.

    Args:
        path: of the YAML file.
        overrides: `key=value`, applied in order; keys may be dotted, values are YAML.
        verb: a name in `rayinf.config_keys.VERBS`.

    Raises:
        InputError: the file does not exist or is not YAML, a key is unknown, a value is wrong, or what a value names
            cannot be imported or read.
    """
    values, changed = _values(path, overrides)
    found = _validate(values, _Source(str(path), changed, verb))
    places = Places(Path(path).expanduser().absolute().parent)
    for key, value in found.items():
        kind = kind_of(keys_of(verb)[key])
        if kind is not None and value is not None:
            found[key] = kind.load(places, key, value)
    for key, public in SECTIONS.items():  # at last, when it is known which folders the user's code lies in
        if found.get(key) is not None:
            if key == "cluster":
                found[key]["runtime_env"] = places.runtime_env(found[key].get("runtime_env"))
            found[key] = getattr(rayinf, public)(**found[key])
    return {key: found.get(key, argument.default) for key, argument in keys_of(verb).items()}


def read_values(given: str | Path | Mapping[str, Any], overrides: Sequence[str], verb: str) -> dict[str, Any]:
    """The values of a config, checked against the verb's keys, and without defaults. No code is imported.

    Args:
        given: the path of a YAML file, or its keys and values.
        overrides: as in `read_config`.
        verb: a name in `rayinf.config_keys.VERBS`.

    Raises:
        InputError: the file does not exist or is not YAML, a key is unknown, or a value is wrong.
    """
    if isinstance(given, Mapping):
        values, shown = dict(given), "config"
        changed = [_override(values, item) for item in overrides]
    else:
        shown = str(given)
        values, changed = _values(given, overrides)
    return _validate(values, _Source(shown, changed, verb))


def find_verb(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The verb that a config is for: the one that has most of its keys; of several, the first in the list of verbs.

    Args:
        path: of the YAML file.
        overrides: as in `read_config`.

    Raises:
        InputError: the file does not exist or is not YAML.
    """
    values, _ = _values(path, overrides)
    return max(VERBS, key=lambda verb: sum(key in keys_of(verb) for key in values))


def _values(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values in the file, with the overrides; and the keys that those changed."""
    values = _read_yaml(Path(path).expanduser().absolute(), str(path))
    return values, [_override(values, item) for item in overrides]


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands only once, nothing holds itself, and not too much lies inside each other."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open:
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor} holds itself", self.get_mark())
            return super().compose_node(parent, index)
        if len(self._open) >= _DEEPEST:
            problem = f"more than {_DEEPEST} mappings or lists lie inside each other"
            raise yaml.composer.ComposerError(None, None, problem, self.get_mark())
        self._open.append(getattr(event, "anchor", None))
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.pop()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for k, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in names[:k]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path, shown: str) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise InputError(f"There is no config file {shown}.", "check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown[:200]} cannot be read as text: {reason}.", "pass a YAML file.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise InputError(f"{shown}{_yaml_place(error)}.", _QUOTE) from error
    if not isinstance(values, dict):
        held = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise InputError(f"{shown} {held}, not keys and values.", "write lines such as `train: data/train.parquet`.")
    return values


def _yaml_place(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{where}: {problem}"


def _override(values: dict[str, Any], item: str) -> str:
    """Apply one `key=value` to the values of the file; the key."""
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {item} is not of the form key=value.", "write for example --set cluster.workers=4.")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--set {item}: the value is not YAML{_yaml_place(error)}.", _QUOTE) from error
    held = values
    for k, part in enumerate(parts[:-1]):
        inner = held.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise InputError(
                f"--set {item}: {'.'.join(parts[: k + 1])} is {inner!r}, which has no keys.", "correct the key."
            )
        held[part] = dict(inner or {})
        held = held[part]
    held[parts[-1]] = value
    return ".".join(parts)


@dataclass(frozen=True)
class _Source:
    """Where the values of a config come from, for errors.

    Attributes:
        file: as the user named it.
        changed: keys that `--set` gave.
        verb: whose config it is.
    """

    file: str
    changed: Sequence[str]
    verb: str


def _validate(values: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    """The values that are given, as pydantic reads them.

    Raises:
        InputError: the first problems, and how to mend them.
    """
    try:
        return model_of(source.verb).model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] not in _UNKNOWN)
    explained = [_explain(p, source) for p in problems[:_SHOWN_PROBLEMS]]
    more = f"; and {len(problems) - len(explained)} more" if len(problems) > len(explained) else ""
    what = "; ".join(what for what, _ in explained) + more
    raise InputError(f"{what}.", " ".join(dict.fromkeys(f"{fix}." for _, fix in explained)))


def _explain(problem: ErrorDetails, source: _Source) -> tuple[str, str]:
    """What is wrong with one key, and how to mend it."""
    parts = [str(p) for p in problem["loc"]]
    key, kind = ".".join(parts), problem["type"]
    where = f"--set {key}" if any(_nested(key, c) for c in source.changed) else f"{source.file}: {key}"
    keys = keys_of(source.verb)
    inside = len(parts) > 1 and parts[0] in SECTIONS
    if inside:
        keys = {a.name: a for a in arguments_of(SECTIONS[parts[0]])}
    argument = keys.get(parts[1] if inside else parts[0])
    if argument is None:
        problem_of_key = _unknown(parts[-1], list(keys), None if inside else source.verb)
        return f"{where} {problem_of_key}", f"use the keys {', '.join(keys)}"
    if kind == "missing":
        return f"{where} is missing", f"add {key}: {in_short(argument)}"
    value, text = problem["input"], problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if kind in ("model_type", "model_attributes_type"):
        text = f"should be a mapping of {', '.join(SECTION_MODELS[parts[0]].model_fields)}"
    elif kind == "string_type":
        text = "should be text" + ("" if value is None else ": put quotes around it")
    return f"{where}={_short(value)} {text}", f"{key}: {in_short(argument)}"


def _short(given: Any) -> str:
    """The start of a value as JSON; no more of it is written than is shown, since aliases can make it huge."""
    value = ""
    for part in json.JSONEncoder(default=str).iterencode(given):
        value += part
        if len(value) > _SHOWN_VALUE:
            return value[: _SHOWN_VALUE - 3] + "..."
    return value


def _unknown(name: str, keys: Sequence[str], verb: str | None) -> str:
    """What is wrong with a key that a verb (or a section, where `verb` is None) does not have."""
    verbs = verbs_with(name) if verb else []
    if verbs:
        return f"is a key of {', '.join(verbs)}, not of {verb}"
    close = difflib.get_close_matches(name, keys, 1)
    return "is an unknown key" + (f" (did you mean {close[0]!r}?)" if close else "")


def _nested(a: str, b: str) -> bool:
    """Whether one dotted key is the other, or under it."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")
