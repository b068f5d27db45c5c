"""One writer a run folder: a lease file that its holder keeps young, on one machine or on a shared folder."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayinf.data import disk, process
from rayinf.data.files import temporary
from rayinf.errors import InputError, RunError

LEASE = "run.lock"
# The holder renews the file's modification time this often.
_BEAT_SECONDS = 5.0
# A lease from another machine that stands still for so long is dead. Clocks are never compared, only changes seen.
_STALE_SECONDS = 30.0
_POLL_SECONDS = 0.5
# Leases that this process holds: a file that names this process and none of these is left over.
_held: set[str] = set()


class Lease:
    """Held from `acquire` to `release`. A thread renews it; a process that dies leaves it to stand still."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, daemon=True, name="rayinf lease")
        self._thread.start()

    @classmethod
    def acquire(cls, folder: Path) -> Lease:
        """Take the lease of a folder, also that of a process which is dead.

        Raises:
            InputError: another process holds it.
            RunError: it cannot be written.
        """
        path, name = folder / LEASE, uuid.uuid4().hex
        try:
            disk.used.make_folder(folder)
            while not _take(path, name):
                seen = _read(path)
                if seen is not None and _is_alive(path, seen):
                    raise InputError(
                        f"{folder} is in use: {_shown(seen)}.",
                        "wait until that run has ended, stop it, or pass another folder as out.",
                    )
                _set_aside(path, seen)
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {str(error).rstrip('.')}.",
                "free space or mend the permissions, or pass another folder as out.",
            ) from error
        _held.add(name)
        return cls(path, name)

    def check(self) -> None:
        """Stop where another process has taken the folder.

        Raises:
            RunError: it has.
        """
        if self._lost:
            raise RunError(
                f"{self._path.parent} was taken over by another process, since this one stood still for too long.",
                "let the other run end; the same command then finds it finished.",
            )

    def release(self) -> None:
        """Let another process have the folder."""
        self._stop.set()
        _held.discard(self._name)
        self._thread.join(timeout=1.0)
        if not self._lost and (_read(self._path) or {}).get("name") == self._name:
            with suppress(OSError):
                disk.used.remove(self._path)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_SECONDS):
            try:
                os.utime(self._path)  # takes no room, so that a full disk does not end the lease
                if (_read(self._path) or {"name": self._name}).get("name") != self._name:
                    self._lost = True
            except FileNotFoundError:
                self._lost = not self._stop.is_set()
            except OSError:
                continue


def clear_dead(folder: Path) -> None:
    """Remove a lease whose holder died on this machine, from a folder that nobody needs to write to any more."""
    seen = _read(folder / LEASE)
    if seen is not None and _is_here(seen) and not _runs(seen):
        with suppress(OSError):
            _set_aside(folder / LEASE, seen)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds a folder: `host`, `pid`, `since` (UTC) and `age` (seconds since the last sign of life, by this clock).

    None where nobody does, or the holder is known to be dead.
    """
    path = folder / LEASE
    seen = _read(path)
    if seen is None or (_is_here(seen) and not _runs(seen)):
        return None
    with suppress(OSError):
        return {**seen, "age": max(time.time() - path.stat().st_mtime, 0.0)}
    return None


def _take(path: Path, name: str) -> bool:
    """Make the lease file, whole; False where there is one."""
    content = {
        "name": name,
        "machine": process.machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process.started(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with temporary(path) as held:
        disk.used.fill(held, lambda p: p.write_text(json.dumps(content) + "\n"))
        try:
            disk.used.link(held, path)
        except FileExistsError:
            return False
    return True


def _set_aside(path: Path, seen: dict[str, Any] | None) -> None:
    """Remove a dead lease. Of several processes that find it one succeeds; a newer lease is put back."""
    with temporary(path) as aside:
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        found = _read(aside)
        if found is not None and (seen is None or found.get("name") != seen.get("name")):
            with suppress(FileExistsError):
                disk.used.link(aside, path)


def _is_alive(path: Path, seen: dict[str, Any]) -> bool:
    """Whether the holder of a lease lives: its process, on this machine; else whether it renews the lease."""
    if _is_here(seen):
        return _runs(seen)
    end, first = time.monotonic() + _STALE_SECONDS, _age_mark(path)
    while time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        if _age_mark(path) != first:
            return _read(path) is not None
    return False


def _age_mark(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) and "name" in held else None


def _is_here(seen: dict[str, Any]) -> bool:
    return seen.get("machine") == process.machine()


def _runs(seen: dict[str, Any]) -> bool:
    """Whether the process of a lease of this machine is alive and still holds it."""
    if seen.get("pid") == os.getpid():
        return seen.get("name") in _held
    try:
        return process.runs(int(seen["pid"]), int(seen["started"]))
    except (KeyError, ValueError, TypeError):
        return False


def _shown(seen: dict[str, Any]) -> str:
    return f"process {seen.get('pid')} on {seen.get('host')} has been writing there since {seen.get('since')}"
