"""Attacks: inputs that a bounded change makes hard for a model, as validation rows of the objective `robustness`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rayinf.arguments import number, optional, refuse, shown, whole
from rayinf.core.objectives import Objective
from rayinf.core.row_gradients import map_tensors
from rayinf.errors import InputError
from rayinf.task import RowLoss

Predict = Callable[[Any], Tensor]
# (logits of an input, the input, labels [B], loss of each row) -> the attacked input, each row by itself.
Attack = Callable[[Predict, Any, Tensor, RowLoss], Any]
Clip = tuple[float, float]


def robustness(
    attack: str | Attack = "linear",
    *,
    gamma: float = 1.3,
    epsilon: float | None = None,
    steps: int = 10,
    step: float | None = None,
    clip: Clip | None = None,
) -> Objective:
    """The sum of losses on an adversarial copy of the validation rows (Chhabra 2024, Eq. 3), which is then held fixed.

    Args:
        attack: "linear", the closest point across the boundary of a two-class model,
            `x' = x - gamma m(x) / |grad m|^2 grad m`, with m the difference of both logits (Chhabra 2024, section 2;
            exact for a linear model, the first-order point for others); "fgsm", `x' = x + epsilon sign(grad loss)`;
            "pgd", `steps` such steps of size `step`, each brought back to within epsilon of x in every coordinate; or a
            picklable function `(predict, x, labels, loss) -> x'`, with `predict` from an input to logits `[B, C]` and
            `loss` that of the task, one value a row. What is attacked is the model's input, after
            `Task(transform=...)`.
        gamma: of "linear": over 1 crosses the boundary, by `gamma - 1` times the way to it.
        epsilon: of "fgsm" and "pgd": the largest change of a coordinate, in the input's own unit.
        steps: of "pgd".
        step: of "pgd"; None: `2.5 epsilon / steps`.
        clip: of "fgsm" and "pgd": the range that inputs stay in, such as (0, 1) for images.

    Returns:
        An Objective called `robustness`. The model's accuracy on the attacked rows is reported beside its value.

    Raises:
        InputError: an unknown attack, gamma <= 1, or "fgsm" or "pgd" without a budget epsilon > 0.

    Cost: a forward and a backward pass over the validation rows ("pgd": `steps` of them) beside the objective's own.
    """
    made: Attack
    if isinstance(attack, type):
        refuse("robustness.attack", attack, "the name of an attack, or a function", "pass a function.")
    if attack == "linear":
        made = _Closest(gamma)
    elif attack == "fgsm":
        made = _Signed(_budget("fgsm", epsilon), 1, 0.0, clip)
    elif attack == "pgd":
        made = _Signed(_budget("pgd", epsilon), steps, step, clip)
    elif callable(attack):
        made = attack
    else:
        raise InputError(
            f"robustness(attack={shown(attack)}) is unknown.",
            'use "linear", "fgsm", "pgd", or a function (predict, x, labels, loss) -> x.',
        )
    return Objective("robustness", attack=made, hard=_Right())


@dataclass(frozen=True)
class _Closest:
    """The point across the boundary of a two-class model that is closest to first order, overshot by gamma."""

    gamma: float

    def __post_init__(self) -> None:
        number("robustness.gamma", self.gamma, "any")
        if not self.gamma > 1:
            raise InputError(
                f"robustness(gamma={self.gamma!r}) stops at the boundary or before it, where no row is misclassified.",
                "pass gamma > 1, such as 1.3.",
            )

    def __call__(self, predict: Predict, x: Any, labels: Tensor, loss: RowLoss) -> Any:
        leaves, probe = _leaves(x)
        with torch.enable_grad():
            logits = predict(probe)
            if logits.shape[1] != 2:
                raise InputError(
                    f'The attack "linear" is for two classes, and the model has {logits.shape[1]} logits.',
                    'pass rayinf.robustness("fgsm", epsilon=...), or "pgd".',
                )
            margin = logits[:, 1] - logits[:, 0]
            slopes = torch.autograd.grad(margin.sum(), leaves)
        square = torch.stack([s.flatten(1).square().sum(1) for s in slopes]).sum(0)
        # Where the margin does not depend on the input, the row stays as it is: there is no boundary to cross.
        factor = torch.where(square > 0, self.gamma * margin.detach() / square, 0.0)
        return _moved(x, [-factor.view(-1, *[1] * (s.ndim - 1)) * s for s in slopes])


@dataclass(frozen=True)
class _Signed:
    """Steps along the sign of the loss's gradient, within epsilon of the input in every coordinate (FGSM, PGD)."""

    epsilon: float
    steps: int
    step: float | None
    clip: Clip | None

    def __post_init__(self) -> None:
        whole("robustness.steps", self.steps, 1)
        optional(number, "robustness.step", self.step)
        if self.clip is None:
            return
        if not isinstance(self.clip, tuple | list) or len(self.clip) != 2:
            refuse("robustness.clip", self.clip, "a range (lowest, highest)", "pass clip=(0, 1), say.")
        low, high = (number("robustness.clip", v, "any") for v in self.clip)
        if not low < high:
            refuse("robustness.clip", self.clip, "a range (lowest, highest)", "pass clip=(0, 1), say.")

    def __call__(self, predict: Predict, x: Any, labels: Tensor, loss: RowLoss) -> Any:
        size = self.epsilon if self.steps == 1 else self.step or 2.5 * self.epsilon / self.steps
        start = _leaves(x)[0]
        changes = [torch.zeros_like(v) for v in start]
        for _ in range(self.steps):
            leaves, probe = _leaves(_moved(x, changes))
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss(predict(probe), labels).sum(), leaves)
            changes = [self._bounded(v, c + size * s.sign()) for v, c, s in zip(start, changes, slopes, strict=True)]
        return _moved(x, changes)

    def _bounded(self, x: Tensor, change: Tensor) -> Tensor:
        change = change.clamp(-self.epsilon, self.epsilon)
        return change if self.clip is None else (x + change).clamp(*self.clip) - x


@dataclass(frozen=True)
class _Right:
    """Whether a row is classified as its label says."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) == labels).to(logits.dtype)


def _budget(attack: str, epsilon: float | None) -> float:
    if epsilon is None or (isinstance(epsilon, Real) and not 0 < epsilon < float("inf")):
        raise InputError(
            f"robustness({attack!r}, epsilon={epsilon!r}) must have a budget.",
            "pass epsilon > 0, the largest change of a coordinate of the model's input.",
        )
    return float(number("robustness.epsilon", epsilon, "> 0"))


def _leaves(x: Any) -> tuple[list[Tensor], Any]:
    """The floating tensors of an input as leaves, and the input made of them.

    Raises:
        InputError: there are no floating tensors.
    """
    found: list[Tensor] = []

    def leaf(v: Tensor) -> Tensor:
        if not v.is_floating_point():
            return v
        found.append(v.detach().requires_grad_(True))
        return found[-1]

    made = map_tensors(x, leaf)
    if not found:
        raise InputError(
            "The model's input holds no floating-point numbers, which is what an attack changes (tokens are integers).",
            "leave robustness out, or pass embeddings as the features.",
        )
    return found, made


def _moved(x: Any, changes: list[Tensor]) -> Any:
    """The input with each floating tensor changed."""
    left = iter(changes)
    return map_tensors(x, lambda v: (v + next(left)).detach() if v.is_floating_point() else v)
