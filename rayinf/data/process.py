"""Marks that identify a process, so that another process can find out whether the owner of a file is alive."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

# Marks whose context this process is in.
_marks: set[str] = set()
_START_UNIT = 100  # hundredths of a second, the resolution of process tables


def machine() -> str:
    """What process numbers refer to: this boot of this machine, and this namespace of process numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> int | None:
    """When a process started, in hundredths of a second; None where no process of that number is alive."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * _START_UNIT)
    except psutil.Error:
        return None


def runs(pid: int, start: int) -> bool:
    """Whether the process of that number that started then is alive on this machine."""
    now = started(pid)
    return now is not None and abs(now - start) <= 1


@contextmanager
def mark() -> Generator[str]:
    """32 hexadecimal digits that identify this machine, this process and this context."""
    made = lasting_mark()
    try:
        yield made
    finally:
        _marks.discard(made)


def lasting_mark() -> str:
    """A mark that holds until the process ends."""
    made = _owner(os.getpid()) + secrets.token_hex(4)
    _marks.add(made)
    return made


def is_left_behind(found: str, *, elsewhere: bool) -> bool:
    """Whether the process that made a mark is dead, or is this one and has left the mark's context.

    Args:
        found: the mark.
        elsewhere: the answer for a process of another machine.
    """
    here, pid, start = found[:8], int(found[8:16], 16), int(found[16:24], 16)
    if here != _here():
        return elsewhere
    if pid == os.getpid():
        return found not in _marks
    now = started(pid)
    return now is None or abs((now & 0xFFFFFFFF) - start) > 1


@cache
def _owner(pid: int) -> str:
    return f"{_here()}{pid & 0xFFFFFFFF:08x}{(started(pid) or 0) & 0xFFFFFFFF:08x}"


@cache
def _here() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]
