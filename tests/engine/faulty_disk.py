"""A disk that fails at one chosen change: the process dies there, or an error comes back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from rayinf.data import disk

KINDS = ("killed before", "killed after", "cut", "full", "error")


class Killed(BaseException):
    """In the place of a SIGKILL: nothing that the process does afterwards reaches the disk."""


class FaultyDisk(disk.Disk):
    """Counts changes; fails at one of them.

    Args:
        at: number of the change that fails, from 0; None: none does.
        kind: "killed before" it, "killed after" it, "cut" (half of it is done, then the process is killed), "full"
            (half of it is done, then and ever after the disk is full), "error" (it fails once, with EIO).
    """

    def __init__(self, at: int | None = None, kind: str = "error") -> None:
        self.count, self.struck = 0, ""
        self._at, self._kind = at, kind
        self._dead = self._full = False

    def fill(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file."""
        if self._strikes("fill", path):
            if self._kind in ("cut", "full"):
                super().fill(path, write)
                if path.is_file():
                    os.truncate(path, path.stat().st_size // 2)
            self._fail(lambda: disk.Disk.fill(self, path, write))
        self._grows()
        super().fill(path, write)

    def append(self, path: Path, line: bytes) -> None:
        """Add a line."""
        if self._strikes("append", path):
            if self._kind in ("cut", "full"):
                super().append(path, line[: len(line) // 2])
            self._fail(lambda: disk.Disk.append(self, path, line))
        self._grows()
        super().append(path, line)

    def make_folder(self, path: Path) -> None:
        """Make a folder."""
        if path.is_dir():
            return
        if self._strikes("make_folder", path):
            self._fail(lambda: disk.Disk.make_folder(self, path))
        self._grows()
        super().make_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file."""
        if self._strikes("rename", new):
            self._fail(lambda: disk.Disk.rename(self, old, new))
        super().rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Link a file."""
        if self._strikes("link", new):
            self._fail(lambda: disk.Disk.link(self, old, new))
        super().link(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        if self._strikes("remove", path):
            self._fail(lambda: disk.Disk.remove(self, path))
        super().remove(path)

    def _strikes(self, change: str, path: Path) -> bool:
        if self._dead:
            raise Killed
        self.count += 1
        if self.count - 1 != self._at:
            return False
        self.struck = f"{change} {path.name.split('.tmp.')[0]}"
        return True

    def _fail(self, change: Callable[[], None]) -> None:
        if self._kind == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self._kind == "full":
            self._full = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._kind == "killed after":
            change()
        self._dead = True
        raise Killed

    def _grows(self) -> None:
        if self._full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
