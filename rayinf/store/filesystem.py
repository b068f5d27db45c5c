"""A file system of pyarrow that repeats its requests while a store fails."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from rayinf.errors import InputError
from rayinf.store.failures import short
from rayinf.store.retries import Retries, retries_of
from rayinf.store.uris import KNOWN_SCHEMES


@lru_cache(maxsize=64)
def connect(uri: str) -> tuple[pafs.FileSystem, str]:
    """The plain file system of a URI, and the path there; one object for each URI and process.

    Raises:
        InputError: a scheme that no installed package supports.
        OSError: the file system cannot be opened.
    """
    scheme = uri.partition("://")[0]
    if scheme not in KNOWN_SCHEMES:
        return _through_fsspec(uri, scheme)
    try:
        return pafs.FileSystem.from_uri(uri)
    except OSError as error:
        if "libjvm" not in str(error) and "libhdfs" not in str(error):
            raise
        raise InputError(
            f"{scheme}:// needs Hadoop's client: {short(error)}.", "set JAVA_HOME, HADOOP_HOME and CLASSPATH."
        ) from error


def _through_fsspec(uri: str, scheme: str) -> tuple[pafs.FileSystem, str]:
    try:
        import fsspec
    except ImportError as error:
        raise InputError(
            f"pyarrow does not support {scheme}://, and fsspec, which may support it, is not installed.",
            "pip install fsspec, with its package for this scheme.",
        ) from error
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{scheme}:// cannot be opened: {short(error)}.", "check the scheme, or install its package."
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), str(path)


@dataclass(frozen=True)
class Connection:
    """A connection to a store: picklable, and opened in every process that uses it.

    Attributes:
        uri: with its credentials. Never shown.
        name: the same without path, options and secrets.
    """

    uri: str
    name: str

    @property
    def plain(self) -> pafs.FileSystem:
        """The file system without retries."""
        return connect(self.uri)[0]

    @property
    def retries(self) -> Retries:
        """Shared by all requests to the store in this process."""
        return retries_of(self.uri, self.name)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system, with retries."""
        return pafs.PyFileSystem(RetriedHandler(self))

    def __repr__(self) -> str:
        """Without secrets."""
        return f"Connection({self.name})"


class RetriedHandler(pafs.FileSystemHandler):  # type: ignore[misc]
    """Passes every request to a plain file system, and repeats it while the store fails."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __eq__(self, other: object) -> bool:
        """Whether both are the same file system."""
        if not isinstance(other, RetriedHandler):
            return NotImplemented
        same = self.connection == other.connection
        return same or bool(self.connection.plain.equals(other.connection.plain))

    __hash__ = None  # type: ignore[assignment]

    def _call(self, request: Callable[[], Any], path: Any) -> Any:
        scheme = self.connection.name.partition("://")[0]
        return self.connection.retries.call(request, f"{scheme}://{str(path).lstrip('/')}")

    def get_type_name(self) -> str:
        """The type of the plain file system."""
        return f"py::rayinf+{self.connection.plain.type_name}"

    def normalize_path(self, path: str) -> str:
        """The path as the plain file system normalises it."""
        return self.connection.plain.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """Information about some paths."""
        return self._call(lambda: self.connection.plain.get_file_info(paths), paths[0] if paths else "")

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """Information about a folder's entries."""
        return self._call(lambda: self.connection.plain.get_file_info(selector), selector.base_dir)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder."""
        self._call(lambda: self.connection.plain.create_dir(path, recursive=recursive), path)

    def delete_dir(self, path: str) -> None:
        """Remove a folder with all that is in it."""
        self._call(lambda: self.connection.plain.delete_dir(path), path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Empty a folder."""
        self._call(lambda: self.connection.plain.delete_dir_contents(path, missing_dir_ok=missing_dir_ok), path)

    def delete_root_dir_contents(self) -> None:
        """Not supported."""
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        self._call(lambda: self.connection.plain.delete_file(path), path)

    def move(self, src: str, dest: str) -> None:
        """Rename."""
        self._call(lambda: self.connection.plain.move(src, dest), src)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy."""
        self._call(lambda: self.connection.plain.copy_file(src, dest), src)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open to read."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open to read anywhere."""
        return pa.PythonFile(RetriedFile(self, path), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """Not supported: files are written locally, and sent whole by `StorePath.upload`."""
        raise NotImplementedError

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """Not supported: stores cannot append."""
        raise NotImplementedError


def etag_of(filesystem: pafs.FileSystem, path: str) -> str:
    """The ETag (or generation) of an object in a store, which differs between any two contents; empty without one.

    Args:
        filesystem: where it lies.
        path: of the object.

    Raises:
        OSError: it is out of reach.
    """
    handler = getattr(filesystem, "handler", None)
    if not isinstance(handler, RetriedHandler):
        return ""

    def request() -> str:
        with handler.connection.plain.open_input_file(path) as file:
            try:
                held = {_text(name).lower(): _text(value) for name, value in file.metadata().items()}
            except (AttributeError, NotImplementedError):  # fsspec's files have none
                return ""
        return held.get("etag") or held.get("generation") or ""

    return str(handler._call(request, path))


def _text(held: str | bytes) -> str:
    return held.decode() if isinstance(held, bytes) else held


class RetriedFile(io.RawIOBase):
    """A file in a store, for reading; where a read fails, the file is opened again and the read repeated."""

    def __init__(self, handler: RetriedHandler, path: str) -> None:
        super().__init__()
        self._handler, self._path, self._at = handler, path, 0
        self._file: Any = None
        self._size = int(self._again(lambda file: file.size()))

    def _again(self, use: Callable[[Any], Any]) -> Any:
        def request() -> Any:
            try:
                if self._file is None:
                    self._file = self._handler.connection.plain.open_input_file(self._path)
                return use(self._file)
            except BaseException:
                self._file = None
                raise

        return self._handler._call(request, self._path)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """So many bytes; fewer only at the end of the file."""
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""

        def use(file: Any) -> bytes:
            held: bytes = file.read_at(wanted, self._at)
            if len(held) < wanted:
                raise ConnectionError(f"the answer is incomplete: {len(held)} of {wanted} bytes")
            return held

        found: bytes = self._again(use)
        self._at += len(found)
        return found

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the file."""
        self._file = None
        super().close()
