"""Whether a network is at a minimum, before its exact Hessian is computed: one pass over the rows instead of p."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core import exact, kfac
from rayinf.core.kfac import Sums
from rayinf.data.files import Arrays
from rayinf.engine.label_order import pieces
from rayinf.engine.stages import Summing, is_head
from rayinf.engine.worker import Ready, Worker
from rayinf.errors import InputError

# With fewer parameters the whole matrix is as fast.
_LEAST_PARAMETERS = 256
_STEPS = 16
_PIECES, _ROWS = 4, 128
# How many times beyond rounding a curvature is negative before it is taken as negative without the whole matrix.
_CLEARLY = 4.0


class Along(Summing):
    """Chunk -> the curvature of the summed loss along one direction, `vHv`, and rows. Arrays: `v` `[p]`."""

    def prepare(self, arrays: Arrays) -> None:
        """Bring the direction to the device."""
        self.v = torch.tensor(arrays["v"]).to(self.worker.device)

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        kfac.add(sums, "rows", torch.tensor(float(len(ready.y))))
        kfac.add(sums, "vHv", self.v @ product(self.worker, ready, self.v))


def product(worker: Worker, ready: Ready, v_p: Tensor) -> Tensor:
    """The Hessian of a batch's summed loss times a vector, float64."""
    return exact.hessian_product(worker.model, worker.blocks, ready.x, ready.y, worker.exact_row_loss, v_p).double()


def check_minimum(run: Any, damping: float) -> None:
    """Refuse the exact Hessian of a network that is clearly not at a minimum, before it is computed.

    Lanczos on some hundred rows finds the direction of least curvature; a pass over all rows then gives the curvature
    along it. The least eigenvalue lies no higher: if this is clearly negative, the whole matrix would be refused too.
    What cannot be decided so is left to the whole matrix.

    Args:
        run: open.
        damping: added to every eigenvalue.

    Raises:
        InputError: the curvature along a direction is negative.

    Cost: 16 products of the Hessian of 512 rows with a vector, and one over all rows, of `p` that the whole matrix
    takes.
    """
    if run.probe.parameters < _LEAST_PARAMETERS:
        return
    worker = Worker(run.job)
    worker.model = run.probe.model
    batches = [
        r for piece in pieces(run.job.tables["train"], _PIECES, _ROWS) for r in worker.read("train", piece, piece.rows)
    ]
    with worker.forward_pass(batches[0].x) as forward_pass:
        if is_head(forward_pass) and worker.loss == "cross_entropy":  # convex
            return
    rows, shift = sum(len(b.y) for b in batches), float(run.spec.task.l2) + damping
    start = torch.from_numpy(_start(run.probe.parameters, run.spec.seed))

    def mean(v_p: Tensor) -> Tensor:
        return sum((product(worker, b, v_p) for b in batches), torch.zeros_like(v_p)) / rows

    v_p, least, largest = exact.extreme_directions(mean, start.to(worker.device), _STEPS)
    floor = _CLEARLY * run.probe.parameters * run.probe.eps * max(abs(least + shift), abs(largest + shift))
    if least + shift >= -floor:
        return
    run.fold(Along, {"v": v_p.cpu().numpy()}, "train", "along")
    found = run.runner.store("summarise", _mean, ["along"]) + shift
    run.runner.store("drop", "along")
    if found < -floor:
        raise InputError(
            f"The exact Hessian is not positive: along a direction that {rows:,} rows show, the curvature over all "
            f"{run.scans['train'].rows:,} rows is {found:.3g} (the largest is about {largest + shift:.3g}): the model "
            "is not at a minimum.",
            'use curvature="ggn", which is never negative, or pass a larger damping, or train to convergence.',
        )


def _mean(sums: Arrays) -> float:
    return float(sums["vHv"]) / float(sums["rows"])


def _start(size: int, seed: int) -> Any:
    return np.random.default_rng([seed, size]).standard_normal(size)
