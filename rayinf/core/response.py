"""How far a fit moves along an eigenvector of curvature lambda: the function of lambda that stands for its inverse.

At a minimum it is `1 / (lambda + l2)`. A network stopped before that has moved less along flat directions: after a
training time T (the sum of its learning rates) gradient flow has answered the removal of a row by
`(1 - exp(-T (lambda + l2))) / (lambda + l2)` (Bae et al. 2024, SOURCE, with one segment). Peers add a damping instead.

**What held-out rows say.** Curvature and gradients of the training rows shrink while these are learned, and a training
went through those of before. Rows that were never trained on still show them: let h be the mean squared gradient of
held-out rows over that of training rows. Along the training the curvature was about h lambda and a row's gradient
sqrt(h) times what it is now, so the response is `sqrt(h) F(h lambda)`. Measured in docs/inverse.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rayinf.errors import InputError

# Along a negative eigenvalue the response grows like exp(T |lambda|). Beyond this it is no longer a small change.
_MOST_GROWTH = 30.0
_RULES = re.compile(r"(layer_mean|sample):(\S+)")


@dataclass(frozen=True)
class Damped:
    """`1 / (lambda + l2 + damping)`.

    Attributes:
        added: what is added to every eigenvalue.
        layer_mean: added in units of a layer's mean eigenvalue.
        sample: added in units of `mean p / columns`: an eigenvalue of a layer with p parameters rests on `columns`
            gradient columns, so that this is about the size of what a sample of that size leaves undetermined.
        columns: gradient columns that the curvature was summed over: `n (K - 1)` for n rows and K classes.
        held_out: h; 1 where it is not used.
    """

    added: float = 0.0
    layer_mean: float = 0.0
    sample: float = 0.0
    columns: float = 1.0
    held_out: float = 1.0

    def damping(self, mean: float, parameters: int) -> float:
        """The damping of a layer.

        Args:
            mean: its mean eigenvalue.
            parameters: how many it has.
        """
        return self.added + mean * (self.layer_mean + self.sample * parameters / self.columns)


@dataclass(frozen=True)
class Unrolled:
    """`(1 - exp(-T x)) / x` with `x = lambda + l2 + decay`: T at 0, `1 / x` where T x is large.

    Attributes:
        times: T by layer; a layer without one has the time under "".
        decays: the weight decay of the training by layer, as a ridge.
        held_out: h; 1 where it is not used.
    """

    times: Mapping[str, float]
    decays: Mapping[str, float] = field(default_factory=dict)
    held_out: float = 1.0

    def time(self, name: str) -> float:
        """T of a layer."""
        return self.times.get(name, self.times.get("", 0.0))

    def shift(self, l2: float, name: str) -> float:
        """What is added to the eigenvalues of a layer."""
        return l2 + self.decays.get(name, self.decays.get("", 0.0))


Response = Damped | Unrolled


def saturation(x: Tensor) -> Tensor:
    """`(1 - exp(-x)) / x`, 1 at 0.

    Raises:
        InputError: x is so negative that this is no longer a small change.
    """
    least = float(x.min()) if x.numel() else 0.0
    if least < -_MOST_GROWTH:
        raise InputError(
            "The curvature has a negative eigenvalue along which a training of this length would grow "
            f"exp({-least:.0f}) times: the model is far from a minimum there.",
            'use curvature="ggn" or "ekfac", which are never negative, or pass a shorter training_time.',
        )
    safe = torch.where(x.abs() > 1e-8, x, 1.0)
    return torch.where(x.abs() > 1e-8, -torch.expm1(-safe) / safe, 1.0 - x / 2)


def parse_damping(given: float | str) -> Damped:
    """A number, "layer_mean:0.1" or "sample:3"; without the number of columns that the last needs.

    Raises:
        ValueError: text that is none of these.
    """
    if not isinstance(given, str):
        return Damped(added=float(given))
    found = _RULES.fullmatch(given.strip())
    if found is None:
        raise ValueError(given)
    share = float(found[2])
    if not 0 <= share < float("inf"):
        raise ValueError(given)
    return Damped(**{found[1]: share})
