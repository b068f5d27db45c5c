"""Values that cost a scoring pass and no curvature: of the row and its gradient, and of gradients beside each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rayinf.core import fisher
from rayinf.core.influence import ForwardPass
from rayinf.core.margins import likeliest_other, margin
from rayinf.core.row_norms import row_cosines, row_norms
from rayinf.data.batches import uniforms
from rayinf.data.shards import Shard
from rayinf.engine.scoring import Score, Scoring
from rayinf.engine.worker import Ready


class RowValues(Scoring):
    """Shard -> of every row what the names of the columns say: "loss", "margin", "grad_norm", "random".

    The higher, the better: minus the loss and the norm. "other" is the position of the likeliest class but the label's.
    Float64. The draws are keyed by the row's position, so that no shard, batch or worker moves one.
    """

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, columns]`."""
        w = self.worker
        for ready in w.read(table or w.job.scored, shard, w.rows_a_batch(1)):
            if "grad_norm" in self.names:
                with w.forward_pass(ready.x) as forward_pass:
                    yield ready, self._columns(ready, forward_pass.logits, forward_pass)
            else:
                with torch.no_grad():
                    logits = w.predict(ready.x)
                yield ready, self._columns(ready, logits, None)

    def _columns(self, ready: Ready, logits: Tensor, forward_pass: ForwardPass | None) -> Tensor:
        losses, gradient = fisher.loss_gradient(self.worker.loss, logits, ready.y)
        self.fit.add(logits, ready.y, losses, gradient)
        found = {"loss": -losses.double()}
        if "margin" in self.names:
            found["margin"] = margin(logits, ready.y)
        if "other" in self.names:
            found["other"] = likeliest_other(logits, ready.y)
        if "random" in self.names:
            keys = np.arange(ready.raw.start, ready.raw.start + len(ready.raw), dtype=np.uint64)
            found["random"] = torch.from_numpy(uniforms(keys, self.worker.job.spec.seed, 1)[:, 0] - 1.0)
        if forward_pass is not None:
            cotangent, scale_b1 = fisher.scale_rows(gradient, self.worker.dtype)
            found["grad_norm"] = -row_norms(forward_pass, cotangent) * scale_b1[:, 0]
        return torch.stack([found[name].to(losses.device, torch.float64) for name in self.names], dim=1)


class GradientDots(Score):
    """Shard -> products of its row gradients with those of the objectives, which `curvature="identity"` divides by n.

    Arrays: as of `Score`.
    """

    def values(self, forward_pass: ForwardPass, cotangent_bc: Tensor, scale_b1: Tensor) -> Tensor:
        """Values `[B, Q]` of a batch."""
        return super().values(forward_pass, cotangent_bc, scale_b1) * self.worker.job.tables["train"].num_rows


class GradientCosines(Score):
    """Shard -> cosines between its row gradients and those of the objectives. Arrays: as of `Score`."""

    def values(self, forward_pass: ForwardPass, cotangent_bc: Tensor, scale_b1: Tensor) -> Tensor:
        """Values `[B, Q]` of a batch: no scale of rows or queries matters."""
        return row_cosines(forward_pass, cotangent_bc, self.queries)
