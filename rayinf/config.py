"""The YAML of a run: where its paths lie, what it imports, and errors that name the key and how to mend it."""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rayinf.engine.job import Cluster
from rayinf.errors import InputError
from rayinf.keys import MAPPINGS, VERBS, homes_of
from rayinf.references import Places, as_objective, as_task
from rayinf.training.search import Search

# Keys that name a table or a folder.
PATHS = ("train", "valid", "labeled", "pool", "test", "factors", "scores", "out")
_SHOWN_PROBLEMS = 3
_SHOWN_VALUE = 80
# Mappings and lists inside each other; a config needs four.
_DEEPEST = 32
_UNKNOWN = ("extra_forbidden", "invalid_key")
_QUOTE = (
    "mend the YAML there; put quotes around a value that starts with *, [, { or @, or that holds a colon and a space."
)


def read_config(path: str | Path, overrides: Sequence[str] = (), verb: str = "influence") -> dict[str, Any]:
    """The arguments that a config file asks a verb for; imports the user's code.

    Args:
        path: of the YAML file.
        overrides: `key=value`, applied in order; keys may be dotted, values are YAML.
        verb: a name in `rayinf.keys.VERBS`.

    Raises:
        InputError: no such file, no YAML, an unknown key, a wrong value, or a task that cannot be had.
    """
    values, changed = _values(path, overrides)
    given = _validate(values, _Shown(str(path), changed, verb)).model_dump()
    places = Places(Path(path).expanduser().absolute().parent)
    for key in PATHS:
        if given.get(key) is not None:
            given[key] = places.data(key, given[key], there=key != "out")
    given["task"] = as_task(places, given["task"])
    if "objective" in given:
        asked = given["objective"]
        held = [as_objective(places, o) for o in ([asked] if isinstance(asked, str) else asked)]
        given["objective"] = held[0] if isinstance(asked, str) else held
    if "oracle" in given:
        given["oracle"] = _as_oracle(places, given["oracle"])
    if given.get("search") is not None:
        given["search"] = Search(**given["search"])
    if given["cluster"] is not None:
        env = places.runtime_env(given["cluster"]["runtime_env"])
        given["cluster"] = Cluster(**{**given["cluster"], "runtime_env": env})
    return given


def read_values(given: str | Path | Mapping[str, Any], overrides: Sequence[str], verb: str) -> dict[str, Any]:
    """What a config asks for, checked against the verb's keys, and without defaults. No code is imported.

    Args:
        given: the path of a YAML file, or its keys and values.
        overrides: as in `read_config`.
        verb: a name in `rayinf.keys.VERBS`.

    Raises:
        InputError: no such file, no YAML, an unknown key, or a wrong value.
    """
    if isinstance(given, Mapping):
        values, shown = dict(given), "config"
        changed = [_override(values, item) for item in overrides]
    else:
        shown = str(given)
        values, changed = _values(given, overrides)
    return _validate(values, _Shown(shown, changed, verb)).model_dump(exclude_unset=True)


def find_verb(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The verb that a config is for: the one that knows most of its keys; of several, the plainest.

    Args:
        path: of the YAML file.
        overrides: as in `read_config`.

    Raises:
        InputError: no such file, or no YAML.
    """
    values, _ = _values(path, overrides)
    return max(VERBS, key=lambda verb: sum(verb in homes_of(key) for key in values))


def _values(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What stands in the file, with the overrides; and the keys that those changed."""
    values = _read_yaml(Path(path).expanduser().absolute(), str(path))
    return values, [_override(values, item) for item in overrides]


def _as_oracle(places: Places, given: str) -> Any:
    """The function that a reference names, or the path of a table or folder.

    Raises:
        InputError: a reference to something else, or a path where nothing is.
    """
    if ":" not in given or "://" in given:
        place = places.data("oracle", given, there=True)
        if "://" not in place and not glob.has_magic(place) and not Path(place).exists():
            raise InputError(
                f"oracle: there is no table and no folder {place}.",
                "correct the path; or make the folder, empty, if that is where labels shall be dropped.",
            )
        return place
    found, where = places.load("oracle", given)
    if not callable(found) or isinstance(found, type):
        raise InputError(
            f"oracle: {where} is a {type(found).__name__}.", "name a function that gives the labels of row ids."
        )
    return found


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
        told = getattr(error, "strerror", None) or error
        raise InputError(f"{shown[:200]} cannot be read as text: {told}.", "pass a YAML file.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
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
        raise InputError(f"--set {item} is no key=value.", "write for example --set cluster.workers=4.")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--set {item}: the value is no YAML{_yaml_place(error)}.", _QUOTE) from error
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
class _Shown:
    """What errors tell of where a key stands.

    Attributes:
        file: as the user named it.
        changed: keys that `--set` gave.
        verb: whose config it is.
    """

    file: str
    changed: Sequence[str]
    verb: str


def _validate(values: Mapping[str, Any], shown: _Shown) -> BaseModel:
    try:
        return VERBS[shown.verb].model_validate(values)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] not in _UNKNOWN)
    told = [_explain(p, shown) for p in problems[:_SHOWN_PROBLEMS]]
    more = f"; and {len(problems) - len(told)} more" if len(problems) > len(told) else ""
    what = "; ".join(w for w, _ in told) + more
    raise InputError(f"{what}.", " ".join(dict.fromkeys(f"{fix}." for _, fix in told)))


def _explain(problem: ErrorDetails, shown: _Shown) -> tuple[str, str]:
    """What is wrong with one key, and how to mend it."""
    parts = [str(p) for p in problem["loc"]]
    key, kind = ".".join(parts), problem["type"]
    where = f"--set {key}" if any(_nested(key, c) for c in shown.changed) else f"{shown.file}: {key}"
    inside = len(parts) > 1 and parts[0] in MAPPINGS
    model: type[BaseModel] = MAPPINGS[parts[0]] if inside else VERBS[shown.verb]
    field = model.model_fields.get(parts[1] if inside else parts[0])
    if kind == "missing":
        return f"{where} is missing", f"add {key}: {field.description if field else ''}"
    if field is None:
        return f"{where} {_stranger(parts[-1], model, shown.verb)}", f"use the keys {', '.join(model.model_fields)}"
    given, text = problem["input"], problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if kind in ("model_type", "model_attributes_type"):
        text = f"should be a mapping of {', '.join(MAPPINGS[parts[0]].model_fields)}"
    elif kind == "string_type":
        text = "should be text" + ("" if given is None else ": put quotes around it")
    return f"{where}={_short(given)} {text}", f"{key}: {field.description}"


def _short(given: Any) -> str:
    """The start of a value as JSON; no more of it is written than is shown, since aliases can make it huge."""
    value = ""
    for part in json.JSONEncoder(default=str).iterencode(given):
        value += part
        if len(value) > _SHOWN_VALUE:
            return value[: _SHOWN_VALUE - 3] + "..."
    return value


def _stranger(name: str, model: type[BaseModel], verb: str) -> str:
    """What a key is that a model does not have: another verb's, or a slip of the pen."""
    homes = homes_of(name) if model in VERBS.values() else []
    if homes:
        return f"is a key of {', '.join(homes)}, not of {verb}"
    close = difflib.get_close_matches(name, model.model_fields, 1)
    return "is an unknown key" + (f" (did you mean {close[0]!r}?)" if close else "")


def _nested(a: str, b: str) -> bool:
    """Whether one dotted key is the other, or under it."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")
