"""The influence measure FI (Yu 2025, sections 2-4) from total logit Jacobians: a factor of rank K - 1, never `d x d`.

A row's perturbation w moves the fit by `d theta = -(n Hbar)^-1 M w`, `M = d_x d_theta l`, so its logits move by
`T w = (J_x - J_theta (n Hbar)^-1 M) w`. The metric is `G = T' (diag P - P P') T = S' S`, `S` of K - 1 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Directions of the metric with a singular value under this share of the largest are dropped: at 1e-3 the ranks of FI
# change (a rank correlation of 0.76 on digits), and in float64 nothing is gained below.
KEPT_SHARE = 1e-5
# A metric whose factor is under this counts as that of a one-hot row: its square underflows.
LEAST_METRIC = 1e-150


def contrasts(logits_bc: Tensor) -> Tensor:
    """Cotangents `e_c - e_r`, `[B, K - 1, K]`: every class c against the row's likeliest, r.

    They are orthogonal to a shift of all logits, so a curvature that is singular there (a softmax head without a ridge)
    does no harm.
    """
    k = logits_bc.shape[1]
    likeliest, others = _order(logits_bc)
    eye = torch.eye(k, dtype=logits_bc.dtype, device=logits_bc.device)
    return eye[others] - eye[likeliest][:, None]


def metric_factor(logits_bc: Tensor, total_bkd: Tensor) -> Tensor:
    """S `[B, K - 1, d]` with `S'S = G` exactly (Yu 2025, section 2), in float64.

    `S = (I - sqrt q sqrt q' / (1 + sqrt P_r)) diag(sqrt q) D`, `q` the probabilities of the other classes.

    Args:
        logits_bc: of the rows.
        total_bkd: D, the total derivative of every contrast of logits in the row's input.
    """
    likeliest, others = _order(logits_bc)
    log_p = logits_bc.double().log_softmax(1)
    q_bk = log_p.gather(1, others).exp()
    root_r = (log_p.gather(1, likeliest[:, None]) / 2).exp()
    d_bkd = total_bkd.double()
    shared_bd = torch.bmm(q_bk[:, None], d_bkd) / (1 + root_r)[..., None]
    return q_bk.sqrt()[..., None] * (d_bkd - shared_bd)


def measure(logits_bc: Tensor, total_bkd: Tensor, slope_bd: Tensor) -> tuple[Tensor, Tensor]:
    """FI = `v' G^+ v` of every row (Yu 2025, Eq. 2.1, 3.1), and which rows are one-hot.

    A row whose probabilities are exactly one-hot has no metric (G = 0): its FI is 0.

    Args:
        logits_bc: of the rows.
        total_bkd: as in `metric_factor`.
        slope_bd: v, the derivative in the row's input of the loss whose sensitivity is measured.

    Returns:
        `[B]` in float64, and `[B]` bool.
    """
    directions_bkd, values_bk = _directions(metric_factor(logits_bc, total_bkd))
    along_bk = torch.bmm(directions_bkd, slope_bd.double()[..., None])[..., 0]
    inverse_bk, one_hot = _inverse(values_bk)
    return (along_bk * inverse_bk).square().sum(1), one_hot


def inverse_factor(logits_bc: Tensor, total_bkd: Tensor) -> Tensor:
    """F `[B, d, r]` with `F F' = G^+`, `r = min(K - 1, d)`; zero for one-hot rows."""
    directions_bkd, values_bk = _directions(metric_factor(logits_bc, total_bkd))
    return directions_bkd.transpose(1, 2) * _inverse(values_bk)[0][:, None]


def _order(logits_bc: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest class of each row `[B]`, and the others `[B, K - 1]`."""
    k = logits_bc.shape[1]
    likeliest = logits_bc.argmax(1)
    others = torch.arange(k - 1, device=logits_bc.device)[None]
    return likeliest, others + (others >= likeliest[:, None])


def _directions(s_bkd: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors `[B, r, d]` and singular values `[B, r]` of every row's factor."""
    scale_b = s_bkd.abs().amax((1, 2)).clamp(min=LEAST_METRIC)
    scaled = s_bkd / scale_b[:, None, None]
    if scaled.shape[1] == 1:
        norm_b = scaled.norm(dim=2)
        return scaled / norm_b.clamp(min=LEAST_METRIC)[..., None], norm_b * scale_b[:, None]
    if scaled.shape[1] >= scaled.shape[2]:
        _, values_bk, vectors_bkd = torch.linalg.svd(scaled, full_matrices=False)
        return vectors_bkd, values_bk * scale_b[:, None]
    # A long thin matrix is reduced to a square one by QR first, at a third of the cost.
    q_bdk, r_bkk = torch.linalg.qr(scaled.transpose(1, 2))
    u_bkk, values_bk, _ = torch.linalg.svd(r_bkk)
    return (q_bdk @ u_bkk).transpose(1, 2), values_bk * scale_b[:, None]


def _inverse(values_bk: Tensor) -> tuple[Tensor, Tensor]:
    largest_b = values_bk.amax(1, keepdim=True)
    keep = (values_bk > KEPT_SHARE * largest_b) & (largest_b > LEAST_METRIC)
    return torch.where(keep, 1 / torch.where(keep, values_bk, 1.0), 0.0), largest_b[:, 0] <= LEAST_METRIC
