"""The scan of a table before any work: counts of labels and groups, checks of every value, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayinf.data.batches import Array, Batch, BatchReader, Columns
from rayinf.data.pandas_index import UNNAMED, called, index_column
from rayinf.data.repeated_ids import repeated_ids
from rayinf.data.row_digest import ColumnDigest
from rayinf.data.shards import Shard
from rayinf.data.tables import Table
from rayinf.errors import InputError

# Values of one column that groups may be made of.
MOST_LEVELS = 1000
# Names of a table's digests, beside those of its columns of groups (`column:<name>`).
FEATURES, LABEL, ROW_ID, OTHER = "features", "label", "row_id", "column:"


@dataclass(frozen=True)
class ShardScan:
    """The scan of one shard."""

    index: int
    rows: int
    digests: dict[str, str]
    counts: dict[str, dict[Any, int]]
    shape: tuple[int, ...]
    dtype: str
    increasing: bool
    first_id: Any
    last_id: Any
    joint: dict[str, dict[Any, dict[Any, int]]]
    problem: str | None = None


@dataclass(frozen=True)
class TableScan:
    """The scan of a table: rows, counts of every label and group, shape of a row's features, fingerprint.

    Attributes:
        rows: in all.
        fingerprint: of every value that is read, and of how the rows are cut into shards.
        digests: of the features, the labels, the ids and each column of groups, in the table's order; the same however
            the rows are cut.
        layout: a digest of the sizes of the shards.
        counts: per column, how often each value occurs.
        shape: of a row's features.
        dtype: of the features.
        increasing: whether row ids do.
        joint: per column of groups, per group, how often each label occurs.
    """

    rows: int
    fingerprint: str
    counts: dict[str, dict[Any, int]] = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    increasing: bool
    joint: dict[str, dict[Any, dict[Any, int]]] = field(repr=False)
    digests: dict[str, str] = field(default_factory=dict, repr=False)
    layout: str = field(default="", repr=False)

    @property
    def content(self) -> dict[str, Any]:
        """Rows and digests, which do not depend on how the table is cut."""
        return {"rows": self.rows, **self.digests}

    def narrowed(self, columns: Columns) -> TableScan:
        """What a scan of fewer columns of the same features would have found."""
        counted = _counted(columns)
        names = {FEATURES, *([LABEL] if columns.label else []), *([ROW_ID] if columns.row_id else [])}
        names |= {OTHER + c for c in columns.extra}
        digests = {name: digest for name, digest in self.digests.items() if name in names}  # the order is kept
        return replace(
            self,
            fingerprint=_fingerprint(digests, self.layout),
            counts={name: self.counts[name] for name in counted},
            increasing=self.increasing if columns.row_id else True,
            joint={name: self.joint[name] for name in columns.extra},
            digests=digests,
        )

    def to_json(self) -> dict[str, Any]:
        """The scan as JSON: counts as pairs, since keys of JSON are text."""
        joint = {k: [(g, list(v.items())) for g, v in found.items()] for k, found in self.joint.items()}
        return {**asdict(self), "counts": {k: list(v.items()) for k, v in self.counts.items()}, "joint": joint}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> TableScan:
        """Back from `to_json`."""
        counts = {k: dict(v) for k, v in held["counts"].items()}
        joint = {k: {g: dict(v) for g, v in found} for k, found in held["joint"].items()}
        return cls(**{**held, "counts": counts, "shape": tuple(held["shape"]), "joint": joint})


def scan_shard(
    reader: BatchReader, shard: Shard, columns: Columns, size: int, look: Callable[[Batch], None] | None = None
) -> ShardScan:
    """Read a shard once: check its numbers, count its labels and groups, and digest all of it.

    Args:
        reader: of the table.
        shard: of it.
        columns: what is read.
        size: rows that are looked at together.
        look: called with these too.
    """
    counts: dict[str, Counter[Any]] = {c: Counter() for c in _counted(columns)}
    joint: dict[str, dict[Any, Counter[Any]]] = {c: {} for c in columns.extra}
    digests: dict[str, ColumnDigest] = {}

    def digest(name: str, values: Array, start: int) -> None:
        digests.setdefault(name, ColumnDigest()).add(values, start)

    shape: tuple[int, ...] | None = None
    problem, increasing, dtype = None, True, ""
    ends: list[Any] = []
    for batch in reader.read(shard, size):
        if look is not None:
            look(batch)
        problem = problem or _not_finite(batch.x, columns.features, batch.start)
        shape = shape or batch.x.shape[1:]
        problem = problem or _other_shape(shape, batch.x.shape[1:], batch.start)
        dtype = str(batch.x.dtype)
        for name, held in {**({columns.label: batch.labels} if columns.label else {}), **batch.extra}.items():
            found, times = np.unique(held, return_counts=True)
            counts[name].update(dict(zip(found.tolist(), times.tolist(), strict=True)))
        for name, held in batch.extra.items():
            digest(OTHER + name, held, batch.start)
        if columns.label:
            digest(LABEL, batch.labels, batch.start)
        for name, pairs in joint.items():
            _count_pairs(pairs, batch.extra[name], batch.labels)
        digest(FEATURES, batch.x, batch.start)
        if columns.row_id:
            ids = read_ids(batch.ids, columns.row_id)
            digest(ROW_ID, ids.astype(np.int64) if ids.dtype.kind in "iu" else ids, batch.start)
            increasing = increasing and bool((ids[1:] > ids[:-1]).all()) and (not ends or ids[0] > ends[-1])
            ends += [ids[0].item(), ids[-1].item()]
    first, last = (ends[0], ends[-1]) if ends else (None, None)
    held_counts = {k: dict(v) for k, v in counts.items()}
    found_digests = {name: d.hex() for name, d in digests.items()}
    held_pairs = {k: {g: dict(v) for g, v in groups.items()} for k, groups in joint.items()}
    return ShardScan(
        shard.index,
        shard.rows,
        found_digests,
        held_counts,
        shape or (),
        dtype,
        increasing,
        first,
        last,
        held_pairs,
        problem,
    )


class ScanMerge:
    """One scan of a whole table from those of its shards, which may come in any order; few of them are held.

    Args:
        table: whose shards they are.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._early: dict[int, ShardScan] = {}
        self._next = self._rows = 0
        self._digests: dict[str, ColumnDigest] = {}
        self._layout = hashlib.sha256()
        self._counts: dict[str, Counter[Any]] = {}
        self._joint: dict[str, dict[Any, Counter[Any]]] = {}
        self._shape: tuple[int, ...] | None = None
        self._dtype = ""
        self._increasing, self._last_id = True, None

    def add(self, part: ShardScan) -> None:
        """Take in a shard.

        Raises:
            InputError: NaN or infinite features (the column and the first row), mixed shapes, too many groups.
        """
        self._early[part.index] = part
        while self._next in self._early:
            self._merge(self._early.pop(self._next))
            self._next += 1

    def _merge(self, part: ShardScan) -> None:
        if self._shape is None:
            self._shape, self._dtype = part.shape, part.dtype
        if problem := part.problem or _other_shape(self._shape, part.shape, self._rows):
            raise InputError(f"{self._table.name}: {problem}.", "correct or drop such rows, then run again.")
        self._rows += part.rows
        self._layout.update(f"{part.rows},".encode())
        for name, held in part.digests.items():
            self._digests.setdefault(name, ColumnDigest()).merge(held)
        for name, found in part.counts.items():
            self._counts.setdefault(name, Counter()).update(found)
        for name in list(self._counts)[1:]:  # the label comes first, and may have any number of classes
            if len(self._counts[name]) > MOST_LEVELS:
                raise InputError(
                    f"{self._table.name}: column {name!r} has {len(self._counts[name]):,} or more different values: "
                    "too many for groups.",
                    f"use a column of at most {MOST_LEVELS} values.",
                )
        follows = self._last_id is None or part.first_id is None or self._last_id < part.first_id
        self._increasing = self._increasing and part.increasing and follows
        self._last_id = part.last_id
        for name, groups in part.joint.items():
            joint = self._joint.setdefault(name, {})
            for group, found in groups.items():
                joint.setdefault(group, Counter()).update(found)

    def result(self) -> TableScan:
        """The scan of the whole table, once all shards are in."""
        assert not self._early
        assert self._shape is not None
        counts = {k: dict(sorted(v.items())) for k, v in self._counts.items()}
        joint = {k: {g: dict(self._joint[k].get(g, {})) for g in counts[k]} for k in self._joint}
        digests = {name: held.hex() for name, held in self._digests.items()}
        digests[FEATURES] = f"{self._dtype} {list(self._shape)} {digests[FEATURES]}"
        layout = self._layout.hexdigest()
        whole = _fingerprint(digests, layout)
        return TableScan(self._rows, whole, counts, self._shape, self._dtype, self._increasing, joint, digests, layout)


