"""The index of a pandas frame, as a column of its table: the same for the frame and for the Parquet it was written to.

pyarrow stores an index as a column (`__index_level_0__` where it has no name), but a `RangeIndex` only as three numbers
in the schema's metadata. Here every single index but the default one becomes a column, and the schema says which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

UNNAMED = "__index_level_0__"
# The key of the schema's metadata under which the name of the index column stands; empty for the default index.
_KEY = b"rayinf.index"


@dataclass(frozen=True)
class Index:
    """The one index of a frame.

    Attributes:
        column: its column; empty for the default index, 0 to n - 1 without a name.
        start: the first value, where the values are counted and not stored; else None.
        step: from one value to the next, likewise.
    """

    column: str
    start: int | None = None
    step: int = 1


def read_index(schema: pa.Schema, rows: int) -> Index | None:
    """The index that pandas left in a schema, or None where there is none, or several levels.

    A range of another length than the table belongs to other rows, as after `Table.slice`: pandas ignores it, too.
    """
    try:
        [held] = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(held, str):
        return Index(held) if held in schema.names else None
    if not isinstance(held, dict) or held.get("kind") != "range":
        return None
    start, step, name = held["start"], held["step"], held.get("name")
    if len(range(start, held["stop"], step)) != rows:
        return None
    if name is None and (start, step) == (0, 1):
        return Index("")
    column = UNNAMED if name is None or str(name) in schema.names else str(name)
    return None if column in schema.names else Index(column, start, step)


def with_index(table: pa.Table) -> pa.Table:
    """A table whose index is a column, and whose schema names it; other metadata is dropped."""
    found = read_index(table.schema, table.num_rows)
    table = table.replace_schema_metadata(None)
    if found is None:
        return table
    if found.start is not None:
        table = table.append_column(found.column, counted(found.start, found.step, 0, table.num_rows))
    return table.replace_schema_metadata({_KEY: found.column})


def mark(schema: pa.Schema, index: Index | None) -> pa.Schema:
    """A schema that names the index column; one that is counted is added at the end."""
    if index is None:
        return schema.remove_metadata()
    if index.start is not None and index.column not in schema.names:
        schema = schema.append(pa.field(index.column, pa.int64()))
    return schema.with_metadata({_KEY: index.column})


def counted(start: int, step: int, first: int, rows: int) -> pa.Array:
    """Values of a range, from its `first` position on."""
    return pa.array(start + step * np.arange(first, first + rows, dtype=np.int64))


def index_column(schema: pa.Schema) -> str | None:
    """The column that is the index of a frame: empty for the default index; None where there was no frame."""
    held: Any = (schema.metadata or {}).get(_KEY)
    return None if held is None else held.decode()


def id_column(schema: pa.Schema, asked: str | None) -> str | None:
    """The column that row ids come from, or None for positions.

    Args:
        schema: of a table.
        asked: `Task(row_id=...)`, which settles it. Else the column `row_id`, else the index of a frame.
    """
    return asked or ("row_id" if "row_id" in schema.names else index_column(schema) or None)
