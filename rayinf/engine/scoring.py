"""Stages that give every row of a table its values, a shard at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayinf.core import fisher, inverse
from rayinf.core.influence import Eigenbasis, ForwardPass, dense_rows, row_products, self_products
from rayinf.core.thin_queries import ThinQueries
from rayinf.data.batches import Batch
from rayinf.data.checked_folder import Entry
from rayinf.data.files import Arrays
from rayinf.data.part_files import PartPlace
from rayinf.data.scores import LABEL_COLUMN
from rayinf.data.shards import Shard
from rayinf.engine.fit_quality import KEY, FitSums
from rayinf.engine.worker import Ready, Worker
from rayinf.errors import RowsError

# How the keys of thin queries begin.
THIN = ("left/", "right/")


class Scoring:
    """A stage that gives every row of the scored table its values, one shard at a time.

    Options: `names` of its columns; `into`, where parts are written, or None to return them.
    """

    def __init__(self, worker: Worker, arrays: Arrays, names: list[str], into: PartPlace | None = None) -> None:
        self.worker, self.names, self.into = worker, names, into
        self.fit = FitSums(len(worker.job.classes.labels))
        self.prepare(arrays)

    def prepare(self, arrays: Arrays) -> None:
        """Bring what the stage needs to the device."""

    def values(self, forward_pass: ForwardPass, cotangent_bc: Tensor, scale_b1: Tensor) -> Tensor:
        """Values `[B, columns]` of a batch, whose gradients in the logits are the cotangents times the scale."""
        raise NotImplementedError

    @staticmethod
    def counts_of_none(classes: int) -> dict[bytes, bytes]:
        """The metadata of a part without values: sums over no rows."""
        return {KEY: FitSums(classes).to_json()}

    def __call__(self, item: Shard) -> pa.Table | Entry:
        """Values of a shard, as a table, or the entry of the file that they were written to."""
        return self.table(item) if self.into is None else self.into.write(item.index, self.table(item))

    def table(self, shard: Shard) -> pa.Table:
        """`row_id`, the label (a pool has none) and the values of a shard, in row order."""
        ids, labels, parts = [], [], []
        self.fit = FitSums(len(self.worker.job.classes.labels))
        for ready, values in self.rows(shard):
            array = values.cpu().numpy()
            check_finite(array, ready.raw, self.worker.job.tables[self.worker.job.scored].name)
            parts.append(array)
            ids.append(ready.raw.ids)
            labels.append(ready.raw.labels)
        held = np.concatenate(parts)
        columns = {name: pa.array(np.ascontiguousarray(held[:, k])) for k, name in enumerate(self.names)}
        job = self.worker.job
        hidden = {LABEL_COLUMN: pa.array(np.concatenate(labels))} if job.columns[job.scored].label else {}
        table = pa.table({"row_id": pa.chunked_array(ids).combine_chunks(), **hidden, **columns})
        self.fit.value = float(np.abs(held).max(initial=0.0))
        return table.replace_schema_metadata({KEY: self.fit.to_json()}) if hidden else table

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard, of the scored table or another, with their values."""
        w = self.worker
        for ready in w.read(table or w.job.scored, shard, w.rows_a_batch(1)):
            with w.forward_pass(ready.x) as forward_pass:
                gradient = self.gradient(forward_pass.logits, ready)
                yield ready, self.values(forward_pass, *fisher.scale_rows(gradient, w.dtype))

    def gradient(self, logits: Tensor, ready: Ready) -> Tensor:
        """Gradients `[B, C]` of the rows' losses in the logits."""
        losses, gradient = fisher.loss_gradient(self.worker.loss, logits, ready.y)
        self.fit.add(logits, ready.y, losses, gradient)
        return gradient


