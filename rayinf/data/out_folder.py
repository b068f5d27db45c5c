"""Checks of `out`: not among the files that the run reads, and where a folder can be made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
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

    Whether a new folder can be made is tried with a temporary one beside it, which is removed.

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
    _check_outside(out, place, tables, pafs.LocalFileSystem(), os.path.realpath)


def _check_in_store(place: StorePath, tables: Mapping[str, Table]) -> None:
    """The same of a place in a store. Whether it can be written shows when the run takes its lease, before any work.

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
            f"out={str(place)!r}: the bucket or container {place.root!r} does not exist.",
            "create it, or correct its name.",
        )
    _check_outside(place, place.path, tables, place.filesystem, str)


def _check_outside(
    out: str | AnyPath, place: str, tables: Mapping[str, Table], filesystem: pafs.FileSystem, real: Callable[[str], str]
) -> None:
    """Refuse a place that is a file of a table, or lies where a table's files are looked for.

    Args:
        out: as it was given.
        place: its path in the file system.
        tables: that are read, by name.
        filesystem: of the place.
        real: a path with its links resolved.

    Raises:
        InputError: which table.
    """
    for name, table in tables.items():
        table = getattr(table, "table", table)
        if not isinstance(table, ParquetTable) or not table.source.filesystem.equals(filesystem):
            continue
        files = table.source.files
        base = os.path.basename(place)
        if place in {real(f) for f in files if os.path.basename(f) == base}:
            raise InputError(f"out={str(out)!r} is a file of {name}.", "pass another path as out.")
        folders = set(table.source.roots).difference(files)
        inside = [r for r in table.source.roots if r in folders and could_hold(real(r), place)]
        if inside:
            raise InputError(
                f"out={str(out)!r} lies inside {name} ({inside[0]}): its files would be read as data.",
                "pass a folder outside the table as out.",
            )


def _try_folder(place: Path) -> None:
    """Try whether a new folder can be made, with a temporary one in the nearest folder above it.

    Raises:
        InputError: a file is in its way.
        OSError: it cannot be made.
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
