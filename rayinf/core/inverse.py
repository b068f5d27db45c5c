"""Solves with the mean curvature: query vectors V -> U = F(H) V / n, F as in `core.response`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core.blocks import Block, shown
from rayinf.core.influence import Eigenbasis, Queries, in_eigenbasis
from rayinf.core.kfac import Basis
from rayinf.core.layer_inputs import LayerInputs
from rayinf.core.response import Damped, Response, saturation
from rayinf.core.thin_queries import GRADIENT_SHARE, SOLVED_SHARE, Pair, ThinQueries, joined, most_rank, thin
from rayinf.errors import InputError

# The share of a query's norm that may lie where the curvature is singular before the answer is refused.
LOST_SHARE = 1e-6
# Queries and inverse eigenvalues that are larger (or smaller) than this are scaled by a power of two.
_MOST = 2.0**60
# Where the reciprocal condition is more than this many times `p eps`, no eigenvalue is lost in rounding.
_SAFE = 10.0


def eigen_inverse(lambda_roi: Tensor, rows: float, l2: float, response: Response, name: str = "") -> Tensor:
    """`F(Lambda) / n` of a layer: `1 / (n (Lambda + l2 + damping))`, with zeros where that is singular, or unrolled.

    A layer whose Lambda is all zero contributes nothing, whatever the response.
    """
    mean = float(lambda_roi.mean())
    if mean <= 0.0:
        return torch.zeros_like(lambda_roi)
    lambda_roi, rows = response.held_out * lambda_roi, rows / response.held_out**0.5
    if isinstance(response, Damped):
        level = lambda_roi + l2 + response.damping(mean, lambda_roi.numel())
        return _inverse(level * rows, lambda_roi.shape[1] * lambda_roi.shape[2])
    time = response.time(name)
    return time * saturation(time * (lambda_roi + response.shift(l2, name))) / rows


def power_over(arrays: Sequence[np.ndarray[Any, Any]]) -> float:
    """The power of two that scales values too large for float32 down to 1; 1 for all others."""
    largest = max((float(np.abs(a).max()) for a in arrays if a.size), default=0.0)
    return 1.0 if largest <= _MOST else 2.0 ** math.ceil(math.log2(largest))


def out_of_range(queries: Mapping[str, Tensor | ThinQueries]) -> bool:
    """Whether a query is not finite, or so large or small that float32 may overflow or underflow."""
    size_q = _sizes(queries)
    return not bool(((size_q <= _MOST) & (size_q >= 1 / _MOST)).all())


def fits(queries: Tensor | ThinQueries) -> bool:
    """Whether float32 holds a block's queries: none overflows, and none is so small that it underflows as a whole."""
    size_q = _sizes({"": queries})
    return bool(((size_q == 0) | ((size_q <= _MOST) & (size_q >= 1 / _MOST))).all())


def narrowed(u_qroi: Tensor, dtype: torch.dtype) -> Tensor:
    """A block's queries in a precision; as they are where it is float32, and too narrow for them (`fits`)."""
    return u_qroi if dtype is torch.float32 and not fits(u_qroi) else u_qroi.to(dtype)


def scale_queries(queries: Queries) -> tuple[Queries, Tensor]:
    """Queries of size 1, and the power of two `[Q]` of each."""
    size_q = _sizes(queries).double()
    exponent = torch.frexp(size_q).exponent
    scale_q = torch.where(size_q > 0, torch.ldexp(torch.ones_like(size_q), exponent), 1.0)
    return {k: v / scale_q.view(-1, 1, 1, 1) for k, v in queries.items()}, scale_q


def _sizes(queries: Mapping[str, Tensor | ThinQueries]) -> Tensor:
    """The largest magnitude in each query, `[Q]`, without a copy of the queries; of thin ones their norm."""
    return torch.stack(
        [
            v.left_qko.flatten(1).norm(dim=1)
            if isinstance(v, ThinQueries)
            else torch.linalg.vector_norm(v.flatten(1), torch.inf, 1)
            for v in queries.values()
        ]
    ).amax(0)


def solve_eigen(
    block: Block,
    v_qroi: Tensor,
    basis: Basis,
    inverse_roi: Tensor,
    dtype: torch.dtype = torch.float64,
    thin_rank: int = 0,
) -> Tensor:
    """`Q_G [ (Q_G' V Q_A) D ] Q_A'`, a query at a time, `[Q, r, o, i]`.

    Into the eigenbasis and through the inverse in float64, since small eigenvalues magnify rounding there; back out
    of it in `dtype`, the precision that the scores are computed in.

    Args:
        block: of the model.
        v_qroi: V.
        basis: of the block.
        inverse_roi: D.
        dtype: of the result.
        thin_rank: a query of one group whose rank is at most this is rotated by its two factors, `k (o^2 + i^2)`.

    Raises:
        InputError: the query has weight where the curvature is singular.
    """
    q_a = basis.q_a_rii
    back_g, back_a = basis.q_g_roo.to(dtype), None if q_a is None else q_a.transpose(1, 2).to(dtype)
    singular = not bool(inverse_roi.all()) and bool(inverse_roi.any())
    out, usual = torch.empty(v_qroi.shape, dtype=dtype, device=v_qroi.device), 0
    for k, v_roi in enumerate(v_qroi):
        pair = thin(v_roi[0].double(), thin_rank, GRADIENT_SHARE, usual) if thin_rank else None
        if pair is None or q_a is None:
            rotated = into_basis(v_roi.double(), basis)
        else:
            usual = len(pair[0])
            rotated = ((pair[0] @ basis.q_g_roo[0]).T @ (pair[1] @ q_a[0]))[None]
        if singular:
            flat = rotated.flatten()[None]
            _check_lost(flat * (inverse_roi.flatten() == 0), flat, shown(block.name))
        solved = torch.matmul(back_g, rotated.mul_(inverse_roi).to(dtype))
        out[k] = solved if back_a is None else torch.matmul(solved, back_a)
    return out


