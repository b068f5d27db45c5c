"""Whether scores are of a task and a table: the model, its loss and input, and the rows with their ids in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.data.differences import table_differences
from rayinf.data.pandas_index import id_column
from rayinf.data.scan import FEATURES, LABEL, TableScan
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.tables import Table, as_table
from rayinf.engine.identity import FUNCTIONS_OF_TASK, functions
from rayinf.engine.model_digest import model_digest
from rayinf.errors import InputError
from rayinf.task import Task
from rayinf.training.members import member_digests
from rayinf.training.open_table import open_table

# What tables are compared in: ids are compared one by one, and groups have no part in what a row is worth.
_COMPARED = ("rows", FEATURES, LABEL)
_WORDS = {"loss": "the loss", "transform": "Task(transform=...)", "mask": "Task(mask=...)"}
_VALUED = (
    "compute the scores of this task: rayinf.influence(task, train, valid, ...), or pass the task that was valued."
)


def check_scored(scores: Scores, task: Task, train: Any, tables: Mapping[str, TableScan] | None = None) -> None:
    """Refuse scores of another model or of another table.

    Scores of a run know what they are of (`metadata["of"]`); those of `Scores.from_numpy` are compared by their number
    of rows and ids alone.

    Args:
        scores: of the training rows.
        task: that they should be of.
        train: the table that they should be of.
        tables: scans of the tables that the scores should be of: "train" and, where it matters, "valid". None: `train`
            is scanned here.

    Raises:
        InputError: another number of rows, other ids; another model, loss, transform or mask; other values or labels.

    Cost: a pass over the ids of `train`; without `tables`, one over all of it.
    """
    table = as_table(train, task.feature_columns, [task.label, *([task.group] if task.group else [])], "train")
    if table.num_rows != len(scores):
        raise InputError(
            f"train has {table.num_rows:,} rows, and the scores have {len(scores):,}.",
            "pass the table that was scored.",
        )
    check_ids(table, task, to_numpy(scores.select(["row_id"])["row_id"]))
    of = scores.metadata.get("of")
    if of is None:
        return
    check_model(of, task)
    if tables is None:
        tables = {"train": open_table(task, train, "train")[1]}
    for name, scan in tables.items():
        check_table(of, name, scan)


def check_model(of: Mapping[str, Any], task: Task, same_weights: bool = True) -> None:
    """Refuse scores of another model, loss, transform or mask.

    Args:
        of: `metadata["of"]` of the scores.
        task: that they should be of.
        same_weights: False: models may differ in their weights alone.

    Raises:
        InputError: what differs.
    """
    held = model_digest(task.build(), task.version)
    if of["architecture"] != held.architecture:
        raise InputError("The scores are of a model with other code, attributes or shapes than the task's.", _VALUED)
    known = of.get("members", [of["model"]])
    own = {d.whole for d in member_digests(task)} if task.members else {held.whole}
    if same_weights and not (own == set(known) or (not task.members and own <= set(known))):
        raise InputError("The scores are of another model than the task's: the weights differ.", _VALUED)
    now = functions(task)
    for name in FUNCTIONS_OF_TASK:
        if of[name] != now[name]:
            raise InputError(f"The scores are of a task of which {_WORDS[name]} differs from this one's.", _VALUED)


def check_table(of: Mapping[str, Any], name: str, scan: TableScan) -> None:
    """Refuse another table than that of the scores.

    Args:
        of: `metadata["of"]` of the scores.
        name: "train" or "valid". Where a pool was scored, "train" means that.
        scan: of the table that is given.

    Raises:
        InputError: what differs.
    """
    role = "pool" if name == "train" and "pool" in of else name
    if role not in of:
        return
    old, new = ({k: held[k] for k in _COMPARED if k in held} for held in (of[role], scan.content))
    changed = table_differences(name, old, new)
    if changed is not None:
        raise InputError(
            f"The scores are of another table, by its fingerprint: {changed}.",
            f"pass {name} as it was when the scores were computed, or compute them anew.",
        )


def check_ids(table: Table, task: Task, held: Array) -> None:
    """Rows belong to a table by its ids in its order, or by positions.

    Args:
        table: with or without a column of ids.
        task: that may name the column.
        held: the ids `[n]` that the rows should have.

    Raises:
        InputError: they have others.
    """
    column = id_column(table.schema, task.row_id)
    if column is None or column not in table.schema.names:
        return
    reader = table.open([column])
    for shard in table.shards:
        ids = to_numpy(pa.chunked_array([b.column(column) for b in reader.read(shard)]))
        own, positions = held[shard.start : shard.start + len(ids)], np.arange(shard.start, shard.start + len(ids))
        if not np.array_equal(ids, own) and not np.array_equal(own, positions):
            row = int(np.flatnonzero(ids != own)[0])
            scored, here = own[row].item(), ids[row].item()
            raise InputError(
                f"Row {shard.start + row} of train has the id {here!r}, and the scores have {scored!r} there.",
                "pass the table that was scored, in the same order.",
            )
