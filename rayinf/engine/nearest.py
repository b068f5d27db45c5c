"""KNN-Shapley (Jia et al. 2019) of every training row: exact, a tile of validation rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rayinf.core import objectives
from rayinf.core.blocks import find_blocks
from rayinf.data.batches import Batch
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine import curvature as curv
from rayinf.engine import pipeline
from rayinf.engine.job import Chunk
from rayinf.engine.run import Run
from rayinf.engine.scoring import Scoring
from rayinf.engine.stages import codes_of
from rayinf.engine.worker import Ready, Worker
from rayinf.errors import InputError
from rayinf.select.knn_shapley import knn_shapley

# Distances of a tile of validation rows from all training rows (512 MB in float64).
_DISTANCES = 64_000_000
# Tiles that the validation rows are cut into at least, for workers to share, where these have so many rows.
_TILES, _LEAST_ROWS = 8, 256
# Squared distances are exact to this share of the rows' squared norms: nearer ones count as the same.
_EXACT = 1e-12


class Places:
    """Batches of rows as points `[B, d]`, float64: the model's input, or the input of its last linear layer."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        name = find_blocks(worker.model, "last")[0].name if worker.job.spec.space == "embedding" else None
        self._layer: nn.Module | None = None if name is None else worker.modules[name]

    def read(self, table: str, shard: Shard) -> Iterator[tuple[Ready, Tensor]]:
        """The rows of a shard with their points.

        Raises:
            InputError: an input that is not one tensor of numbers.
        """
        w = self._worker
        for ready in w.read(table, shard, w.rows_a_batch(1)):
            yield ready, self._points(ready)

    def _points(self, ready: Ready) -> Tensor:
        if self._layer is not None:
            return self._embedding(ready, self._layer)
        if not isinstance(ready.x, Tensor) or not ready.x.is_floating_point():
            held = str(ready.x.dtype) if isinstance(ready.x, Tensor) else type(ready.x).__name__
            raise InputError(
                f'space="features" needs the model\'s input as one tensor of numbers, and it is a {held}.',
                'pass space="embedding", the input of the last linear layer.',
            )
        return ready.x.flatten(1).double()

    def _embedding(self, ready: Ready, layer: nn.Module) -> Tensor:
        held: list[Tensor] = []
        handle = layer.register_forward_pre_hook(
            lambda module, args, kwargs: held.append((args[0] if args else kwargs["input"]).detach()), with_kwargs=True
        )
        try:
            with torch.no_grad():
                self._worker.predict(ready.x)
        finally:
            handle.remove()
        return held[-1].reshape(len(ready.raw), -1).double()


class Votes:
    """Chunk of validation rows -> `S` `[n, W]`: the Shapley values of all training rows, summed over each group.

    As many distances are held as there are training rows times rows of the chunk.
    """

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        self.worker, self.places = worker, Places(worker)

    def __call__(self, item: Chunk) -> Arrays:
        """The sums of a chunk."""
        job = self.worker.job
        parts, labels, weights = [], [], []
        for shard in item.shards:
            for ready, points in self.places.read("valid", shard):
                codes = {s: codes_of(job.levels[s], ready, s) for s in job.levels}
                parts.append(points)
                labels.append(ready.y)
                weights.append(objectives.weights(job.targets, codes, None, ready.y))
        weights_vw = torch.cat(weights).double().cpu().numpy()
        points = torch.cat(parts)
        distances, norms, own = self._distances(points)
        lengths = points.square().sum(1).cpu().numpy()
        total = np.zeros((distances.shape[1], weights_vw.shape[1]))
        for v, label in enumerate(torch.cat(labels).cpu().numpy()):
            values = knn_shapley(distances[v], own == label, _EXACT * (norms + lengths[v]), job.spec.neighbors)
            total += values[:, None] * weights_vw[v]
        return {"S": total}

    def _distances(self, points_vd: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Squared distances `[V, n]`, and of the training rows the squared norms and the labels `[n]`."""
        table = self.worker.job.tables["train"]
        distances, norms = np.empty((len(points_vd), table.num_rows)), np.empty(table.num_rows)
        labels = np.empty(table.num_rows, np.int64)
        norms_v = points_vd.square().sum(1)
        for shard in table.shards:
            for ready, points in self.places.read("train", shard):
                where = slice(ready.raw.start, ready.raw.start + len(ready.raw))
                squares = points.square().sum(1)
                distances[:, where] = (norms_v[:, None] + squares - 2 * points_vd @ points.T).cpu().numpy()
                norms[where] = squares.cpu().numpy()
                labels[where] = ready.y.cpu().numpy()
        return distances, norms, labels


class Summed(Scoring):
    """Shard -> the sums of its rows. Arrays: `S`."""

    def prepare(self, arrays: Arrays) -> None:
        """The sums of all rows."""
        self.sums = arrays["S"]

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, W]`; the model sees none of them."""
        w = self.worker
        for raw in w.read_raw(table or w.job.scored, shard, w.rows_a_batch(1)):
            values = torch.from_numpy(self.sums[raw.start : raw.start + len(raw)].copy())
            yield _unseen(raw), values


def value_by_neighbors(run: Run) -> list[pa.Table]:
    """KNN-Shapley of every row, for every group of validation rows.

    Returns:
        The shards' tables, or nothing where they were written to the folder.
    """
    tiles, rows = _tiles(run), run.scans["valid"].rows
    if not run.runner.store("has", "votes"):
        with run.timed("votes", rows) as advance:
            for key in run.runner.fold(Votes, {}, tiles, "votes"):
                advance(tiles[key].rows)
    names = curv.column_names(run.job.targets, halves=False)
    return pipeline.score(run, Summed, run.runner.publish("get", "votes"), names)


def _tiles(run: Run) -> dict[int, Chunk]:
    """Validation rows in tiles whose distances fit in memory, one row at least: fixed by the tables alone."""
    fits = max(1, _DISTANCES // run.scans["train"].rows)
    step = min(fits, max(_LEAST_ROWS, -(-run.scans["valid"].rows // _TILES)))
    tiles: list[list[Shard]] = [[]]
    for shard in run.job.tables["valid"].shards:
        at = 0
        while at < shard.rows:
            room = step - sum(s.rows for s in tiles[-1])
            if room == 0:
                tiles.append([])
                continue
            part = min(room, shard.rows - at)
            tiles[-1].append(replace(shard, start=shard.start + at, offset=shard.offset + at, rows=part))
            at += part
    return {k: Chunk(tuple(t)) for k, t in enumerate(tiles)}


def _unseen(raw: Batch) -> Ready:
    return Ready(raw, None, torch.empty(0), None)