def solve_thin(
    block: Block, v_qroi: Tensor, basis: Basis, inverse_roi: Tensor, dtype: torch.dtype
) -> ThinQueries | None:
    """The same of a block of one group as thin queries: no query is rotated whole. None where a rank is too large.

    Raises:
        InputError: the query has weight where the curvature is singular.
    """
    assert basis.q_a_rii is not None
    most = most_rank(*block.shape[1:])
    singular = not bool(inverse_roi.all())
    found: list[Pair] = []
    for v_roi in v_qroi:
        pair = thin(v_roi[0].double(), most, GRADIENT_SHARE, _largest(found))
        if pair is None:
            return None
        found.append(pair)
    solved: list[Pair] = []
    for left_ko, right_ki in _rotated(found, basis.q_g_roo[0], basis.q_a_rii[0]):
        rotated = left_ko.T @ right_ki
        if singular:
            _check_lost(
                rotated.flatten()[None] * (inverse_roi.flatten() == 0), rotated.flatten()[None], shown(block.name)
            )
        pair = thin(rotated.mul_(inverse_roi[0]), most, SOLVED_SHARE, _largest(solved))
        if pair is None:
            return None
        solved.append((pair[0].to(dtype), pair[1].to(dtype)))
    return joined(_rotated(solved, basis.q_g_roo[0].T.to(dtype), basis.q_a_rii[0].T.to(dtype)))


def _largest(pairs: Sequence[Pair]) -> int:
    """The largest rank."""
    return max((len(left) for left, _ in pairs), default=0)


def _rotated(pairs: Sequence[Pair], left_oo: Tensor, right_ii: Tensor) -> list[Pair]:
    """All pairs times two matrices, in one product each."""
    ranks = [len(left) for left, _ in pairs]
    left, right = (torch.cat([p[side] for p in pairs]) @ q for side, q in ((0, left_oo), (1, right_ii)))
    return list(zip(left.split(ranks), right.split(ranks), strict=True))


def solve_rows(parts: Iterable[LayerInputs], out_broi: Tensor, eigenbasis: Eigenbasis, name: str, stay: bool) -> Tensor:
    """Row gradients through the inverse curvature, `[B, r, o, i]`, from their factors; in the eigenbasis, if they stay.

    A gradient of one position has rank one: its two factors are rotated, `o^2 + i^2` a row, in place of `o i (o + i)`.
    It may stay in the eigenbasis where the rows that it is multiplied with come as factors too. Rotations into the
    eigenbasis are in float64, as in `solve_eigen`.

    Args:
        parts: tiles of the block.
        out_broi: zeros, in the precision of the result.
        eigenbasis: of the block, in float64.
        name: of the block.
        stay: whether the rows stay in the eigenbasis.

    Raises:
        InputError: a gradient has weight where the curvature is singular.
    """
    q_a, q_g, d = eigenbasis
    dtype, singular = out_broi.dtype, not bool(d.all()) and bool(d.any())
    for tile in parts:
        exact = LayerInputs(tile.rows, tile.a_brti.double(), tile.g_brto.double(), tile.columns)
        (a, g), d_roi = in_eigenbasis(exact, eigenbasis), tile.narrow(d)
        if singular:
            flat = torch.matmul(g.transpose(2, 3), a).flatten(1)
            _check_lost(flat * (d_roi.flatten() == 0), flat, shown(name))
        if tile.one:
            value = g[:, :, 0, :, None].to(dtype) * a[:, :, 0, None].to(dtype) * d_roi.to(dtype)
        else:
            value = (torch.matmul(g.transpose(2, 3), a) * d_roi).to(dtype)
        tile.add_to(out_broi[tile.rows], value)
    if stay:
        return out_broi
    out = out_broi if q_g is None else torch.matmul(q_g.to(dtype), out_broi)
    return out if q_a is None else torch.matmul(out, q_a.to(dtype).transpose(1, 2))


def into_basis(v_roi: Tensor, basis: Basis) -> Tensor:
    """`Q_G' V Q_A`, `[r, o, i]`."""
    rotated = torch.matmul(basis.q_g_roo.transpose(1, 2), v_roi)
    return rotated if basis.q_a_rii is None else torch.matmul(rotated, basis.q_a_rii)


