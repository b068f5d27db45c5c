"""What a model returns for a row: logits, log-probabilities or probabilities; and its loss as a function of logits.

A loss of log-probabilities (`NLLLoss` behind `LogSoftmax`) is linear in them, so that its Hessian there is 0, though
the loss of the row is not linear at all. Log-probabilities are logits too: `softmax(log P) = P`. So the loss is taken
as a function of logits, `z -> loss(log_softmax(z))`: on the model's own outputs it has the same value, and whatever is
pulled back through the model is that of the same model without its `LogSoftmax`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rayinf.core.capture import forward
from rayinf.core.row_gradients import functional_logits
from rayinf.errors import InputError, RayinfError
from rayinf.task import RowLoss

Kind = Literal["logits", "log_probabilities", "probabilities"]

# Parameters are made this much smaller to see whether outputs are normalised by construction, or by chance.
_SHRUNK = 0.01
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Outputs:
    """What a model returns, and what is to be done with it.

    Attributes:
        kind: "logits"; "log_probabilities", `[B, C]` with `logsumexp = 0` in every row; or "probabilities".
        cross_entropy: whether the loss is cross-entropy of the logits: `-log P` of the label.
        logs: whether the logarithm of the model's outputs stands for its logits (probabilities, of which the loss takes
            the logarithm).
    """

    kind: Kind = "logits"
    cross_entropy: bool = False
    logs: bool = False

    def prepare(self, model: nn.Module) -> None:
        """Let a model of one's own return logits from now on."""
        if self.logs:
            model.register_forward_hook(_take_log)

    def loss(self, given: str | RowLoss) -> str | RowLoss:
        """The task's loss as a function of what the prepared model returns."""
        if self.cross_entropy:
            return "cross_entropy"
        if not callable(given) or self.kind == "logits" or (self.kind == "probabilities" and not self.logs):
            return given
        return _Composite(given, self.logs)

    def rows(self, given: RowLoss) -> RowLoss:
        """A user's function of the model's outputs and labels, as a function of what the prepared model returns."""
        return _Raw(given) if self.logs and not getattr(given, "takes_logits", False) else given

    def require_logits(self, who: str) -> None:
        """Refuse outputs that probabilities cannot be had from by a softmax.

        Raises:
            InputError: the model returns probabilities.
        """
        if self.kind == "probabilities" and not self.logs:
            raise InputError(
                f"{who} needs logits, and the model returns probabilities: every row of its outputs adds up to 1.",
                "return logits from the model, and let the loss take their softmax.",
            )


@dataclass(frozen=True)
class _Composite:
    """A loss of (log-)probabilities as a function of logits."""

    given: RowLoss
    exponential: bool

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        return self.given(log_p.exp() if self.exponential else log_p, labels)


@dataclass(frozen=True)
class _Raw:
    """A function of probabilities, of which the prepared model returns the logarithm."""

    given: RowLoss

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.given(logits.exp(), labels)


def find_outputs(model: nn.Module, x: Any, loss: str | RowLoss) -> Outputs:
    """What the model returns, told from a few rows.

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
    if kind == "logits":
        return Outputs()
    if kind == "log_probabilities":
        return Outputs(kind, cross_entropy=callable(loss) and _is_negative(loss, given, given))
    if not callable(loss):
        raise InputError(
            'The model returns probabilities (every row of its outputs adds up to 1), and loss="cross_entropy" takes '
            "logits: it would take the softmax of probabilities.",
            "return logits (leave out the last Softmax); or pass the loss that the model was trained with, as a "
            "function of its outputs: Task(loss=lambda p, y: -p.gather(1, y[:, None])[:, 0].log()).",
        )
    logs = given.log()
    if _is_negative(loss, given, logs, weighted=True):
        return Outputs(kind, cross_entropy=_is_negative(loss, given, logs), logs=True)
    return Outputs(kind)


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
    """The outputs with smaller parameters; those given where the model cannot be called so."""
    params = {k: v * _SHRUNK for k, v in model.named_parameters() if v.is_floating_point()}
    try:
        found = functional_logits(model, params, x)
    except RayinfError:
        raise
    except Exception:
        return given
    return found if bool(torch.isfinite(found).all()) else given


def _is_negative(loss: RowLoss, outputs: Tensor, logs: Tensor, weighted: bool = False) -> bool:
    """Whether the loss is `-log P` of the label, for every label; or that times a weight of the label."""
    tolerance = _TOLERANCE.get(outputs.dtype, _HALF_TOLERANCE)
    for c in range(outputs.shape[1]):
        labels = torch.full((len(outputs),), c, device=outputs.device)
        expected, found = -logs[:, c], loss(outputs, labels)
        if not isinstance(found, Tensor) or found.shape != expected.shape:
            return False
        held = bool(torch.isfinite(expected).all()) and bool(torch.isfinite(found).all())
        if held and weighted and float(expected.square().sum()) > 0:
            expected = expected * (found * expected).sum() / expected.square().sum()
        if not held or float((found - expected).abs().max()) > tolerance * float(expected.abs().max()) + tolerance:
            return False
    return True


def _take_log(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook."""
    return output.log()
