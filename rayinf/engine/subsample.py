"""Which rows a subsample measures: first a share by chance, then those that a forest on these predicts to be on top.

The forest learns from what every row has for one pass forward and one backward, in the model's own precision: its
outputs, the loss, the length of its gradient, and (for FI on a validation loss) its influence on that loss; from the
label where it is known, and from the features where they are few numbers. Yu 2025, Algorithms 6 and 8 take features
and label alone, and all that is measured by chance: of pixels a forest learns little.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from rayinf.core.fisher import loss_gradient, scale_rows
from rayinf.data.batches import Batch, row_keys, uniforms
from rayinf.data.files import Arrays
from rayinf.data.scores import to_numpy
from rayinf.engine import scoring
from rayinf.engine.worker import Ready, Worker
from rayinf.select.forest import RankForest

Array = np.ndarray[Any, Any]

# The key under which a shard's table of FI carries counts over its rows.
SUMMARY = b"rayinf"
# Features of more numbers than this are left out: trees that look at a third of all columns would hardly see the rest.
_MOST_FEATURES = 256
# Log-probabilities of more classes than this are taken in falling order.
_MOST_CLASSES = 32


class Subsample:
    """The rows of a table that a worker's stage measures.

    Args:
        worker: whose job says how many.
        arrays: of the stage; with `forest` and `limit`, the rows that the forest puts on top are taken, else a share by
            chance. `U/<block>`, the preconditioned validation gradient: the influence on it is a feature.
    """

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        self.worker, spec = worker, worker.job.spec
        self.queries = {k: v for k, v in arrays.items() if k == "scale" or k.startswith(("U/", "flat/"))}
        self.share = spec.first_share(worker.job.tables[worker.job.scored].num_rows)
        self.forest = RankForest.from_array(arrays["forest"]) if "forest" in arrays else None
        self.limit: Array = arrays.get("limit", np.zeros(2))

    def rows(self, raw: Batch) -> Array:
        """Positions in the batch of the rows to measure."""
        if self.forest is None:
            return self.first(raw)
        left, labels = self.left(raw), self.labels(raw)
        if not len(left):
            return left
        some = raw.take(left)
        ranks = self.forest.predict(self.features(some), None if labels is None else labels[left])
        at, share = self.limit
        draws = uniforms(row_keys(some.x, some.labels), self.worker.job.spec.seed + 8, 1)[:, 0]
        return left[(ranks > at) | ((ranks == at) & (draws < share))]

    def first(self, raw: Batch) -> Array:
        """Positions of the rows that are measured by chance, by their contents alone.

        Rows that are excluded are left out. Which rows are excluded moves the seed too, so that every round of active
        learning draws anew from the rows that are left (Yu 2025, Algorithm 8).
        """
        if self.share >= 1.0:
            return np.flatnonzero(self._free(raw))
        spec = self.worker.job.spec
        draws = uniforms(row_keys(raw.x, raw.labels), spec.seed + spec.draw + 2, 1)[:, 0]
        return np.flatnonzero((draws < self.share) & self._free(raw))

    def left(self, raw: Batch) -> Array:
        """Positions of the others that may be measured."""
        others = self._free(raw)
        others[self.first(raw)] = False
        return np.flatnonzero(others)

    def _free(self, raw: Batch) -> Array:
        undrawn = self.worker.job.spec.undrawn
        return ~np.isin(to_numpy(raw.ids), np.asarray(undrawn)) if undrawn else np.ones(len(raw), bool)

    def labels(self, raw: Batch) -> Array | None:
        """Class codes `[B]`; None where the table has no labels."""
        job = self.worker.job
        return None if job.columns[job.scored].label is None else job.classes.encode(raw.labels)

    def features(self, raw: Batch) -> Array:
        """What the forest learns from beside the label, `[B, columns]`, float32."""
        w, parts = self._own.worker, []
        size = w.rows_a_batch(1)
        for start in range(0, len(raw), size):
            rows = np.arange(start, min(start + size, len(raw)))
            parts.append(self._outputs(w.ready(w.job.scored, raw.take(rows))))
        x = raw.x.reshape(len(raw), -1)
        few = x.shape[1] <= _MOST_FEATURES and x.dtype.kind in "fiub"
        found = np.concatenate(parts)
        return np.column_stack([x.astype(np.float32), found]) if few else found

    @cached_property
    def _own(self) -> scoring.Score:
        """Products with the queries, by a worker whose passes are in the precision that the model came in."""
        job = replace(self.worker.job, own_precision=True)
        return scoring.Score(Worker(job, str(self.worker.device)), self.queries, [])

    def _outputs(self, ready: Ready) -> Array:
        own = self._own
        w = own.worker
        known = w.job.columns[w.job.scored].label is not None
        with w.forward_pass(ready.x) as forward_pass:
            logits = forward_pass.logits.detach()
            losses, gradient = loss_gradient(w.loss, logits, ready.y if known else logits.argmax(1))
            influence = own.values(forward_pass, *scale_rows(gradient, w.dtype)) if own.queries else logits[:, :0]
        log_p = logits.double().log_softmax(1)
        top = log_p.topk(2, dim=1).values
        columns = [
            log_p if log_p.shape[1] <= _MOST_CLASSES else log_p.topk(_MOST_CLASSES, dim=1).values,
            losses.double()[:, None],
            # In float32 a sure row's gradient would be 0.
            gradient.double().norm(dim=1, keepdim=True).clamp(min=1e-300).log(),
            top[:, :1] - top[:, 1:],
            influence.double(),
            influence.double().abs(),
        ]
        out: Array = torch.cat(columns, 1).float().cpu().numpy()
        return out
