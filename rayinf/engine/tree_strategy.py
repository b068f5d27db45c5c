"""The strategy "tree": a tree of the labelled rows' influence, on their features alone, values the pool.

See Chhabra 2024, section 5.5.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayinf.data.batches import Array, row_keys, uniforms
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine import pipeline, scoring
from rayinf.engine.run import Run
from rayinf.engine.worker import Ready, Worker
from rayinf.errors import InputError

# Labelled rows that the tree is fitted on: more add memory, and change it little.
_MOST_ROWS = 50_000


class LabeledValues(scoring.Score):
    """Shard of labelled rows -> features `x` and values of those that the tree is fitted on."""

    def __init__(self, worker: Worker, arrays: Arrays, share: float) -> None:
        super().__init__(worker, arrays, [])
        self.share = share

    def __call__(self, item: Shard) -> Arrays:
        """A share of the shard's rows, by their contents alone."""
        x, values = [], []
        for ready, found in self.rows(item, "train"):
            draws = uniforms(row_keys(ready.raw.x, ready.raw.labels), self.worker.job.spec.seed + 5, 1)[:, 0]
            array = found.cpu().numpy()
            scoring.check_finite(array, ready.raw, self.worker.job.tables["train"].name)
            x.append(_flat(ready.raw.x)[draws < self.share])
            values.append(array[draws < self.share, 0])
        return {"x": np.concatenate(x), "values": np.concatenate(values)}


class TreeValues(scoring.Scoring):
    """Shard of a pool -> the influence that the tree predicts for its rows. Arrays: the tree."""

    def prepare(self, arrays: Arrays) -> None:
        """Unpack the tree."""
        self.tree = pickle.loads(arrays["tree"].tobytes())

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, 1]`, float64."""
        w = self.worker
        for ready in w.read("pool", shard, w.rows_a_batch(1)):
            yield ready, torch.from_numpy(self.tree.predict(_flat(ready.raw.x)))[:, None]


def value_by_tree(run: Run) -> list[pa.Table]:
    """Value the labelled rows, fit the tree without labels in the driver, predict shard by shard.

    The tree grows until its leaves are pure, and shrinkage alone smooths it: a shallow one would give most of a pool a
    few values in common.

    Returns:
        The shards' tables, or nothing where they were written to the folder.
    """
    from rayinf.select.tree import InfluenceTree  # scikit-learn takes a second to import, and few runs need it

    solved = pipeline.solve_queries(run)
    shards = {s.index: s for s in run.job.tables["train"].shards}
    rows = run.scans["train"].rows
    parts = run.gather("labelled values", LabeledValues, solved, shards, share=min(1.0, _MOST_ROWS / rows))
    x, values = (np.concatenate([part[name] for part in parts]) for name in ("x", "values"))
    tree = InfluenceTree(max_depth=None, append_label=False).fit(x, None, values)
    arrays = {"tree": np.frombuffer(pickle.dumps(tree, protocol=5), np.uint8)}
    return pipeline.score(run, TreeValues, arrays, ["tree"])


def _flat(x: Array) -> Array:
    """Features `[B, d]`.

    Raises:
        InputError: they are not numbers.
    """
    if x.dtype.kind not in "fiub":
        raise InputError(
            f"The features are {x.dtype}, not numbers: a tree cannot split on them.",
            'use strategy="iv", or embeddings as the features.',
        )
    return x.reshape(len(x), -1)
