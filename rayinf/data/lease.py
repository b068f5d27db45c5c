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

from rayinf.data import disk, process, store_lease
from rayinf.data.files import temporary, try_to_remove
from rayinf.data.store_lease import Content, Heartbeat, LeaseObject
from rayinf.errors import InputError, RunError
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

    def __init__(self, path: AnyPath, name: str, held: _FileLease | LeaseObject) -> None:
        self._path, self._name = path, name
        self._heart = Heartbeat(held.renew, _BEAT_SECONDS if isinstance(path, Path) else store_lease.BEAT_SECONDS)

    @classmethod
    def acquire(cls, folder: AnyPath) -> Lease:
        """Take the lease of a folder, also from a process that is dead.

        Raises:
            InputError: another process holds it.
            RayinfError: a store refuses, or does not answer.
            RunError: it cannot be written.
        """
        name, path = uuid.uuid4().hex, folder / LEASE
        content = _content(name)
        held = LeaseObject(path, content) if isinstance(path, StorePath) else _FileLease(path, content)
        _held.add(name)  # before the lease is there for others to see
        try:
            cls._take(folder, held)
        except BaseException as error:  # Ctrl-C too: the lease is then as a dead process would leave it
            _held.discard(name)
            if isinstance(error, OSError):
                raise RunError(
                    f"{path} cannot be written: {str(error).rstrip('.')}.",
                    "free space or mend the permissions, or pass another folder as out.",
                ) from error
            raise
        return cls(path, name, held)

    @staticmethod
    def _take(folder: AnyPath, held: _FileLease | LeaseObject) -> None:
        """Take the lease, or take it over from a dead process.

        Raises:
            InputError: another process holds it.
        """
        disk.used.make_folder(folder)
        while not held.take():
            seen = held.read()
            if seen is not None and (_runs(seen) if _is_here(seen) else held.is_renewed()):
                raise InputError(*_in_use(folder, seen))
            if held.take_over(seen):
                break

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
            try_to_remove(self._path)


class _FileLease:
    """The lease of a local or shared folder, with the methods of `LeaseObject`."""

    def __init__(self, path: Path, content: Content) -> None:
        self._path, self._content = path, content

    def take(self) -> bool:
        """Make the lease file, whole; False where there is one."""
        with temporary(self._path) as held:
            disk.used.fill(held, lambda p: p.write_text(json.dumps(self._content) + "\n"))
            try:
                disk.used.link(held, self._path)
            except FileExistsError:
                return False
        return True

    def read(self) -> Content | None:
        """The content of the lease; None where it is missing or damaged."""
        return _read(self._path)

    def is_renewed(self) -> bool:
        """Whether the lease of a process on another machine is renewed within `_STALE_SECONDS`."""
        end, first = time.monotonic() + _STALE_SECONDS, _age_mark(self._path)
        while time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            if _age_mark(self._path) != first:
                return self.read() is not None
        return False

    def take_over(self, seen: Content | None) -> bool:
        """Remove a dead lease, so that `take` can be tried again; always False."""
        _set_aside(self._path, seen)
        return False

    def renew(self) -> bool:
        """Renew the file's time; False where another process has the lease."""
        try:
            os.utime(self._path)  # takes no room, so that a full disk does not end the lease
        except FileNotFoundError:
            return False
        # A file that cannot be read now may be renewed again later.
        return (self.read() or self._content)["name"] == self._content["name"]


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


def holder(folder: AnyPath) -> Content | None:
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


def _content(name: str) -> Content:
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


def _in_use(folder: AnyPath, seen: Content) -> tuple[str, str]:
    """Message and fix for a folder that another process writes to."""
    return (
        f"{folder} is in use: {_shown(seen)}.",
        "wait until that run has ended, stop it, or pass another folder as out.",
    )


def _set_aside(path: Path, seen: Content | None) -> None:
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


def _age_mark(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _read(path: AnyPath) -> Content | None:
    try:
        return store_lease.content_of(path.read_bytes())
    except OSError:
        return None


def _is_here(seen: Content) -> bool:
    return seen.get("machine") == process.machine()


def _runs(seen: Content) -> bool:
    """Whether the process of a lease of this machine is alive and still holds it."""
    if seen.get("pid") == os.getpid():
        return seen.get("name") in _held
    try:
        return process.runs(int(seen["pid"]), int(seen["started"]))
    except (KeyError, ValueError, TypeError):
        return False


def _shown(seen: Content) -> str:
    return f"process {seen.get('pid')} on {seen.get('host')} has been writing there since {seen.get('since')}"
