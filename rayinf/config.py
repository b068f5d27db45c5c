"""The YAML of a run: what every key means, where its paths lie, and errors that name the key and how to mend it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from rayinf.core.fisher import FisherKind
from rayinf.engine.job import Cluster
from rayinf.errors import InputError
from rayinf.references import Places, as_objective, as_task

_SHOWN_PROBLEMS = 3
_SHOWN_VALUE = 80
_UNKNOWN = ("extra_forbidden", "invalid_key")
_QUOTE = (
    "mend the YAML there; put quotes around a value that starts with *, [, { or @, or that holds a colon and a space."
)


class _Strict(BaseModel):
    """Unknown keys are errors: a slip of the pen never falls back to a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterConfig(_Strict):
    """The keys under `cluster`: the fields of `rayinf.Cluster`."""

    address: str | None = Field(
        None, description='null starts Ray on this machine; "auto" or the address of a head joins a cluster'
    )
    workers: int = Field(2, description="processes that each hold the model")
    cpus_per_worker: float = Field(1, description="CPUs that Ray keeps for a worker, and its threads")
    gpus_per_worker: float = Field(0, description="GPUs (or a share of one) a worker; over 0, its model runs there")
    patience: float = Field(
        900.0, description="seconds without one finished shard after which the run is given up; finished shards stay"
    )
    runtime_env: dict[str, Any] | None = Field(
        None, description="Ray's runtime_env, for code that the cluster's machines lack (pip, working_dir, ...)"
    )


class Config(_Strict):
    """The keys of a config: the arguments of `rayinf.influence`."""

    task: str = Field(
        description="path/to/file.py:name or package.module:name of a rayinf.Task, or of a function without arguments "
        "that returns one"
    )
    train: str = Field(description="the rows to value: a path, folder, glob or URI of Parquet")
    valid: str = Field(description="the rows that the objectives are summed over, in the same forms")
    objective: str | list[str] = Field(
        "total",
        description='"total", "category" (a column a class), "slice:<column>" (a column a value), the '
        "path/to/file.py:name of a rayinf.Objective or of a function (logits [B, C], labels [B]) -> [B], or a list of "
        "these, all in one pass",
    )
    curvature: str = Field(
        "ekfac", description='"ekfac" or "kfac"; "exact" (the Hessian) or "ggn" for few parameters; "identity"'
    )
    fisher: FisherKind = Field(
        "true", description='"true" (the expectation over the model\'s labels) or "empirical", for kfac and ekfac'
    )
    damping: float | None = Field(
        None,
        description="a number added to the eigenvalues of the mean curvature; null: 0.1 x each layer's mean "
        "eigenvalue for kfac and ekfac, 0 otherwise",
    )
    factors: str | None = Field(
        None, description="the folder of a finished run of the same model and curvature, whose factors to use again"
    )
    halves: bool = Field(False, description="true gives every column for each half of the validation rows too")
    cluster: ClusterConfig | None = Field(
        None, description="null works in this process, without Ray; else a mapping of the keys below"
    )
    out: str | None = Field(
        None,
        description="the folder of the run, which the command influence needs; the same command again finishes an "
        "interrupted run there",
    )
    seed: int = Field(0, description="an integer that fixes drawn labels (above 32 classes) and the halves")
    batch_size: int | None = Field(None, description="rows a pass; null fits activations in 512 MB")
    precision: str | None = Field(
        None, description='"bf16" or "fp16" runs the model in mixed precision; sums stay in float32 or better'
    )

    @field_validator("fisher", mode="before")
    @classmethod
    def _yaml_true(cls, value: object) -> object:
        """`fisher: true` without quotes is a truth value to YAML."""
        return "true" if value is True else value

    @field_validator("objective", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and list(item) == ["slice"]:
                raise ValueError(f"is a mapping; write slice:{item['slice']} without a space after the colon")
            if not isinstance(item, str):
                raise ValueError("should be a name or a list of names")
        return value


def describe_keys() -> list[tuple[str, str, str]]:
    """Every key of a config with its default (empty where it is required) and its meaning, for `--help`."""
    found = []
    for prefix, model in (("", Config), ("cluster.", ClusterConfig)):
        for name, field in model.model_fields.items():
            default = "" if field.is_required() else yaml.safe_dump(field.default).splitlines()[0]
            found.append((prefix + name, default, field.description or ""))
    return found


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of `rayinf.influence` that a config file asks for; imports the user's task.

    Args:
        path: of the YAML file.
        overrides: `key=value`, applied in order; keys may be dotted, values are YAML.

    Raises:
        InputError: no such file, no YAML, an unknown key, a wrong value, or a task that cannot be had.
    """
    file = Path(path).expanduser().absolute()
    values = _read_yaml(file, str(path))
    changed = [_override(values, item) for item in overrides]
    config = _validate(values, str(path), changed)
    places = Places(file.parent)
    given = config.model_dump()
    for key in ("train", "valid", "factors", "out"):
        if given[key] is not None:
            given[key] = places.data(key, given[key], there=key != "out")
    given["task"] = as_task(places, config.task)
    if isinstance(config.objective, str):
        given["objective"] = as_objective(places, config.objective)
    else:
        given["objective"] = [as_objective(places, o) for o in config.objective]
    if config.cluster is not None:
        env = places.runtime_env(config.cluster.runtime_env)
        given["cluster"] = Cluster(**{**given["cluster"], "runtime_env": env})
    return given


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands only once."""

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
        raise InputError(f"{shown} cannot be read as text: {error}.", "pass a YAML file.") from error
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


def _validate(values: Mapping[str, Any], shown: str, changed: Sequence[str]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] not in _UNKNOWN)
    told = [_explain(p, shown, changed) for p in problems[:_SHOWN_PROBLEMS]]
    more = f"; and {len(problems) - len(told)} more" if len(problems) > len(told) else ""
    what = "; ".join(w for w, _ in told) + more
    raise InputError(f"{what}.", " ".join(dict.fromkeys(f"{fix}." for _, fix in told)))


def _explain(problem: ErrorDetails, shown: str, changed: Sequence[str]) -> tuple[str, str]:
    """What is wrong with one key, and how to mend it."""
    parts = [str(p) for p in problem["loc"]]
    key, kind = ".".join(parts), problem["type"]
    where = f"--set {key}" if any(_nested(key, c) for c in changed) else f"{shown}: {key}"
    model: type[_Strict] = ClusterConfig if len(parts) > 1 and parts[0] == "cluster" else Config
    name = parts[1] if model is ClusterConfig else parts[0]
    field = model.model_fields.get(name)
    if kind == "missing":
        return f"{where} is missing", f"add {key}: {field.description if field else ''}"
    if field is None:
        close = difflib.get_close_matches(name, model.model_fields, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{where} is an unknown key{hint}", f"use the keys {', '.join(model.model_fields)}"
    given, text = problem["input"], problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if kind in ("model_type", "model_attributes_type"):
        text = f"should be a mapping of {', '.join(ClusterConfig.model_fields)}"
    elif kind == "string_type":
        text = "should be text" + ("" if given is None else ": put quotes around it")
    value = json.dumps(given, default=str)
    value = value if len(value) <= _SHOWN_VALUE else value[: _SHOWN_VALUE - 3] + "..."
    return f"{where}={value} {text}", f"{key}: {field.description}"


def _nested(a: str, b: str) -> bool:
    """Whether one dotted key is the other, or under it."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")
