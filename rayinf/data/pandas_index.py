"""The index of a pandas frame, as a column of its table: the same for the frame and for the Parquet it was written to.

pyarrow stores an index as a column (`__index_level_0__` without a name), but a `RangeIndex` only as three numbers in
the schema's metadata. Here every index of one level but the default one becomes a column, which the schema names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

UNNAMED = "__index_level_0__"
# The key of the schema's metadata that holds the name of the index column; empty for the default index.
_KEY = b"rayinf.index"


@dataclass(frozen=True)
class Index:
    """The index of a frame, in its table.

    Attributes:
        column: of the one index; empty for the default one (0 to n - 1 without a name); None where it has several
            levels, which cannot be ids.
        counts: columns that are ranges and therefore not stored: name, first value and step of each.
    """

    column: str | None
    counts: tuple[tuple[str, int, int], ...] = ()


def read_index(schema: pa.Schema, rows: int) -> Index | None:
    """The index in a schema that pandas wrote; None without one.

    A range of another length than the table belongs to other rows, as after `Table.slice`; pandas too ignores it.
    """
    try:
        levels = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, TypeError, ValueError):
        return None
    columns: list[str] = []
    counts: list[tuple[str, int, int]] = []
    for held in levels:
        if isinstance(held, str) and held in schema.names:
            columns.append(held)
        elif isinstance(held, dict) and len(range(held["start"], held["stop"], held["step"])) == rows:
            name, start, step = held.get("name"), held["start"], held["step"]
            if name is None and (start, step) == (0, 1) and len(levels) == 1:
                return Index("")
            column = f"__index_level_{len(columns)}__" if name is None or str(name) in schema.names else str(name)
            columns.append(column)
            counts.append((column, start, step))
        else:
            return None
    if not levels or len({*columns, *schema.names}) < len({*schema.names}) + len(counts):
        return None
    return Index(columns[0] if len(columns) == 1 else None, tuple(counts))


def with_index(table: pa.Table) -> pa.Table:
    """A table whose index is a column, and whose schema names it; other metadata is dropped."""
    found = read_index(table.schema, table.num_rows)
    table = table.replace_schema_metadata(None)
    if found is None:
        return table
    for column, start, step in found.counts:
        table = table.append_column(column, counted(start, step, 0, table.num_rows))
    return table.replace_schema_metadata(_metadata(found))


def mark(schema: pa.Schema, index: Index | None) -> pa.Schema:
    """A schema that names the index column; columns that are ranges are added at the end."""
    if index is None:
        return schema.remove_metadata()
    for column, _, _ in index.counts:
        schema = schema.append(pa.field(column, pa.int64()))
    return schema.with_metadata(_metadata(index))


def _metadata(index: Index) -> dict[bytes, str] | None:
    return None if index.column is None else {_KEY: index.column}


def joined(found: Sequence[Index | None]) -> Index | None:
    """The index of all files of a table together: stored in all of them, or a range in all of them.

    Where all files have the default index, so has the table; a file with the default index among others with a range
    is taken as a range too.
    """
    if len(found) == 1:
        return found[0]
    held = [i for i in found if i is not None]
    columns, names = {i.column for i in held}, {tuple(n for n, _, _ in i.counts) for i in held if i.column != ""}
    if len(held) < len(found) or len(columns - {""}) > 1 or len(names) > 1:
        return None
    if columns == {""}:
        return held[0]
    counts = names.pop()
    if "" in columns and len(counts) != 1:
        return None
    return Index(next(c for c in columns if c != ""), tuple((name, 0, 1) for name in counts))


def kind_of(index: Index | None) -> Index | None:
    """An index without the numbers that differ from file to file."""
    return index and Index(index.column, tuple((name, 0, 1) for name, _, _ in index.counts))


def own_numbers(index: Index | None) -> list[int]:
    """The first value and the step of each column that a file counts; of the default index, those of positions."""
    if index is None:
        return []
    return [n for _, *numbers in index.counts or (("", 0, 1),) for n in numbers]


def counted(start: int, step: int, first: int, rows: int) -> pa.Array:
    """Values of a range, from its `first` position on."""
    return pa.array(start + step * np.arange(first, first + rows, dtype=np.int64))


def index_column(schema: pa.Schema) -> str | None:
    """The column that is the index of a frame: empty for the default index; None where there was no frame."""
    held: Any = (schema.metadata or {}).get(_KEY)
    return None if held is None else held.decode()


def id_column(schema: pa.Schema, row_id: str | None) -> str | None:
    """The column that row ids come from, or None for positions.

    Args:
        schema: of a table.
        row_id: `Task(row_id=...)`, which comes first. Else the column `row_id`, else the index of a frame.
    """
    return row_id or ("row_id" if "row_id" in schema.names else index_column(schema) or None)


def called(column: str) -> str:
    """The name of a column in errors."""
    return "the index of the DataFrame" if column == UNNAMED else f"column {column!r}"
