"""The Fisher in the logits of each row, as columns whose outer products add up to it.

Every factor of the same matrix gives the same K-FAC sums and the same Lambda, so the fewest columns are taken:
K - 1 for softmax cross-entropy, one for the empirical Fisher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayinf.core.blocks import Block
from rayinf.errors import InputError
from rayinf.task import RowLoss
from rayinf.user_code import LOSS, user_code

FisherKind = Literal["true", "empirical"]

# Gradients under this are scaled by a power of two, so that neither they nor their squares underflow in float32.
LEAST_GRADIENT = 2.0**-30
# Up to so many classes the expectation over labels is exact; above, DRAWS labels a row are drawn.
MOST_CLASSES = 32
DRAWS = 8
# Columns that are combined with random signs, in layers with many positions: a power of two.
SIGN_DRAWS = 2


@dataclass(frozen=True)
class Columns:
    """The Fisher of a batch in its logits, for every layer.

    Attributes:
        exact_sbc: columns whose outer products add up to it.
        signed_dbc: combinations of these with random signs, whose outer products do so on average.
        signed: names of the layers that take the second.
    """

    exact_sbc: Tensor
    signed_dbc: Tensor | None = None
    signed: frozenset[str] = frozenset()

    def groups(self, blocks: Sequence[Block]) -> list[tuple[list[Block], Tensor]]:
        """Blocks with the columns that they are summed over; those that take the first come first."""
        if self.signed_dbc is None:
            return [(list(blocks), self.exact_sbc)]
        exact = [b for b in blocks if b.name not in self.signed]
        others = [b for b in blocks if b.name in self.signed]
        return [(some, c) for some, c in ((exact, self.exact_sbc), (others, self.signed_dbc)) if some]


def logit_gradient(
    rows: RowLoss, logits: Tensor, labels: Tensor, name: str = "Task(loss=...)"
) -> tuple[Tensor, Tensor]:
    """Values `[B]` of a function of each row's logits, and their gradients `[B, C]` in the logits.

    Raises:
        InputError: the function raises, or does not return one differentiable value a row.
    """
    leaf = logits.detach().requires_grad_(True)
    with torch.enable_grad():
        with user_code(name, "mend it: (logits [B, C], labels [B]) -> a value for each row [B]."):
            values = rows(leaf, labels)
        if not isinstance(values, Tensor) or values.shape != (len(leaf),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"{name} returned {got} for a batch of {len(leaf)} rows: it must be one value a row.",
                'return losses of shape [B]: with torch losses, pass reduction="none".',
            )
        if not values.requires_grad:
            raise InputError(
                f"{name} returned values without a gradient in the logits.",
                "compute them from the logits by differentiable operations, without detach(), argmax or NumPy.",
            )
        (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise InputError(f"{name} does not depend on the logits.", "compute it from the logits.")
    return values.detach(), gradient.detach()


def loss_gradient(
    loss: str | RowLoss, logits: Tensor, labels: Tensor, name: str = "Task(loss=...)"
) -> tuple[Tensor, Tensor]:
    """Values `[B]` of the loss, and its gradients `[B, C]` in the logits; of cross-entropy in float64.

    Cross-entropy's gradient is `P - e_y`, with `P_y - 1` as minus the sum of the other probabilities: `1 - P_y` is 0 in
    float32 from a margin of 17 on, and in float64 from 37 on.

    Raises:
        InputError: as `logit_gradient`.
    """
    if callable(loss):
        return logit_gradient(loss, _precise(loss, logits), labels, name)
    z = logits.detach().double()
    values = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    own = labels[:, None]
    others = z.softmax(1).scatter_(1, own, 0.0)
    return values, others.scatter_(1, own, -others.sum(1, keepdim=True))


def _precise(loss: RowLoss, logits: Tensor) -> Tensor:
    """The logits in float64, if the loss takes them so (see `core.outputs`)."""
    return logits.double() if getattr(loss, "doubles", False) else logits


def scale_rows(gradient_bc: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of rows as `(g [B, C] in dtype, s [B, 1] in float64)`, `gradient = s g`, s a power of two.

    `s` is 1, except for rows whose gradient is under `LEAST_GRADIENT`: their g is scaled to a size of 1.
    """
    scale_b1 = _power_of_two(gradient_bc.abs().amax(1, keepdim=True))
    return (gradient_bc / scale_b1).to(dtype), scale_b1


