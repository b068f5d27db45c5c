"""Exact Hessian and generalised Gauss-Newton for few parameters, which approximations can be compared with."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.core.blocks import Block, from_matrix, to_matrix
from rayinf.core.influence import ForwardPass, dense_rows
from rayinf.core.kfac import Sums, add, add_gram
from rayinf.core.row_gradients import functional_logits
from rayinf.errors import InputError
from rayinf.task import RowLoss
from rayinf.user_code import UserCodeError, torch_said

# Tangents pushed through the model at once: bounds the memory of a Hessian's columns.
_TANGENTS = 32


def add_ggn(sums: Sums, forward_pass: ForwardPass, columns_sbc: Tensor) -> None:
    """Add `sum_rows J' (sum_s c_s c_s') J` under `H` (lower triangle) from the columns of the Fisher in the logits.

    Cost a row: S backward passes and `S p^2 / 2` multiply-adds. For softmax cross-entropy and a linear head this
    is the Hessian.
    """
    add(sums, "rows", torch.tensor(float(len(forward_pass.logits))))
    for s, column_bc in enumerate(columns_sbc):
        add_gram(sums, "H", dense_rows(forward_pass, column_bc, last=s == len(columns_sbc) - 1)[None])


def add_head_hessian(sums: Sums, a_bi: Tensor, logits_bc: Tensor) -> None:
    """Add the softmax Hessian of a linear head, `sum_rows (diag P - P P') (x) a a'`, under `H`.

    Args:
        sums: where to add, `[1, K i, K i]`, whole (both triangles).
        a_bi: inputs of the head, with the column of ones.
        logits_bc: its outputs.

    Cost a row: `K (K + 1) / 2 i^2` multiply-adds in float64, K times less than from gradients.
    """
    add(sums, "rows", torch.tensor(float(len(a_bi))))
    a, p = a_bi.double(), logits_bc.double().softmax(1)
    k, i = p.shape[1], a.shape[1]
    if "H" not in sums:
        sums["H"] = torch.zeros(1, k * i, k * i, dtype=torch.float64, device=a.device)
    h = sums["H"].view(k, i, k, i)
    for c in range(k):
        for e in range(c + 1):
            # 1 - P_c as the sum of the others: exact where P_c is nearly 1 too.
            weight = p[:, c] * ((p.sum(1) - p[:, c]) if c == e else -p[:, e])
            part = (a * weight[:, None]).T @ a
            h[c, :, e] += part
            if c != e:
                h[e, :, c] += part


def add_hessian(sums: Sums, model: nn.Module, blocks: Sequence[Block], x: Any, labels: Tensor, loss: RowLoss) -> None:
    """Add the Hessian of the summed loss of a batch under `H`, forward over reverse, in the blocks' coordinates.

    Cost: p Hessian-vector products a batch, 32 at a time.

    Raises:
        InputError: `torch.func` cannot differentiate the model (an LSTM, say).
    """
    add(sums, "rows", torch.tensor(float(len(labels))))
    theta, column = _hessian_column(model, blocks, x, labels, loss)
    p = len(theta)
    if "H" not in sums:
        sums["H"] = torch.zeros(1, p, p, dtype=torch.float64, device=theta.device)
    for start in range(0, p, _TANGENTS):
        stop = min(start + _TANGENTS, p)
        tangents = torch.zeros(stop - start, p, dtype=theta.dtype, device=theta.device)
        tangents[:, start:stop] = torch.eye(stop - start, dtype=theta.dtype, device=theta.device)
        with _twice():
            sums["H"][0, start:stop] += torch.func.vmap(column)(tangents)


def hessian_product(
    model: nn.Module, blocks: Sequence[Block], x: Any, labels: Tensor, loss: RowLoss, v_p: Tensor
) -> Tensor:
    """The Hessian of a batch's summed loss times a vector, `[p]`, at the cost of about two gradients.

    Raises:
        InputError: as `add_hessian`.
    """
    theta, column = _hessian_column(model, blocks, x, labels, loss)
    with _twice():
        return column(v_p.to(theta))


def extreme_directions(product: Callable[[Tensor], Tensor], start_p: Tensor, steps: int) -> tuple[Tensor, float, float]:
    """The direction `[p]` of least curvature that Lanczos finds, with the least and the largest Ritz value.

    Args:
        product: a symmetric matrix times a vector, float64.
        start_p: where to start.
        steps: products with the matrix.
    """
    basis = [start_p / start_p.norm()]
    images: list[Tensor] = []
    for _ in range(steps):
        images.append(product(basis[-1]))
        held = torch.stack(basis)
        rest = images[-1] - held.T @ (held @ images[-1])
        rest = rest - held.T @ (held @ rest)  # once more: rounding leaves components in the basis
        if len(basis) == min(steps, len(start_p)) or float(rest.norm()) <= 1e-6 * float(images[-1].norm()):
            break
        basis.append(rest / rest.norm())
    held = torch.stack(basis[: len(images)])
    small = held @ torch.stack(images).T
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    return held.T @ vectors[:, 0], float(values[0]), float(values[-1])


def _hessian_column(
    model: nn.Module, blocks: Sequence[Block], x: Any, labels: Tensor, loss: RowLoss
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The valued parameters `[p]`, and the Hessian of a batch's summed loss times a vector."""
    held = {k: v.detach() for k, v in [*model.named_parameters(), *model.named_buffers()]}
    theta = torch.cat([to_matrix(b, [held[n] for n in b.parameters]).flatten() for b in blocks])

    def total(flat: Tensor) -> Tensor:
        params, start = dict(held), 0
        for b in blocks:
            params.update(from_matrix(b, flat[start : start + b.numel].view(b.shape), held))
            start += b.numel
        return loss(functional_logits(model, params, x), labels).sum()

    return theta, lambda v: torch.func.jvp(torch.func.grad(total), (theta,), (v,))[1]


@contextmanager
def _twice() -> Generator[None]:
    """Raise an InputError where `torch.func` cannot take second derivatives."""
    try:
        yield
    except (RuntimeError, UserCodeError) as error:
        raise InputError(
            f"torch.func cannot take second derivatives of the model: {torch_said(error)}.",
            'use curvature="ggn" or "ekfac", which take first derivatives alone.',
        ) from error


def mean_curvature(hessian_pp: Tensor, rows: float) -> Tensor:
    """The mean curvature `[p, p]`, symmetric, from the lower triangle of its sum."""
    lower = hessian_pp.tril().div_(rows)
    return lower.tril(-1).T.add_(lower)
