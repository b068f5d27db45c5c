"""What is sent to a job: a config's values and the user's own code, as the files of one folder; and what is refused.

Tables and runs are never sent: the job reads and writes them where it runs, so their paths must mean the same there.
What must not be read by others (passwords, tokens, values of environment variables) is refused: whoever sees the
cluster's dashboard sees a job's files and its runtime environment.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rayinf.config_keys import keys_of, kind_of
from rayinf.config_model import model_of
from rayinf.engine.own_modules import follow
from rayinf.engine.source import canonical
from rayinf.errors import InputError
from rayinf.redaction import redact
from rayinf.references import KINDS, split_reference

CONFIG = "config.yaml"
# Code is small: more than this is data that was imported by mistake.
_MOST_BYTES = 20 << 20
_SHOWN = 3
# Keys of a runtime_env that may name a file of packages.
_LISTS = ("pip", "uv", "conda")
_KEEP_SECRET = (
    "give it to the machines of the cluster instead (a role of theirs, or an environment variable that they are "
    "started with)."
)


@dataclass(frozen=True)
class Sent:
    """What is sent to a job.

    Attributes:
        verb: the command.
        files: content by path in the job's folder; `CONFIG` is the config.
        runtime_env: Ray's, of the config and of the caller, without anything secret.
        places: tables and runs by key, as the job sees them.
        digest: what makes two jobs the same run: the verb, the config without its cluster, and the code.
    """

    verb: str
    files: Mapping[str, bytes]
    runtime_env: Mapping[str, Any]
    places: Mapping[str, str]
    digest: str

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.files.values()))


def prepare(verb: str, values: Mapping[str, Any], folder: Path, runtime_env: Mapping[str, Any] | None) -> Sent:
    """Check a config for a job, and collect what it needs.

    Args:
        verb: the command.
        values: of the config, checked against the verb's keys.
        folder: where its references to code start.
        runtime_env: of the caller.

    Raises:
        InputError: no out, a path that means something on this machine alone, a secret, code that cannot be read or
            is too large.
    """
    if values.get("out") is None:
        raise InputError("The config has no out: the results would be lost.", "add `out: FOLDER` or `out: URI` to it.")
    given = dict(values)
    cluster = {k: v for k, v in (given.pop("cluster", None) or {}).items() if v is not None}
    env = {**(cluster.pop("runtime_env", None) or {}), **(runtime_env or {})}
    cluster.pop("address", None)  # of the machine that sends
    _check_environment(env)
    _check_secrets("", given)
    places = {
        name: value
        for key, held in given.items()
        if held is not None and (kind := kind_of(keys_of(verb)[key])) is not None and kind.is_place
        for name, value in _one_by_one(key, held)
        if not kind.is_code(value)
    }
    _check_places(places, folder)
    code = _Code(folder.absolute())
    sent = {key: code.renamed(key, value) for key, value in given.items()}
    files = code.files()
    digest = _digest(verb, sent, files)
    files[CONFIG] = yaml.safe_dump(
        {**sent, **({"cluster": cluster} if cluster else {})}, sort_keys=False, allow_unicode=True
    ).encode()
    found = Sent(verb, files, env, places, digest)
    if found.size > _MOST_BYTES:
        largest = sorted(files, key=lambda name: -len(files[name]))[:_SHOWN]
        raise InputError(
            f"The code of the job is {found.size / 2**20:.0f} MiB, and at most {_MOST_BYTES >> 20} MiB are sent; the "
            f"largest files are {', '.join(largest)}.",
            "keep data out of Python files: put it where the cluster can read it, and open it from there.",
        )
    return found


class _Code:
    """References of a config to the user's code, and the files behind them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Path] = []
        self._modules: list[str] = []
        self._outside: dict[Path, str] = {}

    def renamed(self, key: str, value: Any) -> Any:
        """A value of the config; where it names code, as it is called in the job's folder."""
        if isinstance(value, list):
            return [self.renamed(key, item) for item in value]
        names_code = key in KINDS and isinstance(value, str) and KINDS[key].is_code(value)
        return self._reference(key, value) if names_code else value

    def files(self) -> dict[str, bytes]:
        """All code by its path in the job's folder."""
        folders = list(dict.fromkeys([*(f.parent for f in self._files), self._folder]))
        return {self._place(file): content for file, content in follow(self._files, self._modules, folders).items()}

    def _reference(self, key: str, given: str) -> str:
        source, name, is_file = split_reference(key, given)
        if not is_file:
            self._modules.append(source)
            return given
        file = Path(os.path.normpath(self._folder / Path(source).expanduser()))
        if not file.is_file():
            raise InputError(f"{key}: there is no file {file}.", "check the path: it starts at the config's folder.")
        self._files.append(file)
        return f"{self._place(file)}:{name}"

    def _place(self, file: Path) -> str:
        """Where a file lies in the job's folder: as beside the config, or in a folder of its own."""
        if file.is_relative_to(self._folder):
            return file.relative_to(self._folder).as_posix()
        roots = [f.parent for f in self._files if file.is_relative_to(f.parent)]
        root = max(roots, key=lambda p: len(p.parts))
        place = self._outside.setdefault(root, f"code_{len(self._outside)}")
        return f"{place}/{file.relative_to(root).as_posix()}"


