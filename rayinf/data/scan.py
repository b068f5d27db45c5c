"""The one look at a table before any work: what its columns hold, whether it is sound, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayinf.data.batches import Array, BatchReader, Columns
from rayinf.data.row_digest import ColumnDigest
from rayinf.data.tables import Shard, Table
from rayinf.errors import InputError

# Values of one column that groups may be made of.
MOST_LEVELS = 1000
# Ids of one pass of the search for duplicates: bounds its memory whatever the number of rows.
_IDS_PER_PASS = 4_000_000
# What a table's digests are of, beside its columns of groups (`column:<name>`).
FEATURES, LABEL, ROW_ID, OTHER = "features", "label", "row_id", "column:"


@dataclass(frozen=True)
class ShardScan:
    """What one shard holds."""

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
    """What a table holds: rows, counts of every label and group, shape of a row's features, fingerprint.

    Attributes:
        rows: in all.
        fingerprint: of every value that is read, and of how the rows are cut into shards.
        digests: of the features, the labels, the ids and each column of groups, in the table's order; the same however
            the rows are cut.
        layout: a digest of how they are cut into shards.
        counts: per column, how often each value stands there.
        shape: of a row's features.
        dtype: of the features.
        increasing: whether row ids do.
        joint: per column of groups, per group, how often each label stands there.
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
        """Rows and digests: what the table holds, however it is cut."""
        return {"rows": self.rows, **self.digests}

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it: counts as pairs, since its keys are text alone."""
        joint = {k: [(g, list(v.items())) for g, v in found.items()] for k, found in self.joint.items()}
        return {**asdict(self), "counts": {k: list(v.items()) for k, v in self.counts.items()}, "joint": joint}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> TableScan:
        """Back from `to_json`."""
        counts = {k: dict(v) for k, v in held["counts"].items()}
        joint = {k: {g: dict(v) for g, v in found} for k, found in held["joint"].items()}
        return cls(**{**held, "counts": counts, "shape": tuple(held["shape"]), "joint": joint})


def scan_shard(reader: BatchReader, shard: Shard, columns: Columns, size: int) -> ShardScan:
    """Read a shard once: check its numbers, count its labels and groups, and digest all of it."""
    counts: dict[str, Counter[Any]] = {c: Counter() for c in _counted(columns)}
    joint: dict[str, dict[Any, Counter[Any]]] = {c: {} for c in columns.extra}
    digests: dict[str, ColumnDigest] = {}

    def digest(name: str, values: Array, start: int) -> None:
        digests.setdefault(name, ColumnDigest()).add(values, start)

    shape: tuple[int, ...] | None = None
    problem, increasing, dtype = None, True, ""
    ends: list[Any] = []
    for batch in reader.read(shard, size):
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


def merge_scans(parts: Sequence[ShardScan], table: Table) -> TableScan:
    """One scan of the whole table.

    Raises:
        InputError: NaN or infinite features (the column and the first row), mixed shapes, too many groups.
    """
    parts = sorted(parts, key=lambda p: p.index)
    rows = 0
    for part in parts:
        if problem := part.problem or _other_shape(parts[0].shape, part.shape, rows):
            raise InputError(f"{table.name}: {problem}.", "correct or drop such rows, then run again.")
        rows += part.rows
    counts: dict[str, Counter[Any]] = {}
    for part in parts:
        for name, found in part.counts.items():
            counts.setdefault(name, Counter()).update(found)
    for name in list(counts)[1:]:  # the label comes first, and may have as many classes as it likes
        if len(counts[name]) > MOST_LEVELS:
            raise InputError(
                f"{table.name}: column {name!r} has {len(counts[name]):,} different values: too many for groups.",
                f"use a column of at most {MOST_LEVELS} values.",
            )
    digests = _merge_digests(parts)
    layout = hashlib.sha256(json.dumps([p.rows for p in parts]).encode()).hexdigest()
    whole = hashlib.sha256(json.dumps([sorted(digests.items()), layout]).encode()).hexdigest()
    increasing = all(p.increasing for p in parts) and all(
        a.last_id is None or a.last_id < b.first_id for a, b in pairwise(parts)
    )
    sorted_counts = {k: dict(sorted(v.items())) for k, v in counts.items()}
    joint: dict[str, dict[Any, Counter[Any]]] = {k: {g: Counter() for g in sorted_counts[k]} for k in parts[0].joint}
    for part in parts:
        for name, held_groups in part.joint.items():
            for group, found in held_groups.items():
                joint[name][group].update(found)
    pairs = {k: {g: dict(v) for g, v in found.items()} for k, found in joint.items()}
    return TableScan(rows, whole, sorted_counts, parts[0].shape, parts[0].dtype, increasing, pairs, digests, layout)


def _merge_digests(parts: Sequence[ShardScan]) -> dict[str, str]:
    """The digests of all shards as one; features with their type and shape."""
    sums: dict[str, ColumnDigest] = {}
    for part in parts:
        for name, held in part.digests.items():
            sums.setdefault(name, ColumnDigest()).merge(held)
    found = {name: held.hex() for name, held in sums.items()}
    return {**found, FEATURES: f"{parts[0].dtype} {list(parts[0].shape)} {found[FEATURES]}"}


def check_unique_ids(table: Table, column: str | None, scan: TableScan) -> None:
    """Refuse duplicate row ids. Ids that increase are unique; others are searched in passes of bounded memory.

    Raises:
        InputError: an id that stands in two rows.
    """
    if column is None or scan.increasing:
        return
    passes = -(-scan.rows // _IDS_PER_PASS)
    for k in range(passes):
        reader = table.open([column])
        kept: list[Array] = []
        for shard in table.shards:
            for record in reader.read(shard):
                ids = read_ids(record.column(column), column)
                kept.append(ids[_hash(ids) % np.uint64(passes) == k] if passes > 1 else ids)
        series = pd.Series(np.concatenate(kept))
        twice = series[series.duplicated()].tolist()
        if twice:
            raise InputError(
                f"{table.name}: column {column!r} has the id {twice[0]!r} in more than one row "
                f"({len(twice)} rows repeat an id).",
                "make the ids unique, or leave Task(row_id=...) out to use row positions.",
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


def _hash(ids: Array) -> Array:
    return pd.util.hash_array(ids.astype(object) if ids.dtype.kind == "U" else ids)


def read_ids(column: pa.Array, name: str) -> Array:
    """Row ids as NumPy: integers as they are, all else as text.

    Raises:
        InputError: a type that has no text.
    """
    if pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False)
    try:
        return np.asarray(pc.cast(column, pa.string()).to_pylist(), dtype=str)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"Column {name!r} of type {column.type} holds no ids.", "store ids as integers or text."
        ) from error


def _not_finite(x: Array, names: Sequence[str], start: int) -> str | None:
    """Where the first NaN or infinite feature stands. A finite sum in float64 clears the whole batch."""
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
