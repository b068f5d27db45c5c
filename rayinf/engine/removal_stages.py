"""Stages of removing many rows: the sum of their gradients, and the objectives at moved parameters."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rayinf.core import fisher, kfac, objectives
from rayinf.core.blocks import from_matrix, to_matrix
from rayinf.core.influence import add_queries, row_products
from rayinf.core.kfac import Sums
from rayinf.data.files import Arrays
from rayinf.engine.stages import Summing, codes_of
from rayinf.engine.worker import Ready


class Gradient(Summing):
    """Chunk of training rows -> the sum of the gradients of their losses, `V/<block>` `[1, r, o, i]`."""

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w = self.worker
        with w.forward_pass(ready.x) as forward_pass:
            _, gradient = fisher.loss_gradient(w.loss, forward_pass.logits, ready.y)
            cotangent, scale = fisher.scale_together(gradient, w.dtype)
            with kfac.scaled(sums, scale, "V", power=1) as part:
                add_queries(part, forward_pass, cotangent, cotangent.new_ones(len(cotangent), 1), "V")


class Along(Summing):
    """Chunk of training rows -> `along` `[sets]`, the sum of the rows' GGN along the step of every set.

    `step' (sum_s J' c_s c_s' J) step` with the Fisher's columns c_s: products of row gradients with the steps.
    Arrays: `<set>/<block>`, the steps.
    """

    def prepare(self, arrays: Arrays) -> None:
        """Bring the steps to the device, as queries, in the model's precision."""
        w = self.worker
        held = w.tensors(arrays, w.dtype)
        self.steps = {b.name: torch.stack([held[f"{k}/{b.name}"] for k in range(_sets(arrays))]) for b in w.blocks}

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w = self.worker
        with w.forward_pass(ready.x) as forward_pass:
            columns, scale = w.fisher_columns(ready, forward_pass.logits)
            for s, column in enumerate(columns):
                gone = s == len(columns) - 1
                products = row_products(forward_pass, column, self.steps, last=gone).double()
                kfac.add(sums, "along", products.square().sum(0) * scale**2)


class MovedValues(Summing):
    """Chunk of validation rows -> group sums of every objective at parameters that were moved, for several steps.

    Arrays: `<set>/<block>`, the steps. Attacks are aimed at the model where it is: their inputs are held fixed.
    """

    table = "valid"

    def prepare(self, arrays: Arrays) -> None:
        """Compute the moved parameters of every set."""
        w = self.worker
        own: dict[str, Tensor] = dict(w.model.named_parameters())
        held = w.tensors(arrays, torch.float64)
        self.moved: list[dict[str, Tensor]] = []
        for k in range(_sets(arrays)):
            values: dict[str, Tensor] = {}
            for block in w.blocks:
                theta = to_matrix(block, [own[n].detach().double() for n in block.parameters])
                values.update(from_matrix(block, theta + held[f"{k}/{block.name}"], own))
            self.moved.append({n: v.to(own[n].dtype) for n, v in values.items()})

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w, job = self.worker, self.worker.job
        codes = {s: codes_of(job.levels[s], ready, s) for s in job.levels}
        sources = objectives.sources(job.targets)
        inputs = {attack: w.attacked(attack, ready) for attack, _ in sources}
        for k, values in enumerate(self.moved):
            part: Sums = {}
            with parameters(w.model, values), torch.no_grad():
                logits = {attack: w.predict(x) for attack, x in inputs.items()}
            for j, (attack, rows) in enumerate(sources):
                shared = [t for t in job.targets if t.source == (attack, rows)]
                weights = objectives.weights(shared, codes, None, ready.y)
                loss = w.loss if rows is None else job.outputs.rows(rows)
                found, _ = fisher.loss_gradient(loss, logits[attack], ready.y)
                objectives.add_values(part, j, shared, found, weights, (logits[attack], ready.y))
            for name, value in part.items():
                kfac.add(sums, f"{k}/{name}", value)


def _sets(arrays: Arrays) -> int:
    """How many sets there are steps of."""
    return 1 + max(int(name.partition("/")[0]) for name in arrays)


@contextmanager
def parameters(model: nn.Module, values: Mapping[str, Tensor]) -> Generator[None]:
    """The model with other values of some parameters, for as long as the context lasts; no value is copied."""
    own = {name: value for name, value in model.named_parameters() if name in values}
    before = {name: value.data for name, value in own.items()}
    try:
        for name, value in own.items():
            value.data = values[name]
        yield
    finally:
        for name, value in own.items():
            value.data = before[name]
