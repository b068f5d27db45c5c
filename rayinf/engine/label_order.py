"""Whether labels stand in the order of the model's logits: its predictions on some training rows, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rayinf.data.batches import BatchReader
from rayinf.data.labels import check_order, is_certain
from rayinf.data.shards import Shard
from rayinf.data.tables import Table
from rayinf.engine.job import Job
from rayinf.engine.probe import Probe
from rayinf.engine.worker import Worker
from rayinf.errors import RowsError

# Pieces of the training table that are read, spread over it, and rows of each.
_PIECES, _ROWS = 16, 32
_MOST_CLASSES = 1000


def check_labels(job: Job, probed: Probe, counts: Mapping[Any, int]) -> None:
    """Refuse an order of labels that another beats clearly, where the labels themselves do not fix it.

    Labels that the task names, and integers from 0 on, are not checked here (the passes over all rows warn of them).

    Args:
        job: settled.
        probed: the model on a few rows.
        counts: of the training table's labels.

    Raises:
        InputError: as `check_order` does.

    Cost: a forward pass over at most 512 rows.
    """
    size = len(job.classes.labels)
    if is_certain(job.classes, counts, job.task.classes) or size > _MOST_CLASSES:
        return
    worker = Worker(job)
    worker.model = probed.model  # its outputs are logits already
    reader = BatchReader(job.tables["train"], job.columns["train"])
    halves = [np.zeros((size, size), np.int64) for _ in range(2)]
    side = 0
    left_out = (RowsError,) if job.spec.on_error == "skip" else ()  # rows that a run may go on without
    for piece in pieces(job.tables["train"]):
        for raw in reader.read(piece, _ROWS):
            with suppress(*left_out), torch.no_grad():
                ready = worker.ready("train", raw)
                predicted = worker.predict(ready.x).argmax(1).cpu().numpy()
                for y, p in zip(ready.y.cpu().numpy(), predicted, strict=True):
                    halves[side][y, p] += 1
                    side = 1 - side
    check_order(job.classes, halves)


def pieces(table: Table, count: int = _PIECES, size: int = _ROWS) -> list[Shard]:
    """At most `count` pieces of at most `size` rows, spread evenly over a table; all of a table that is not larger."""
    shards = [s for s in table.shards if s.rows]
    total = sum(s.rows for s in shards)
    if total <= count * size:
        return shards
    starts, out, at, k = [total * k // count for k in range(count)], list[Shard](), 0, 0
    for shard in shards:
        while k < len(starts) and starts[k] < at + shard.rows:
            inside = min(starts[k] - at, max(shard.rows - size, 0))
            rows = min(size, shard.rows - inside)
            out.append(replace(shard, start=shard.start + inside, rows=rows, offset=shard.offset + inside))
            k += 1
        at += shard.rows
    return out
