"""Scans of tables that have not changed since: a table is scanned once in a process, and once for a run's folder.

A scan is known by what the file system says of the table's files (`Table.scan_key`), never by their names alone. A
table in memory has no such key: it is scanned whenever it is opened.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from threading import Lock
from typing import Any

from rayinf.data.batches import BatchReader, Columns
from rayinf.data.files import sealed, unsealed, write_json
from rayinf.data.scan import TableScan, merge_scans, scan_shard
from rayinf.data.tables import Table
from rayinf.errors import InputError
from rayinf.store.places import AnyPath

# The file of a run's folder that holds the scans of its tables.
SCANS = "scans.json"
# Tables whose scans a process holds, those that were used last; and scans of each, of different columns.
_MOST_TABLES, _MOST_OF_ONE = 64, 4

Scans = Mapping[str, Sequence[tuple[Columns, TableScan]]]


class KnownScans:
    """The scans that a process knows; safe in threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, list[tuple[Columns, TableScan]]] = OrderedDict()
        self._lock = Lock()

    def find(self, table: Table, columns: Columns) -> TableScan | None:
        """The scan of these columns of a table that has not changed; None where it must be scanned."""
        with self._lock:
            if table.scan_key in self._held:
                self._held.move_to_end(table.scan_key)
            for held, scan in self._held.get(table.scan_key, []):
                if _covers(held, columns):
                    return scan.narrowed(columns)
        return None

    def keep(self, table: Table, columns: Columns, scan: TableScan) -> None:
        """Keep the scan of a table whose ids, if it has any, were found unique."""
        if table.scan_key:
            self.add({table.scan_key: [(columns, scan)]})

    def scan(self, table: Table, columns: Columns, size: int) -> TableScan:
        """The scan of a table without ids: the known one, or one that is made in this process.

        Args:
            table: any.
            columns: what is read of it.
            size: rows that are looked at together.

        Raises:
            InputError: as `merge_scans`.
        """
        scan = self.find(table, columns)
        if scan is None:
            reader = BatchReader(table, columns)
            scan = merge_scans((scan_shard(reader, s, columns, size) for s in table.shards), table)
            self.keep(table, columns, scan)
        return scan

    def add(self, scans: Scans) -> None:
        """Take over scans, of another process perhaps."""
        with self._lock:
            for key, several in scans.items():
                held = self._held.setdefault(key, [])
                for columns, scan in several:
                    if not any(_covers(c, columns) for c, _ in held):
                        held[:] = [(columns, scan), *(h for h in held if not _covers(columns, h[0]))][:_MOST_OF_ONE]
                self._held.move_to_end(key)
            while len(self._held) > _MOST_TABLES:
                self._held.popitem(last=False)

    def all(self) -> Scans:
        """All scans, for another process."""
        with self._lock:
            return {key: list(several) for key, several in self._held.items()}

    def of(self, tables: Iterable[Table]) -> Scans:
        """All scans of some tables."""
        keys = dict.fromkeys(table.scan_key for table in tables)
        with self._lock:
            return {key: list(self._held[key]) for key in keys if key in self._held}

    def load(self, folder: AnyPath) -> None:
        """Take over the scans in a run's folder; where the file is damaged or missing, there are none."""
        with suppress(OSError, ValueError, KeyError, TypeError, InputError):
            held = unsealed(json.loads((folder / SCANS).read_text())) or {}
            self.add({key: [_from_json(scan) for scan in several] for key, several in held.items()})

    def save(self, folder: AnyPath, tables: Iterable[Table]) -> None:
        """Keep the scans of some tables in a run's folder, which this process may write to.

        Raises:
            RunError: the file cannot be written.
        """
        held = {
            key: [{"columns": asdict(columns), "scan": scan.to_json()} for columns, scan in several]
            for key, several in self.of(tables).items()
        }
        if held:
            write_json(folder / SCANS, sealed(held))


# Of this process.
known = KnownScans()


def _covers(held: Columns, wanted: Columns) -> bool:
    """Whether a scan of some columns knows all of others."""
    return (
        (held.features, held.single) == (wanted.features, wanted.single)
        and wanted.label in (held.label, None)
        and wanted.row_id in (held.row_id, None)
        and set(wanted.extra) <= set(held.extra)
    )


def _from_json(held: Mapping[str, Any]) -> tuple[Columns, TableScan]:
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in held["columns"].items()
    }
    return Columns(**given), TableScan.from_json(held["scan"])
