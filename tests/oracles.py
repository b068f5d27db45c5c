"""Naive, dense, float64 definitions of what the package computes. Slow on purpose; no code is shared with it.

Conventions. A model is an `nn.Module` in float64 and in eval mode whose output is logits `[B, C]`. A loss is
a callable `loss(logits [B, C], y [B]) -> [B]`: one number a row, never a mean. Shapes use `n` rows,
`p` parameters, `Q` queries, `r` groups of a layer (1 but for grouped convolutions), `T` positions a layer's
weights are shared over, `o` outputs and `i` inputs of one group, the bias (where there is one) being the LAST
input, fed with 1. A module that is called several times in one forward pass appends its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call

Loss = Callable[[Tensor, Tensor], Tensor]
Fisher = Literal["true", "empirical"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


# --- The whole model: row gradients, Hessian, generalised Gauss-Newton, influence


def check_model(model: nn.Module) -> None:
    """Refuse a model on which these definitions would not be the truth."""
    if any(module.training for module in model.modules()):
        raise ValueError("an oracle needs model.eval()")
    if any(parameter.dtype != torch.float64 for parameter in model.parameters()):
        raise ValueError("an oracle needs model.double()")


def chosen_parameters(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The parameters in the order of `named_parameters()`, whatever the order of `names`."""
    parameters = dict(model.named_parameters())
    unknown = set(names or ()) - set(parameters)
    if unknown:
        raise KeyError(f"no such parameters: {sorted(unknown)}")
    return {name: value for name, value in parameters.items() if names is None or name in names}


