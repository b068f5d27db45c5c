"""Which rows of a table to keep: from a selection, a mask, or row ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rayinf.data.batches import Array
from rayinf.data.pandas_index import id_column
from rayinf.data.scan import TableScan, read_ids
from rayinf.data.scores import to_numpy
from rayinf.data.selection import Selection
from rayinf.data.tables import Table
from rayinf.errors import InputError
from rayinf.task import Task
from rayinf.training.scored_table import check_ids, check_model, check_table

Keep = Selection | Array | Iterable[Any] | None


def kept_mask(keep: Keep, table: Table, task: Task, scan: TableScan) -> Array:
    """Whether each row of a table is kept, `[n]`.

    Args:
        keep: a `Selection`; True or False a row; or row ids. Integers are always ids: those of the column
            `Task(row_id=...)` or `row_id` where the table has it, else positions. None keeps all.
        table: whose rows they are.
        task: that may name the column of ids.
        scan: of the table.

    Raises:
        InputError: a selection from another table, or of a model with other code; a mask of another length; an id that
            no row has, or that stands twice; nothing to keep.

    Cost: for ids, a pass over their column.
    """
    if keep is None:
        return np.ones(scan.rows, bool)
    if isinstance(keep, Selection):
        mask = _of_selection("keep", keep, table, task, scan)
    else:
        mask = _named("keep", keep, table, task, scan.rows)
    if not mask.any():
        raise InputError(f"None of the {scan.rows} rows is left to train on.", "keep some.")
    return mask


def removed_mask(name: str, rows: Any, table: Table, task: Task, scan: TableScan) -> Array:
    """Whether each row of a table is removed, `[n]`.

    Args:
        name: of the argument, for errors.
        rows: a `Selection`, whose removed rows these are; True or False a row; or row ids, as in `kept_mask`.
        table: whose rows they are.
        task: that may name the column of ids.
        scan: of the table.

    Raises:
        InputError: as `kept_mask`; or rows that are none, or all.

    Cost: for ids, a pass over their column.
    """
    if isinstance(rows, Selection):
        mask = ~_of_selection(name, rows, table, task, scan)
    else:
        mask = _named(name, rows, table, task, scan.rows)
    if not mask.any() or mask.all():
        count = "all" if mask.any() else "none"
        raise InputError(
            f"{name} names {count} of the {scan.rows:,} rows.", "name some of the training rows, and leave some."
        )
    return mask


def _named(name: str, given: Any, table: Table, task: Task, rows: int) -> Array:
    """The rows of a mask, or of ids."""
    held = _as_array(name, given)
    return _of_mask(name, held, rows) if held.dtype == bool else _of_ids(name, held, table, task, rows)


def _of_selection(name: str, keep: Selection, table: Table, task: Task, scan: TableScan) -> Array:
    """The rows that a selection keeps."""
    mask = keep.mask
    if len(mask) != scan.rows:
        raise InputError(
            f"{name} is a Selection among {len(mask):,} rows, and the table has {scan.rows:,}.",
            "pass the table that the selection was made from.",
        )
    of = keep.metadata.get("of")
    if of is not None:
        check_table(of, "train", scan)
        check_model(of, task, same_weights=False)
    check_ids(table, task, to_numpy(keep.source.sort_by("position")["row_id"]))
    return mask


def _as_array(name: str, keep: Any) -> Array:
    """A mask or ids as one array.

    Raises:
        InputError: something else.
    """
    if hasattr(keep, "detach"):  # a tensor, on any device
        keep = keep.detach().cpu().numpy()
    if isinstance(keep, str | bytes) or not hasattr(keep, "__iter__"):
        raise InputError(f"{name} is a {type(keep).__name__}.", "pass a Selection, True or False a row, or row ids.")
    held = keep if isinstance(keep, np.ndarray) and keep.dtype != object else _listed(list(keep))
    if held.ndim == 1 and not held.size:
        if name != "keep":
            raise InputError(f"{name} is empty: it names no row.", "name some of the training rows.")
        raise InputError("keep is empty: no row is left to train on.", "keep some rows, or leave keep out for all.")
    if held.ndim != 1 or held.dtype.kind not in "biuU":
        raise InputError(
            f"{name} is an array {list(held.shape)} of {held.dtype}.",
            "pass a Selection, True or False a row, or row ids (integers or text).",
        )
    return held


def _listed(values: list[Any]) -> Array:
    """A list as an array of one type; NumPy would turn booleans among numbers into numbers."""
    kinds = {bool if isinstance(v, bool | np.bool_) else str if isinstance(v, str) else int for v in values}
    return np.asarray(values) if len(kinds) <= 1 else np.asarray(values, dtype=object)


def _of_mask(name: str, held: Array, rows: int) -> Array:
    if held.shape != (rows,):
        raise InputError(f"{name} is a mask {list(held.shape)} for {rows} rows.", "pass True or False a row.")
    return held


def _of_ids(name: str, held: Array, table: Table, task: Task, rows: int) -> Array:
    """The rows of these ids."""
    unique, times = np.unique(held, return_counts=True)
    if len(unique) < len(held):
        raise InputError(
            f"{name} names the id {unique[times > 1][0].item()!r} more than once "
            f"({int((times > 1).sum()):,} such ids).",
            "name each row once; for a row that counts twice, pass weights.",
        )
    column = id_column(table.schema, task.row_id)
    named = column is not None and column in table.schema.names
    mask = np.zeros(rows, bool)
    seen = np.zeros(len(unique), np.int64)
    reader = table.open([str(column)]) if named else None
    for shard in table.shards:
        if reader is None:
            ids = np.arange(shard.start, shard.start + shard.rows)
        else:
            ids = np.concatenate([read_ids(b.column(str(column)), str(column)) for b in reader.read(shard)])
        if (ids.dtype.kind == "U") != (unique.dtype.kind == "U"):
            kinds = ("text" if a.dtype.kind == "U" else "integers" for a in (ids, unique))
            raise InputError(
                f"The row ids of the table are {next(kinds)}, and {name} holds {next(kinds)}.",
                "pass row ids of the table.",
            )
        at = np.minimum(np.searchsorted(unique, ids), len(unique) - 1)
        found = unique[at] == ids
        mask[shard.start : shard.start + shard.rows] = found
        seen += np.bincount(at[found], minlength=len(unique))
    _check_seen(name, unique, seen, f"column {column!r}" if named else f"the positions 0 to {rows - 1}")
    return mask


def _check_seen(name: str, ids: Array, seen: Array, where: str) -> None:
    """Refuse ids that no row has, or that several rows have.

    Raises:
        InputError: the first of them.
    """
    if (lost := np.flatnonzero(seen == 0)).size:
        raise InputError(
            f"{name} names the id {ids[lost[0]].item()!r}, which is not among {where} ({lost.size:,} of {len(ids):,} "
            "ids are not there).",
            "pass row ids of this table (integers are ids, never positions), a Selection, or a mask.",
        )
    if (twice := np.flatnonzero(seen > 1)).size:
        raise InputError(
            f"The id {ids[twice[0]].item()!r} stands in {int(seen[twice[0]])} rows of the table.",
            "make the ids unique.",
        )
