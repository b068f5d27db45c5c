"""The Parquet files of a path, folder, glob or URI, in the order in which they are read.

In folders and globs, files and folders whose names begin with `.` or `_` are not data (`.ipynb_checkpoints`,
`._a.parquet`, `_delta_log`), and neither are run folders of rayinf, which have a `run.json`. A single path is read as
given.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from rayinf.data.local_files import walk
from rayinf.data.names import Names, common_start
from rayinf.data.unreadable import shown, unreachable
from rayinf.errors import InputError, RayinfError
from rayinf.store.filesystem import Connection
from rayinf.store.places import is_uri, open_place
from rayinf.store.uninterrupted import in_thread

T = TypeVar("T")
SUFFIXES = (".parquet", ".pq")
# Seconds within which a remote file system must answer the first request, and list a folder.
ANSWER_SECONDS, LIST_SECONDS = 30.0, 600.0
_FAILED = (pa.ArrowException, OSError, ValueError, RuntimeError)  # RuntimeError: the home folder of an unknown user
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """The files of a table on disk.

    Attributes:
        filesystem: where it lies.
        files: in the order in which they are read.
        roots: the paths, folders and globs that it was given as, absolute.
    """

    filesystem: pafs.FileSystem
    files: Names
    roots: tuple[str, ...]


def find(paths: Sequence[str], name: str) -> Source:
    """The files of some paths: those of each path by name, the paths in the given order.

    Args:
        paths: files, folders, globs or URIs, of one file system.
        name: of the table, for errors.

    Raises:
        InputError: no Parquet file there, a file twice, or a file system that does not answer.
    """
    filesystems: list[pafs.FileSystem] = []
    roots: list[str] = []

    def listed() -> Iterator[str]:
        for path in paths:
            found = _find(path, name)
            roots.extend(found.roots)
            if not any(found.filesystem.equals(f) for f in filesystems):
                filesystems.append(found.filesystem)
            yield from found.files

    files = Names(listed())
    if len(filesystems) > 1:
        raise InputError(f"{name} lies on several file systems.", "pass paths of one of them.")
    files = Names(files, common_start(files))
    if any(a == b for a, b in pairwise(Names.sorted(files))):
        twice = [f for f, times in Counter(files).items() if times > 1]
        raise InputError(f"{name} names the file {twice[0]} {files.count(twice[0])} times.", "name every file once.")
    return Source(filesystems[0], files, tuple(roots))


@dataclass(frozen=True)
class _Place:
    """A path as the user gave it, and the name of its table in errors."""

    name: str
    path: str
    connection: Connection | None = None

    @property
    def local(self) -> bool:
        """Whether it is on this machine, or in a mounted folder."""
        return self.connection is None

    def request(self, seconds: float, call: Callable[[], T]) -> T:
        """The result of a request to the file system. A remote one runs in a thread, and is abandoned after a while.

        Raises:
            InputError: no answer, access that is denied, or a path that cannot be.
            RayinfError: raised by the request itself.
        """
        try:
            if self.connection is None:
                return call()
            answer = in_thread(call)
            # A store that has answered before may be away for a while.
            wait([answer], max(seconds, self.connection.retries.longest))
            if answer.done():
                return answer.result()
        except RayinfError:
            raise
        except _FAILED as error:
            raise self.refusal(error) from error
        raise InputError(
            f"{self.name}: {shown(self.path)} does not answer within {seconds:.0f} s.",
            "check the network, the endpoint and the credentials, or copy the table to a local folder.",
        )

    def refusal(self, error: BaseException) -> RayinfError:
        """The error for a path that cannot be, or is out of reach."""
        return unreachable(f"{self.name}: {self.path}", error) or InputError(
            f"{self.name}: {shown(self.path)} cannot be opened: {shown(str(error)).rstrip('.')}.",
            "check the path, or the URI and its scheme.",
        )


@dataclass(frozen=True)
class _Listing(Iterable[str]):
    """The files at a local place, listed anew for each pass over them, so that they are never held together."""

    place: _Place
    files: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        """Paths, in any order.

        Raises:
            InputError: a folder cannot be listed.
        """
        try:
            yield from self.files()
        except _FAILED as error:
            raise self.place.refusal(error) from error


def _find(path: str, name: str) -> Source:
    place, filesystem, root = _open(path, name)
    if _MAGIC.search(root) and not (place.local and Path(root).exists()):
        files, seen = _matching(filesystem, root, place)
    else:
        info = place.request(ANSWER_SECONDS, lambda: filesystem.get_file_info(root))
        if info.type == pafs.FileType.File:
            return Source(filesystem, Names([root], root), (root,))
        seen = _inside(filesystem, root, place) if info.type == pafs.FileType.Directory else []
        files = (f for f in seen if f.endswith(SUFFIXES))
    listed = None if place.local else set(seen)
    data = Names.sorted(_data(filesystem, files, root, listed))
    if not data:
        raise _nothing(place, list(seen), filesystem, root)
    return Source(filesystem, data, (root,))


def _open(path: str, name: str) -> tuple[_Place, pafs.FileSystem, str]:
    """The file system of a path, and the path there; glob patterns are kept."""
    if not path.strip():
        raise InputError(f"{name} is an empty path.", "name a Parquet file or folder.")
    if not is_uri(path):
        place = _Place(name, path)
        return place, pafs.LocalFileSystem(), place.request(0, lambda: str(Path(path).expanduser().absolute()))
    if path.startswith(("http://", "https://")):
        raise InputError(f"{name}: {shown(path)} lies on a web server.", "download it, and pass the local path.")
    try:
        found = _Place(name, path).request(0, lambda: open_place(path, name))
    except InputError as error:
        raise error if error.what.startswith(name) else InputError(f"{name}: {error.what}", error.fix) from error
    if isinstance(found, Path):
        return _Place(name, path), pafs.LocalFileSystem(), str(found)
    return _Place(name, path, found.connection), found.filesystem, found.path


def _inside(filesystem: pafs.FileSystem, root: str, place: _Place) -> Iterable[str]:
    """All files under a folder, at any depth."""
    if place.local:
        return _Listing(place, lambda: (os.fsencode(f).decode() for f in walk(root)))
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    return [i.path for i in place.request(LIST_SECONDS, lambda: filesystem.get_file_info(selector)) if i.is_file]


def _matching(filesystem: pafs.FileSystem, root: str, place: _Place) -> tuple[Iterable[str], Iterable[str]]:
    """The files that match a glob; and all files that were listed."""
    if place.local:
        files = _Listing(place, lambda: (f for f in glob.iglob(root, recursive=True) if Path(f).is_file()))
        return files, files
    base = base_of(root)
    seen = _inside(filesystem, base, place)
    parts = root[len(base) :].strip("/").split("/")
    return [f for f in seen if _matches(f[len(base) :].strip("/").split("/"), parts)], seen


def base_of(root: str) -> str:
    """The folder before the first wildcard of a glob; a path without wildcards is returned unchanged."""
    at = _MAGIC.search(root)
    return root if at is None else root[: root.rindex("/", 0, at.start()) + 1].rstrip("/")


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of a path match the parts of a glob; `**` stands for any number of folders."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_matches(names[k:], parts[1:]) for k in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def could_hold(root: str, place: str) -> bool:
    """Whether a folder or glob would match files in a folder `place` that does not exist yet."""
    base = base_of(root)
    if place != base and not place.startswith(base.rstrip("/") + "/"):
        return False
    if base == root:
        return True
    names = place[len(base) :].strip("/").split("/") if place != base else []
    parts = root[len(base) :].strip("/").split("/")
    if "**" in parts[: len(names) + 1]:
        return True
    return len(parts) > len(names) and all(map(fnmatchcase, names, parts))


def _data(filesystem: pafs.FileSystem, files: Iterable[str], root: str, listed: set[str] | None) -> Iterator[str]:
    """The files that are data: below the path that was given, neither hidden nor in a run folder."""
    base = base_of(root)
    named = [p for p in root[len(base) :].strip("/").split("/") if p.startswith((".", "_"))]
    runs: dict[str, bool] = {}

    def is_run(folder: str) -> bool:
        if folder not in runs:
            runs[folder] = _is_run(filesystem, f"{folder}/run.json", listed)
        return runs[folder]

    def is_data(file: str) -> bool:
        names = file[len(base) :].strip("/").split("/")
        hidden = [n for n in names if n.startswith((".", "_")) and not any(fnmatchcase(n, p) for p in named)]
        if hidden:
            return False
        return not any(is_run("/".join([base, *names[:k]])) for k in range(len(names)))

    return filter(is_data, files)


def _is_run(filesystem: pafs.FileSystem, file: str, listed: set[str] | None) -> bool:
    """Whether a `run.json` is there that may be of rayinf; `listed`: all files, of a local place None."""
    if not (os.path.isfile(file) if listed is None else file in listed):
        return False
    try:
        with filesystem.open_input_file(file) as source:
            held = json.loads(source.read())
    except FileNotFoundError:
        return False
    except ValueError:  # cut short, perhaps
        return True
    except OSError as error:
        raise unreachable(file, error) or InputError(
            f"{shown(file)} cannot be read: {error}.", "mend the file, or move it out of the table's folder."
        ) from error
    return not isinstance(held, dict) or "verb" in held


def _nothing(place: _Place, seen: list[str], filesystem: pafs.FileSystem, root: str) -> InputError:
    """The error for a path without Parquet files, with what there is instead."""
    what = f"{place.name}: no Parquet file at {shown(place.path)}"
    if f"{root}/run.json" in seen and _is_run(filesystem, f"{root}/run.json", set(seen)):
        return InputError(f"{what}: it is the folder of a run.", "pass the table that the run was about.")
    parquet = [f for f in seen if f.endswith(SUFFIXES)]
    if parquet:
        return InputError(
            f"{what} that is data: {len(parquet)} lie in run folders (with a run.json), or in files or folders whose "
            "names begin with . or _.",
            "rename them, or pass the files themselves.",
        )
    if seen:
        kinds = Counter(Path(f).suffix or Path(f).name for f in seen).most_common(3)
        held = ", ".join(f"{times} {kind}" for kind, times in kinds)
        return InputError(
            f"{what}: it holds {held}.",
            "convert the files (pandas.read_csv(...).to_parquet(...), say), and let their names end in .parquet.",
        )
    return InputError(f"{what}.", "check the path, folder, glob or URI.")
