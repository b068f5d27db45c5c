"""The stages of strategies that value a row of a pool by itself: by its logits, under dropout, by its influence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core import uncertainty
from rayinf.core.capture import forward
from rayinf.core.dropout import mc_log_probabilities
from rayinf.core.fisher import loss_gradient
from rayinf.data.batches import uniforms
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine import scoring
from rayinf.engine.entry import BY_DROPOUT
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.worker import Ready

_OF_LOGITS = {
    "entropy": uncertainty.entropy,
    "margin": uncertainty.margin,
    "least_confidence": uncertainty.least_confidence,
}


class Uncertain(scoring.Scoring):
    """Shard of a pool -> how unsure the model is of its rows, or a uniform draw for "random"."""

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, 1]`, float64."""
        w = self.worker
        for ready in w.read("pool", shard, w.rows_a_batch(1)):
            yield ready, self._values(ready)[:, None]

    def _values(self, ready: Ready) -> Tensor:
        spec: AcquireSpec = self.worker.job.spec
        if spec.strategy == "random":
            keys = np.arange(ready.raw.start, ready.raw.start + len(ready.raw), dtype=np.uint64)
            return torch.from_numpy(uniforms(keys, spec.seed, 1)[:, 0])
        if spec.strategy in BY_DROPOUT:
            return uncertainty.bald(self.samples(ready))
        with torch.no_grad():
            return _OF_LOGITS[spec.strategy](forward(self.worker.model, ready.x))

    def samples(self, ready: Ready) -> Tensor:
        """Log-probabilities `[S, B, K]` under dropout."""
        spec: AcquireSpec = self.worker.job.spec
        return mc_log_probabilities(self.worker.model, forward, ready.x, spec.samples, spec.seed)


class DropoutSamples(Uncertain):
    """Chosen rows of a shard of a pool -> their log-probabilities under dropout, `{"P": [S, B, K]}`."""

    def __init__(self, worker: Any, arrays: Arrays) -> None:
        super().__init__(worker, arrays, [])
        self.chosen = arrays["positions"]

    def __call__(self, item: Shard) -> Arrays:
        """The chosen rows of a shard, in order."""
        w = self.worker
        chosen = scoring.chosen_rows(w, item, self.chosen, w.rows_a_batch(1))
        parts = [self.samples(ready).cpu().numpy() for ready in chosen]
        k = len(w.job.classes.labels)
        return {"P": np.concatenate(parts, axis=1) if parts else np.zeros((w.job.spec.samples, 0, k))}


class PoolScore(scoring.Score):
    """Shard of a pool -> influence of its rows on the reference rows, each with its likeliest label."""

    def gradient(self, logits: Tensor, ready: Ready) -> Tensor:
        """Gradients `[B, C]` of the losses of the likeliest labels."""
        return loss_gradient(self.worker.loss, logits, logits.detach().argmax(1))[1]
