"""The parts of a finished run as one table: read in the manifest's order, each checked against its checksum."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.data.checked_folder import MANIFEST, Entry, differs, read_lines
from rayinf.data.files import readable, write_part
from rayinf.data.run_folder import part_name
from rayinf.errors import InputError, RayinfError
from rayinf.store.places import AnyPath, StorePath

# Bytes that are read of a column at a time.
_BUFFER = 1 << 18
# Batches that are copied into one: a batch of few rows takes far more memory than its values.
_TOGETHER = 64
# Bytes of a part that is fetched from a store at once.
_FETCHED = 64 << 20


@dataclass(frozen=True)
class PartPlace:
    """The folder to which a stage writes the parts of its shards; picklable.

    Attributes:
        run: the run's folder.
        folder: within it.
    """

    run: AnyPath
    folder: str

    def name(self, index: int) -> str:
        """The file of a shard's part."""
        return part_name(self.folder, index)

    def write(self, index: int, table: pa.Table) -> Entry:
        """Write a shard's part; the writer of the manifest lists it by the entry."""
        return Entry(self.name(index), *write_part(self.run / self.name(index), table), table.num_rows)

    def read(self, index: int) -> pa.Table:
        """A shard's part, which the manifest's writer has checked."""
        return pq.read_table(readable(self.run / self.name(index)), page_checksum_verification=True)

    def schema(self, index: int) -> pa.Schema:
        """Columns of a shard's part, with its metadata."""
        return pq.read_schema(readable(self.run / self.name(index)))


@dataclass(frozen=True)
class PartFiles:
    """Parquet parts of a run, streamed: neither rows nor names of files are held.

    Attributes:
        run: the run's folder.
        folder: within it, "scores" or "pairs".
    """

    run: AnyPath
    folder: str
    # By the index of a part: whether it was checked.
    _checked: bytearray = field(default_factory=bytearray, repr=False, compare=False)

    def entries(self) -> Iterator[Entry]:
        """The parts in order."""
        start = f"{self.folder}/part-"
        for line in read_lines(self.run / MANIFEST):
            if str(line.get("file", "")).startswith(start) and not line.get("gone"):
                yield Entry(line["file"], line["bytes"], bytes.fromhex(line["sha256"]), line["rows"])

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns, from the first part.

        Raises:
            InputError: the run has no parts, or the first one is damaged.
        """
        first = next(self.entries(), None)
        if first is None:
            raise InputError(f"The run in {self.run} is without {self.folder}.", "run the same command again.")
        with self._open(0, first) as file:
            return file.schema_arrow.remove_metadata()

    @cached_property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(entry.rows for entry in self.entries())

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns in row order, at most so many rows at a time; no others are decoded.

        Raises:
            InputError: a part is damaged or gone.
            RayinfError: a store does not answer.
        """
        for k, entry in enumerate(self.entries()):
            with self._open(k, entry) as file:
                try:
                    for batch in file.iter_batches(rows, columns=list(columns), use_threads=False):
                        yield batch.select(list(columns))
                except RayinfError:
                    raise
                except (pa.ArrowException, OSError) as error:
                    raise self._damaged(entry, str(error)) from error

    def to_table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows: `O(n)` memory.

        Raises:
            InputError: a part is damaged or gone.
        """
        fields = pa.schema([self.schema.field(c) for c in columns])
        batches, pieces = self.batches(columns, 1 << 16), [fields.empty_table()]
        while some := list(itertools.islice(batches, _TOGETHER)):
            pieces.append(pa.Table.from_batches(some, fields).combine_chunks())
        return pa.concat_tables(pieces)

    def _open(self, index: int, entry: Entry) -> pq.ParquetFile:
        """A part. Its checksum is compared with the manifest the first time it is opened; later its pages are checked.

        Of a store, a part that is not large is fetched whole, and compared every time.

        Raises:
            RayinfError: a store does not answer.
        """
        if isinstance(self.run, StorePath) and entry.size <= _FETCHED:
            return self._fetch(self.run / entry.file, entry)
        self._checked.extend(bytes(max(0, index + 1 - len(self._checked))))
        if not self._checked[index]:
            wrong = differs(self.run, entry)
            if wrong is not None:
                raise self._damaged(entry, wrong)
            self._checked[index] = True
        try:
            # Plain buffered reads: pre-buffering holds whole row groups.
            return pq.ParquetFile(
                readable(self.run / entry.file), pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
            )
        except RayinfError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(entry, str(error)) from error

    def _fetch(self, place: StorePath, entry: Entry) -> pq.ParquetFile:
        """A part of a store, in memory.

        Raises:
            InputError: it is damaged or gone.
        """
        try:
            held = place.read_bytes()
        except FileNotFoundError:
            raise self._damaged(entry, "is missing") from None
        if hashlib.sha256(held).digest() != entry.sha256:
            raise self._damaged(entry, "has another checksum than its line in the manifest")
        return pq.ParquetFile(pa.BufferReader(held), pre_buffer=False, page_checksum_verification=True)

    def _damaged(self, entry: Entry, wrong: str) -> InputError:
        return InputError(
            f"{self.run / entry.file} is damaged or gone: {wrong.rstrip('.')}.",
            "run the same command again, which makes it anew.",
        )
