"""Whether a model returns logits, log-probabilities or probabilities; and its loss as a function of logits.

A loss of log-probabilities (`NLLLoss` behind `LogSoftmax`) is linear in them, so that its Hessian there is 0, though
the loss of the row is not linear at all. Log-probabilities are logits too: `softmax(log P) = P`. So the loss is taken
as a function of logits, `z -> loss(log_softmax(z))`: on the model's own outputs it has the same value, and whatever is
pulled back through the model is that of the same model without its `LogSoftmax`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rayinf.core.capture import forward
from rayinf.core.row_gradients import functional_logits
from rayinf.errors import InputError, RayinfError
from rayinf.task import RowLoss

Kind = Literal["logits", "log_probabilities", "probabilities"]

# Factor on all parameters, to see whether outputs are normalised by construction or by chance.
_SHRUNK = 0.01
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 3e-2
# A loss is tried on every label of at most so many.
_MOST_CLASSES = 4096


@dataclass(frozen=True)
class Outputs:
    """What a model returns, and how its outputs and the loss are treated.

    Attributes:
        kind: "logits"; "log_probabilities", `[B, C]` with `logsumexp = 0` in every row; or "probabilities".
        cross_entropy: whether the loss is cross-entropy of the logits: `-log P` of the label.
        logs: whether the logarithm of the model's outputs stands for its logits (probabilities, of which the loss takes
            the logarithm).
        doubles: whether a loss of the user's takes float64: differences such as `P_y - 1`, which are 0 in float32 where
            P_y is nearly 1, are then computed there.
    """

    kind: Kind = "logits"
    cross_entropy: bool = False
    logs: bool = False
    doubles: bool = False

    def prepare(self, model: nn.Module) -> None:
        """Make a model return logits from now on."""
        if self.logs:
            model.register_forward_hook(_take_log)

    def loss(self, given: str | RowLoss) -> str | RowLoss:
        """The task's loss as a function of what the prepared model returns."""
        if self.cross_entropy:
            return "cross_entropy"
        if not callable(given):
            return given
        plain = self.kind == "logits" or (self.kind == "probabilities" and not self.logs)
        return _OfLogits(given, "plain" if plain else "exponential" if self.logs else "logarithm", self.doubles)

    def rows(self, given: RowLoss) -> RowLoss:
        """A user's function of the model's outputs and labels, as a function of what the prepared model returns."""
        return _Raw(given) if self.logs and not getattr(given, "takes_logits", False) else given

    def require_logits(self, who: str) -> None:
        """Refuse outputs whose softmax is not the model's probabilities.

        Raises:
            InputError: the model returns probabilities.
        """
        if self.kind == "probabilities" and not self.logs:
            raise InputError(
                f"{who} needs logits, and the model returns probabilities: every row of its outputs adds up to 1.",
                "return logits from the model, and let the loss take their softmax.",
            )


@dataclass(frozen=True)
class _OfLogits:
    """A user's loss of logits, log-probabilities or probabilities, as a function of logits."""

    given: RowLoss
    of: Literal["plain", "logarithm", "exponential"]
    doubles: bool

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.of == "plain":
            return self.given(logits, labels)
        log_p = logits.log_softmax(1)
        return self.given(log_p.exp() if self.of == "exponential" else log_p, labels)


@dataclass(frozen=True)
class _Raw:
    """A function of probabilities, of which the prepared model returns the logarithm."""

    given: RowLoss

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.given(logits.exp(), labels)


def find_outputs(model: nn.Module, x: Any, loss: str | RowLoss) -> Outputs:
    """What the model returns, determined from a few rows.

    Outputs count as (log-)probabilities if they are normalised in every row, and stay so with all parameters a
    hundred times smaller: a sure row's logits may look like log-probabilities.

    Args:
        model: in eval mode, not prepared.
        x: its input, a few rows.
        loss: of the task.

    Raises:
        InputError: the model returns probabilities, and the loss is cross-entropy of logits.
    """
    with torch.no_grad():
        given = forward(model, x)
        kind = _kind(given)
        if kind != "logits" and _kind(_shrunk(model, x, given)) != kind:
            kind = "logits"
    if callable(loss) and kind != "probabilities":
        exact = kind == "log_probabilities" and _is_negative(loss, given, kind)
        return Outputs(kind, cross_entropy=exact, doubles=_takes_double(loss, given))
    if kind != "probabilities":
        return Outputs(kind)
    if not callable(loss):
        raise InputError(
            'The model returns probabilities (every row of its outputs adds up to 1), and loss="cross_entropy" takes '
            "logits: it would take the softmax of probabilities.",
            "return logits (leave out the last Softmax); or pass the loss that the model was trained with, as a "
            "function of its outputs: Task(loss=lambda p, y: -p.gather(1, y[:, None])[:, 0].log()).",
        )
    doubles = _takes_double(loss, given)
    if _is_negative(loss, given, kind, weighted=True):
        return Outputs(kind, _is_negative(loss, given, kind), logs=True, doubles=doubles)
    return Outputs(kind, doubles=doubles)


