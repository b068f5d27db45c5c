"""The keys of a config: the arguments of the verb that it is for, read from the verb's signature and docstring.

A key has the argument's name, type and default. An argument that Python takes as an object, such as a Task, stands in
the config as `rayinf.references.KINDS` says.
"""

from __future__ import annotations

import re
from functools import cache

import yaml

from rayinf.references import KINDS, Kind
from rayinf.signatures import Argument, arguments_of

# The function of each command that takes a config.
VERBS = {
    "influence": "influence",
    "measure": "influence_measure",
    "self-influence": "self_influence",
    "pairs": "pairs",
    "baseline": "baseline",
    "trim-rounds": "trim_rounds",
    "label-issues": "label_issues",
    "predict-removal": "predict_removal",
    "acquire": "acquire",
    "active-learning": "active_learning",
    "retrain": "retrain",
    "evaluate": "evaluate",
    "reweight": "pareto_reweight",
    "removal-check": "removal_check",
    "lds": "lds",
}
# What the key `out` means for functions that have no argument of this name.
_OUT = {
    "retrain": "where the trained model is written, as model.safetensors.",
    "evaluate": "where the measures are written, as evaluation.json. None: they are only printed.",
    "label-issues": "where issues.parquet is written.",
    "trim-rounds": "where kept.parquet, removed.parquet and the last model are written.",
}
# Keys that hold keys of their own, with the class whose fields these are.
SECTIONS = {"cluster": "Cluster", "search": "Search"}


def kind_of(argument: Argument) -> Kind | None:
    """How a config names what an argument takes as an object; None for what it writes itself, as every number."""
    return None if argument.annotation == "int | None" else KINDS.get(argument.name)


def describe(argument: Argument) -> str:
    """What a key means, in the words of a config."""
    text = re.sub(r"\bNone\b", "null", argument.meaning.replace("`", ""))
    text = re.sub(r"(?<!=)\b(True|False)\b", lambda found: found[0].lower(), text)
    kind = kind_of(argument)
    return text if kind is None or kind.written in text else f"{text} In a config: {kind.written}."


def in_short(argument: Argument) -> str:
    """The first sentence of what a key means; of a key that names something, how that is written."""
    kind = kind_of(argument)
    return kind.written if kind else re.split(r"\. (?=[A-Z\"])", describe(argument))[0].rstrip(".")


@cache
def keys_of(verb: str) -> dict[str, Argument]:
    """The keys of a verb's config: the arguments of its function, and `out` where these have none."""
    found = {a.name: a for a in arguments_of(VERBS[verb])}
    return found if "out" in found else {**found, "out": Argument("out", "str | None", None, _OUT[verb])}


def describe_keys(verb: str) -> list[tuple[str, str, str]]:
    """Every key of a verb's config with its default (empty where it is required) and its meaning, for `--help`."""
    sections = [(f"{key}.", arguments_of(name)) for key, name in SECTIONS.items() if key in keys_of(verb)]
    return [
        (prefix + a.name, "" if a.required else yaml.safe_dump(a.default).splitlines()[0], describe(a))
        for prefix, arguments in [("", tuple(keys_of(verb).values())), *sections]
        for a in arguments
    ]


def verbs_with(key: str) -> list[str]:
    """The verbs whose configs have a key."""
    return [verb for verb in VERBS if key in keys_of(verb)]
