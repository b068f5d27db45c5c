"""Where a run may write: not among the rows that it reads, and only where a folder can be made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from rayinf.data.sources import could_hold
from rayinf.data.tables import ParquetTable, Table
from rayinf.errors import InputError, RayinfError
from rayinf.store.failures import short
from rayinf.store.places import AnyPath, StorePath, open_place


def check_out(out: str | AnyPath | None, tables: Mapping[str, Table]) -> None:
    """Refuse an `out` that would be read as data, that is a file of a table, or that cannot be made; before any work.

    Nothing is left behind: whether a new folder can be made is tried with a temporary one beside it.

    Args:
        out: a folder or file, or None.
        tables: that are read, by name.

    Raises:
        InputError: which table, or why it cannot be made.
    """
    if out is None:
        return
    where = open_place(out, "out")
    if isinstance(where, StorePath):
        _check_in_store(where, tables)
        return
    try:
        place = os.path.realpath(where)
        _try_folder(Path(place))
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"out={str(out)[:200]!r} cannot be made: {getattr(error, 'strerror', None) or error}.",
            "pass a folder that this user may write.",
        ) from error
    for name, table in tables.items():
        table = getattr(table, "table", table)
        if not isinstance(table, ParquetTable) or not isinstance(table.source.filesystem, pafs.LocalFileSystem):
            continue
        if place in {os.path.realpath(f) for f in table.source.files if os.path.basename(f) == os.path.basename(place)}:
            raise InputError(f"out={str(out)!r} is a file of {name}.", "pass another path as out.")
        folders = set(table.source.roots).difference(table.source.files)
        roots = [r for r in table.source.roots if r in folders]
        if any(could_hold(os.path.realpath(r), place) for r in roots):
            raise InputError(
                f"out={str(out)!r} lies inside {name} ({roots[0]}): its files would be read as data.",
                "pass a folder outside the table as out.",
            )


def _check_in_store(place: StorePath, tables: Mapping[str, Table]) -> None:
    """The same of a place in a store; whether it can be written shows when the run takes it, before any work.

    Raises:
        InputError: why it cannot be used.
        RayinfError: the store refuses, or does not answer.
    """
    try:
        bucket = place.filesystem.get_file_info(place.root or "/")
        place.exists()
    except RayinfError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"out={str(place)!r} cannot be opened: {short(error)}.", "check the URI, its options and the credentials."
        ) from error
    if bucket.type == pafs.FileType.NotFound:
        raise InputError(
            f"out={str(place)!r}: there is no bucket or container {place.root!r}.", "create it, or correct its name."
        )
    for name, table in tables.items():
        table = getattr(table, "table", table)
        if not isinstance(table, ParquetTable) or not table.source.filesystem.equals(place.filesystem):
            continue
        if place.path in table.source.files:
            raise InputError(f"out={str(place)!r} is a file of {name}.", "pass another path as out.")
        folders = set(table.source.roots).difference(table.source.files)
        inside = [r for r in table.source.roots if r in folders and could_hold(r, place.path)]
        if inside:
            raise InputError(
                f"out={str(place)!r} lies inside {name} ({inside[0]}): its files would be read as data.",
                "pass a folder outside the table as out.",
            )


def _try_folder(place: Path) -> None:
    """Find out whether a new folder can be made: another one is, for a moment, in the nearest folder above it.

    Raises:
        InputError: there is a file in its way.
        OSError: it cannot.
    """
    if place.exists():
        return
    above = next(p for p in place.parents if p.exists())
    longest = os.pathconf(above, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in place.parts):
        raise OSError(0, f"a name in it is longer than {longest} bytes")
    if not above.is_dir():
        raise InputError(f"{above} is a file, so {place} cannot be a folder.", "pass another folder as out.")
    os.rmdir(tempfile.mkdtemp(prefix=".rayinf-", dir=above))
