"""Every change of files by a run goes through this module, so that tests can make any single change fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rayinf.store.conditional import ConditionalObject, ConflictError
from rayinf.store.places import AnyPath, StorePath


class Disk:
    """Changes to files that survive a loss of power: contents and folder entries are forced to the device.

    A file of a store is filled as a local temporary; the change that counts is the one request that puts it there.
    """

    def fill(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let `write` make a new file at `path`, and force its contents to the device."""
        write(path)
        _force(path)

    def rename(self, old: Path, new: AnyPath) -> None:
        """Rename a file, atomically, over whatever had the name."""
        if isinstance(new, StorePath):
            new.upload(old)
            old.unlink()
            return
        os.replace(old, new)
        _force(new.parent)

    def link(self, old: Path, new: AnyPath) -> None:
        """Give a file a second name.

        Raises:
            FileExistsError: another file has that name. Of several processes, exactly one succeeds.
            UnsupportedError: a store without conditional puts.
        """
        if isinstance(new, StorePath):
            try:
                ConditionalObject(new).create(old.read_bytes())
            except ConflictError as error:
                raise FileExistsError(str(new)) from error
            return
        os.link(old, new)
        _force(new.parent)

    def append(self, path: AnyPath, line: bytes) -> None:
        """Add a line to a file. It is not forced to the device: the loss of a line must cost work, never a result.

        Stores cannot append: there the path is that of a new file, which holds the line alone.
        """
        if isinstance(path, StorePath):
            path.put(line)
            return
        with path.open("ab") as file:
            file.write(line)

    def make_folder(self, path: AnyPath) -> None:
        """Make a folder, and those above it; nothing in a store."""
        if isinstance(path, Path) and not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            _force(path.parent)

    def remove(self, path: AnyPath) -> None:
        """Remove a file, or an empty folder, if it is there; of a store, a folder with all that is in it."""
        if isinstance(path, StorePath):
            path.discard()
        elif path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


# Tests replace it.
used = Disk()


def _force(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
