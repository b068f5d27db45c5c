"""Parts of shards whose rows have no value: their ids and labels in row order, and nulls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import values
from rayinf.data.scores import LABEL_COLUMN
from rayinf.data.shards import Shard
from rayinf.engine.run import Run
from rayinf.errors import InputError, RowsError


def fill_gaps(run: Run, stage: Any, found: dict[int, pa.Table], into: str) -> None:
    """Give the shards that were left out their parts, so that every row has its place among the scores.

    Args:
        run: open, whose other shards have their parts.
        stage: that they were left out of.
        found: the tables of the others, where the run has no folder; those of the shards are added.
        into: the folder of the run's for the parts.

    Raises:
        InputError: the ids or labels of their rows cannot be read.
    """
    shards, place = run.job.tables[run.job.scored].shards, run.place(into)
    gaps = run.left_out.of_values
    if not gaps:
        return
    if place is None:
        like = next(iter(found.values())).schema
    else:
        like = place.schema(next(s.index for s in shards if s.index not in gaps))
    counts = stage.counts_of_none(len(run.job.classes.labels))
    summaries = {k: v for k, v in counts.items() if k in (like.metadata or {})} or None
    for shard in (shards[k] for k in sorted(gaps)):
        table = blank_part(run, shard, like).replace_schema_metadata(summaries)
        if place is None:
            found[shard.index] = table
        elif run.folder is not None and not run.has_part(into, shard):
            run.folder.files.put_table(place.name(shard.index), table)


def blank_part(run: Run, shard: Shard, like: pa.Schema) -> pa.Table:
    """The part of a shard whose rows have no value.

    Args:
        run: open.
        shard: of the scored table.
        like: the schema of other parts.

    Raises:
        InputError: the ids or labels of its rows cannot be read.
    """
    held: Mapping[str, Any] = _named(run, shard)
    columns = [held.get(f.name, pa.nulls(shard.rows, f.type)) for f in like]
    return pa.table(columns, schema=like.remove_metadata())


def _named(run: Run, shard: Shard) -> dict[str, Any]:
    """Ids and labels of a shard's rows."""
    table, columns = run.job.tables[run.job.scored], run.job.columns[run.job.scored]
    ids: Any = pa.array(np.arange(shard.start, shard.start + shard.rows))
    names = [n for n in (columns.row_id, columns.label) if n is not None]
    try:
        batches = list(table.open(list(dict.fromkeys(names))).read(shard)) if names else []
    except RowsError as error:
        raise InputError(
            f"The ids and labels of the rows that are left out cannot be read, without which they have no place among "
            f"the scores: {error.what}",
            error.fix,
        ) from error
    if columns.row_id is not None:
        ids = pa.chunked_array([b.column(columns.row_id) for b in batches])
    if columns.label is None:
        return {"row_id": ids}
    label = columns.label
    labels = np.concatenate([values(b.column(label), label, table.name, shard.start) for b in batches])
    return {"row_id": ids, LABEL_COLUMN: pa.array(labels)}
