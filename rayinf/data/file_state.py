"""What a file system says of a file, to see later whether it was changed, without reading it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from rayinf.store.filesystem import etag_of

# Two changes within one tick of a file system's clock leave the same time: that of a kernel, or whole seconds.
_TICK_NS, _COARSE_TICK_NS = 50_000_000, 2_000_000_000
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class FileState:
    """A file as it was at one moment.

    Attributes:
        stat: size and time of the last change; of a local file its inode, of an object its ETag, where the store has
            one.
        entry: when the file's entry was changed: it tells of a change whose time was set back, but also of a link that
            was made.
        young: whether the file was changed so shortly before that a further change might have the same times.
    """

    stat: tuple[Any, ...]
    entry: int
    young: bool


def state_of(filesystem: pafs.FileSystem, file: str) -> FileState:
    """The state of a file, from one request.

    Args:
        filesystem: where it lies.
        file: its path there.

    Raises:
        OSError: it is not there, or out of reach.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        held = os.stat(file)
        stat: tuple[Any, ...] = (held.st_size, held.st_mtime_ns, held.st_ino)
        changed, entry, etag = max(held.st_mtime_ns, held.st_ctime_ns), held.st_ctime_ns, ""
    else:
        info = filesystem.get_file_info(file)
        etag = etag_of(filesystem, file)
        stat, changed, entry = (info.size, info.mtime_ns, etag), info.mtime_ns or time.time_ns(), 0
    tick = _TICK_NS if changed % _SECOND_NS else _COARSE_TICK_NS
    return FileState(stat, entry, not etag and time.time_ns() - changed < tick)
