"""What goes into a model's last linear layer, as stages: the embeddings of "badge", "coreset" and "typiclust"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core.blocks import find_blocks
from rayinf.core.capture import capture
from rayinf.core.fisher import loss_gradient
from rayinf.data.batches import row_keys, uniforms
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine import scoring
from rayinf.engine.run import Run
from rayinf.engine.worker import Ready, Worker
from rayinf.errors import InputError
from rayinf.select.k_center import nearest_distance

# Bytes of the labelled rows' embeddings that every worker holds: beyond them, a share of these rows is drawn.
_LABELED_BYTES = 256 << 20


class LastLayer:
    """Inputs and output gradients of a worker's last linear layer."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.blocks = worker, find_blocks(worker.model, "last")

    def __call__(self, ready: Ready) -> tuple[Tensor, Tensor]:
        """Of every row: `[B, i]`, and `[B, o]` of the loss with the likeliest label.

        Raises:
            InputError: the layer runs more than once a row, or at several positions of it.
        """
        w, (block,) = self.worker, self.blocks
        with capture(w.model, self.blocks) as captured:
            logits = w.predict(ready.x)
            inputs = captured.inputs.get(block.name, [])
            if len(inputs) != 1 or inputs[0].dim() != 2:
                shapes = ", ".join(str(list(v.shape)) for v in inputs) or "nothing"
                raise InputError(
                    f"strategy={w.job.spec.strategy!r}: the last linear layer, {block.name!r}, takes {shapes} for "
                    f"{len(logits)} rows, not one vector [B, i] of each.",
                    'use strategy="fi_batch" or "entropy", which take any model.',
                )
            cotangent = loss_gradient(w.loss, logits, logits.detach().argmax(1))[1].to(logits.dtype)
            (gradient,) = captured.gradients(logits, cotangent, last=True)[block.name]
        return inputs[0].detach().float(), gradient.float()


class LabeledEmbeddings:
    """Shard of labelled rows -> `{"a": [B, i]}`, of a share of them by their contents. Option: the most rows."""

    def __init__(self, worker: Worker, arrays: Arrays, most: int) -> None:
        self.worker, self.most, self.layer = worker, most, LastLayer(worker)

    def __call__(self, item: Shard) -> Arrays:
        """The rows of a shard, in order."""
        w, parts = self.worker, []
        share = self.most / max(w.job.tables["train"].num_rows, 1)
        for ready in w.read("train", item, w.rows_a_batch(1)):
            drawn = uniforms(row_keys(ready.raw.x, ready.raw.labels), w.job.spec.seed + 7, 1)[:, 0] < share
            parts.append(self.layer(ready)[0].cpu().numpy()[drawn])
        return {"a": np.concatenate(parts)}


class EmbeddingValues(scoring.Scoring):
    """Shard of a pool -> how long a row's gradient in the last layer is ("badge"), or how far it is from all labels.

    Arrays: `a` of the labelled rows for the others: the distance of the embedding to the nearest of them.
    """

    def prepare(self, arrays: Arrays) -> None:
        """Find the layer."""
        self.layer, self.labeled = LastLayer(self.worker), arrays.get("a")

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, 1]`, float64."""
        w = self.worker
        for ready in w.read("pool", shard, w.rows_a_batch(1)):
            a_bi, g_bo = self.layer(ready)
            if self.labeled is None:
                values = a_bi.double().norm(dim=1) * g_bo.double().norm(dim=1)
            else:
                values = torch.from_numpy(nearest_distance(a_bi.cpu().numpy(), self.labeled))
            yield ready, values[:, None]


class ChosenEmbeddings:
    """Chosen rows of a shard of a pool -> `{"a": [B, i], "g": [B, o]}`, float32. Arrays: `positions`."""

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        self.worker, self.layer, self.chosen = worker, LastLayer(worker), arrays["positions"]

    def __call__(self, item: Shard) -> Arrays:
        """The chosen rows of a shard, in order."""
        (block,) = self.layer.blocks
        _, o, i = block.shape
        a = [np.zeros((0, i - block.has_bias), np.float32)]
        g = [np.zeros((0, o), np.float32)]
        for ready in scoring.chosen_rows(self.worker, item, self.chosen, self.worker.rows_a_batch(1)):
            a_bi, g_bo = self.layer(ready)
            a.append(a_bi.cpu().numpy())
            g.append(g_bo.cpu().numpy())
        return {"a": np.concatenate(a), "g": np.concatenate(g)}


def labeled_embeddings(run: Run) -> Arrays:
    """`a` of the labelled rows, `[L, i]`: all of them, or as many as fit in 256 MB."""
    shards = {s.index: s for s in run.job.tables["train"].shards}
    most = _LABELED_BYTES // (4 * embedding_width(run)[0])
    parts: list[Any] = run.gather("labelled embeddings", LabeledEmbeddings, {}, shards, most=most)
    return {"a": np.concatenate([part["a"] for part in parts])}


def embedding_width(run: Run) -> tuple[int, int]:
    """Inputs and outputs of the last linear layer."""
    (block,) = find_blocks(run.probe.model, "last")
    return block.shape[2] - block.has_bias, block.shape[1]