class Score(Scoring):
    """Shard -> products of its row gradients with preconditioned queries. Option: `names`.

    Arrays: `U/<block>`, or of thin queries `left/<block>` and `right/<block>`.

    `scale` `[Q]` is there where the queries do not fit in the model's precision: values are then float64.
    """

    # Of the layers whose queries are in their eigenbasis.
    eigenbases: Mapping[str, Eigenbasis] | None = None

    def prepare(self, arrays: Arrays) -> None:
        """Bring the queries to the device, in the model's precision."""
        kept = {k: v for k, v in arrays.items() if k.startswith(("U/", *THIN))}
        held = self.worker.tensors(kept, self.worker.dtype)
        self.queries: dict[str, Any] = {k.removeprefix("U/"): v for k, v in held.items() if k.startswith("U/")}
        for name in (k.removeprefix(THIN[0]) for k in held if k.startswith(THIN[0])):
            self.queries[name] = ThinQueries(*(held[f"{side}{name}"] for side in THIN))
        self.scale = (
            self.worker.tensors({"scale": arrays["scale"]}, torch.float64)["scale"] if "scale" in arrays else None
        )
        self.flat = frozenset(b.name for b in self.worker.blocks if f"flat/{b.name}" in arrays)

    def values(self, forward_pass: ForwardPass, cotangent_bc: Tensor, scale_b1: Tensor) -> Tensor:
        """Values `[B, Q]` of a batch."""
        found = row_products(forward_pass, cotangent_bc, self.queries, self.flat, eigenbases=self.eigenbases) * scale_b1
        return found.to(self.worker.dtype) if self.scale is None else found * self.scale


class SelfScore(Scoring):
    """Shard -> each row gradient's product with itself. Arrays: basis and `D/<block>`, or a dense inverse."""

    def prepare(self, arrays: Arrays) -> None:
        """Bring the inverse to the device, in the model's precision."""
        names = [k.removeprefix("D/") for k in arrays if k.startswith("D/")]
        self.scale = inverse.power_over([arrays[k] for k in ("dense", *(f"D/{n}" for n in names)) if k in arrays])
        scaled = {k: v / self.scale if k.startswith("D/") or k == "dense" else v for k, v in arrays.items()}
        held = self.worker.tensors(scaled, self.worker.dtype)
        self.dense = held.get("dense")
        self.eigenbases = {n: (held.get(f"q_a/{n}"), held.get(f"q_g/{n}"), held[f"D/{n}"]) for n in names}
        self.flat = frozenset(n for n in names if not arrays[f"D/{n}"].any())

    def values(self, forward_pass: ForwardPass, cotangent_bc: Tensor, scale_b1: Tensor) -> Tensor:
        """Values `[B, 1]` of a batch."""
        if self.dense is not None:
            rows = dense_rows(forward_pass, cotangent_bc)
            found = ((rows @ self.dense) * rows).sum(1, keepdim=True)
        else:
            found = self_products(forward_pass, cotangent_bc, self.eigenbases, self.flat)[:, None]
        found = found * scale_b1.square()
        return found.to(self.worker.dtype) if self.scale == 1 else found * self.scale


def chosen_rows(worker: Worker, shard: Shard, positions: np.ndarray[Any, Any], size: int) -> Iterator[Ready]:
    """The rows of a shard of a pool at some positions of the table, as batches of tensors."""
    for raw in worker.read_raw("pool", shard, size):
        rows = np.flatnonzero(np.isin(np.arange(raw.start, raw.start + len(raw)), positions))
        if len(rows):
            yield worker.ready("pool", raw.take(rows))


def check_finite(values: np.ndarray[Any, Any], raw: Batch, table: str) -> None:
    """Refuse values that no decision can be made on.

    Args:
        values: `[B, columns]`.
        raw: their rows.
        table: its name.

    Raises:
        RowsError: the first row with a value that is not finite.
    """
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RowsError(
            f"The value of row {raw.start + row} of {table} (id {raw.ids[row].as_py()!r}) is not finite: "
            "the model's output or gradient overflows there.",
            "check that row and Task(transform=...), or use a higher precision.",
        )
