"""A place in a store, with those methods of `pathlib.Path` that rayinf uses; picklable."""

from __future__ import annotations

import io
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow.fs as pafs

from rayinf.errors import RayinfError
from rayinf.store.filesystem import Connection, RetriedFile, RetriedHandler, connect
from rayinf.store.uninterrupted import uninterrupted
from rayinf.store.uris import OBJECT_SCHEMES, Parts

# Bytes that are fetched at once.
_BLOCK = 8 << 20
_TEMPORARY = ".tmp."


class Stat(NamedTuple):
    """The size and the time of a file."""

    st_size: int
    st_mtime_ns: int

    @property
    def st_mtime(self) -> float:
        """In seconds."""
        return self.st_mtime_ns / 1e9


@dataclass(frozen=True)
class StorePath:
    """A file or folder in a store. Text shows it without secrets and options.

    Attributes:
        connection: how the store is reached.
        root: of the store, as pyarrow has it.
        inner: the path below it, without a slash at its ends.
    """

    connection: Connection
    root: str
    inner: str

    @classmethod
    def of(cls, uri: object) -> StorePath:
        """The place of a URI.

        Raises:
            ValueError: it is not a URI.
            InputError: a scheme that no installed package supports.
        """
        parts = Parts.of(uri)
        connection = Connection(parts.store_uri, parts.name)
        if parts.root is not None:
            return cls(connection, parts.root, parts.path)

        path = connect(connection.uri)[1].rstrip("/")
        inner = f"{parts.host}/{parts.path}".strip("/")
        # Some file systems count the host as the first part of the path, and some do not.
        inner = inner if path.endswith(inner) else parts.path
        return cls(connection, path[: len(path) - len(inner)].rstrip("/"), inner)

    @property
    def path(self) -> str:
        """The path in pyarrow's form."""
        return f"{self.root}/{self.inner}" if self.inner else self.root or "/"

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The store's file system, with retries."""
        return self.connection.filesystem

    @property
    def scheme(self) -> str:
        """The scheme of the URI."""
        return self.connection.name.partition("://")[0]

    def __str__(self) -> str:
        inner = self.inner
        host = self.connection.name.partition("://")[2]
        if self.root == "" and self.scheme not in ("hdfs", "viewfs") and inner.startswith(host):
            return f"{self.scheme}://{inner}"
        return f"{self.connection.name}/{inner}" if inner else self.connection.name

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __truediv__(self, name: str | PurePosixPath) -> StorePath:
        return replace(self, inner="/".join(p for p in (self.inner, str(name).strip("/")) if p))

    def __lt__(self, other: StorePath) -> bool:
        return self.path < other.path

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> StorePath:
        """The folder above; of the store's root, itself."""
        return replace(self, inner=self.inner.rpartition("/")[0])

    @property
    def parents(self) -> tuple[StorePath, ...]:
        """All folders above, the nearest first."""
        found, place = [], self
        while place.inner:
            place = place.parent
            found.append(place)
        return tuple(found)

    def with_name(self, name: str) -> StorePath:
        """Another file in the same folder."""
        return self.parent / name

    def _info(self) -> pafs.FileInfo:
        return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return bool(self._info().type != pafs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether it is a file."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Whether it is a folder; in an object store, whether any object is below it."""
        return bool(self._info().type == pafs.FileType.Directory)

    def stat(self) -> Stat:
        """Its size and the time of its last change.

        Raises:
            FileNotFoundError: it does not exist.
        """
        found = self._info()
        if not found.is_file:
            raise FileNotFoundError(2, "No such file", str(self))
        return Stat(int(found.size), int(found.mtime_ns or 0))

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BufferedReader:
        """Open to read bytes; a read that fails is repeated.

        Args:
            mode: "rb".
            buffering: ignored: blocks are fetched at once.

        Raises:
            ValueError: another mode.
            FileNotFoundError: it does not exist.
        """
        if mode != "rb":
            raise ValueError(f"{self} can only be opened as rb, not as {mode}")
        return io.BufferedReader(RetriedFile(RetriedHandler(self.connection), self.path), _BLOCK)

    def read_bytes(self) -> bytes:
        """All of it."""
        with self.open() as file:
            return file.read()

    def read_text(self) -> str:
        """All of it, as UTF-8."""
        return self.read_bytes().decode()

    def _list(self, recursive: bool) -> Iterator[StorePath]:
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        above = len(self.path.rstrip("/")) + 1
        for found in self.filesystem.get_file_info(selector):
            if recursive and not found.is_file:
                continue
            yield self / found.path[above:]

    def iterdir(self) -> Iterator[StorePath]:
        """Files and folders in it."""
        yield from sorted(self._list(recursive=False))

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Files and folders in it whose names match."""
        yield from (p for p in self.iterdir() if fnmatchcase(p.name, pattern))

    def rglob(self, pattern: str) -> Iterator[StorePath]:
        """Files below it, at any depth, whose names match."""
        yield from (p for p in sorted(self._list(recursive=True)) if fnmatchcase(p.name, pattern))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder; object stores have none."""
        if self.scheme not in OBJECT_SCHEMES:
            self.filesystem.create_dir(self.path, recursive=parents)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: it does not exist.
        """
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Remove a folder and what is left of it."""
        self.filesystem.delete_dir(self.path)

    def discard(self) -> None:
        """Remove a file, or a folder with all that is in it, if there is one."""
        try:
            self.filesystem.delete_file(self.path)
        except OSError as error:
            if isinstance(error, RayinfError):
                raise
            if self.is_dir():
                self.rmdir()
            elif not isinstance(error, FileNotFoundError):
                raise

    def download(self, file: Path) -> None:
        """Copy it into a local file.

        Raises:
            FileNotFoundError: it does not exist.
        """
        plain, local = (lambda: self.connection.plain), pafs.LocalFileSystem()

        def request() -> None:
            pafs.copy_files(self.path, str(file), plain(), local, chunk_size=_BLOCK, use_threads=False)

        self.connection.retries.call(request, str(self))

    def put(self, content: bytes) -> None:
        """Put a small file here, whole."""
        with tempfile.TemporaryDirectory(prefix="rayinf-put-") as folder:
            file = Path(folder) / f"content{_TEMPORARY}{uuid.uuid4().hex}"
            file.write_bytes(content)
            self.upload(file)

    def upload(self, file: Path) -> None:
        """Put a local file here, atomically: a reader sees the old file, or all of the new one.

        In a store whose puts are not known to be atomic, it is put under the name of the local temporary, then renamed.
        """
        whole = self.scheme in OBJECT_SCHEMES
        at = self if whole else self.with_name(self.name + _TEMPORARY + file.name.rpartition(_TEMPORARY)[2])

        def request() -> None:
            # Not by `copy_files`: it does not close the file, so that an error of its last part would be lost.
            with file.open("rb") as source:
                block = source.read(_BLOCK)
                target = self.connection.plain.open_output_stream(at.path)
                while block:
                    target.write(block)
                    block = source.read(_BLOCK)
                target.close()

        if not whole:
            self.parent.mkdir(parents=True, exist_ok=True)
        # Interrupted by Ctrl-C, pyarrow would close the file, which then counts as complete.
        uninterrupted(lambda: self.connection.retries.call(request, str(self)))
        if not whole:
            self.filesystem.move(at.path, self.path)
