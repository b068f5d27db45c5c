"""What a config names outside itself: tables, runs, and objects in the user's own code."""

from __future__ import annotations

import difflib
import glob
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rayinf.errors import InputError, RayinfError

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
        source, name, is_file = split_reference(key, reference)
        if is_file:
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
            other = None if _is_file(module.__file__, file) else str(module.__file__)
        if other is not None:
            raise InputError(
                f"{key}: {file} would be imported as {file.stem!r}, which is the name of another module ({other}).",
                f"rename the file, to {file.stem}_for_rayinf.py, say.",
            )
        return module


def split_reference(key: str, reference: str) -> tuple[str, str, bool]:
    """The two parts of `path/to/file.py:name` or `package.module:name`, and whether the first one is a file.

    Raises:
        InputError: the reference has not these two parts.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise InputError(
            f"{key}: {reference} names nothing to import.", "write path/to/file.py:name or package.module:name."
        )
    return source, name, source.endswith(".py") or "/" in source or os.sep in source


def is_reference(given: str) -> bool:
    """Whether a text names an object in code, and not a path, a URI or one of rayinf's own objectives."""
    return ":" in given and "://" not in given and not given.startswith("slice:")


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
    return None if _is_file(origin, file) else origin


def _is_file(origin: str | None, file: Path) -> bool:
    return origin is not None and os.path.exists(origin) and os.path.samefile(origin, file)


