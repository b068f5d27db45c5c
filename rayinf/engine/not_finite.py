"""Which row made a sum NaN or infinite: looked for only once a sum is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rayinf.data.shards import Shard
from rayinf.engine.worker import Worker
from rayinf.errors import RowsError

_ROWS = 256
_FIX = "check that row and Task(transform=...), or use a higher precision."


def not_finite(worker: Worker, table: str, shards: Sequence[Shard]) -> RowsError:
    """The error of sums that are not finite: the first row whose logits or loss are not, else all rows.

    Args:
        worker: that made the sums.
        table: what was summed.
        shards: consecutive ones.
    """
    name, task = worker.job.tables[table].name, worker.job.task
    with torch.no_grad():
        for shard in shards:
            for ready in worker.read(table, shard, _ROWS):
                logits = worker.predict(ready.x)
                finite = torch.isfinite(logits).all(1)
                what = "logits that are"
                if bool(finite.all()) and worker.job.columns[table].label is not None:
                    finite, what = torch.isfinite(task.row_loss(logits, ready.y)), "a loss that is"
                if not bool(finite.all()):
                    at = int((~finite).nonzero()[0])
                    row = f"row {ready.raw.start + at} of {name} (id {ready.raw.ids[at].as_py()!r})"
                    return RowsError(f"The model gives {what} NaN or infinite on {row}.", _FIX)
    first, last = shards[0].start, shards[-1].start + shards[-1].rows - 1
    return RowsError(
        f"The model's gradients overflow: their sum over rows {first} to {last} of {name} is not finite.",
        "check the scale of the features and of the model's outputs, or use a higher precision.",
    )
