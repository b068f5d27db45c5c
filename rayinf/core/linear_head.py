"""The mixed derivatives of a linear softmax head whose inputs are perturbed: closed forms, no differentiation.

`l = loss(W a~, y)`, `a~ = (a, 1)`, `e` and `B` its first and second derivatives in the logits:
`M'U = W' B U a~ + U[:, :d]' e`, `M f = (B W f) a~' + e (f, 0)'`, with W without its bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayinf.core.blocks import Block
from rayinf.core.capture import capture, forward
from rayinf.core.fisher import logit_error, logit_hessian
from rayinf.core.influence import Queries
from rayinf.core.influence_measure import contrasts
from rayinf.core.mixed_derivatives import Inverse
from rayinf.core.perturbation import INPUT, forward_perturbed
from rayinf.task import RowLoss

# Rows whose products with all of a dense inverse are held at a time, `K^2 i` numbers each.
_ROWS = 128
# Operations between a model's input and its head that leave the numbers as they are.
_VIEWS = ("ViewBackward", "ReshapeAliasBackward", "UnsafeViewBackward", "AliasBackward", "SqueezeBackward", "Unsqueeze")


class HeadRows:
    """The rows of a batch under a linear head.

    Args:
        model: whose output is the head's.
        block: the head's.
        x: the model's input.
        labels: `[B]`; None takes the likeliest.
        loss: of the task.
        perturb: "input", where the head's inputs a are a view of x, or the head's own name.
    """

    def __init__(
        self,
        model: nn.Module,
        block: Block,
        x: Any,
        labels: Tensor | None,
        loss: str | RowLoss,
        perturb: str = INPUT,
    ) -> None:
        self._name, self._loss = block.name, loss
        module: Any = model.get_submodule(block.name)
        self._w_cd: Tensor = module.weight.detach()
        held: list[Tensor] = []

        def keep(v: Tensor) -> Tensor:
            held.append(v)
            return v

        with torch.no_grad():
            self.logits = forward_perturbed(model, x, perturb, keep)
        self._x_bd = held[0].reshape(len(self.logits), -1)
        self._a_bi = functional.pad(self._x_bd, (0, 1), value=1.0) if block.has_bias else self._x_bd
        self._labels = self.logits.argmax(1) if labels is None else labels

    @cached_property
    def _e_bc(self) -> Tensor:
        return logit_error(self._loss, self.logits, self._labels).detach()

    @cached_property
    def _b_bcc(self) -> Tensor:
        return logit_hessian(self._loss, self.logits, self._labels)

    def contrasted_gradients(self) -> Tensor:
        """Row gradients `e a~'` without their first class, `[B, (K - 1) i]`: cross-entropy's e adds up to 0."""
        return (self._e_bc[:, 1:, None] * self._a_bi[:, None]).flatten(1)

    def slopes(self, query: Queries) -> Tensor:
        """`M'U` for one U: two products of `K i` a row."""
        u_ci = query[self._name][0, 0]
        inner_bc = torch.bmm(self._b_bcc, (self._a_bi @ u_ci.T)[..., None])[..., 0]
        return inner_bc @ self._w_cd + self._e_bc @ u_ci[:, : self._w_cd.shape[1]]

    def jacobians(self, inverse: Inverse) -> tuple[Tensor, Tensor]:
        """`K^2 i^2` multiply-adds a row for a dense inverse, `K i^2` in an eigenbasis."""
        contrast_bkc = contrasts(self.logits)
        direct = torch.matmul(contrast_bkc, self._w_cd)
        # The derivatives of cross-entropy in the logits add up to 0, so that K - 1 classes, less the first, are enough.
        first = 0 if inverse.dense_pp is None or callable(self._loss) else 1
        found = self._in_eigenbasis(inverse) if inverse.dense_pp is None else self._dense(inverse, first)
        z_bcc, ez_bci = found
        d = self._w_cd.shape[1]
        # Row c of both: for U = (n Hbar)^-1 (e_c a~'), B U a~ and e'U.
        inner = torch.bmm(z_bcc.transpose(1, 2), self._b_bcc[:, first:])
        moved_bcd = torch.matmul(inner, self._w_cd) + ez_bci[:, :, :d]
        return direct, torch.bmm(contrast_bkc[:, :, first:], moved_bcd)

    def columns(self, f_bdk: Tensor, inverse: Inverse | None) -> Tensor:
        """`K i` numbers a direction, and their product with the inverse, in the parameters' own coordinates."""
        left_bkc = (self._b_bcc @ (self._w_cd @ f_bdk)).transpose(1, 2)
        f_bki = functional.pad(f_bdk.transpose(1, 2), (0, self._a_bi.shape[1] - self._w_cd.shape[1]))
        a_bi, e_bc = self._a_bi, self._e_bc
        eigenbasis = None if inverse is None else inverse.eigenbases.get(self._name)
        q_a, q_g, d_roi = eigenbasis or (None, None, None)
        if q_a is not None:
            a_bi, f_bki = a_bi @ q_a[0], f_bki @ q_a[0]
        if q_g is not None:
            left_bkc, e_bc = left_bkc @ q_g[0], e_bc @ q_g[0]
        # Both outer products as one, into one array: `[left e] [a~ (f, 0)]'`.
        left_bkc2 = torch.stack([left_bkc, e_bc[:, None].expand_as(left_bkc)], 3)
        out_bkci = left_bkc2 @ torch.stack([a_bi[:, None].expand_as(f_bki), f_bki], 2)
        if inverse is not None and inverse.dense_pp is not None:
            return out_bkci.flatten(2) @ inverse.dense_pp
        if inverse is not None:
            out_bkci = out_bkci * d_roi[0] if d_roi is not None else torch.zeros_like(out_bkci)
            out_bkci = out_bkci if q_g is None else q_g[0] @ out_bkci
            out_bkci = out_bkci if q_a is None else out_bkci @ q_a[0].T
        return out_bkci.flatten(2)

    def contrasted_columns(self, f_bdk: Tensor, inverse: Inverse | None) -> Tensor:
        """`columns` less those of class 0, for cross-entropy: products with `contrasted_gradients` are the same."""
        k, i = self._w_cd.shape[0], self._a_bi.shape[1]
        dense = inverse is not None and inverse.dense_pp is not None
        out_bkci = self.columns(f_bdk, None if dense else inverse).unflatten(2, (k, i))
        if inverse is None:  # these too add up to 0 over classes
            return out_bkci[:, :, 1:].flatten(2)
        if not dense:
            return (out_bkci[:, :, 1:] - out_bkci[:, :, :1]).flatten(2)
        return out_bkci[:, :, 1:].flatten(2) @ contrasted(inverse, k, i)

    def gram(self, f_bdk: Tensor) -> Tensor:
        """`M'M f`, without forming `M f`."""
        x, e, w = self._x_bd[..., None], self._e_bc[..., None], self._w_cd
        left_bck = self._b_bcc @ (w @ f_bdk)
        along_b1k = (x * f_bdk).sum(1, keepdim=True)
        u_a = left_bck * self._a_bi.square().sum(1)[:, None, None] + e * along_b1k
        e_u = (left_bck * e).sum(1, keepdim=True) * x + e.square().sum(1, keepdim=True) * f_bdk
        return w.T @ (self._b_bcc @ u_a) + e_u

    def _dense(self, inverse: Inverse, first: int) -> tuple[Tensor, Tensor]:
        """For every class c, with `U_c = (n Hbar)^-1 (e_c a~')`: `U_c a~` as column c, and `e'U_c` as row c.

        From class `first` on; with 1, everything is taken less class 0.
        """
        k, i = self._w_cd.shape[0], self._a_bi.shape[1]
        flat = contrasted(inverse, k, i) if first else inverse.dense_pp
        assert flat is not None
        k -= first
        found = []
        for a_bi, e_bc in zip(self._a_bi.split(_ROWS), self._e_bc[:, first:].split(_ROWS), strict=True):
            z_bcie = (a_bi @ flat.reshape(-1, i).T).view(-1, k, i, k)
            z_bce = torch.matmul(a_bi[:, None, None], z_bcie)[:, :, 0]
            ez_bei = torch.bmm(e_bc[:, None], z_bcie.view(-1, k, i * k)).view(-1, i, k).transpose(1, 2)
            found.append((z_bce, ez_bei))
        z_bce, ez_bei = (torch.cat(part) for part in zip(*found, strict=True))
        return z_bce, ez_bei

    def _in_eigenbasis(self, inverse: Inverse) -> tuple[Tensor, Tensor]:
        """As `_dense`, in an eigenbasis: `U_c = Q_G [(Q_G' e_c) (a~'Q_A) * D] Q_A'`."""
        k, i = self._w_cd.shape[0], self._a_bi.shape[1]
        eigenbasis = inverse.eigenbases.get(self._name)
        if eigenbasis is None:
            return self._a_bi.new_zeros(len(self._a_bi), k, k), self._a_bi.new_zeros(len(self._a_bi), k, i)
        q_a, q_g, d_roi = eigenbasis
        a_bi = self._a_bi if q_a is None else self._a_bi @ q_a[0]
        g_oo = torch.eye(k, dtype=a_bi.dtype, device=a_bi.device) if q_g is None else q_g[0]
        d_oi = d_roi[0]
        z_bce = (g_oo * (a_bi.square() @ d_oi.T)[:, None]) @ g_oo.T
        weight_bco = (self._e_bc @ g_oo)[:, None] * g_oo
        ez_bci = torch.matmul(weight_bco, d_oi) * a_bi[:, None]
        return z_bce, ez_bci if q_a is None else ez_bci @ q_a[0].T


