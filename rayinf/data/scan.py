"""The one look at a table before any work: what its columns hold, whether it is sound, and its fingerprint."""

from __future__ import annotations

import hashlib
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
from rayinf.data.tables import Shard, Table
from rayinf.errors import InputError

# Values of one column that groups may be made of.
MOST_LEVELS = 1000
# Ids of one pass of the search for duplicates: bounds its memory whatever the number of rows.
_IDS_PER_PASS = 4_000_000


@dataclass(frozen=True)
class ShardScan:
    """What one shard holds."""

    index: int
    rows: int
    digest: str
    counts: dict[str, dict[Any, int]]
    shape: tuple[int, ...]
    dtype: str
    increasing: bool
    first_id: Any
    last_id: Any
    problem: str | None = None


@dataclass(frozen=True)
class TableScan:
    """What a table holds: rows, counts of every label and group, shape of a row's features, fingerprint."""

    rows: int
    fingerprint: str
    counts: dict[str, dict[Any, int]] = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    increasing: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it: counts as pairs, since its keys are text alone."""
        return {**asdict(self), "counts": {k: list(v.items()) for k, v in self.counts.items()}}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> TableScan:
        """Back from `to_json`."""
        counts = {k: dict(v) for k, v in held["counts"].items()}
        return cls(**{**held, "counts": counts, "shape": tuple(held["shape"])})


def scan_shard(reader: BatchReader, shard: Shard, columns: Columns, size: int) -> ShardScan:
    """Read a shard once: check its numbers, count its labels and groups, and digest all of it."""
    digest = hashlib.sha256()
    counts: dict[str, Counter[Any]] = {c: Counter() for c in [columns.label, *columns.extra]}
    shapes: set[tuple[int, ...]] = set()
    problem, increasing, dtype = None, True, ""
    ends: list[Any] = []
    for batch in reader.read(shard, size):
        problem = problem or _not_finite(batch.x, columns.features, batch.start)
        shapes.add(batch.x.shape[1:])
        dtype = str(batch.x.dtype)
        for name, held in [(columns.label, batch.labels), *batch.extra.items()]:
            found, times = np.unique(held, return_counts=True)
            counts[name].update(dict(zip(found.tolist(), times.tolist(), strict=True)))
            digest.update(_bytes(held))
        digest.update(_bytes(batch.x))
        if columns.row_id:
            ids = _ids(batch.ids)
            digest.update(_bytes(ids))
            increasing = increasing and bool((ids[1:] > ids[:-1]).all()) and (not ends or ids[0] > ends[-1])
            ends += [ids[0].item(), ids[-1].item()]
    for name, counter in counts.items():
        if len(counter) > MOST_LEVELS and name != columns.label:
            problem = problem or f"column {name!r} has over {MOST_LEVELS} different values: too many for groups"
    if len(shapes) > 1:
        problem = problem or f"features of mixed shapes: {' and '.join(map(str, sorted(shapes)))}"
    shape = next(iter(shapes))
    first, last = (ends[0], ends[-1]) if ends else (None, None)
    held_counts = {k: dict(v) for k, v in counts.items()}
    return ShardScan(
        shard.index, shard.rows, digest.hexdigest(), held_counts, shape, dtype, increasing, first, last, problem
    )


def merge_scans(parts: Sequence[ShardScan], table: Table) -> TableScan:
    """One scan of the whole table.

    Raises:
        InputError: NaN or infinite features (the column and the first row), mixed shapes, too many groups.
    """
    parts = sorted(parts, key=lambda p: p.index)
    for part in parts:
        if part.problem:
            raise InputError(f"{table.name}: {part.problem}.", "correct or drop those rows, then run again.")
    shapes = {p.shape for p in parts}
    if len(shapes) > 1:
        raise InputError(
            f"{table.name}: features of mixed shapes: {' and '.join(map(str, sorted(shapes)))}.",
            "give every row features of one shape.",
        )
    counts: dict[str, Counter[Any]] = {}
    for part in parts:
        for name, found in part.counts.items():
            counts.setdefault(name, Counter()).update(found)
    whole = hashlib.sha256("".join(p.digest for p in parts).encode()).hexdigest()
    increasing = all(p.increasing for p in parts) and all(
        a.last_id is None or a.last_id < b.first_id for a, b in pairwise(parts)
    )
    sorted_counts = {k: dict(sorted(v.items())) for k, v in counts.items()}
    return TableScan(sum(p.rows for p in parts), whole, sorted_counts, parts[0].shape, parts[0].dtype, increasing)


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
                ids = _ids(record.column(column))
                kept.append(ids[_hash(ids) % np.uint64(passes) == k] if passes > 1 else ids)
        series = pd.Series(np.concatenate(kept))
        twice = series[series.duplicated()]
        if len(twice):
            raise InputError(
                f"{table.name}: column {column!r} has the id {twice.iloc[0]!r} in more than one row "
                f"({len(twice)} rows repeat an id).",
                "make the ids unique, or leave Task(row_id=...) out to use row positions.",
            )


def _hash(ids: Array) -> Array:
    return pd.util.hash_array(ids.astype(object) if ids.dtype.kind == "U" else ids)


def _ids(column: pa.Array) -> Array:
    if pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False)
    return np.asarray(pc.cast(column, pa.string()).to_pylist(), dtype=str)


def _bytes(array: Array) -> bytes | memoryview:
    if array.dtype == object or array.dtype.kind == "U":
        return "\0".join(map(str, array)).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _not_finite(x: Array, names: Sequence[str], start: int) -> str | None:
    """Where the first NaN or infinite feature stands. A finite sum in float64 clears the whole batch."""
    if x.dtype.kind != "f" or np.isfinite(x.sum(dtype=np.float64)):
        return None
    wrong = ~np.isfinite(x)
    if not wrong.any():
        return None
    where = np.argwhere(wrong)[0]
    column = names[int(where[1])] if len(names) > 1 else names[0]
    inside = f"[{', '.join(map(str, where[1:]))}]" if len(names) == 1 and len(where) > 1 and x.shape[1] > 1 else ""
    value = x[tuple(where)]
    return f"column {column!r}{inside} holds {value} in row {start + int(where[0])}"
