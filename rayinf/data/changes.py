"""Whether files of a table have changed since it was opened, from what their file system says: no footer is read."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from rayinf.data.file_state import FileState, state_of
from rayinf.data.sources import find
from rayinf.data.unreadable import FOOTER, UNREADABLE, corrupt
from rayinf.errors import RayinfError

T = TypeVar("T")
# Files that are looked at at a time.
LOOKS = 16


class Stat:
    """A text that changes with the size, the time or the place of any file of a table."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, file: str, state: FileState) -> None:
        """Take in the next file."""
        self._digest.update(repr((file, state.stat)).encode())

    def text(self) -> str:
        """That of the files so far."""
        return self._digest.hexdigest()


def in_order(look: Callable[[str], T], files: Iterable[str]) -> Iterator[T]:
    """What is found out about each file, in their order; several are looked at at a time, a few ahead."""
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(LOOKS) as pool:
        for file in files:
            if len(ahead) >= 4 * LOOKS:
                yield ahead.popleft().result()
            ahead.append(pool.submit(look, file))
        while ahead:
            yield ahead.popleft().result()


def have_changed(stat: str, given: Any, name: str) -> bool:
    """Whether the files of a table are not as they were when it was opened; False of a table that is in memory.

    Args:
        stat: of the table (`Stat`); empty where it is in memory.
        given: what it was opened from.
        name: of the table, for errors.

    Raises:
        InputError: a file is gone, or a file system does not answer.
    """
    paths = given if isinstance(given, list) else [given]
    if not stat or not all(isinstance(p, str | Path) for p in paths):
        return False
    source, now = find([str(p) for p in paths], name), Stat()

    def look(file: str) -> FileState:
        try:
            return state_of(source.filesystem, file)
        except RayinfError:
            raise
        except UNREADABLE as error:
            raise corrupt(file, FOOTER, error) from error

    for file, state in zip(source.files, in_order(look, source.files), strict=True):
        now.add(file, state)
    return now.text() != stat
