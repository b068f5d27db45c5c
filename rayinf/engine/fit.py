"""A logistic regression from a table: labels to classes, then batches to the optimiser, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.core.train import fit_softmax
from rayinf.data.batches import BatchReader, Columns, check_columns
from rayinf.data.known_scans import known
from rayinf.data.labels import Classes
from rayinf.data.scan import TableScan
from rayinf.data.tables import Table, as_table
from rayinf.errors import InputError
from rayinf.task import Task, column_name

Read = Callable[[], Iterator[tuple[Tensor, Tensor, Tensor | None]]]

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
        InputError: a table that cannot be read or fitted: NaN, fewer than two labels, features that are not numbers.
        RunError: no convergence.
    """
    features, label = task_columns["features"], column_name(task_columns["label"])
    names = [features] if isinstance(features, str) else [column_name(c) for c in features]
    group = [column_name(task_columns["group"])] if task_columns["group"] is not None else []
    table = as_table(train, names, [label, *group], "train")
    columns = Columns(tuple(names), isinstance(features, str), label, None)
    check_columns(table, columns)
    scan = known.scan(table, columns, _ROWS)
    classes = _classes(scan, label)
    width = 1
    for side in scan.shape:
        width *= side
    head = nn.Linear(width, len(classes.labels), dtype=torch.float64)
    fit_head(head, lambda: _read(table, columns, classes), scan.rows, l2)
    model = head if len(scan.shape) == 1 else nn.Sequential(nn.Flatten(), head)
    return Task(model, l2=l2, classes=classes.labels, **task_columns)


def fit_head(head: nn.Linear, read: Read, rows: int, l2: float) -> None:
    """Give a linear layer the weights and bias of a softmax regression, fitted to convergence in float64.

    Args:
        head: `[K, d]`, with a bias.
        read: gives batches `(X [B, d], y [B], weights [B] or None)` in float64 over all rows, as often as it is called.
        rows: what the sum of losses is divided by.
        l2: the ridge.

    Raises:
        RunError: no convergence.
    """
    held = list(read()) if 8 * rows * head.in_features <= _KEPT_BYTES else None
    theta = fit_softmax(read if held is None else lambda: held, head.out_features, rows, head.in_features, l2)
    with torch.no_grad():
        head.weight.copy_(theta[:, :-1])
        head.bias.copy_(theta[:, -1])


def _read(table: Table, columns: Columns, classes: Classes) -> Iterator[tuple[Tensor, Tensor, None]]:
    reader = BatchReader(table, columns)
    for shard in table.shards:
        for batch in reader.read(shard, _ROWS):
            x = torch.tensor(batch.x).to(torch.float64).reshape(len(batch), -1)
            yield x, torch.from_numpy(classes.encode(batch.labels)), None


def _classes(scan: TableScan, label: str) -> Classes:
    labels: Sequence[Any] = list(scan.counts[label])
    if len(labels) < 2:
        raise InputError(f"Column {label!r} of train holds one label, {labels[0]!r}.", "give at least two classes.")
    if scan.dtype == "object":
        raise InputError("Features of text cannot be fitted.", "pass numbers: embeddings or counts of words.")
    return Classes(tuple(labels))


def find_head(model: nn.Module, task: Task) -> nn.Linear | None:
    """The one linear layer of a softmax regression, the model that is fitted to convergence; None of any other."""
    layers: list[nn.Module] = list(model) if type(model) is nn.Sequential else [model]
    if len(layers) == 2 and type(layers[0]) is nn.Flatten:
        layers = layers[1:]
    head = layers[0] if len(layers) == 1 else None
    return head if type(head) is nn.Linear and head.bias is not None and task.is_cross_entropy else None
