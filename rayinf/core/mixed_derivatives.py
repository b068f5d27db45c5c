"""The mixed derivative `M = d_x d_theta l` of every row, by its products alone: `M'U`, `M f`, `M'M f`; never `p x d`.

All products are made from layer inputs and output gradients (`layer_inputs.py`): a row's gradient is `sum_t g_t a_t'`,
and both are functions of its input x. `M'U` is the gradient in x of the product of that with U (reverse over reverse),
and `M f` its tangent in direction f (forward over reverse).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rayinf.core.blocks import Block
from rayinf.core.capture import Capture, capture
from rayinf.core.fisher import logit_error
from rayinf.core.influence import Eigenbasis, Queries, check_flat, in_eigenbasis
from rayinf.core.influence_measure import contrasts
from rayinf.core.inverse import split_blocks
from rayinf.core.layer_inputs import LayerInputs, rotate, tiles
from rayinf.core.perturbation import INPUT, forward_perturbed
from rayinf.core.row_gradients import without_fast_path
from rayinf.errors import InputError
from rayinf.task import RowLoss

# The name under which the capture holds what is perturbed.
_INPUT = "<input>"
_ONE_TILE = 1 << 40


@dataclass(frozen=True)
class Inverse:
    """The inverse curvature `(n Hbar)^-1`: one dense matrix `[p, p]`, or eigenvectors and inverse eigenvalues a block.

    Blocks without an eigenbasis contribute nothing. `kept` caches what is computed from the matrix, for all batches.
    """

    dense_pp: Tensor | None
    eigenbases: Mapping[str, Eigenbasis]
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False)


class MixedRows(Protocol):
    """The rows of a batch, and products with their mixed derivatives. Inputs are flattened to `[B, d]`."""

    logits: Tensor

    def slopes(self, query: Queries) -> Tensor:
        """`M'U` `[B, d]` for one U, `[1, r, o, i]` a block."""
        ...

    def jacobians(self, inverse: Inverse) -> tuple[Tensor, Tensor]:
        """`J_x` and `M' (n Hbar)^-1 J_theta'` of every contrast of logits, each `[B, K - 1, d]`."""
        ...

    def columns(self, f_bdk: Tensor, inverse: Inverse | None) -> Tensor:
        """`M f` `[B, k, p]`, in the blocks' order; through the inverse (in its eigenbasis, if it has one)."""
        ...

    def gram(self, f_bdk: Tensor) -> Tensor:
        """`M'M f` `[B, d, k]`."""
        ...


