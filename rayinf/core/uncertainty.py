"""Measures of a model's uncertainty about a row: the larger, the more useful is its label. Pure, in float64.

For logits `[B, C]`: `entropy`, `margin`, `least_confidence`. For draws of a model with dropout: `bald`.
"""

from __future__ import annotations

from torch import Tensor
from torch.special import entr


def entropy(logits_bc: Tensor) -> Tensor:
    """`-sum_c P_c log P_c` `[B]`, in nats."""
    return entr(_probabilities(logits_bc)).sum(1)


def margin(logits_bc: Tensor) -> Tensor:
    """`-(P_1 - P_2)` `[B]` of the two likeliest classes: 0 where they tie, -1 where the model is sure."""
    top = _probabilities(logits_bc).topk(2, dim=1).values
    return top[:, 1] - top[:, 0]


def least_confidence(logits_bc: Tensor) -> Tensor:
    """`1 - max_c P_c` `[B]`, as the sum of the other probabilities: exact where the largest is nearly 1."""
    p = _probabilities(logits_bc)
    return p.scatter(1, p.argmax(1, keepdim=True), 0.0).sum(1)


def bald(log_probabilities_sbc: Tensor) -> Tensor:
    """The mutual information of a row's label and the model, `[B]`, in nats (Houlsby 2011; Gal 2017).

    It is the entropy of the mean less the mean of the entropies.

    Args:
        log_probabilities_sbc: `[S, B, C]`, of S draws of the model.
    """
    p_sbc = log_probabilities_sbc.double().exp()
    return entr(p_sbc.mean(0)).sum(1) - entr(p_sbc).sum(2).mean(0)


def _probabilities(logits_bc: Tensor) -> Tensor:
    return logits_bc.double().log_softmax(1).exp()
