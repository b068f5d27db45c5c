"""The stages of `pairs`: gradients of single validation rows, and the training rows of most and least value to each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rayinf.core import fisher
from rayinf.core.influence import ForwardPass, dense_rows
from rayinf.core.inverse import power_over, solve_rows, split_blocks
from rayinf.core.kfac import Sums
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine.fit_quality import FitSums, add_valid
from rayinf.engine.job import Chunk
from rayinf.engine.scoring import Score, check_finite
from rayinf.engine.worker import Worker
from rayinf.select.top_rows import TopRows, merge_all


class Pairs(Score):
    """Shard -> for each query of a tile, the `top` rows of largest and of smallest value, with their ids.

    Arrays: as of `Score`, and the eigenvectors of the layers whose queries are in their eigenbasis.
    """

    def prepare(self, arrays: Arrays) -> None:
        """Bring queries and eigenvectors to the device, in the model's precision."""
        super().prepare(arrays)
        names = [k.removeprefix("eigen/") for k in arrays if k.startswith("eigen/")]
        keys = [key for n in names for key in (f"q_a/{n}", f"q_g/{n}") if key in arrays]
        held, none = self.worker.tensors({k: arrays[k] for k in keys}, self.worker.dtype), torch.zeros(0)
        self.eigenbases = {n: (held.get(f"q_a/{n}"), held[f"q_g/{n}"], none) for n in names}

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
        self.prepare(arrays)

    def prepare(self, arrays: Arrays) -> None:
        """Bring what the stage needs to the device."""

    def __call__(self, item: Chunk) -> Arrays:
        """Gradients of a tile of rows; as many rows are held as the tile has."""
        parts: list[dict[str, Tensor]] = []
        fit: Sums = {}
        for forward_pass, gradient in self._passes(item, fit):
            parts.append(self.gradients(forward_pass, *fisher.scale_rows(gradient, self.worker.dtype)))
        found = {k: torch.cat([p[k] for p in parts]).cpu().numpy() for k in parts[0]}
        return {**self.merged(found), **{k: v.cpu().numpy() for k, v in fit.items()}}

    def gradients(self, forward_pass: ForwardPass, cotangent_bc: Tensor, scale_b1: Tensor) -> dict[str, Tensor]:
        """The rows' gradients by key."""
        rows = dense_rows(forward_pass, cotangent_bc).double() * scale_b1
        return {f"V/{k}": v for k, v in split_blocks(rows, self.worker.blocks).items()}

    def merged(self, found: Arrays) -> Arrays:
        """What the stage gives for the rows of all batches."""
        return found

    def _passes(self, item: Chunk, fit: Sums) -> Iterator[tuple[ForwardPass, Tensor]]:
        """Forward passes of a tile's rows, with the gradients of their losses in the logits."""
        w = self.worker
        for shard in item.shards:
            for ready in w.read("valid", shard, w.rows_a_batch(1)):
                with w.forward_pass(ready.x) as forward_pass:
                    losses, gradient = fisher.loss_gradient(w.loss, forward_pass.logits, ready.y)
                    add_valid(fit, forward_pass.logits.detach(), ready.y, losses)
                    yield forward_pass, gradient


class SolvedRowQueries(RowQueries):
    """The same through the inverse of a K-FAC, EKFAC or identity curvature, as `U/<block>`, which `Pairs` takes.

    Arrays: the inverse curvature. Layers with one position stay in its eigenbasis, and are named: `eigen/<block>`.
    """

    def prepare(self, arrays: Arrays) -> None:
        """Bring the inverse to the device, in float64."""
        names = [k.removeprefix("D/") for k in arrays if k.startswith("D/")]
        self.power = power_over([arrays[f"D/{n}"] for n in names])
        held = self.worker.tensors(arrays, torch.float64)
        self.eigenbases = {n: (held.get(f"q_a/{n}"), held.get(f"q_g/{n}"), held[f"D/{n}"] / self.power) for n in names}
        self.many = self.worker.shared

    def gradients(self, forward_pass: ForwardPass, cotangent_bc: Tensor, scale_b1: Tensor) -> dict[str, Tensor]:
        """The rows' solved gradients, and their scale."""
        count, out = len(cotangent_bc), {"scale": scale_b1[:, 0].double() * self.power}
        for block, parts in forward_pass.block_tiles(cotangent_bc):
            rows = torch.zeros(count, *block.shape, dtype=self.worker.dtype, device=cotangent_bc.device)
            if block.name in self.eigenbases and bool(self.eigenbases[block.name][2].any()):
                eigenbasis, stay = self.eigenbases[block.name], block.name not in self.many
                rows = solve_rows(parts, rows, eigenbasis, block.name, stay)
            out[f"U/{block.name}"] = rows
        return out

    def merged(self, found: Arrays) -> Arrays:
        """With the layers without curvature, and those that stay in the eigenbasis."""
        flat = {f"flat/{n}": np.ones(1) for n, (_, _, d) in self.eigenbases.items() if not bool(d.any())}
        staying = (n for n, (_, q_g, _) in self.eigenbases.items() if q_g is not None and n not in self.many)
        scale = {} if (found["scale"] == 1).all() else {"scale": found["scale"]}
        queries = {k: v for k, v in found.items() if k != "scale"}
        return {**queries, **scale, **flat, **{f"eigen/{n}": np.ones(1) for n in staying}}
