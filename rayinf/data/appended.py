"""A file that grows line by line. Stores cannot append: there each write is a further file; in the end they are joined.

The lines of `log.jsonl` in a store are those of `log.jsonl` itself, if it is there, then those of its parts
`log.jsonl.parts/<tag>-<number>` in order. The tag is the beginning of the SHA-256 of `log.jsonl`: once that is written
again, with the lines of its parts in it, the tag differs, and the old parts are ignored from that moment on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rayinf.data import disk
from rayinf.data.files import file_sha256, temporary, try_to_remove, write_whole
from rayinf.store.places import AnyPath, StorePath

# Lines that may wait (`soon`) are written together: a crash loses the work of at most so many seconds, or lines.
FLUSH_SECONDS, FLUSH_LINES = 5.0, 512
# At so many parts, they are joined into the file.
MOST_PARTS = 64
_PARTS, _TAG, _DIGITS = ".parts", 16, 8


class AppendedFile:
    """The writer of such a file; one process at a time."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self._whole_lines = False
        self._waiting: list[bytes] = []
        self._flushed = float("-inf")
        # Of a store: the tag of the file, and how many parts come after it.
        self._after: tuple[str, int] | None = None

    def append(self, line: bytes, soon: bool = False) -> None:
        """Add a line.

        Args:
            line: with its end.
            soon: whether it may wait for others, where every change is a request to a store.

        Raises:
            OSError: it cannot be written; of a store, it is tried again with the next line.
        """
        if isinstance(self.path, Path):
            # A line that a crash has cut is ended first: the next one would be joined to it, and both be damaged.
            start = b"" if self._whole_lines or _ends_whole(self.path) else b"\n"
            self._whole_lines = False
            disk.used.append(self.path, start + line)
            self._whole_lines = True
            return
        self._waiting.append(line)
        young = time.monotonic() - self._flushed < FLUSH_SECONDS and len(self._waiting) < FLUSH_LINES
        if not (soon and young):
            self.flush()

    def hold(self, line: bytes) -> None:
        """Add a line that is written with the next one (in a store)."""
        self._waiting.append(line)

    def flush(self) -> None:
        """Write the lines that wait.

        Raises:
            OSError: they cannot be written.
        """
        if not self._waiting or not isinstance(self.path, StorePath):
            return
        tag, number = self._after or self._find()
        self._after = tag, number
        lines = tuple(self._waiting)  # another thread may add to them meanwhile (`hold`)
        disk.used.append(_part(self.path, tag, number), b"".join(lines))
        del self._waiting[: len(lines)]
        self._flushed = time.monotonic()
        self._after = tag, number + 1
        if number + 1 >= MOST_PARTS:
            self.join()

    def replace(self, write: Callable[[Path], object]) -> tuple[int, bytes]:
        """Let `write` write the whole file again: its parts, and lines that wait, are dropped.

        Returns:
            Bytes and SHA-256.

        Raises:
            RunError: it cannot be written.
        """
        self._waiting.clear()
        if isinstance(self.path, StorePath) and parts(self.path):
            with temporary(self.path) as draft:
                write(draft)
                same = _tag(file_sha256(draft)[1]) == self._find()[0]
            if same:  # the parts would belong to the new file too
                self._remove_parts()
        found = write_whole(self.path, write)
        self._whole_lines = True
        if isinstance(self.path, StorePath):
            self._remove_parts()
            self._after = _tag(found[1]), 0
        return found

    def join(self) -> None:
        """Put the lines of all parts into the file (in a store).

        Raises:
            OSError: it cannot be read or written.
        """
        self.flush()
        if isinstance(self.path, StorePath) and parts(self.path):

            def write(path: Path) -> None:
                with path.open("wb") as file:
                    file.writelines(read_appended(self.path))

            self.replace(write)

    def clean(self) -> None:
        """Remove parts of an earlier file, which a crash has left (in a store)."""
        if isinstance(self.path, StorePath):
            tag = self._find()[0]
            for part in parts(self.path):
                if _tag_of(part) != tag:
                    try_to_remove(part)

    def _remove_parts(self) -> None:
        assert isinstance(self.path, StorePath)
        if parts(self.path):
            try_to_remove(_folder(self.path))

    def _find(self) -> tuple[str, int]:
        assert isinstance(self.path, StorePath)
        try:
            tag = _tag(file_sha256(self.path)[1])
        except FileNotFoundError:
            tag = _tag(hashlib.sha256().digest())
        numbers = [int(p.name[-_DIGITS:]) for p in parts(self.path) if _tag_of(p) == tag]
        return tag, max(numbers, default=-1) + 1


def read_appended(path: AnyPath) -> Iterator[bytes]:
    """The lines of a file that grows, each with its end.

    Raises:
        OSError: it cannot be read. A file that is not there has no lines, of a store; else it raises too.
    """
    if isinstance(path, Path):
        with path.open("rb") as file:
            yield from file
        return
    digest = hashlib.sha256()
    try:
        with path.open() as base:
            for line in base:
                digest.update(line)
                yield line if line.endswith(b"\n") else line + b"\n"
    except FileNotFoundError:
        pass
    tag = _tag(digest.digest())
    for part in parts(path):
        if _tag_of(part) == tag:
            for line in part.read_bytes().splitlines():
                yield line + b"\n"


def parts(path: StorePath) -> list[StorePath]:
    """The parts of a file in a store, in order, those of earlier files among them."""
    return [p for p in _folder(path).iterdir() if p.name[-_DIGITS:].isdigit()]


def last_bytes(path: AnyPath, count: int) -> bytes:
    """The last lines of a file that grows, about so many bytes.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(path, Path):
        return path.read_bytes()[-count:]
    later = parts(path)
    return (later[-1] if later else path).read_bytes()[-count:]


def _part(path: StorePath, tag: str, number: int) -> StorePath:
    return _folder(path) / f"{tag}-{number:0{_DIGITS}d}"


def _folder(path: StorePath) -> StorePath:
    return path.with_name(path.name + _PARTS)


def _tag(digest: bytes) -> str:
    return digest.hex()[:_TAG]


def _tag_of(part: StorePath) -> str:
    return part.name[:_TAG]


def _ends_whole(path: Path) -> bool:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return True
    with file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
