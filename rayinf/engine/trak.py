"""TRAK (Park et al. 2023): influence in a random projection of the gradients of each row's log-odds.

With `f_i` the log-odds of row i's label, `p_i` its probability and `phi_i = P' grad f_i`, a row's value for an
objective q is the mean over models of `(P' grad q)' (Phi' Phi)^-1 (-phi_i)`, times the mean of `1 - p_i`. Cross-entropy
has `grad l_i = -(1 - p_i) grad f_i`: of one model this is the influence of the row with `P (Phi' Phi)^-1 P'` as the
inverse curvature. The queries go through it once, back to the parameters, so that the pass over the rows that gives
their values projects nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayinf.core import fisher, inverse, kfac
from rayinf.core.blocks import Block
from rayinf.core.influence import dense_rows
from rayinf.core.kfac import Sums
from rayinf.core.margins import log_odds
from rayinf.core.projection import Projection
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine import curvature as curv
from rayinf.engine import pipeline, several_models
from rayinf.engine.run import Run
from rayinf.engine.scoring import Score
from rayinf.engine.stages import Summing
from rayinf.engine.worker import BATCH_FLOATS, Ready
from rayinf.errors import InputError

_WEIGHT = ":weight"


class ProjectedGram(Summing):
    """Chunk -> `Phi' Phi` of its rows, `G` `[k, k]`, float64."""

    def prepare(self, arrays: Arrays) -> None:
        """The projection."""
        spec = self.worker.job.spec
        self.projection = Projection(sum(b.numel for b in self.worker.blocks), spec.dim, spec.seed)

    def rows_at_once(self) -> int:
        """As many as have their gradients in 512 MB."""
        return min(super().rows_at_once(), max(1, BATCH_FLOATS // self.projection.parameters))

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w = self.worker
        with w.forward_pass(ready.x) as forward_pass:
            _, gradient, _ = log_odds(forward_pass.logits, ready.y)
            cotangent, scale_b1 = fisher.scale_rows(gradient, w.dtype)
            phi = self.projection.down(dense_rows(forward_pass, cotangent)) * scale_b1
        kfac.add(sums, "G", phi.T @ phi)


class TrakScore(Score):
    """Shard -> products of minus the gradients of its rows' log-odds with lifted queries, and `1 - p`."""

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, Q + 1]`, float64."""
        w = self.worker
        for ready in w.read(table or w.job.scored, shard, w.rows_a_batch(1)):
            with w.forward_pass(ready.x) as forward_pass:
                self.gradient(forward_pass.logits, ready)  # how well the model fits
                _, gradient, weight = log_odds(forward_pass.logits, ready.y)
                found = self.values(forward_pass, *fisher.scale_rows(-gradient, w.dtype))
                yield ready, torch.cat([found.double(), weight[:, None]], dim=1)


def lift(solved: Arrays, gram: Arrays, blocks: Sequence[Block], seed: int, rows: int) -> Arrays:
    """Query vectors through `P (Phi' Phi)^-1 P'`, in the parameters.

    Args:
        solved: `U/<block>` of `curvature="identity"`: gradients of the objectives over n.
        gram: `G`.
        blocks: what is valued.
        seed: of the projection.
        rows: n.

    Raises:
        InputError: `Phi' Phi` is singular.
    """
    u = {k.removeprefix("U/"): torch.tensor(v).double() for k, v in solved.items() if k.startswith("U/")}
    dtype = torch.from_numpy(solved[f"U/{blocks[0].name}"][:0]).dtype
    scale = torch.tensor(solved["scale"]) if "scale" in solved else torch.ones(len(u[blocks[0].name]))
    v_qp = inverse.join_blocks(u, blocks) * rows * scale.double()[:, None]
    g = torch.tensor(gram["G"])
    with curv.fixed_threads(v_qp.numel() > curv.LARGE_QUERIES):
        levels = torch.linalg.eigvalsh(g)
        if float(levels[0]) <= len(g) * torch.finfo(torch.float64).eps * float(levels[-1]):
            raise InputError(
                f"dim={len(g):,}: the gradients of the {rows:,} training rows span fewer directions, so that their "
                f"projections have a singular matrix (eigenvalues {float(levels[0]):.1e} to {float(levels[-1]):.1e}).",
                "pass a smaller dim.",
            )
        projection = Projection(v_qp.shape[1], len(g), seed)
        lifted = projection.up(torch.linalg.solve(g, projection.down(v_qp).T).T.contiguous())
    found, more = inverse.split_blocks(lifted, blocks), {}
    if dtype is torch.float32 and inverse.out_of_range({k: x.float() for k, x in found.items()}):
        found, scale_q = inverse.scale_queries(found)
        more = {"scale": scale_q.numpy()}
    return {**{f"U/{k}": x.to(dtype).numpy() for k, x in found.items()}, **more}


def join(values_kbc: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mean over models of the products, times the mean of `1 - p`, the last column."""
    mean = values_kbc.astype(np.float64).mean(0)
    found: np.ndarray[Any, Any] = mean[:, :-1] * mean[:, -1:]
    return found


def value_by_trak(run: Run) -> list[pa.Table]:
    """TRAK's values of every row for every objective.

    Returns:
        The shards' tables, or nothing where they were written to the folder.
    """
    names = curv.column_names(run.job.targets, halves=False)
    blocks, seed, rows = run.probe.blocks, run.spec.seed, run.scans["train"].rows

    def one(k: int, into: str) -> list[pa.Table]:
        solved = several_models.solve(run, k)
        if not run.runner.store("has", f"lifted-{k}"):
            run.fold(ProjectedGram, {}, "train", f"gram-{k}")
        lifted = pipeline.derive(run, f"lifted-{k}", lift, [solved, f"gram-{k}"], blocks, seed, rows)
        return pipeline.score(run, TrakScore, lifted, [*names, _WEIGHT], into)

    return several_models.score_models(run, one, join, names)
