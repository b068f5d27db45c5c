"""The stages of `pairs`: gradients of single validation rows, and the training rows of most and least value to each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rayinf.core import fisher
from rayinf.core.influence import dense_rows
from rayinf.core.inverse import split_blocks
from rayinf.core.kfac import Sums
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine.fit_quality import FitSums, add_valid
from rayinf.engine.job import Chunk
from rayinf.engine.stages import Score, check_finite
from rayinf.engine.worker import Worker
from rayinf.select.top_rows import TopRows, merge_all


class Pairs(Score):
    """Shard -> for each query of a tile, the `top` rows of largest and of smallest value, with their ids."""

    def __call__(self, item: Shard) -> tuple[TopRows, bytes]:
        """Candidates of a shard, and how well the model fits its rows."""
        top = self.worker.job.spec.top
        parts = []
        self.fit = FitSums(len(self.worker.job.classes.labels))
        for ready, values in self.rows(item):
            array = values.cpu().numpy()
            check_finite(array, ready.raw, self.worker.job.tables["train"].name)
            ids = ready.raw.ids.to_numpy(zero_copy_only=False)
            self.fit.value = max(self.fit.value, float(np.abs(array).max(initial=0.0)))
            parts.append(TopRows.of(array.T, ids, ready.raw.start, top))
        return merge_all(parts), self.fit.to_json()


class RowQueries:
    """Chunk of validation rows -> each row's own gradient, `V/<block>` `[rows, r, o, i]`: queries of `pairs`.

    Beside them, how well the model fits these rows (`add_valid`).
    """

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        self.worker = worker

    def __call__(self, item: Chunk) -> Arrays:
        """Gradients of a tile of rows; as many rows are held as the tile has."""
        w = self.worker
        parts: list[Tensor] = []
        fit: Sums = {}
        for shard in item.shards:
            for ready in w.read("valid", shard, w.rows_a_batch(1)):
                with w.forward_pass(ready.x) as forward_pass:
                    losses, gradient = fisher.loss_gradient(w.loss, forward_pass.logits, ready.y)
                    add_valid(fit, forward_pass.logits.detach(), ready.y, losses)
                    cotangent, scale_b1 = fisher.scale_rows(gradient, w.dtype)
                    parts.append(dense_rows(forward_pass, cotangent).double() * scale_b1)
        queries = split_blocks(torch.cat(parts), w.blocks)
        return {
            **{f"V/{k}": v.cpu().numpy() for k, v in queries.items()},
            **{k: v.cpu().numpy() for k, v in fit.items()},
        }
