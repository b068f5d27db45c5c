"""What the values of a config must be: a pydantic model a verb, made from the types of the verb's arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WrapValidator, create_model

from rayinf.config_keys import SECTIONS, keys_of, kind_of
from rayinf.signatures import Argument, arguments_of


def _no_truth_value(value: object) -> object:
    """YAML reads yes, no, on and off as truth values, and Python counts with those."""
    if isinstance(value, bool):
        raise ValueError("is a truth value to YAML: write a number")
    return value


def _names(value: object) -> object:
    for item in value if isinstance(value, list) and value else [value]:
        if isinstance(item, dict) and list(item) == ["slice"]:
            raise ValueError(f"is a mapping; write slice:{item['slice']} without a space after the colon")
        if not isinstance(item, str):
            raise ValueError("should be a name or a list of names")
    return value


def _damping(value: object) -> object:
    """YAML reads 1e-3 as text."""
    if not isinstance(value, str):
        return _no_truth_value(value)
    with suppress(ValueError):
        return float(value)
    if not re.fullmatch(r"(layer_mean|sample):[0-9.e+-]+", value):
        raise ValueError("should be a number, layer_mean:0.1, sample:3 or null")
    return value


def _workers(value: object) -> object:
    if not isinstance(_no_truth_value(value), int | str):
        raise ValueError("should be an integer or auto")
    return value


def _classes(value: object) -> object:
    held = value if isinstance(value, list) else [value]
    if not held or any(isinstance(v, bool) or not isinstance(v, int | str) for v in held):
        raise ValueError("should be a class or a list of classes: put quotes around yes, no and dates")
    return held


def _ids(value: object) -> object:
    held = value if isinstance(value, list) else [value]
    if value is not None and any(isinstance(v, bool) or not isinstance(v, int | str) for v in held):
        raise ValueError("should be a list of row ids, integers or text: put quotes around dates, yes and no")
    return value if value is None else held


def _files(value: object) -> object:
    held = value if isinstance(value, list) else [value]
    if value is not None and (not held or not all(isinstance(v, str) for v in held)):
        raise ValueError("should be a path or a list of paths")
    return value if value is None else held


def _sets(value: object) -> object:
    held = list(value.values()) if isinstance(value, dict) else [value]
    if not held or not all(isinstance(v, str) for v in held):
        raise ValueError("should be a path, or paths by name")
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


# What pydantic checks for the types that stand in signatures; those that a config has no value of are text.
_TYPES: dict[str, Any] = {
    "int": Annotated[int, BeforeValidator(_no_truth_value)],
    "float": Annotated[float, BeforeValidator(_no_truth_value)],
    "Any": Any,
    "Sequence": list,
    "Mapping": dict,
    "FisherKind": Literal["true", "empirical"],
    **dict.fromkeys(("Task", "Scores", "AnyPath", "Keep", "Array"), str),
}
# Arguments whose annotation says less than a config can be held to.
_BY_NAME: dict[str, Any] = {
    "objective": Annotated[str | list[str], BeforeValidator(_names)],
    "targets": Annotated[list[int | str], BeforeValidator(_classes)],
    "workers": Annotated[int | str, BeforeValidator(_workers)],
    "damping": Annotated[float | str | None, BeforeValidator(_damping)],
    "exclude": Annotated[list[int | str] | None, BeforeValidator(_ids)],
    "only": Annotated[list[int | str] | None, BeforeValidator(_ids)],
    "rows": Annotated[str | dict[str, str], BeforeValidator(_sets)],
    "checkpoints": Annotated[list[str] | None, BeforeValidator(_files)],
}
_WORDS = {
    "str": "a name",
    "int": "an integer",
    "float": "a number",
    "Sequence[str]": "a list of names",
    "Sequence[int]": "a list of integers",
    "Sequence[float]": "a list of numbers",
    "None": "null",
}


def _one_of(words: list[str]) -> Callable[[Any, Callable[[Any], Any]], Any]:
    """A check of a value that may have one of several types, with one message for all of them."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            if value == []:
                raise ValueError
            return inner(value)
        except (ValidationError, ValueError):
            raise ValueError(f"should be {', '.join(words[:-1])} or {words[-1]}") from None

    return check


def _type_of(argument: Argument, hint: Any) -> Any:
    """What pydantic checks of an argument's value in a config."""
    if argument.name in _BY_NAME and argument.annotation != "int | None":
        return _BY_NAME[argument.name]
    if kind_of(argument) is not None:
        return str | None if not argument.required or "None" in argument.annotation else str
    if get_origin(hint) is Literal:  # fisher: true, without quotes
        return Annotated[hint, BeforeValidator(lambda value: "true" if value is True else value)]
    parts = argument.annotation.split(" | ")
    if len({*parts} - {"None"}) > 1 and all(part in _WORDS for part in parts):
        return Annotated[hint, WrapValidator(_one_of([_WORDS[part] for part in parts]))]
    return hint


def _model(name: str, arguments: Iterable[Argument]) -> type[BaseModel]:
    """A model with a field for each argument; unknown keys are errors, so that a typing error changes nothing."""
    annotations = SimpleNamespace(__annotations__={a.name: a.annotation for a in arguments})
    hints = get_type_hints(annotations, _TYPES, include_extras=True)
    fields: dict[str, Any] = {a.name: (_type_of(a, hints[a.name]), ... if a.required else a.default) for a in arguments}
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


@cache
def model_of(verb: str) -> type[BaseModel]:
    """The model of a verb's config."""
    return _model(verb, keys_of(verb).values())


# By key; in signatures they are known by their classes' names.
SECTION_MODELS = {key: _model(name, arguments_of(name)) for key, name in SECTIONS.items()}
_TYPES.update({name: SECTION_MODELS[key] for key, name in SECTIONS.items()})
