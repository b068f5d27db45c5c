"""What a config names outside itself: paths, and objects in the user's own code."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from rayinf.core.objectives import Objective
from rayinf.errors import InputError, RayinfError
from rayinf.task import Task

PATHS = (
    "Relative paths, those of --set included, start at the folder of the config file; "
    "URIs and absolute paths stay as they are."
)


class Places:
    """Where a config's relative paths start, and which folders its Python code was found in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._code: list[str] = []

    def data(self, key: str, given: str, there: bool) -> str:
        """The absolute path of a table or run; URIs and globs are kept.

        Args:
            key: of the config.
            given: what stands there.
            there: whether it must exist.

        Raises:
            InputError: it must exist, does not, and would from the current folder.
        """
        if "://" in given:
            return given
        found = self._folder / Path(given).expanduser()
        if there and not found.exists() and Path(given).exists():
            raise InputError(
                f"{key}: {found} does not exist, but {given} does in the current folder: paths start at the config "
                "file's folder.",
                f"write {os.path.relpath(given, self._folder)} or an absolute path.",
            )
        return os.path.normpath(found)

    def load(self, key: str, reference: str) -> tuple[Any, str]:
        """The object that `path/to/file.py:name` or `package.module:name` names, and where it stands.

        Raises:
            InputError: no such file, module or name, or code that fails when it is imported.
        """
        source, colon, name = reference.rpartition(":")
        if not colon or not source or not name:
            raise InputError(
                f"{key}: {reference} names nothing to import.", "write path/to/file.py:name or package.module:name."
            )
        if source.endswith(".py") or "/" in source or os.sep in source:
            file = Path(self.data(key, source, there=True))
            module = self._import_file(key, file)
            where = str(file)
        else:
            self._reach(self._folder)
            module, where = _import(source, key, source), source
        if not hasattr(module, name):
            own = [n for n, v in vars(module).items() if not n.startswith("_") and not isinstance(v, ModuleType)]
            close = difflib.get_close_matches(name, own, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(
                f"{key}: {where} has no {name!r}.{hint}",
                f"use one of its names: {', '.join(own[:12]) or 'it has none'}.",
            )
        return getattr(module, name), f"{where}:{name}"

    def runtime_env(self, given: dict[str, Any] | None) -> dict[str, Any] | None:
        """Ray's runtime environment, in which workers find the user's code where it was found here."""
        if not self._code:
            return given
        env = dict(given or {})
        variables = dict(env.get("env_vars") or {})
        variables["PYTHONPATH"] = os.pathsep.join([*self._code, variables.get("PYTHONPATH", "${PYTHONPATH}")])
        return {**env, "env_vars": variables}

    def _reach(self, folder: Path) -> None:
        """Let Python, here and in workers, import from a folder."""
        if str(folder) not in self._code:
            self._code.append(str(folder))
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
            importlib.invalidate_caches()

    def _import_file(self, key: str, file: Path) -> ModuleType:
        """Import a file under its stem, the name by which workers can import it too.

        Raises:
            InputError: no such file, or another module of that name.
        """
        if not file.is_file():
            raise InputError(f"{key}: there is no file {file}.", f"check the path. {PATHS}")
        if not file.stem.isidentifier():
            raise InputError(
                f"{key}: {file.name} cannot be imported under the name {file.stem!r}.",
                "name the file with letters, digits and underscores.",
            )
        other = _other_module(file)
        if other is None:
            self._reach(file.parent)
            module = _import(file.stem, key, str(file))
            other = None if _is(module.__file__, file) else str(module.__file__)
        if other is not None:
            raise InputError(
                f"{key}: {file} would be imported as {file.stem!r}, which is the name of another module ({other}).",
                f"rename the file, to {file.stem}_for_rayinf.py, say.",
            )
        return module


def _other_module(file: Path) -> str | None:
    """Where Python already finds another module of a file's name."""
    held = sys.modules.get(file.stem)
    if held is not None:
        origin = getattr(held, "__file__", None) or "built-in"
    else:
        spec = importlib.util.find_spec(file.stem)
        if spec is None or spec.origin is None:  # a folder without __init__.py gives way to a file
            return None
        origin = spec.origin
    return None if _is(origin, file) else origin


def _is(origin: str | None, file: Path) -> bool:
    return origin is not None and os.path.exists(origin) and os.path.samefile(origin, file)


def _import(name: str, key: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        told = _broken(f"{key}: importing {shown}", error)
        raise told from error


def _broken(doing: str, error: BaseException) -> InputError:
    """The user's own code failed: what it raised, and in which line of it."""
    if isinstance(error, RayinfError):
        return InputError(f"{doing}: {error.what}", error.fix)
    lines = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    lines = [f for f in lines if f.filename != __file__]
    where = f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
    if isinstance(error, SyntaxError):
        where, said = f" ({error.filename}, line {error.lineno})", error.msg
    else:
        said = str(error)
    fix = "mend it there; --debug shows the traceback."
    if isinstance(error, ImportError) and "relative import" in said:
        fix = "name a module inside a package as package.module:name instead of by its file."
    elif isinstance(error, ModuleNotFoundError):
        fix = "install the module, or name the file as path/to/file.py:name."
    return InputError(f"{doing} raised {type(error).__name__}: {said}{where}.", fix)


def as_task(places: Places, reference: str) -> Task:
    """The task that a reference names, or that the function it names returns.

    Raises:
        InputError: it is neither, or the function fails.
    """
    found, where = places.load("task", reference)
    if isinstance(found, Task):
        return found
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"task: {where} is a {type(found).__name__}.", "name a rayinf.Task, or a function that returns one."
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise InputError(
            f"task: {where} cannot be called without arguments: {error}.", "give all of its arguments defaults."
        ) from error
    try:
        made = found()
    except (Exception, SystemExit) as error:
        told = _broken(f"task: calling {where}", error)
        raise told from error
    if not isinstance(made, Task):
        raise InputError(f"task: {where} returned a {type(made).__name__}.", "return a rayinf.Task from it.")
    return made


def as_objective(places: Places, name: str) -> object:
    """An objective's name as it is, or the object that a reference names.

    Raises:
        InputError: a reference to something else.
    """
    if ":" not in name or name.startswith("slice:"):
        return name
    found, where = places.load("objective", name)
    if isinstance(found, Objective) or (callable(found) and not inspect.isclass(found)):
        return found
    raise InputError(
        f"objective: {where} is a {type(found).__name__}.",
        "name a rayinf.Objective, or a function (logits [B, C], labels [B]) -> [B].",
    )
