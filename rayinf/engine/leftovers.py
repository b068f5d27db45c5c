"""Temporary folders that a later run on the machine can tell from live ones, and removes when their run is dead."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

# The machine, the process that owns the folder, and the second in which that process started.
_NAME = re.compile(r"rayinf-([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9a-f]{32}")
# A folder of a process on another machine (its store ran here) cannot be asked for; so long untouched it is dead.
_FOREIGN_SECONDS = 3 * 86400.0
_START_SLACK = 5.0


def temporary_folder() -> Path:
    """The path of a new temporary folder of this process; nothing is made there."""
    pid = os.getpid()
    started = int(psutil.Process(pid).create_time())
    return Path(tempfile.gettempdir()) / f"rayinf-{_machine()}-{pid}-{started}-{uuid.uuid4().hex}"


def sweep_temporaries() -> None:
    """Remove the temporary folders of processes that have ended without doing so (killed, or a power cut)."""
    with suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            found = _NAME.fullmatch(entry.name)
            if found and entry.is_dir(follow_symlinks=False) and _dead(Path(entry.path), found):
                remove(Path(entry.path))


def remove(folder: Path) -> None:
    """Remove a folder with all that it holds, as far as that is possible: a process may still be writing there."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _dead(folder: Path, found: re.Match[str]) -> bool:
    machine, pid, started = found[1], int(found[2]), int(found[3])
    if machine != _machine():
        with suppress(OSError):
            return time.time() - max(f.lstat().st_mtime for f in (folder, *folder.rglob("*"))) > _FOREIGN_SECONDS
        return False
    try:
        return abs(psutil.Process(pid).create_time() - started) > _START_SLACK
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _machine() -> str:
    """This machine, or this container: the number of a process says nothing outside it."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