def solve_dense(v_qp: Tensor, inverse_pp: Tensor, null_pk: Tensor) -> Tensor:
    """`V (n (H + l2 + damping))^-1` for a small dense curvature, from `dense_inverse`.

    Raises:
        InputError: a query has over 1e-6 of its norm in the null space of the curvature.
    """
    if null_pk.shape[1]:
        _check_lost(v_qp @ null_pk, v_qp, "the valued parameters")
    return v_qp @ inverse_pp


def dense_inverse(mean_pp: Tensor, rows: float, shift: float, eps: float) -> tuple[Tensor, Tensor]:
    """`(n (H + l2 + damping))^-1` `[p, p]`, and the null directions `[p, k]`, which contribute 0.

    By Cholesky's factor where the matrix is well conditioned; else by its eigenvectors without those under
    `p eps max`, at twenty times the cost.

    Args:
        mean_pp: the mean Hessian or GGN.
        rows: n.
        shift: l2 + damping.
        eps: machine epsilon of the precision that the curvature was computed in.

    Raises:
        InputError: an eigenvalue is negative beyond rounding: the fit is not at a minimum.
    """
    p = len(mean_pp)
    level_pp = mean_pp + shift * torch.eye(p, dtype=mean_pp.dtype)
    factor, failed = torch.linalg.cholesky_ex(level_pp)
    if not int(failed):
        from scipy.linalg import lapack

        condition, _ = lapack.dpocon(np.asfortranarray(factor.numpy()), float(level_pp.abs().sum(0).max()), uplo="L")
        if condition > _SAFE * p * eps:
            return torch.cholesky_inverse(factor) / rows, mean_pp.new_zeros(p, 0)
    values, vectors = torch.linalg.eigh(mean_pp)
    level = values + shift
    floor = p * eps * float(level.abs().max())
    if float(level.min()) < -floor:
        raise InputError(
            f"The exact Hessian has {int((level < -floor).sum())} negative eigenvalues of {len(level)} "
            f"(least {float(level.min()):.3g}, largest {float(level.max()):.3g}): the model is not at a minimum.",
            'use curvature="ggn", which is never negative, or pass a larger damping, or train to convergence.',
        )
    inverse = _inverse(level * rows, p, eps)
    return (vectors * inverse) @ vectors.T, vectors[:, inverse == 0]


def dense_unrolled(mean_pp: Tensor, rows: float, shift_p: Tensor, time_p: Tensor) -> Tensor:
    """`F / n` of a dense curvature `[p, p]` for a training whose time is that of each parameter's layer.

    Gradient flow with the rates T in every parameter is gradient flow for time 1 in parameters scaled by `T^-1/2`: so
    `F = T^1/2 phi(T^1/2 (H + shift) T^1/2) T^1/2` with `phi(x) = (1 - exp(-x)) / x`.

    Raises:
        InputError: an eigenvalue is too negative.
    """
    root_p = time_p.sqrt()
    values, vectors = torch.linalg.eigh(root_p[:, None] * (mean_pp + torch.diag(shift_p)) * root_p)
    scaled = root_p[:, None] * vectors
    return (scaled * (saturation(values) / rows)) @ scaled.T


def extremes(mean_pp: Tensor) -> tuple[float, float]:
    """The least and the largest eigenvalue of a dense curvature."""
    p = len(mean_pp)
    from scipy.linalg import eigvalsh

    ends = (eigvalsh(mean_pp.numpy(), subset_by_index=[k, k])[0] for k in (0, p - 1))
    least, largest = (float(v) for v in ends)
    return least, largest


def split_blocks(flat_qp: Tensor, blocks: Sequence[Block]) -> Queries:
    """`[Q, p]` -> a matrix a block."""
    parts = flat_qp.split([b.numel for b in blocks], dim=1)
    return {b.name: part.reshape(-1, *b.shape) for b, part in zip(blocks, parts, strict=True)}


def join_blocks(queries: Mapping[str, Tensor], blocks: Sequence[Block]) -> Tensor:
    """The inverse of `split_blocks`."""
    return torch.cat([queries[b.name].flatten(1) for b in blocks], dim=1)


def _inverse(level: Tensor, size: int, eps: float = torch.finfo(torch.float64).eps) -> Tensor:
    keep = level > size * eps * level.max()
    return torch.where(keep, 1.0 / torch.where(keep, level, 1.0), 0.0)


def _share(share: float) -> str:
    """A share as text; a small one is not rounded to "0.00%"."""
    return f"{share:.2%}" if share >= 1e-4 else f"a share of {share:.1e}"


def _check_lost(lost_qp: Tensor, query_qp: Tensor, name: str) -> None:
    """Refuse queries of whose norm too large a part lies in the null space."""
    norms, lost = query_qp.norm(dim=1), lost_qp.norm(dim=1)
    if bool((lost > LOST_SHARE * norms).any()):
        share = float((lost / norms.clamp(min=1e-300)).max())
        raise InputError(
            f"The curvature of {name} is singular, and {_share(share)} of a query's norm lies in its null space.",
            "pass damping > 0, or fit with l2 > 0 and say so in Task(l2=...).",
        )
