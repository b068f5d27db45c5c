"""Rows of a pool that are labelled already: the same ids in both tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayinf.data.batches import Array
from rayinf.data.pandas_index import UNNAMED, id_column
from rayinf.data.tables import Table
from rayinf.errors import InputError


def labelled_already(labeled: Table, pool: Table, row_id: str | None) -> Array:
    """Ids of the pool's rows whose id a labelled row has too; the pool is streamed.

    Only where both tables have a column of ids, or an index with a name: positions, and an index without a name, do not
    identify rows of another table.

    Args:
        labeled: the labelled rows; their ids are held in memory.
        pool: the rows to pick from.
        row_id: `Task(row_id=...)`.

    Raises:
        InputError: ids of different kinds.
    """
    columns = [_own_ids(t, row_id) for t in (labeled, pool)]
    if columns[0] is None or columns[1] is None:
        return np.zeros(0, np.int64)
    known = pa.chunked_array(list(_ids(labeled, columns[0])))
    found: list[Any] = []
    for ids in _ids(pool, columns[1]):
        if _kind(ids.type) != _kind(known.type):
            raise InputError(
                f"labeled has row ids of type {known.type} ({columns[0]!r}), and pool of type {ids.type} "
                f"({columns[1]!r}); which of the pool's rows are labelled already is unknown.",
                "store both as integers, or both as text.",
            )
        common = pa.decimal128(20) if pa.types.is_integer(ids.type) and ids.type != known.type else ids.type
        found += ids.filter(pc.is_in(ids.cast(common), known.cast(common).combine_chunks())).to_pylist()
    return np.asarray(found, dtype=None if found else np.int64)


def warn_left_out(left_out: Array, rows: int) -> None:
    """Warn that rows of the pool are left out."""
    if len(left_out):
        shown = ", ".join(map(repr, left_out[:3].tolist()))
        warnings.warn(
            f"{len(left_out):,} of the {rows:,} rows of the pool are labelled already (labeled has the same row ids: "
            f"{shown}{', ...' if len(left_out) > 3 else ''}): they are left out of what may be picked.",
            stacklevel=3,
        )


def _own_ids(table: Table, row_id: str | None) -> str | None:
    column = id_column(table.schema, row_id)
    return column if column in table.schema.names and column != UNNAMED else None


def _ids(table: Table, column: str) -> Iterator[pa.Array]:
    """All ids, a batch at a time; text as plain text."""
    reader = table.open([column])
    held = (record.column(column) for shard in table.shards for record in reader.read(shard))
    yield from (_plain(ids) for ids in held)


def _plain(ids: pa.Array) -> pa.Array:
    ids = ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
    return ids.cast(pa.large_string()) if pa.types.is_string(ids.type) else ids


def _kind(kind: pa.DataType) -> str:
    return "integer" if pa.types.is_integer(kind) else str(kind)