def scale_together(gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """The same with one power of two for all rows, so that sums over rows can be scaled back."""
    scale = _power_of_two(gradient.abs().amax())
    return (gradient / scale).to(dtype), float(scale)


def _power_of_two(size: Tensor) -> Tensor:
    size = size.detach().double()
    exponent = torch.frexp(size).exponent
    small = (size > 0) & (size < LEAST_GRADIENT)
    return torch.where(small, torch.ldexp(torch.ones_like(size), exponent), 1.0)


def columns(logits: Tensor, labels: Tensor, loss: str | RowLoss, kind: FisherKind, draws: Tensor | None) -> Tensor:
    """Columns `[S, B, C]` with `sum_s c_s c_s' = ` the Fisher of each row in its logits.

    In the logits' own precision; in float64 where all rows are so sure that float32 would underflow.

    Args:
        logits: `[B, C]`.
        labels: `[B]`, used by the empirical Fisher alone.
        loss: of the task.
        kind: "true" takes the expectation over the model's own labels (for a callable loss: the Hessian of the loss
            in the logits, negative eigenvalues clipped); "empirical" takes the given label.
        draws: uniforms `[B, DRAWS]` for more than `MOST_CLASSES` classes, keyed by row so that they depend on
            neither batch nor worker; else None.

    Raises:
        InputError: a callable loss with more classes than the true Fisher can be factored for.
    """
    logits = logits.detach()
    if kind == "empirical":
        return loss_gradient(loss, logits, labels)[1][None]
    many = logits.shape[1] > MOST_CLASSES
    if loss == "cross_entropy":
        if many and draws is not None:
            return _drawn(logits, draws)
        factor = _softmax_factor(logits)
        sure = float(factor.abs().max()) < LEAST_GRADIENT
        return _softmax_factor(logits.double()) if sure else factor
    assert callable(loss)
    if many:
        raise InputError(
            f"The true Fisher of a callable loss over {logits.shape[1]} classes cannot be factored cheaply.",
            'pass fisher="empirical", or loss="cross_entropy".',
        )
    return _hessian_factor(_precise(loss, logits), labels, loss)


def logit_error(loss: str | RowLoss, logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each row's loss in its logits, `[B, C]`, which can be differentiated again."""
    if callable(loss):
        with torch.enable_grad():
            leaf = logits if logits.requires_grad else logits.detach().requires_grad_(True)
            with user_code(*LOSS):
                losses = loss(leaf, labels)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
        return gradient
    one_hot = torch.nn.functional.one_hot(labels, logits.shape[1])
    # P_y - 1 as minus the sum of the others: the difference is 0 in float32 where P_y is nearly 1.
    others = logits.softmax(1) * (1 - one_hot)
    return others - one_hot * others.sum(1, keepdim=True)


def logit_hessian(loss: str | RowLoss, logits: Tensor, labels: Tensor) -> Tensor:
    """The second derivative of each row's loss in its logits, `[B, C, C]`."""
    if callable(loss):
        return _logit_hessian(logits, labels, loss)
    factor_sbc = _softmax_factor(logits)
    return torch.einsum("sbc,sbe->bce", factor_sbc, factor_sbc)


def _softmax_factor(logits: Tensor) -> Tensor:
    """K - 1 columns of `diag P - P P'`, without one for the reference class r = argmax P.

    Column k (not r) is `sqrt(P_k) [(e_k - e_r) - (P - e_r) / (1 + sqrt P_r)]`; no differences of nearly equal numbers.
    """
    n, k = logits.shape
    p = logits.softmax(1)
    r = p.argmax(1, keepdim=True)
    others = torch.arange(k - 1, device=logits.device)[None]
    others = others + (others >= r)
    root = p.gather(1, others).sqrt()
    e_r = torch.zeros_like(p).scatter_(1, r, 1.0)
    # P - e_r with its r-th entry as minus the sum of the others, since 1 - P_r is 0 in float32 where P_r is nearly 1.
    away = (p * (1 - e_r)) - e_r * (p * (1 - e_r)).sum(1, keepdim=True)
    shared = away / (1 + p.gather(1, r).sqrt())
    out = torch.zeros(n, k - 1, k, dtype=p.dtype, device=p.device).scatter_(2, others[..., None], 1.0)
    return (root[..., None] * (out - e_r[:, None] - shared[:, None])).transpose(0, 1).contiguous()


def signed_columns(columns_sbc: Tensor, signs_bs: Tensor) -> Tensor:
    """Columns combined with random signs, `[D, B, C]`: `u_d = sum_s e_s h_ds c_s / sqrt(D)`.

    The signs e of a row are independent, so `E sum_d u_d u_d' = sum_s c_s c_s'`: the sums behind K-FAC and EKFAC are
    right on average, at the price of D backward passes instead of S. The rows of the Hadamard matrix h go by the
    columns' size, in falling order: products of two of the D largest columns, where most of the error is, cancel.

    Args:
        columns_sbc: c.
        signs_bs: e, 1 or -1.
    """
    rank_bs = columns_sbc.norm(dim=2).T.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return _combined(columns_sbc.permute(1, 0, 2), signs_bs, rank_bs)


def signed_softmax(logits: Tensor, signs_bc: Tensor) -> Tensor:
    """The same of the softmax's K - 1 columns, without forming them: for many classes. In float64."""
    p = logits.detach().double().softmax(1)
    r = p.argmax(1, keepdim=True)
    others = p.scatter(1, r, 0.0)
    rank_bc = others.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    weights_dbc = others.sqrt() * _hadamard(signs_bc, rank_bc, p.dtype)
    total_db1 = weights_dbc.sum(2, keepdim=True)
    away_bc = others.scatter(1, r, -others.sum(1, keepdim=True))
    shared_dbc = total_db1 * away_bc / (1 + p.gather(1, r).sqrt())
    found = weights_dbc - shared_dbc
    return found.scatter_add_(2, r.expand(len(found), -1, 1), -total_db1) / SIGN_DRAWS**0.5


def _combined(columns_bsc: Tensor, signs_bs: Tensor, rank_bs: Tensor) -> Tensor:
    weights_dbs = _hadamard(signs_bs, rank_bs, columns_bsc.dtype)
    return torch.einsum("dbs,bsc->dbc", weights_dbs, columns_bsc) / SIGN_DRAWS**0.5


def _hadamard(signs_bs: Tensor, rank_bs: Tensor, dtype: torch.dtype) -> Tensor:
    """`e_s h_ds`, `[D, B, S]`: h is 1 or -1 by the parity of the bits that d and the column's rank have in common."""
    draws = torch.arange(SIGN_DRAWS, device=rank_bs.device)
    common = draws[:, None, None] & (rank_bs % SIGN_DRAWS)
    parity = torch.zeros_like(common)
    while bool(common.any()):
        parity ^= common & 1
        common = common >> 1
    return signs_bs.to(dtype) * (1 - 2 * parity).to(dtype)


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """`(P - e_c) / sqrt(draws)` of drawn labels c, with `P_c - 1` as minus the sum of the others."""
    p = logits.double().softmax(1)
    drawn = torch.searchsorted(p.cumsum(1), draws.to(p.device)).clamp_(max=p.shape[1] - 1)
    one_hot = torch.nn.functional.one_hot(drawn, p.shape[1]).to(p.dtype)
    others = p[:, None] * (1 - one_hot)
    error = others - one_hot * others.sum(2, keepdim=True)
    return (error / draws.shape[1] ** 0.5).transpose(0, 1).contiguous()


def _hessian_factor(logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
    values, vectors = torch.linalg.eigh(_logit_hessian(logits, labels, loss).double())
    return (vectors * values.clamp(min=0).sqrt()[:, None]).permute(2, 0, 1).to(logits.dtype).contiguous()


def _logit_hessian(logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
    """The Hessian by a second backward pass for each logit, for all rows at once: rows do not mix.

    Raises:
        InputError: the loss cannot be differentiated twice.
    """
    try:
        return _differentiated_twice(logits, labels, loss)
    except RuntimeError as error:
        raise InputError(
            f"The loss cannot be differentiated twice in the model's outputs: {str(error).rstrip('.')}.",
            'write it with operations that can be; or pass fisher="empirical" (kfac, ekfac) or curvature="identity", '
            "which take first derivatives alone.",
        ) from error


def _differentiated_twice(logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        with user_code(*LOSS):
            losses = loss(leaf, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
        if not gradient.requires_grad:  # a loss that is linear in the logits
            return gradient.new_zeros(*gradient.shape, gradient.shape[1])
        columns = [
            torch.autograd.grad(column.sum(), leaf, retain_graph=True, materialize_grads=True)[0]
            for column in gradient.unbind(1)
        ]
    return torch.stack(columns, 1).detach()