def contrasted(inverse: Inverse, classes: int, inputs: int) -> Tensor:
    """A dense inverse between classes less the first, `[(K - 1) i, (K - 1) i]`: all that matters to cross-entropy."""
    if 1 not in inverse.kept:
        assert inverse.dense_pp is not None
        h_cici = inverse.dense_pp.view(classes, inputs, classes, inputs)
        h_cici = h_cici[1:] - h_cici[:1]
        size = (classes - 1) * inputs
        inverse.kept[1] = (h_cici[:, :, 1:] - h_cici[:, :, :1]).reshape(size, size).contiguous()
    return inverse.kept[1]


def is_plain_head(model: nn.Module, blocks: Sequence[Block], x: Any, perturb: str = INPUT) -> bool:
    """Whether what is valued is one linear layer from what is perturbed, flattened, to the model's logits."""
    if len(blocks) != 1 or blocks[0].kind != "linear":
        return False
    if perturb == blocks[0].name:
        with capture(model, blocks, attached=True) as captured:
            logits = forward(model, x)
        inputs, edges = captured.inputs.get(perturb, []), captured.edges.get(perturb, [])
        return len(inputs) == 1 and inputs[0].dim() == 2 and edges[0].node is logits.grad_fn
    if perturb != INPUT or not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    leaf = x.detach().clone().requires_grad_(True)
    with capture(model, blocks, attached=True) as captured:
        logits = forward(model, leaf)
    inputs, edges = captured.inputs.get(blocks[0].name, []), captured.edges.get(blocks[0].name, [])
    if len(inputs) != 1 or edges[0].node is not logits.grad_fn or inputs[0].shape != (len(x), leaf[0].numel()):
        return False
    if inputs[0] is leaf:
        return True
    node: Any = inputs[0].grad_fn
    while node is not None and node.name().startswith(_VIEWS):
        node = node.next_functions[0][0]
    return getattr(node, "variable", None) is leaf
