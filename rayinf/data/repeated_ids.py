"""Ids that stand in more than one row: their hashes are sorted outside of memory, and equal ones looked at again.

Two passes over the ids at most, whatever their number. The first writes the 64-bit hash of every id to one of some
temporary files, by the hash itself, so that equal ids meet in one file of bounded size. Only where a file holds a hash
twice, a second pass compares the ids themselves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayinf.data.batches import Array
from rayinf.errors import RunError

# Ids that are held at once, and the most files: the limit on open files is often 1,024.
_IDS_AT_ONCE = 4_000_000
_MOST_FILES = 512
# Hashes that stand twice, after which no more are looked for: so many do not meet by chance.
_ENOUGH = 1000
# Arrays of ids are copied into one as soon as there are so many.
_ARRAYS_PER_BLOCK = 256

Read = Callable[[], Iterator[Array]]


def repeated_ids(read: Read, rows: int) -> list[Any]:
    """The ids that an earlier row has too; of many rows and such ids, some: those of the first files that have any.

    Args:
        read: yields all ids from the start, some thousand at a time.
        rows: how many there are.

    Raises:
        RunError: the folder for temporary files is full.

    Cost: up to four million ids, memory for them all and one pass. Above, 8 bytes a row in the folder for temporary
    files, and memory for four million hashes (over 2 billion rows for one in 512), in two passes at most.
    """
    files = min(-(-rows // _IDS_AT_ONCE), _MOST_FILES)
    if files <= 1:
        return _repeated(read())
    with tempfile.TemporaryDirectory(prefix="rayinf-ids-") as folder:
        wanted = _hashes_twice(_spill(read(), rows, [Path(folder) / str(k) for k in range(files)]))
    return _repeated(ids[np.isin(hash_ids(ids), wanted)] for ids in read()) if len(wanted) else []


def hash_ids(ids: Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of each id."""
    import pandas as pd

    found: np.ndarray[Any, np.dtype[np.uint64]] = pd.util.hash_array(
        ids.astype(object) if ids.dtype.kind == "U" else ids
    )
    return found


def _repeated(arrays: Iterable[Array]) -> list[Any]:
    """The ids that an earlier one equals, in memory."""
    import pandas as pd

    held = [*_blocks(arrays)]
    series = pd.Series(np.concatenate(held) if held else np.empty(0, np.int64))
    found: list[Any] = series[series.duplicated()].tolist()
    return found


def _spill(arrays: Iterator[Array], rows: int, files: list[Path]) -> list[Path]:
    """Write the hash of every id to the file that its own value names.

    Raises:
        RunError: the folder is full.
    """
    count = np.uint64(len(files))
    # A block's hashes are sorted by file first, so that each file gets one piece of it.
    for block in _blocks(arrays):
        hashes = hash_ids(block)
        of = (hashes % count).astype(np.int64)
        order = np.argsort(of, kind="stable")
        ends = np.cumsum(np.bincount(of, minlength=len(files)))
        for file, piece in zip(files, np.split(hashes[order], ends[:-1]), strict=True):
            if len(piece):
                _append(file, piece, rows)
    return [file for file in files if file.exists()]


def _append(file: Path, hashes: Array, rows: int) -> None:
    try:
        with file.open("ab") as out:
            out.write(hashes.tobytes())
    except OSError as error:
        raise RunError(
            f"The search for ids that stand twice cannot write to {file.parent.parent}: {error.strerror}.",
            f"let TMPDIR name a folder with {8 * rows:,} bytes free, or leave Task(row_id=...) out.",
        ) from error


def _hashes_twice(files: list[Path]) -> Array:
    """Hashes that stand twice in one of the files, of the first files that have enough of them."""
    found = [np.empty(0, np.uint64)]
    for file in files:
        hashes = np.fromfile(file, np.uint64)
        hashes.sort()
        found.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        if sum(map(len, found)) >= _ENOUGH:
            break
        file.unlink()
    return np.concatenate(found)


def _blocks(arrays: Iterable[Array]) -> Iterator[Array]:
    """The same values in longer arrays of their own: an array of few ids keeps the buffer that they were read into."""
    held: list[Array] = []
    for array in arrays:
        held.append(array)
        if len(held) == _ARRAYS_PER_BLOCK:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