def _fingerprint(digests: Mapping[str, str], layout: str) -> str:
    return hashlib.sha256(json.dumps([sorted(digests.items()), layout]).encode()).hexdigest()


def merge_scans(parts: Iterable[ShardScan], table: Table) -> TableScan:
    """One scan of the whole table.

    Raises:
        InputError: as `ScanMerge.add`.
    """
    merged = ScanMerge(table)
    for part in parts:
        merged.add(part)
    return merged.result()


def check_unique_ids(table: Table, column: str | None, scan: TableScan) -> None:
    """Refuse duplicate row ids. Ids that increase are unique; others are searched in bounded memory.

    Raises:
        InputError: an id in two rows.
    """
    if column is None or scan.increasing:
        return
    reader = table.open([column])

    def read() -> Iterator[Array]:
        for shard in table.shards:
            for record in reader.read(shard):
                yield read_ids(record.column(column), column)

    twice = repeated_ids(read, scan.rows)
    if twice:
        _refuse_repeated(table, column, twice)


def _refuse_repeated(table: Table, column: str, twice: Sequence[Any]) -> NoReturn:
    """Refuse ids that several rows have, with the column or index that they come from.

    Raises:
        InputError: always.
    """
    problem = f"has the id {twice[0]!r} in more than one row ({len(twice)} rows repeat an id)."
    if column != index_column(table.schema):
        raise InputError(
            f"{table.name}: column {column!r} {problem}",
            "make the ids unique, or leave Task(row_id=...) out to use row positions.",
        )
    named = "" if column == UNNAMED else f" {column!r}"
    raise InputError(
        f"{table.name}: the index{named} of the DataFrame {problem}",
        "pass df.reset_index(drop=True) (of files, write them with to_parquet(index=False)) to use row positions, or "
        "name a column of unique ids in Task(row_id=...).",
    )


