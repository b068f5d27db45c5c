"""Whether scores belong to a table: as many rows, and the same ids in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.data.pandas_index import id_column
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.tables import as_table
from rayinf.errors import InputError
from rayinf.task import Task


def check_scored(scores: Scores, task: Task, train: Any) -> None:
    """Refuse another table than that of the scores. Only ids are read.

    Raises:
        InputError: another number of rows, or other ids.
    """
    table = as_table(train, task.feature_columns, [task.label, *([task.group] if task.group else [])], "train")
    if table.num_rows != len(scores):
        raise InputError(
            f"train has {table.num_rows:,} rows, and the scores have {len(scores):,}.",
            "pass the table that was scored.",
        )
    column = id_column(table.schema, task.row_id)
    if column is not None and column in table.schema.names:
        reader, held = table.open([column]), to_numpy(scores.select(["row_id"])["row_id"])
        for shard in table.shards:
            ids = to_numpy(pa.chunked_array([b.column(column) for b in reader.read(shard)]))
            _check_ids(ids, held, shard.start)


def _check_ids(ids: Array, held: Array, start: int) -> None:
    """Scores belong to a table by its ids in its order, or by positions.

    Raises:
        InputError: they do not.
    """
    own, positions = held[start : start + len(ids)], np.arange(start, start + len(ids))
    if not np.array_equal(ids, own) and not np.array_equal(own, positions):
        row = int(np.flatnonzero(ids != own)[0])
        told, here = own[row].item(), ids[row].item()
        raise InputError(
            f"Row {start + row} of train has the id {here!r}, and the scores have {told!r} there.",
            "pass the table that was scored, in the same order.",
        )
