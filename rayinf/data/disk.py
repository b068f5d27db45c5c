"""Every change that a run makes to files: one place, so that tests can let any single change fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class Disk:
    """Changes to files that survive a loss of power: contents and folder entries are forced to the device."""

    def fill(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let `write` make a new file at `path`, and force its contents to the device."""
        write(path)
        _force(path)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in the place of whatever had it, at once."""
        os.replace(old, new)
        _force(new.parent)

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name.

        Raises:
            FileExistsError: another file has that name. Of several processes, one alone succeeds.
        """
        os.link(old, new)
        _force(new.parent)

    def append(self, path: Path, line: bytes) -> None:
        """Add a line to a file. It is not forced to the device: a line that is lost must cost work, never a result."""
        with path.open("ab") as file:
            file.write(line)

    def make_folder(self, path: Path) -> None:
        """Make a folder, and those above it."""
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            _force(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a file, or an empty folder, if it is there."""
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


# Tests put another one in its place.
used = Disk()


def _force(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