def _one_by_one(key: str, held: Any) -> list[tuple[str, str]]:
    """A value that names a place, or each of a list or mapping of them."""
    if isinstance(held, Mapping):
        return [(f"{key}.{k}", v) for k, v in held.items()]
    return [(f"{key}[{k}]", v) for k, v in enumerate(held)] if isinstance(held, list) else [(key, held)]


def _check_places(places: Mapping[str, str], folder: Path) -> None:
    wrong = {k: v for k, v in places.items() if "://" not in v and not Path(v).is_absolute()}
    if wrong:
        shown = ", ".join(f"{k}={v!r}" for k, v in list(wrong.items())[:_SHOWN])
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        key, value = next(iter(wrong.items()))
        whole = os.path.normpath(folder.absolute() / Path(value).expanduser())
        raise InputError(
            f"{shown}{more}: a relative path means this machine's folder, and the job runs on the cluster.",
            f"write a URI, such as s3://bucket/{Path(value).name}, or an absolute path that all machines of the "
            f"cluster share ({key}={whole}, if they do).",
        )


def _check_environment(env: Mapping[str, Any]) -> None:
    if env.get("env_vars"):
        names = ", ".join(map(str, env["env_vars"])) if isinstance(env["env_vars"], Mapping) else "env_vars"
        raise InputError(
            f"runtime_env sets environment variables ({names}), and everyone who sees the cluster's dashboard could "
            "read their values in the job's record.",
            "set them where the cluster's machines are started, and leave env_vars out.",
        )
    if "working_dir" in env:
        raise InputError(
            "runtime_env names a working_dir, and submit makes one of the config and the code beside it.",
            "leave working_dir out; modules that lie beside the task's file are sent.",
        )
    try:
        json.dumps(env)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"runtime_env cannot be sent: {error}.", 'pass plain values, such as {"pip": ["transformers"]}.'
        ) from error
    _check_secrets("runtime_env", env)
    for key in _LISTS:
        file = env.get(key)
        if isinstance(file, str) and Path(file).is_file():  # Ray's client reads it, and sends what it holds
            _check_secrets(f"runtime_env.{key}", Path(file).read_text(errors="replace"))


def _check_secrets(key: str, value: Any) -> None:
    """Refuse passwords in URIs. The value is never shown."""
    for name, text in _texts(key, value):
        if redact(text) != text:
            raise InputError(
                f"{name} holds a password or a key, and everyone who sees the cluster's dashboard could read it.",
                _KEEP_SECRET,
            )


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(f"{key}.{name}".lstrip("."), inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(key, inner)


def _digest(verb: str, values: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    code = {name: canonical(ast.parse(content)) for name, content in files.items()}
    # With all defaults: a config that writes one out is of the same run.
    whole = model_of(verb).model_validate(values).model_dump(exclude={"cluster"}, warnings=False)
    text = json.dumps([verb, whole, code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