def check_curvature(factor_sbc: Tensor, gradient_bc: Tensor) -> None:
    """Refuse a loss whose curvature in the model's outputs is 0 on all rows, though its gradient is not.

    Args:
        factor_sbc: columns of the Fisher in the outputs.
        gradient_bc: of the loss in the outputs.

    Raises:
        InputError: K-FAC, EKFAC and the GGN would be 0.
    """
    size = float(gradient_bc.abs().max())
    if size > 0 and float(factor_sbc.abs().max()) <= size * torch.finfo(gradient_bc.dtype).eps:
        raise InputError(
            "The loss has no positive curvature in the model's outputs, though its gradient there is not 0: the "
            "Gauss-Newton matrix and the true Fisher would be 0, and with them every value.",
            'return logits and use loss="cross_entropy", or a loss that is curved in the outputs; or pass '
            'fisher="empirical" (kfac, ekfac) or curvature="identity".',
        )


def _kind(outputs: Tensor) -> Kind:
    tolerance = _TOLERANCE.get(outputs.dtype, _HALF_TOLERANCE)
    if not bool(torch.isfinite(outputs).all()):
        return "logits"
    if bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() <= tolerance).all()):
        return "probabilities"
    if bool((outputs <= tolerance).all()) and bool((outputs.logsumexp(1).abs() <= tolerance).all()):
        return "log_probabilities"
    return "logits"


def _shrunk(model: nn.Module, x: Any, given: Tensor) -> Tensor:
    """The outputs with smaller parameters; those given where the model fails with these."""
    params = {k: v * _SHRUNK for k, v in model.named_parameters() if v.is_floating_point()}
    try:
        found = functional_logits(model, params, x)
    except RayinfError:
        raise
    except Exception:
        return given
    return found if bool(torch.isfinite(found).all()) else given


def _is_negative(loss: RowLoss, given: Tensor, kind: Kind, weighted: bool = False) -> bool:
    """Whether the loss is `-log P` of the label, for every label; or that times a weight of the label.

    Compared on outputs from uniform to nearly one-hot ones: a clipped loss agrees on many rows.
    """
    classes = given.shape[1]
    if classes > _MOST_CLASSES:
        return False
    steps = torch.linspace(-1, 1, 6 * classes, dtype=torch.float64).reshape(6, classes)
    spread = torch.tensor([0.1, 1.0, 3.0, 10.0, 20.0, 40.0], dtype=torch.float64)[:, None]
    log_p = (spread * (7 * steps + 3).sin()).log_softmax(1).to(given)
    outputs = log_p.exp() if kind == "probabilities" else log_p
    tolerance = _TOLERANCE.get(given.dtype, _HALF_TOLERANCE)
    for c in range(classes):
        expected, found = -log_p[:, c], loss(outputs, torch.full((6,), c, device=given.device))
        if not isinstance(found, Tensor) or found.shape != expected.shape or not bool(torch.isfinite(found).all()):
            return False
        weight = (found * expected).sum() / expected.square().sum() if weighted else 1.0
        if float((found - weight * expected).abs().max()) > tolerance * float(expected.abs().max()):
            return False
    return True


def _takes_double(loss: RowLoss, given: Tensor) -> bool:
    """Whether the loss takes outputs in float64, and gives the same."""
    labels = torch.arange(len(given), device=given.device) % given.shape[1]
    with torch.no_grad():
        try:
            found, same = loss(given.double(), labels), loss(given, labels)
        except Exception:  # a weight in float32, say
            return False
        tolerance = _TOLERANCE.get(given.dtype, _HALF_TOLERANCE)
        return found.dtype is torch.float64 and bool(
            torch.allclose(found, same.double(), rtol=tolerance, atol=tolerance)
        )


def _take_log(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook."""
    return output.log()