def row_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """The gradient of each row's loss, one autograd call a row: `[n, p]`."""
    check_model(model)
    parameters = list(chosen_parameters(model, names).values())
    rows = []
    for k in range(len(x)):
        value = loss(model(x[k : k + 1]), y[k : k + 1]).sum()
        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def hessian(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """The Hessian of the mean loss over the rows: `[p, p]`."""
    check_model(model)
    parameters = {name: value.detach() for name, value in chosen_parameters(model, names).items()}
    sizes = [value.numel() for value in parameters.values()]

    def mean_loss(theta: Tensor) -> Tensor:
        parts = zip(parameters.items(), theta.split(sizes), strict=True)
        values = {name: part.view(value.shape) for (name, value), part in parts}
        return loss(functional_call(model, values, (x,)), y).mean()

    theta = torch.cat([value.flatten() for value in parameters.values()])
    return torch.autograd.functional.hessian(mean_loss, theta)


def loss_of_one(loss: Loss, label: Tensor, logits: Tensor) -> Tensor:
    """One row's loss as a function of its logits `[C]`."""
    return loss(logits[None], label)[0]


def ggn(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """The generalised Gauss-Newton matrix, the mean over rows of `J' H_loss J`: `[p, p]`."""
    check_model(model)
    parameters = list(chosen_parameters(model, names).values())
    size = sum(value.numel() for value in parameters)
    total = torch.zeros(size, size, dtype=torch.float64)
    for k in range(len(x)):
        label = y[k : k + 1]
        logits = model(x[k : k + 1])[0]
        jacobian = []
        for logit in logits:
            gradients = torch.autograd.grad(logit, parameters, retain_graph=True, materialize_grads=True)
            jacobian.append(torch.cat([gradient.flatten() for gradient in gradients]))
        J = torch.stack(jacobian)
        loss_of_row = partial(loss_of_one, loss, label)
        total += J.T @ torch.autograd.functional.hessian(loss_of_row, logits.detach()) @ J
    return total / len(x)


def dense_influence(grad_queries: Tensor, row_grads: Tensor, H: Tensor, l2: float, damping: float) -> Tensor:
    """`row_grads (n (H + (l2 + damping) I))^-1 grad_queries'`: `[n, Q]` from `[Q, p]`, `[n, p]`, `[p, p]`."""
    n, p = row_grads.shape
    shifted = H + (l2 + damping) * torch.eye(p, dtype=H.dtype)
    return row_grads @ torch.linalg.inv(n * shifted) @ grad_queries.T


def identity_influence(grad_queries: Tensor, row_grads: Tensor) -> Tensor:
    """What doing nothing scores: `n I` in the place of the curvature. `[n, Q]`."""
    return row_grads @ grad_queries.T / len(row_grads)


# --- One layer: its row gradients, its positions, the gradients at its outputs


def layer_matrix(module: nn.Module, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A weight-shaped and a bias-shaped tensor as `[r, o, i]`, the bias as the last column."""
    if isinstance(module, nn.Linear):
        matrix, groups = weight[None], 1
    elif isinstance(module, CONVOLUTIONS):
        groups = module.groups
        matrix = weight.reshape(groups, module.out_channels // groups, -1)
    elif isinstance(module, nn.Embedding):
        return weight.T[None]
    else:
        raise TypeError(f"no oracle for a layer of type {type(module).__name__}")
    if bias is None:
        return matrix
    return torch.cat([matrix, bias.reshape(groups, -1, 1)], dim=2)


def layer_row_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, module_name: str) -> Tensor:
    """Each row's gradient of one layer, `[n, r, o, i]`, from autograd's gradients of its weight and bias."""
    check_model(model)
    module = model.get_submodule(module_name)
    parameters = list(module.parameters(recurse=False))  # the weight, then the bias where there is one
    rows = []
    for k in range(len(x)):
        value = loss(model(x[k : k + 1]), y[k : k + 1]).sum()
        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
        rows.append(layer_matrix(module, *gradients))
    return torch.stack(rows)


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The (input, output) of every call of the module. A copy goes on: in-place operations do no harm."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.append((inputs[0].detach().clone(), output))
        return output.clone()

    handle = module.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def convolution_positions(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The patch under every output position: `[n, r, T, i]` without the column of ones."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module, nn.Conv1d):
        padded = padded[:, :, None, :]
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    patches = F.unfold(padded, kernel, dilation=dilation, stride=stride)
    return patches.reshape(len(inputs), module.groups, -1, patches.shape[-1]).transpose(2, 3)


def input_positions(module: nn.Module, inputs: Tensor) -> Tensor:
    """One call's inputs as `[n, r, T, i]`, with a last column of ones where there is a bias."""
    if isinstance(module, nn.Linear):
        a = inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])
    elif isinstance(module, CONVOLUTIONS):
        a = convolution_positions(module, inputs)
    elif isinstance(module, nn.Embedding):
        if module.padding_idx is not None or module.max_norm is not None or module.scale_grad_by_freq:
            raise ValueError("the oracle of an Embedding knows no padding_idx, max_norm, scale_grad_by_freq")
        tokens = inputs.reshape(len(inputs), 1, -1)
        return F.one_hot(tokens, module.num_embeddings).double()
    else:
        raise TypeError(f"no oracle for a layer of type {type(module).__name__}")
    if module.bias is None:
        return a
    return torch.cat([a, torch.ones_like(a[..., :1])], dim=3)


def output_positions(module: nn.Module, outputs: Tensor) -> Tensor:
    """One call's outputs (or gradients there) as `[n, r, T, o]`."""
    if isinstance(module, CONVOLUTIONS):
        groups = module.groups
        by_group = outputs.reshape(len(outputs), groups, module.out_channels // groups, -1)
        return by_group.transpose(2, 3)
    return outputs.reshape(len(outputs), 1, -1, outputs.shape[-1])


def layer_positions(model: nn.Module, x: Tensor, module_name: str) -> Tensor:
    """The layer's inputs, position by position: `a [n, r, T, i]`."""
    check_model(model)
    module = model.get_submodule(module_name)
    with recorded_calls(module) as calls, torch.no_grad():
        model(x)
    return torch.cat([input_positions(module, inputs) for inputs, _ in calls], dim=2)


def layer_output_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, module_name: str) -> Tensor:
    """The gradient of each row's loss at the layer's outputs: `g [n, r, T, o]`, one autograd call a row.

    Any function of the logits serves as a loss: `lambda z, y: z @ u` pulls the cotangent `u` back.
    """
    check_model(model)
    module = model.get_submodule(module_name)
    rows = []
    for k in range(len(x)):
        with recorded_calls(module) as calls:
            value = loss(model(x[k : k + 1]), y[k : k + 1]).sum()
        gradients = torch.autograd.grad(value, [output for _, output in calls], materialize_grads=True)
        rows.append(torch.cat([output_positions(module, gradient) for gradient in gradients], dim=2))
    return torch.cat(rows)


# --- K-FAC and EKFAC


class Factors(NamedTuple):
    """Sums, not means: `A [r, i, i]`, `G [r, o, o]`, over `n` rows with `N` positions in all."""

    A: Tensor
    G: Tensor
    n: int
    N: int


class Basis(NamedTuple):
    """Eigenvectors are COLUMNS: `A = Q_A diag(lA) Q_A'`, `G = Q_G diag(lG) Q_G'`."""

    Q_A: Tensor
    Q_G: Tensor
    lA: Tensor
    lG: Tensor


def label_loss(label: int) -> Loss:
    """`-log softmax_c` times `sqrt(P_c)`, a constant: its squared gradients add up to an expectation."""

    def loss(logits: Tensor, _y: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=1)[:, label]
        return -log_p * (0.5 * log_p.detach()).exp()

    return loss


def fisher_losses(model: nn.Module, loss: Loss, x: Tensor, fisher: Fisher) -> list[Loss]:
    """The losses whose gradients are squared: all K labels' (true Fisher), or the given one (empirical)."""
    if fisher == "empirical":
        return [loss]
    if fisher == "true":
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        return [label_loss(label) for label in range(classes)]
    raise ValueError(f"fisher must be 'true' or 'empirical', not {fisher!r}")


def factors(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, module_name: str, fisher: Fisher = "true") -> Factors:
    """`A`: sum over rows and positions of `a a'`, once a row. `G`: of `g g'`, summed over the labels too."""
    a = layer_positions(model, x, module_name)
    A = torch.einsum("nrti,nrtj->rij", a, a)
    G = torch.zeros((), dtype=torch.float64)
    for one_loss in fisher_losses(model, loss, x, fisher):
        g = layer_output_gradients(model, one_loss, x, y, module_name)
        G = G + torch.einsum("nrto,nrtu->rou", g, g)
    return Factors(A, G, n=a.shape[0], N=a.shape[0] * a.shape[2])


def eigenbasis(sums: Factors) -> Basis:
    """`eigh` of both factors; rounding below zero is cut."""
    lA, Q_A = torch.linalg.eigh(sums.A)
    lG, Q_G = torch.linalg.eigh(sums.G)
    return Basis(Q_A, Q_G, lA.clamp(min=0), lG.clamp(min=0))


def kfac_lambda(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, module_name: str, fisher: Fisher = "true"
) -> Tensor:
    """K-FAC's eigenvalues `lG[o] lA[i] / (n N)`: `[r, o, i]`."""
    sums = factors(model, loss, x, y, module_name, fisher)
    basis = eigenbasis(sums)
    return basis.lG[:, :, None] * basis.lA[:, None, :] / (sums.n * sums.N)


def textbook_lambda(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    module_name: str,
    fisher: Fisher = "true",
    basis: Basis | None = None,
) -> Tensor:
    """EKFAC's: mean over rows of `sum_c (Q_G' (row gradient of label c) Q_A)^2`: `[r, o, i]`.

    The row gradient is the sum over positions, formed before it is squared. `basis`: computed if not given.
    """
    basis = basis or eigenbasis(factors(model, loss, x, y, module_name, fisher))
    total = torch.zeros((), dtype=torch.float64)
    for one_loss in fisher_losses(model, loss, x, fisher):
        rows = layer_row_gradients(model, one_loss, x, y, module_name)
        rotated = basis.Q_G.mT @ rows @ basis.Q_A
        total = total + rotated.square().mean(dim=0)
    return total


def fisher_block(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, module_name: str, fisher: Fisher = "true"
) -> Tensor:
    """The layer's dense Fisher, groups apart, the entries of `[o, i]` in row-major order: `[r, o i, o i]`."""
    total = torch.zeros((), dtype=torch.float64)
    for one_loss in fisher_losses(model, loss, x, fisher):
        rows = layer_row_gradients(model, one_loss, x, y, module_name).flatten(2)
        total = total + torch.einsum("nra,nrb->rab", rows, rows)
    return total / len(x)


def recomposed_block(basis: Basis, eigenvalues: Tensor) -> Tensor:
    """The matrix that K-FAC or EKFAC stands for, in the order of `fisher_block`: `[r, o i, o i]`."""
    groups = []
    for Q_A, Q_G, values in zip(basis.Q_A, basis.Q_G, eigenvalues, strict=True):
        Q = torch.kron(Q_G, Q_A)
        groups.append(Q @ torch.diag(values.flatten()) @ Q.T)
    return torch.stack(groups)


def solve_in_basis(V: Tensor, basis: Basis, eigenvalues: Tensor, n: int, shift: float) -> Tensor:
    """`Q_G [(Q_G' V Q_A) / (n (eigenvalues + shift))] Q_A'` of query matrices `V [Q, r, o, i]`."""
    rotated = basis.Q_G.mT @ V @ basis.Q_A
    return basis.Q_G @ (rotated / (n * (eigenvalues + shift))) @ basis.Q_A.mT


def textbook_influence(
    model: nn.Module,
    loss: Loss,
    train: tuple[Tensor, Tensor],
    valid_query_matrices: Mapping[str, Tensor],
    module_names: Sequence[str],
    method: Literal["ekfac", "kfac"] = "ekfac",
    fisher: Fisher = "true",
    l2: float = 0.0,
    damping_scale: float = 0.1,
) -> Tensor:
    """Influence `[n, Q]`, summed over the layers; the damping of a layer is `damping_scale * mean(Lambda)`.

    `valid_query_matrices[module_name]` is `[Q, r, o, i]`. A layer whose Lambda is 0 everywhere contributes 0.
    """
    x, y = train
    values = torch.zeros((), dtype=torch.float64)
    for name in module_names:
        basis = eigenbasis(factors(model, loss, x, y, name, fisher))
        if method == "ekfac":
            eigenvalues = textbook_lambda(model, loss, x, y, name, fisher, basis)
        elif method == "kfac":
            eigenvalues = kfac_lambda(model, loss, x, y, name, fisher)
        else:
            raise ValueError(f"method must be 'ekfac' or 'kfac', not {method!r}")
        rows, V = layer_row_gradients(model, loss, x, y, name), valid_query_matrices[name]
        if eigenvalues.max() == 0:
            values = values + torch.zeros(len(x), len(V), dtype=torch.float64)
            continue
        shift = l2 + damping_scale * eigenvalues.mean().item()
        solved = solve_in_basis(V, basis, eigenvalues, len(x), shift)
        values = values + torch.einsum("nroi,qroi->nq", rows, solved)
    return values


# --- Data and comparison


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors."""
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"two vectors of one length, please, not {tuple(a.shape)} and {tuple(b.shape)}")
    return float(spearmanr(a.detach().numpy(), b.detach().numpy()).statistic)


def correlated_inputs(n: int, d: int, seed: int) -> Tensor:
    """`[n, d]` float64 inputs, never white noise: scales over a factor of 30, rotated, with a mean.

    Ask for more rows than the model has parameters: with fewer, most of the parameter space is damping alone.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    scales = torch.logspace(0.5, -1.0, d, dtype=torch.float64)
    mean = 0.3 * torch.randn(d, generator=generator, dtype=torch.float64)
    return (noise * scales) @ rotation.T + mean