def _import(name: str, key: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        failure = _failed(f"{key}: importing {shown}", error)
        raise failure from error


def _failed(doing: str, error: BaseException) -> InputError:
    """The error of a user's own code that failed: what it raised, and in which line."""
    if isinstance(error, RayinfError):
        return InputError(f"{doing}: {error.what}", error.fix)
    lines = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    lines = [f for f in lines if f.filename != __file__]
    where = f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
    message = str(error)
    if isinstance(error, SyntaxError):
        where, message = f" ({error.filename}, line {error.lineno})", error.msg
    fix = "mend it there; --debug shows the traceback."
    if isinstance(error, ImportError) and "relative import" in message:
        fix = "name a module inside a package as package.module:name instead of by its file."
    elif isinstance(error, ModuleNotFoundError):
        fix = "install the module, or name the file as path/to/file.py:name."
    return InputError(f"{doing} raised {type(error).__name__}: {message}{where}.", fix)


def _task(places: Places, key: str, reference: str) -> Any:
    """The task that a reference names, or that the function it names returns.

    Raises:
        InputError: it is neither, or the function fails.
    """
    from torch import nn

    from rayinf.task import Task

    found, where = places.load(key, reference)
    if isinstance(found, Task):
        return found
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"{key}: {where} is a {type(found).__name__}.", "name a rayinf.Task, or a function that returns one."
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise InputError(
            f"{key}: {where} cannot be called without arguments: {error}.", "give all of its arguments defaults."
        ) from error
    try:
        made = found()
    except (Exception, SystemExit) as error:
        failure = _failed(f"{key}: calling {where}", error)
        raise failure from error
    if not isinstance(made, Task):
        raise InputError(f"{key}: {where} returned a {type(made).__name__}.", "return a rayinf.Task from it.")
    return made


def _objectives(places: Places, key: str, given: str | list[str]) -> Any:
    """Names of objectives as they are, and the objects that references name.

    Raises:
        InputError: a reference to something else.
    """
    if isinstance(given, list):
        return [_objectives(places, key, name) for name in given]
    if not is_reference(given):
        return given
    from rayinf.core.objectives import Objective

    found, where = places.load(key, given)
    if isinstance(found, Objective) or (callable(found) and not inspect.isclass(found)):
        return found
    raise InputError(
        f"{key}: {where} is a {type(found).__name__}.",
        "name a rayinf.Objective, or a function (logits [B, C], labels [B]) -> [B].",
    )


def _oracle(places: Places, key: str, given: str) -> Any:
    """The function that a reference names, or the path of a table or folder.

    Raises:
        InputError: a reference to something else, or a path where nothing is.
    """
    if not is_reference(given):
        place = places.data(key, given, there=True)
        if "://" not in place and not glob.has_magic(place) and not Path(place).exists():
            raise InputError(
                f"{key}: there is no table and no folder {place}.",
                "correct the path; or make an empty folder there, to put the labels in.",
            )
        return place
    found, where = places.load(key, given)
    if not callable(found) or isinstance(found, type):
        raise InputError(
            f"{key}: {where} is a {type(found).__name__}.", "name a function that gives the labels of row ids."
        )
    return found


def _present(places: Places, key: str, given: str) -> str:
    return places.data(key, given, there=True)


def _all_present(places: Places, key: str, given: list[str]) -> list[str]:
    return [_present(places, key, file) for file in given]


def _written(places: Places, key: str, given: str) -> str:
    return places.data(key, given, there=False)


def _scores(places: Places, key: str, given: str) -> Any:
    from rayinf.data.scores import Scores

    return Scores.load(_present(places, key, given))


def _column(name: str) -> Callable[[Places, str, str], Any]:
    """What reads one column of a Parquet file.

    Args:
        name: of the column.
    """

    def read(places: Places, key: str, given: str) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from rayinf.data.files import readable
        from rayinf.data.scores import to_numpy
        from rayinf.store.places import open_place

        file = open_place(_present(places, key, given), key)
        try:
            return to_numpy(pq.read_table(readable(file), columns=[name])[name])
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(
                f"{key}: {file} cannot be read as a Parquet file with a column {name}.", f"name a file that has {name}."
            ) from error

    return read


def _sets(places: Places, key: str, given: str | dict[str, str]) -> Any:
    """The row ids of a Parquet file, or of several by name."""
    read = _column("row_id")
    if isinstance(given, dict):
        return {name: read(places, f"{key}.{name}", file) for name, file in given.items()}
    return read(places, key, given)


@dataclass(frozen=True)
class Kind:
    """How a config names what Python passes as an object or in several forms.

    Attributes:
        written: what stands in the config, in words.
        load: the argument of the verb, from the text in the config.
        is_code: whether a text names something in the user's code.
        is_place: whether a text that does not name code is a path or URI.
    """

    written: str
    load: Callable[[Places, str, Any], Any]
    is_code: Callable[[str], bool] = lambda given: False
    is_place: bool = True


_TASK = Kind(
    "path/to/file.py:name or package.module:name of a rayinf.Task, or of a function without arguments that returns one",
    _task,
    is_code=lambda given: True,
)
_TABLE = Kind("a path, folder, glob or URI of Parquet", _present)
# By the name of the argument, which means the same in every verb.
KINDS: dict[str, Kind] = {
    "task": _TASK,
    "against": _TASK,
    "train": _TABLE,
    "valid": _TABLE,
    "labeled": _TABLE,
    "pool": _TABLE,
    "test": _TABLE,
    "held_out": _TABLE,
    "table": _TABLE,
    "factors": Kind("the folder or URI of a finished run", _present),
    "checkpoints": Kind("a list of paths or URIs of .safetensors or torch.save files", _all_present),
    "scores": Kind("the folder or URI of a finished run of influence", _scores),
    "out": Kind("folder or URI", _written),
    "keep": Kind("a Parquet file with a column row_id, such as kept.parquet of trim", _column("row_id")),
    "rows": Kind(
        "a Parquet file with a column row_id, such as removed.parquet of trim, or several such files by name "
        "({worst: FILE, ...})",
        _sets,
    ),
    "weights": Kind("a Parquet file with a column weight, for every row in the order of the table", _column("weight")),
    "objective": Kind(
        "names, or path/to/file.py:name of a rayinf.Objective or of a function; one or a list",
        _objectives,
        is_code=is_reference,
        is_place=False,
    ),
    "oracle": Kind(
        "a Parquet table that has the labels of the pool's rows, a folder in which you put the labels of the picked "
        "rows (the command stops, and goes on when it is given again), or path/to/file.py:name of a function "
        "(ids) -> labels",
        _oracle,
        is_code=is_reference,
    ),
}