class RecordedRows:
    """Any model, by the graph of one forward pass, which can be differentiated twice.

    Args:
        model: in eval mode, all of whose blocks have a rule.
        blocks: what is valued.
        x: the model's input.
        labels: `[B]`.
        loss: of the task.
        perturb: what is perturbed: "input" (the floating tensors of x), or the layer whose input is.

    Raises:
        InputError: an input without floating tensors, or a layer that cannot be differentiated twice.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: tuple[Block, ...],
        x: Any,
        labels: Tensor,
        loss: str | RowLoss,
        perturb: str = INPUT,
    ) -> None:
        self._model, self._blocks, self._x, self._labels, self._loss = model, blocks, x, labels, loss
        self._modules, self._perturb = dict(model.named_modules()), perturb
        self._leaves: list[Tensor] = []
        with capture(model, blocks, attached=True) as captured, _plain_attention():
            self._captured = captured
            self.logits = forward_perturbed(model, x, perturb, self._leaf)
            if not self._leaves:
                raise InputError(
                    "The model's input has no floating numbers: integers (tokens) cannot be perturbed.",
                    "name the layer after the embedding (perturb=...), or pass embeddings as the features.",
                )
            gradients = captured.gradients(self.logits, logit_error(loss, self.logits, labels), attached=True)
            # What a row's gradient is made of, on the graph.
            self._live = self._positions(captured, gradients)

    def check_flat(self, names: Sequence[str]) -> None:
        """Refuse layers whose curvature is 0 though a row has a gradient there.

        Raises:
            InputError: the layer.
        """
        for block in self._blocks:
            for tile in self._live.get(block.name, ()) if block.name in names else ():
                check_flat(block, tile)

    def slopes(self, query: Queries) -> Tensor:
        """`M'U` for one U: a pass backward through the whole graph."""
        total = self.logits.new_zeros(())
        for block in self._blocks:
            for tile in self._live.get(block.name, ()):
                u_roi = tile.narrow(query[block.name][0])
                total = total + (torch.matmul(tile.a_brti, u_roi.transpose(1, 2)) * tile.g_brto).sum()
        return self._in_input(total)

    def jacobians(self, inverse: Inverse) -> tuple[Tensor, Tensor]:
        """A pass backward to the layers and the input, and one through the whole graph, for each contrast."""
        direct, moved = [], []
        rotated = {n: [in_eigenbasis(t, inverse.eigenbases.get(n)) for t in parts] for n, parts in self._live.items()}
        for k in range(self.logits.shape[1] - 1):
            cotangent_bc = contrasts(self.logits.detach())[:, k]
            found = self._captured.gradients(self.logits, cotangent_bc)
            direct.append(_flat(found[_INPUT]))
            fixed = self._positions(self._captured, found, detach=True)
            moved.append(self._in_input(self._product(rotated, fixed, inverse)))
        return torch.stack(direct, 1), torch.stack(moved, 1)

    def _product(
        self, rotated: Mapping[str, Sequence[tuple[Tensor, Tensor]]], fixed: _Parts, inverse: Inverse
    ) -> Tensor:
        """The sum over rows of `<row gradient(x), (n Hbar)^-1 fixed row gradient>`."""
        total = self.logits.new_zeros(())
        if inverse.dense_pp is not None:
            rows = torch.cat([_dense(b, fixed.get(b.name, ()), self.logits).flatten(1) for b in self._blocks], 1)
            return self._against(split_blocks(rows @ inverse.dense_pp, self._blocks))
        for block in self._blocks:
            basis = inverse.eigenbases.get(block.name)
            for (a, g), tile in zip(rotated.get(block.name, ()), fixed.get(block.name, ()), strict=True):
                if basis is None:
                    continue
                d_roi = tile.narrow(basis[2])
                a_fixed = a.detach()  # the same inputs: to rotate those of a wide layer costs more than all else
                g_fixed = rotate(tile.g_brto, basis[1])
                if tile.one:
                    half = torch.matmul((g * g_fixed)[:, :, 0].transpose(0, 1), d_roi)
                    total = total + (half * (a * a_fixed)[:, :, 0].transpose(0, 1)).sum()
                else:
                    u_broi = torch.matmul(g_fixed.transpose(2, 3), a_fixed) * d_roi
                    total = total + (torch.matmul(a, u_broi.transpose(2, 3)) * g).sum()
        return total

    def columns(self, f_bdk: Tensor, inverse: Inverse | None) -> Tensor:
        """A forward pass with tangents and its backward for each direction."""
        out = []
        for k in range(f_bdk.shape[2]):
            rows = self._column(f_bdk[:, :, k], inverse)
            if inverse is not None and inverse.dense_pp is not None:
                rows = rows @ inverse.dense_pp
            out.append(rows)
        return torch.stack(out, 1)

    def gram(self, f_bdk: Tensor) -> Tensor:
        """`M'M f`: `columns`, then a pass backward, for each direction."""
        out = []
        for k in range(f_bdk.shape[2]):
            queries = split_blocks(self._column(f_bdk[:, :, k], None), self._blocks)
            out.append(self._in_input(self._against(queries)))
        return torch.stack(out, 2)

    def _against(self, rows: Queries) -> Tensor:
        """The sum over rows of `<row gradient(x), U of that row>`, U `[B, r, o, i]` a block."""
        total = self.logits.new_zeros(())
        for block in self._blocks:
            for tile in self._live.get(block.name, ()):
                u_broi = tile.narrow(rows[block.name][tile.rows])
                total = total + (torch.matmul(tile.a_brti, u_broi.transpose(2, 3)) * tile.g_brto).sum()
        return total

    def _column(self, f_bd: Tensor, inverse: Inverse | None) -> Tensor:
        """The tangent `[B, p]` of every row's gradient in direction f: `sum_t dg_t a_t' + g_t da_t'`."""
        parts = iter(f_bd.split([leaf[0].numel() for leaf in self._leaves], 1))

        def dual(v: Tensor) -> Tensor:
            return forward_ad.make_dual(v, next(parts).reshape(v.shape).to(v.dtype))

        with (
            forward_ad.dual_level(),
            capture(self._model, self._blocks, attached=True) as captured,
            _plain_attention(),
        ):
            logits = forward_perturbed(self._model, self._x, self._perturb, dual)
            gradients = captured.gradients(logits, logit_error(self._loss, logits, self._labels), last=True)
            duals = self._positions(captured, gradients, detach=False)
            eigenbases = {} if inverse is None else inverse.eigenbases
            out = []
            for block in self._blocks:
                eigenbasis = eigenbases.get(block.name)
                idle = inverse is not None and inverse.dense_pp is None and eigenbasis is None
                rows = self._tangent(block, () if idle else duals.get(block.name, ()), eigenbasis)
                out.append(rows.flatten(1))
        return torch.cat(out, 1)

    def _tangent(self, block: Block, parts: Sequence[LayerInputs], eigenbasis: Eigenbasis | None) -> Tensor:
        """Tangents of a block's row gradients, `[B, r, o, i]`; with an eigenbasis, times the inverse eigenvalues."""
        rows = self.logits.new_zeros(len(self.logits), *block.shape)
        for tile in parts:
            a, g = in_eigenbasis(tile, eigenbasis)
            (a, da), (g, dg) = (_unpack(v) for v in (a, g))
            value = torch.matmul(dg.transpose(2, 3), a) + torch.matmul(g.transpose(2, 3), da)
            tile.add_to(rows[tile.rows], value.detach())
        return rows if eigenbasis is None else rows * eigenbasis[2]

    def _leaf(self, v: Tensor) -> Tensor:
        """A part of what is perturbed plus w = 0, recorded as if it were a layer's output."""
        leaf = torch.zeros_like(v).requires_grad_(True)
        self._leaves.append(leaf)
        out = v + leaf
        self._captured.record(_INPUT, leaf, out)
        return out

    def _in_input(self, total: Tensor) -> Tensor:
        """The gradient of a sum over rows in their inputs, `[B, d]`."""
        if not total.requires_grad:
            return total.new_zeros(len(self.logits), sum(leaf[0].numel() for leaf in self._leaves))
        found = torch.autograd.grad(total, self._leaves, retain_graph=True, allow_unused=True)
        return _flat([torch.zeros_like(v) if g is None else g for v, g in zip(self._leaves, found, strict=True)])

    def _positions(self, captured: Capture, gradients: Mapping[str, list[Tensor]], detach: bool = False) -> _Parts:
        out = {}
        for block in self._blocks:
            if block.name in gradients:
                inputs = captured.inputs[block.name]
                inputs = [v.detach() for v in inputs] if detach else inputs
                out[block.name] = list(
                    tiles(block, self._modules[block.name], inputs, gradients[block.name], times=_ONE_TILE)
                )
        return out


_Parts = dict[str, list[LayerInputs]]


@contextmanager
def _plain_attention() -> Generator[None]:
    """Attention in forms that can be differentiated twice and forward: neither fused kernels nor torch's fast path."""
    with without_fast_path(), sdpa_kernel(SDPBackend.MATH):
        yield


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([v.flatten(1) for v in parts], 1)


def _dense(block: Block, parts: Sequence[LayerInputs], like: Tensor) -> Tensor:
    rows = like.new_zeros(len(like), *block.shape)
    for tile in parts:
        tile.add_to(rows[tile.rows], torch.matmul(tile.g_brto.transpose(2, 3), tile.a_brti))
    return rows


def _unpack(v: Tensor) -> tuple[Tensor, Tensor]:
    value, tangent = forward_ad.unpack_dual(v)
    return value, torch.zeros_like(value) if tangent is None else tangent
