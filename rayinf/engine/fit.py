"""A logistic regression from a table: labels to classes, then batches to the optimiser, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.core.train import fit_softmax
from rayinf.data.batches import BatchReader, Columns, check_columns
from rayinf.data.labels import Classes
from rayinf.data.scan import TableScan, merge_scans, scan_shard
from rayinf.data.tables import Table, as_table
from rayinf.errors import InputError
from rayinf.task import Task

_ROWS = 8192
# Tables up to this many bytes in float64 are kept between passes.
_KEPT_BYTES = 256 << 20


def fit_logistic(train: Any, task_columns: dict[str, Any], l2: float) -> Task:
    """A `Task` around a softmax head with bias, fitted to convergence in float64.

    Args:
        train: a table of any form.
        task_columns: `features`, `label`, `group` and `row_id` of the task.
        l2: the ridge.

    Raises:
        InputError: a table that cannot be read or fitted: NaN, fewer than two labels, features that are no numbers.
        RunError: no convergence.
    """
    features, label = task_columns["features"], task_columns["label"]
    names = [features] if isinstance(features, str) else list(features)
    group = [task_columns["group"]] if task_columns["group"] else []
    table = as_table(train, names, [label, *group], "train")
    columns = Columns(tuple(names), isinstance(features, str), label, None)
    check_columns(table, columns)
    reader = BatchReader(table, columns)
    scan = merge_scans([scan_shard(reader, s, columns, _ROWS) for s in table.shards], table)
    classes = _classes(scan, label)
    width = 1
    for side in scan.shape:
        width *= side
    batches = _Batches(table, columns, classes, kept=8 * scan.rows * width <= _KEPT_BYTES)
    theta = fit_softmax(batches, len(classes.labels), scan.rows, width, l2)
    head = nn.Linear(width, len(classes.labels), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(theta[:, :-1])
        head.bias.copy_(theta[:, -1])
    model = head if len(scan.shape) == 1 else nn.Sequential(nn.Flatten(), head)
    return Task(model, l2=l2, classes=classes.labels, **task_columns)


class _Batches:
    """Batches of float64 tensors, read anew at each pass unless they are few enough to keep."""

    def __init__(self, table: Table, columns: Columns, classes: Classes, kept: bool) -> None:
        self._table, self._columns, self._classes = table, columns, classes
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        if kept:
            self._kept = list(self._read())

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._kept) if self._kept is not None else self._read()

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        reader = BatchReader(self._table, self._columns)
        for shard in self._table.shards:
            for batch in reader.read(shard, _ROWS):
                x = torch.tensor(batch.x).to(torch.float64).reshape(len(batch), -1)
                yield x, torch.from_numpy(self._classes.encode(batch.labels))


def _classes(scan: TableScan, label: str) -> Classes:
    labels: Sequence[Any] = list(scan.counts[label])
    if len(labels) < 2:
        raise InputError(f"Column {label!r} of train holds one label, {labels[0]!r}.", "give at least two classes.")
    if scan.dtype == "object":
        raise InputError("Features of text cannot be fitted.", "pass numbers: embeddings or counts of words.")
    return Classes(tuple(labels))
