"""By how much a model prefers a row's own label to all others, in its logits. Pure, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def margin(logits_bc: Tensor, labels: Tensor) -> Tensor:
    """`z_y - max_{c != y} z_c` `[B]`: negative where another class is likelier (Pleiss et al. 2020)."""
    own, others = _split(logits_bc, labels)
    return own - others.amax(1)


def likeliest_other(logits_bc: Tensor, labels: Tensor) -> Tensor:
    """The class of the largest logit that is not the row's own label's, `[B]`; of equal ones the first."""
    return _split(logits_bc, labels)[1].argmax(1)


def log_odds(logits_bc: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log-odds of a row's label, `f = log(p_y / (1 - p_y))` (Park et al. 2023, section 3).

    Cross-entropy is `log(1 + exp(-f))`, so that its slope in f is `-(1 - p_y)`.

    Args:
        logits_bc: `[B, C]`.
        labels: `[B]`.

    Returns:
        `f` `[B]`, its gradient in the logits `[B, C]`, and `1 - p_y` `[B]`, as the sum of the other probabilities: it
        is exact where `p_y` is nearly 1.
    """
    own, others = _split(logits_bc, labels)
    gradient = -others.softmax(1)
    gradient.scatter_(1, labels[:, None], 1.0)
    f = own - others.logsumexp(1)
    return f, gradient, torch.sigmoid(-f)


def _split(logits_bc: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the own label `[B]`, and all logits with minus infinity in its place `[B, C]`."""
    z = logits_bc.detach().double()
    at = labels[:, None]
    return z.gather(1, at)[:, 0], z.scatter(1, at, -torch.inf)
