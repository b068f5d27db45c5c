"""The response of a fit that a run uses (`core.response`): from its arguments, and from how the model was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rayinf.core import fisher, kfac
from rayinf.core.influence import dense_rows
from rayinf.core.kfac import Basis, Sums
from rayinf.core.response import Damped, Response, Unrolled, parse_damping
from rayinf.data.files import Arrays
from rayinf.engine.curvature_rows import check_drawn
from rayinf.engine.entry import DENSE, KRONECKER
from rayinf.engine.fit import find_head
from rayinf.engine.probe import Probe
from rayinf.engine.spec import RunSpec
from rayinf.engine.stages import Lambda
from rayinf.engine.worker import Ready
from rayinf.task import Fit

# Artefacts: summaries of the squared gradients of the training rows and of the validation rows.
NORMS, VALID_NORMS = "norms", "norms-valid"
# The most that gradients of training rows may have shrunk for it to be counted on.
MOST_HELD_OUT = 1e4
# Of Adam, beside the root of the mean squared gradient.
_EPSILON = 1e-8


class Squares(Lambda):
    """Chunk -> sums of squared row gradients, `S/<block>`: how far rows are learned, and how Adam steps."""

    def prepare(self, arrays: Arrays) -> None:
        """Bases in which nothing is rotated."""
        w = self.worker
        none = torch.zeros(0)

        def basis(r: int, o: int) -> Basis:
            eye = torch.eye(o, dtype=w.dtype, device=w.device).expand(r, o, o)
            return Basis(None, eye, none, none, 1.0)

        self.bases = {b.name: basis(*b.shape[:2]) for b in w.blocks}
        self.signed = frozenset(self.bases)  # so that no layer's sums are halved by drawn labels

    def columns(self) -> int:
        """The gradient of the loss alone."""
        return 1

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w, dense = self.worker, self.worker.job.spec.curvature in DENSE
        part: Sums = {}
        with w.forward_pass(ready.x) as forward_pass:
            _, gradient = fisher.loss_gradient(w.loss, forward_pass.logits, ready.y)
            column, scale = fisher.scale_together(gradient, w.dtype)
            if dense:
                kfac.add(part, "S", dense_rows(forward_pass, column).double().square().sum(0))
            else:
                found = forward_pass.captured.gradients(forward_pass.logits, column, last=True)
                for block in w.blocks:
                    if block.name in found:
                        self._add(part, block, forward_pass, [found[block.name]])
        for key, value in part.items():
            kfac.add(sums, key.replace("L", "S", 1), value * scale**2)
        kfac.add(sums, "rows", torch.tensor(float(len(ready.y))))


class ValidSquares(Squares):
    """The same of the validation rows."""

    table = "valid"
    fits = False


def summarise(squares: Arrays, sizes: Mapping[str, int]) -> Arrays:
    """`norm`, the mean squared gradient of a row, and `root/<block>`, the mean over parameters of `sqrt(E g^2)`.

    Args:
        squares: sums of `Squares`.
        sizes: parameters of each layer, in order.
    """
    rows = float(squares["rows"])
    check_drawn(rows)
    if "S" in squares:
        cuts = np.cumsum(list(sizes.values()))[:-1]
        held = dict(zip(sizes, np.split(squares["S"], cuts), strict=True))
    else:
        held = {name: squares.get(f"S/{name}", np.zeros(1)) for name in sizes}
    norm = sum(float(v.sum()) for v in held.values()) / rows
    return {"norm": np.array(norm), **{f"root/{name}": np.array(np.sqrt(v / rows).mean()) for name, v in held.items()}}


@dataclass(frozen=True)
class Seen:
    """What the squared gradients of the rows say.

    Attributes:
        roots: the mean over a layer's parameters of `sqrt(E g^2)`, by layer.
        held_out: the mean squared gradient of validation rows over that of training rows; at least 1, since rows with
            wrong labels can make that of the training rows large without a sign that they are learned.
    """

    roots: Mapping[str, float]
    held_out: float = 1.0


def seen(train: Arrays, valid: Arrays | None) -> Seen:
    """The same from the two summaries."""
    roots = {name.removeprefix("root/"): float(v) for name, v in train.items() if name.startswith("root/")}
    if valid is None:
        return Seen(roots)
    own, other = float(train["norm"]), float(valid["norm"])
    return Seen(roots, min(max(other / own, 1.0), MOST_HELD_OUT) if own > 0 else 1.0)


def at_minimum(spec: RunSpec, probed: Probe) -> bool:
    """Whether the model is at its minimum by definition: a linear softmax head that is fitted to convergence."""
    return spec.task.fit is None and find_head(probed.model, spec.task) is not None


def needs_held_out(spec: RunSpec, probed: Probe) -> bool:
    """Whether the response rests on gradients of the validation rows too."""
    is_open = spec.inverse == "auto" and spec.damping is None and spec.training_time is None
    if not (spec.held_out_rows and is_open):
        return False
    return spec.recipe is not None or (spec.curvature in KRONECKER and not at_minimum(spec, probed))


def needs_squares(spec: RunSpec, probed: Probe) -> bool:
    """Whether the response rests on squared gradients: of Adam, or beside those of the validation rows."""
    recipe = spec.recipe
    return needs_held_out(spec, probed) or (recipe is not None and recipe.optimizer != "sgd")


def response_of(spec: RunSpec, probed: Probe, rows: int, found: Seen) -> Response:
    """The response that a run uses.

    Args:
        spec: of the run.
        probed: the model on a few rows.
        rows: n.
        found: what squared gradients say.
    """
    if spec.training_time is not None:
        return Unrolled({"": float(spec.training_time)})
    recipe = spec.recipe
    if recipe is not None:
        return unrolled(recipe, rows, found)
    damping = spec.damping
    if damping is None and spec.curvature in KRONECKER:
        damping = "layer_mean:0.1" if at_minimum(spec, probed) else spec.usual_damping
    columns = float(rows * max(probed.logits - 1, 1))
    return replace(parse_damping(damping or 0.0), columns=columns, held_out=found.held_out)


def unrolled(fit: Fit, rows: int, found: Seen) -> Unrolled:
    """The response after a training by minibatches.

    SGD: T is the sum of the learning rates over all steps, over `1 - momentum`. Adam divides a step by `sqrt(v)`, and v
    is the mean squared gradient of a minibatch: the time of a layer is the sum of the rates over the mean of that. The
    decay of AdamW is apart from this division, and is a ridge in its units.

    Args:
        fit: the training.
        rows: n.
        found: what squared gradients say; those of Adam's steps were larger, too, while rows were learned.
    """
    batch = min(fit.batch_size, rows)
    total = sum_of_rates(fit, fit.epochs * -(-rows // batch))
    if fit.optimizer == "sgd":
        return Unrolled({"": total / (1 - fit.momentum)}, {"": fit.weight_decay}, found.held_out)
    steps = {name: root * (found.held_out / batch) ** 0.5 + _EPSILON for name, root in found.roots.items()}
    decays = {name: fit.weight_decay * (step if fit.optimizer == "adamw" else 1.0) for name, step in steps.items()}
    return Unrolled({name: total / step for name, step in steps.items()}, decays, found.held_out)


def sum_of_rates(fit: Fit, steps: int) -> float:
    """The sum of the learning rates of all steps (`core.epochs.rate`)."""
    return fit.lr * (steps if fit.schedule == "constant" else (steps + 1) / 2)


def describe(response: Response, spec: RunSpec) -> dict[str, Any]:
    """What was used, for the metadata of scores: the kind, and the number that it rests on."""
    if spec.curvature == "identity":
        return {"inverse": None}
    held_out = {"held_out_curvature": response.held_out} if response.held_out != 1.0 else {}
    if isinstance(response, Damped):
        rules = (f"{k}:{getattr(response, k):g}" for k in ("layer_mean", "sample") if getattr(response, k))
        return {"inverse": "damped", "damping": next(rules, response.added), **held_out}
    times = response.times
    return {
        "inverse": "unrolled",
        "training_time": times[""] if "" in times else dict(times),
        "training_time_from": "training_time" if spec.training_time is not None else "Task(fit=...)",
        **held_out,
    }
