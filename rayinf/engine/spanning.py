"""The strategy "fi_batch": every row of a pool as a vector in the geometry of FI, for the log-determinant of a batch.

With `R_i` of a labelled row, `FI(z', z_i) = |R_i grad l(z')|^2` (see `measure_stages.PairFactors`). So the mean FI of a
row over the labelled rows is the squared length of one vector, `phi(z') = (R_1 grad l(z'), R_2 grad l(z'), ...)`, and
`<phi(z'), phi(z'')>` says how far two rows are moved by the same perturbations. Rows whose vectors span a large volume
are each sensitive to the labelled rows, and to different changes of them.

Labelled rows that the model is sure of have FI that is larger by orders of magnitude (their metric is nearly 0), and
would fill the sum: where FI is aggregated, the middle 80 % are taken. Here every `R_i` is divided by its norm, so that
all labelled rows count the same, and `|phi|^2` is the mean over labelled rows of FI as a share of the largest that the
row could have for a gradient of this length.

phi has `n_L (K - 1)` numbers. It is kept whole up to `WIDTH` of them; else it is a sketch: signs +-1 by the contents of
the labelled row mix all into `WIDTH` numbers, which keeps products within about `1 / sqrt(WIDTH)` of the lengths
(Johnson and Lindenstrauss 1984). Only `[WIDTH, p]` is ever held, added up shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core.kfac import Sums
from rayinf.data.batches import row_keys, uniforms
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine import curvature as curv
from rayinf.engine import pipeline, scoring, stages
from rayinf.engine.measure_stages import Differentiator
from rayinf.engine.run import Run
from rayinf.engine.worker import Ready, Worker

# Numbers of a row's vector, and bytes of what makes it: of many parameters fewer numbers are kept.
WIDTH, SKETCH_BYTES = 512, 256 << 20
SKETCH = "sketch"


class Sketch(stages.Summing):
    """Chunk of labelled rows -> `S` `[m, p]`, with `phi(z') = S grad l(z')`. Arrays: the inverse."""

    def prepare(self, arrays: Arrays) -> None:
        """Bring the inverse to the device."""
        self.source = Differentiator(self.worker, arrays)

    def rows_at_once(self) -> int:
        """Rows whose mixed derivatives are held at a time."""
        return self.source.rows_a_batch()

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        r_bkp = self.source.pair_factors(ready, solve=True)
        size_b = self.source.factor_sizes(r_bkp)
        r_bkp = r_bkp / torch.where(size_b > 0, size_b, 1.0)[:, None, None]
        rows, directions, p = r_bkp.shape
        total = self.worker.job.tables["train"].num_rows * directions
        width = min(total, WIDTH, max(1, SKETCH_BYTES // (8 * p)))
        if "S" not in sums:
            sums["S"] = r_bkp.new_zeros(width, p)
        if width == total:
            start = ready.raw.start * directions
            sums["S"][start : start + rows * directions] = r_bkp.flatten(0, 1)
        else:
            sums["S"] += self._signs(ready, width, directions) @ r_bkp.flatten(0, 1)

    def _signs(self, ready: Ready, width: int, directions: int) -> Tensor:
        """`[m, B r]`, +-1 / sqrt(m), by the contents of the labelled rows."""
        keys = row_keys(ready.raw.x, ready.raw.labels)
        u = uniforms(keys, self.worker.job.spec.seed + 6, width * directions) < 0.5
        signs = torch.from_numpy(u).to(self.worker.device, torch.float64) * 2 - 1
        return signs.view(len(keys), width, directions).transpose(0, 1).flatten(1) / width**0.5


class Vectors(scoring.Scoring):
    """Shard of a pool -> the mean relative FI of its rows, `|phi|^2 / n_L`. Arrays: `S` and the inverse."""

    def prepare(self, arrays: Arrays) -> None:
        """Bring both to the device."""
        self.source = Differentiator(self.worker, {k: v for k, v in arrays.items() if k != "S"})
        self.s_mp = torch.tensor(arrays["S"]).to(self.worker.device)

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, 1]`."""
        for ready in self.worker.read("pool", shard, self.source.rows_a_batch()):
            yield ready, self.vectors(ready).square().sum(1, keepdim=True)

    def vectors(self, ready: Ready) -> Tensor:
        """Phi over the root of the labelled rows, `[B, m]`."""
        n = self.worker.job.tables["train"].num_rows
        return self.source.likeliest_gradients(ready, solve=True) @ self.s_mp.T / n**0.5


class ChosenVectors(Vectors):
    """Chosen rows of a shard -> `{"phi": [B, m]}`, float32. Arrays: also `positions`."""

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        self.chosen = arrays["positions"]
        super().__init__(worker, {k: v for k, v in arrays.items() if k != "positions"}, [])

    def __call__(self, item: Shard) -> Arrays:
        """The chosen rows of a shard, in order."""
        parts: list[Any] = [np.zeros((0, len(self.s_mp)), np.float32)]
        chosen = scoring.chosen_rows(self.worker, item, self.chosen, self.source.rows_a_batch())
        parts += [self.vectors(ready).float().cpu().numpy() for ready in chosen]
        return {"phi": np.concatenate(parts)}


def vector_arrays(run: Run) -> Any:
    """A handle of `S` and the inverse curvature."""
    pipeline.fit_factors(run)
    inverse = pipeline.inverse_arrays(run)
    run.fold(Sketch, inverse, "train", SKETCH)
    return run.runner.publish("derive", "spanning", curv.join_payloads, [SKETCH, "inverse"])


def ridge_of(vectors_nm: np.ndarray[Any, Any]) -> float:
    """The ridge of the log-determinant: the mean squared length of the candidates' vectors."""
    return max(float(np.square(vectors_nm, dtype=np.float64).sum(1).mean()), np.finfo(np.float64).tiny)
