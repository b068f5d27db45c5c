"""A folder whose files count only while its manifest lists them with their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.data.appended import AppendedFile, read_appended
from rayinf.data.files import (
    Arrays,
    fetched,
    file_sha256,
    read_arrays,
    try_to_remove,
    unwritable,
    write_arrays,
    write_json,
    write_part,
    write_whole,
)
from rayinf.data.packed_names import PackedNames
from rayinf.errors import RayinfError
from rayinf.store.places import AnyPath, StorePath

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
    def of(cls, folder: AnyPath, file: str, rows: int = 0) -> Entry:
        """The entry of a file that has just been written."""
        return cls(file, *file_sha256(folder / file), rows)

    def to_line(self) -> bytes:
        """The line in the manifest."""
        held = {"file": self.file, "rows": self.rows, "bytes": self.size, "sha256": self.sha256.hex()}
        return _line(held)


class CheckedFolder:
    """Files by name, each with a checksum. A file that is not listed, or differs from its line, counts as missing.

    A file is written first and listed afterwards: a crash between the two loses the work of that file alone. One
    process writes the manifest; others may write files, whose entries it lists (`add`).

    Args:
        path: the folder.
        owner: digest of what the files belong to. Lines under another owner are ignored.
    """

    def __init__(self, path: AnyPath, owner: str) -> None:
        self.path, self._owner = path, owner
        # Packed, since a run may have 100,000 files and more: SHA-256, bytes, rows, and whether the file was checked.
        self._held = PackedNames(_SHA + 2 * _NUMBER + len(_CHECKED))
        self._gone: set[str] = set()
        self._begun = False
        self._lines = AppendedFile(path / MANIFEST)
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
        """The manifest's line of a file; None where it is not listed."""
        held = self._held.get(name)
        if held is None:
            return None
        size, rows = (int.from_bytes(held[at : at + _NUMBER], "little") for at in (_SHA, _SHA + _NUMBER))
        return Entry(name, size, held[:_SHA], rows)

    def names(self) -> Iterator[str]:
        """The names of all listed files, in order, numbers by their value."""
        return iter(self._held)

    def add(self, entry: Entry, soon: bool = False) -> None:
        """List a file that is whole.

        Args:
            entry: of the file.
            soon: whether the line may wait for others, where every change is a request to a store; see `flush`.

        Raises:
            RunError: the manifest cannot be written.
        """
        if not self._begun:
            self._rewrite(tuple)
        self._append(entry.to_line(), soon)
        self._hold(entry, checked=True)

    def flush(self) -> None:
        """Write lines that wait.

        Raises:
            RunError: the manifest cannot be written.
        """
        self._change(self._lines.flush)

    def remove(self, name: str) -> None:
        """Take a file off the list, then from the disk."""
        if name in self._held:
            self._append(_line({"file": name, "gone": True}))
            del self._held[name]
        try_to_remove(self.path / name)

    def clean(self) -> None:
        """Remove files that are off the list and still on the disk: the process was killed between the two steps."""
        for name in self._gone:
            try_to_remove(self.path / name)
        self._gone.clear()
        self._lines.clean()

    def is_sound(self, name: str, rows: int | None = None) -> bool:
        """Whether a file is listed, exists, and has its checksum. This object reads it once.

        Args:
            name: of the file.
            rows: that it must have.
        """
        entry = self.entry(name)
        if entry is None or (rows is not None and rows != entry.rows):
            return False
        # In a store every look is a request: what this object has written or read there is not checked again.
        seen = self._held[name][-1:] == _CHECKED
        if seen and (isinstance(self.path, StorePath) or (self.path / name).exists()):
            return True
        if differs(self.path, entry) is not None:
            del self._held[name]
            return False
        self._hold(entry, checked=True)
        return True

    def put(self, name: str, write: Callable[[Path], object], rows: int = 0) -> None:
        """Let `write` fill a file, whole, and list it."""
        self.add(Entry(name, *write_whole(self.path / name, write), rows))

    def put_json(self, name: str, value: Any) -> None:
        """Write JSON."""
        self.add(Entry(name, *write_json(self.path / name, value)))

    def json(self, name: str) -> Any:
        """The content of a JSON file; None where it is not sound."""
        with self._reread(name) as file:
            return None if file is None else json.loads(file.read_text())

    def put_table(self, name: str, table: pa.Table) -> None:
        """Write Parquet."""
        self.add(Entry(name, *write_part(self.path / name, table), table.num_rows))

    def table(self, name: str) -> pa.Table | None:
        """A Parquet file; None where it is not sound."""
        with self._reread(name) as file:
            return None if file is None else pq.read_table(file)

    def put_arrays(self, name: str, arrays: Arrays) -> None:
        """Write safetensors."""
        self.add(Entry(name, *write_arrays(self.path / name, arrays)))

    def arrays(self, name: str) -> Arrays | None:
        """The arrays of a safetensors file; None where it is not sound."""
        with self._reread(name) as file:
            return None if file is None else read_arrays(file)

    @contextmanager
    def _reread(self, name: str) -> Generator[Path | None]:
        """A local file (of a store: a copy), checked again now, since it may have changed; None where it is not sound.

        Raises:
            RayinfError: a store does not answer, or refuses.
        """
        entry = self.entry(name)
        if entry is None:
            yield None
        elif isinstance(self.path, Path):
            self._hold(entry)
            yield self.path / name if self.is_sound(name) else None
        else:
            with ExitStack() as stack:
                try:
                    held = stack.enter_context(fetched(self.path / name))
                    sound = file_sha256(held) == (entry.size, entry.sha256)
                except FileNotFoundError:
                    sound = False
                if not sound:
                    del self._held[name]
                yield held if sound else None

    def join(self) -> None:
        """Join the parts of the manifest (in a store).

        Raises:
            RunError: it cannot be written.
        """
        self._change(self._lines.join)

    def close(self) -> str:
        """Write the whole manifest again, its lines in the order of `names`.

        Returns:
            The manifest's own SHA-256.
        """
        return self._rewrite(lambda: (e.to_line() for n in self._held if (e := self.entry(n)) is not None))

    def _rewrite(self, lines: Callable[[], Iterable[bytes]]) -> str:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(_line({"manifest": 1, "owner": self._owner}))
                file.writelines(lines())

        digest = self._lines.replace(write)[1].hex()
        self._begun = True
        return digest

    def _append(self, line: bytes, soon: bool = False) -> None:
        self._change(lambda: self._lines.append(line, soon))

    def _change(self, change: Callable[[], None]) -> None:
        try:
            change()
        except RayinfError:
            raise
        except OSError as error:
            raise unwritable(self._lines.path, error) from error


def differs(folder: AnyPath, entry: Entry) -> str | None:
    """The difference of a file from its line in the manifest; None without one."""
    path = folder / entry.file
    try:
        if path.stat().st_size != entry.size:
            return f"has {path.stat().st_size:,} bytes instead of {entry.size:,}"
        return None if file_sha256(path)[1] == entry.sha256 else "has another checksum than its line in the manifest"
    except FileNotFoundError:
        return "is missing"
    except RayinfError:
        raise
    except OSError as error:
        return f"cannot be read: {error}"


def read_lines(path: AnyPath) -> Iterator[dict[str, Any]]:
    """The lines of a manifest, its header first. Lines that are cut or damaged are skipped.

    Raises:
        RayinfError: a store does not answer, or refuses.
    """
    lines = read_appended(path)
    try:
        first = next(lines, b"")
    except RayinfError:
        raise
    except OSError:
        return
    for line in chain((first,), lines):
        with suppress(ValueError):
            held = json.loads(line)
            if isinstance(held, dict) and held.pop("crc", None) == _sum(held):
                yield held


def _line(held: dict[str, Any]) -> bytes:
    return json.dumps({**held, "crc": _sum(held)}).encode() + b"\n"


def _sum(held: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:8]
