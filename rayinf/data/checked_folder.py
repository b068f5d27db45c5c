"""A folder whose files count only while its manifest lists them with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.data import disk
from rayinf.data.files import (
    Arrays,
    file_sha256,
    read_arrays,
    try_to_remove,
    unwritable,
    write_arrays,
    write_json,
    write_part,
    write_whole,
)
from rayinf.data.numbered import Numbered

MANIFEST = "manifest.jsonl"
_SHA, _NUMBER = 32, 8
_CHECKED = b"\x01"


@dataclass(frozen=True)
class Entry:
    """A line of a manifest: a file, its bytes, their SHA-256, and its rows if it is a table."""

    file: str
    size: int
    sha256: bytes
    rows: int = 0

    @classmethod
    def of(cls, folder: Path, file: str, rows: int = 0) -> Entry:
        """The entry of a file that has just been written."""
        return cls(file, *file_sha256(folder / file), rows)

    def to_line(self) -> bytes:
        """As it stands in the manifest."""
        held = {"file": self.file, "rows": self.rows, "bytes": self.size, "sha256": self.sha256.hex()}
        return _line(held)


class CheckedFolder:
    """Files by name, each with a checksum. A file that is not listed, or differs from its line, does not exist here.

    A file is written first and listed afterwards: a crash between the two costs the work of that file, and nothing
    else. One process writes the manifest; others may write files and hand over their entries (`add`).

    Args:
        path: the folder.
        owner: digest of what the files belong to. Lines under another owner are ignored.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self._owner = path, owner
        # Packed, since a run may have 100,000 files and more: SHA-256, bytes, rows, and whether the file was checked.
        self._held = Numbered(_SHA + 2 * _NUMBER + len(_CHECKED))
        self._gone: set[str] = set()
        self._begun = False
        self._whole_lines = False
        self._load()

    def _load(self) -> None:
        lines = read_lines(self.path / MANIFEST)
        if next(lines, {}).get("owner") != self._owner:
            return
        self._begun = True
        for line in lines:
            with suppress(KeyError, ValueError, TypeError, OverflowError):
                if line.get("gone"):
                    self._held.pop(line["file"], None)
                    self._gone.add(line["file"])
                else:
                    self._gone.discard(line["file"])
                    sha, size, rows = bytes.fromhex(line["sha256"]), int(line["bytes"]), int(line["rows"])
                    self._hold(Entry(str(line["file"]), size, sha, rows))

    def _hold(self, entry: Entry, checked: bool = False) -> None:
        numbers = entry.size.to_bytes(_NUMBER, "little") + entry.rows.to_bytes(_NUMBER, "little")
        self._held[entry.file] = entry.sha256 + numbers + (_CHECKED if checked else b"\0")

    def entry(self, name: str) -> Entry | None:
        """What the manifest says of a file."""
        held = self._held.get(name)
        if held is None:
            return None
        size, rows = (int.from_bytes(held[at : at + _NUMBER], "little") for at in (_SHA, _SHA + _NUMBER))
        return Entry(name, size, held[:_SHA], rows)

    def names(self) -> Iterator[str]:
        """Of all files that are listed, in order, numbers by their value."""
        return iter(self._held)

    def add(self, entry: Entry) -> None:
        """List a file that is whole.

        Raises:
            RunError: the manifest cannot be written.
        """
        if not self._begun:
            self._rewrite(())
        self._append(entry.to_line())
        self._hold(entry, checked=True)

    def remove(self, name: str) -> None:
        """Take a file off the list, then from the disk."""
        if name in self._held:
            self._append(_line({"file": name, "gone": True}))
            del self._held[name]
        try_to_remove(self.path / name)

    def clean(self) -> None:
        """Remove files that are off the list and still on the disk: their process was killed between the two."""
        for name in self._gone:
            try_to_remove(self.path / name)
        self._gone.clear()

    def is_sound(self, name: str, rows: int | None = None) -> bool:
        """Whether a file is listed, there, and the same to the last bit. It is read once by this object.

        Args:
            name: of the file.
            rows: that it must have.
        """
        entry = self.entry(name)
        if entry is None or (rows is not None and rows != entry.rows):
            return False
        if self._held[name][-1:] == _CHECKED and (self.path / name).exists():
            return True
        if differs(self.path, entry) is not None:
            del self._held[name]
            return False
        self._hold(entry, checked=True)
        return True

    def put(self, name: str, write: Callable[[Path], object], rows: int = 0) -> None:
        """Let `write` fill a file, whole, and list it."""
        write_whole(self.path / name, write)
        self.add(Entry.of(self.path, name, rows))

    def put_json(self, name: str, value: Any) -> None:
        """Write JSON."""
        write_json(self.path / name, value)
        self.add(Entry.of(self.path, name))

    def json(self, name: str) -> Any:
        """What a JSON file holds; None where it is not sound."""
        return json.loads((self.path / name).read_text()) if self._reread(name) else None

    def put_table(self, name: str, table: pa.Table) -> None:
        """Write Parquet."""
        write_part(self.path / name, table)
        self.add(Entry.of(self.path, name, table.num_rows))

    def table(self, name: str) -> pa.Table | None:
        """A Parquet file; None where it is not sound."""
        return pq.read_table(self.path / name) if self._reread(name) else None

    def put_arrays(self, name: str, arrays: Arrays) -> None:
        """Write safetensors."""
        write_arrays(self.path / name, arrays)
        self.add(Entry.of(self.path, name))

    def arrays(self, name: str) -> Arrays | None:
        """The arrays of a safetensors file; None where it is not sound."""
        return read_arrays(self.path / name) if self._reread(name) else None

    def _reread(self, name: str) -> bool:
        """As `is_sound`, by reading the file again: it may have changed since it was checked."""
        entry = self.entry(name)
        if entry is not None:
            self._hold(entry)
        return self.is_sound(name)

    def close(self) -> str:
        """Write the manifest anew, its lines in the order of `names`.

        Returns:
            The manifest's own SHA-256.
        """
        self._rewrite(entry.to_line() for name in self._held if (entry := self.entry(name)) is not None)
        return file_sha256(self.path / MANIFEST)[1].hex()

    def _rewrite(self, lines: Iterable[bytes]) -> None:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(_line({"manifest": 1, "owner": self._owner}))
                file.writelines(lines)

        write_whole(self.path / MANIFEST, write)
        self._begun = self._whole_lines = True

    def _append(self, line: bytes) -> None:
        path = self.path / MANIFEST
        try:
            # A line that a crash has cut is ended first, or it would take the next one with it.
            start = b"" if self._whole_lines or _ends_whole(path) else b"\n"
            self._whole_lines = False
            disk.used.append(path, start + line)
            self._whole_lines = True
        except OSError as error:
            raise unwritable(path, error) from error


def differs(folder: Path, entry: Entry) -> str | None:
    """How a file differs from its line in the manifest; None where it does not."""
    path = folder / entry.file
    try:
        if path.stat().st_size != entry.size:
            return f"has {path.stat().st_size:,} bytes instead of {entry.size:,}"
        return None if file_sha256(path)[1] == entry.sha256 else "has another checksum than its line in the manifest"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a manifest, its header first. A line that was cut or damaged is passed over."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for line in file:
            with suppress(ValueError):
                held = json.loads(line)
                if isinstance(held, dict) and held.pop("crc", None) == _sum(held):
                    yield held


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _line(held: dict[str, Any]) -> bytes:
    return json.dumps({**held, "crc": _sum(held)}).encode() + b"\n"


def _sum(held: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:8]