def _count_pairs(found: dict[Any, Counter[Any]], groups: Array, labels: Array) -> None:
    """Count the labels of every group of a batch."""
    values, group = np.unique(groups, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    codes, times = np.unique(group * len(classes) + label, return_counts=True)
    for code, n in zip(codes.tolist(), times.tolist(), strict=True):
        g, y = values[code // len(classes)].item(), classes[code % len(classes)].item()
        found.setdefault(g, Counter())[y] += n


def _counted(columns: Columns) -> list[str]:
    """The columns whose values are counted: the label first, then groups."""
    return [c for c in (columns.label, *columns.extra) if c is not None]


def _other_shape(first: tuple[int, ...], shape: tuple[int, ...], row: int) -> str | None:
    return None if shape == first else f"features of mixed shapes: {list(first)}, and {list(shape)} in row {row}"


def read_ids(column: pa.Array, name: str) -> Array:
    """Row ids as NumPy: integers as they are, all else as text.

    Raises:
        InputError: a type that cannot be cast to text.
    """
    if pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False)
    shown = called(name)[:1].upper() + called(name)[1:]
    if pa.types.is_floating(column.type):
        held = column.to_numpy(zero_copy_only=False)
        if not np.isfinite(held).all():
            wrong = held[~np.isfinite(held)]
            raise InputError(
                f"{shown} holds the id {wrong[0]} ({len(wrong)} of {len(held)} rows that were read together).",
                "store ids as integers or text, one for every row.",
            )
    try:
        plain = not isinstance(column.type, pa.BaseExtensionType)
        return np.asarray(pc.cast(column, pa.string() if plain else pa.null()).to_pylist(), dtype=str)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{shown} of type {column.type} cannot hold ids.", "store ids as integers or text.") from error


def _not_finite(x: Array, names: Sequence[str], start: int) -> str | None:
    """The place of the first NaN or infinite feature. If the sum in float64 is finite, so are all features."""
    with np.errstate(over="ignore", invalid="ignore"):
        if x.dtype.kind != "f" or np.isfinite(x.sum(dtype=np.float64)):
            return None
    wrong = ~np.isfinite(x)
    if not wrong.any():
        return None
    where = np.argwhere(wrong)[0]
    column = names[int(where[1])] if len(names) > 1 else names[0]
    inside = f"[{', '.join(map(str, where[1:]))}]" if len(names) == 1 and x[0].size > 1 else ""
    value = x[tuple(where)]
    return f"column {column!r}{inside} holds {value} in row {start + int(where[0])}"
