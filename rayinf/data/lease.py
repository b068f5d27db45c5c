"""One writer a run folder: a lease file whose holder renews it, on one machine or in a shared folder."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayinf.data import disk, process, store_lease
from rayinf.data.files import temporary
from rayinf.errors import InputError, RayinfError, RunError
from rayinf.store.places import AnyPath, StorePath

LEASE = "run.lock"
# The holder renews the file's modification time this often.
_BEAT_SECONDS = 5.0
# A lease from another machine that is not renewed for so long is dead. Machines' clocks are never compared: a change of
# the file's time, seen by one process, is the sign of life.
_STALE_SECONDS = 30.0
_POLL_SECONDS = 0.5
# Names of the leases that this process holds: a file with this process's number and another name is left over.
_held: set[str] = set()


class Lease:
    """Held from `acquire` to `release`. A thread renews it until the process ends."""

    def __init__(self, path: AnyPath, name: str, held: store_lease.LeaseObject | None = None) -> None:
        self._path, self._name = path, name
        self._heart = (
            store_lease.Heartbeat(self._renew, _BEAT_SECONDS)
            if held is None
            else store_lease.Heartbeat(held.renew, store_lease.BEAT_SECONDS)
        )

    @classmethod
    def acquire(cls, folder: AnyPath) -> Lease:
        """Take the lease of a folder, also from a process that is dead.

        Raises:
            InputError: another process holds it.
            RunError: it cannot be written.
        """
        name = uuid.uuid4().hex
        if isinstance(folder, StorePath):
            return cls._acquire_in_store(folder / LEASE, name)
        path = folder / LEASE
        try:
            disk.used.make_folder(folder)
            while not _take(path, name):
                seen = _read(path)
                if seen is not None and _is_alive(path, seen):
                    raise InputError(*_in_use(folder, seen))
                _set_aside(path, seen)
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {str(error).rstrip('.')}.",
                "free space or mend the permissions, or pass another folder as out.",
            ) from error
        _held.add(name)
        return cls(path, name)

    @classmethod
    def _acquire_in_store(cls, path: StorePath, name: str) -> Lease:
        """Take the lease of a folder in a store.

        Raises:
            InputError: another process holds it.
            RayinfError: the store refuses, or does not answer.
            RunError: it cannot be written.
        """
        held = store_lease.LeaseObject(path, _content(name))
        _held.add(name)  # before the lease is there for others to see
        try:
            while not held.take():
                seen = store_lease.read(path)
                if seen is not None and (_runs(seen) if _is_here(seen) else not store_lease.is_dead(path)):
                    raise InputError(*_in_use(path.parent, seen))
                if held.take_over(seen):
                    break
        except RayinfError:
            _held.discard(name)
            raise
        except OSError as error:
            _held.discard(name)
            raise RunError(
                f"{path} cannot be written: {str(error).rstrip('.')}.",
                "check the store and the credentials, or pass another place as out.",
            ) from error
        return cls(path, name, held)

    def check(self) -> None:
        """Raise an error if another process has taken the folder.

        Raises:
            RunError: another process has taken it.
        """
        if self._heart.lost:
            raise RunError(
                f"{self._path.parent} was taken over by another process: this one did not renew its lease in time.",
                "let the other run end; the same command then finds it finished.",
            )

    def release(self) -> None:
        """Give the lease up, so that another process can take it."""
        _held.discard(self._name)
        self._heart.stop(1.0 if isinstance(self._path, Path) else 5.0)
        if not self._heart.lost and (_read(self._path) or {}).get("name") == self._name:
            with suppress(OSError):
                disk.used.remove(self._path)

    def _renew(self) -> bool:
        """Renew the file's time; whether the lease is still this one's."""
        assert isinstance(self._path, Path)
        try:
            os.utime(self._path)  # takes no room, so that a full disk does not end the lease
        except FileNotFoundError:
            return False
        # A file that cannot be read now may be renewed again later.
        return (_read(self._path) or {"name": self._name}).get("name") == self._name


def clear_dead(folder: AnyPath) -> None:
    """Remove a lease whose holder died on this machine, from a folder that is finished."""
    seen = _read(folder / LEASE)
    if seen is not None and _is_here(seen) and not _runs(seen):
        with suppress(OSError):
            path = folder / LEASE
            if isinstance(path, StorePath):
                disk.used.remove(path)
            else:
                _set_aside(path, seen)


def holder(folder: AnyPath) -> dict[str, Any] | None:
    """Who holds a folder: `host`, `pid`, `since` (UTC) and `age` (seconds since the last sign of life, by this clock).

    None where the folder is free, or the holder is known to be dead.
    """
    path = folder / LEASE
    seen = _read(path)
    if seen is None or (_is_here(seen) and not _runs(seen)):
        return None
    with suppress(OSError):
        written = path.stat().st_mtime or float(seen.get("renewed", 0.0))
        return {**seen, "age": max(time.time() - written, 0.0)}
    return None


def _take(path: Path, name: str) -> bool:
    """Make the lease file, whole; False where there is one."""
    content = _content(name)
    with temporary(path) as held:
        disk.used.fill(held, lambda p: p.write_text(json.dumps(content) + "\n"))
        try:
            disk.used.link(held, path)
        except FileExistsError:
            return False
    return True


def _content(name: str) -> dict[str, Any]:
    """The content of a lease: its holder."""
    return {
        "name": name,
        "machine": process.machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process.started(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "renewed": time.time(),
    }


def _in_use(folder: AnyPath, seen: dict[str, Any]) -> tuple[str, str]:
    """Message and fix for a folder that another process writes to."""
    return (
        f"{folder} is in use: {_shown(seen)}.",
        "wait until that run has ended, stop it, or pass another folder as out.",
    )


def _set_aside(path: Path, seen: dict[str, Any] | None) -> None:
    """Remove a dead lease.

    Of several processes that find it, one succeeds in renaming it. Between a process's look and its rename another one
    may have replaced it: a newer lease is put back.
    """
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
    """Whether the holder of a lease is alive: on this machine, its process; else whether it renews the lease."""
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


def _read(path: AnyPath) -> dict[str, Any] | None:
    try:
        return store_lease.content_of(path.read_bytes())
    except OSError:
        return None


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
