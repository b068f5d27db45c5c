"""Temporary folders, named so that a later run on the machine recognises and removes those of dead runs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from rayinf.data import process

_NAME = re.compile(r"rayinf-([0-9a-f]{32})")
# A folder of a process on another machine (its store ran here) cannot be looked for; so long untouched it is dead.
_FOREIGN_SECONDS = 3 * 86400.0


def temporary_folder() -> Path:
    """The path of a new temporary folder of this process; nothing is made there."""
    return Path(tempfile.gettempdir()) / f"rayinf-{process.lasting_mark()}"


def sweep_temporaries() -> None:
    """Remove the temporary folders of processes that have ended without doing so (killed, or a power cut)."""
    with suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            found = _NAME.fullmatch(entry.name)
            if found and entry.is_dir(follow_symlinks=False):
                path = Path(entry.path)
                if process.is_left_behind(found[1], elsewhere=_is_old(path)):
                    remove(path)


def remove(folder: Path) -> None:
    """Remove a folder with all that it holds, as far as that is possible: a process may still be writing there."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _is_old(folder: Path) -> bool:
    with suppress(OSError):
        return time.time() - max(f.lstat().st_mtime for f in (folder, *folder.rglob("*"))) > _FOREIGN_SECONDS
    return False
