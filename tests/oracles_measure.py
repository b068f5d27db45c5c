"""The influence measure FI as Algorithms 1 and 2 of its paper read, in float64. No code is shared with the package.

Naive: any model through `torch.func`, a row and a pair at a time, with dense `p x d` and `d x d` matrices.
Dense: the same algorithms for softmax heads as a careful programmer would write them: batched, every constant hoisted
out of the loops, the pseudo-inverse once a labelled row. The fair peer of a benchmark.

Letters as in `oracles.py`, and `d` numbers in a row's input, `K` classes, `m` rows that are watched. A perturbation w
of row i's input moves the fit by `d theta = -(1/n) H^-1 M_i w` (equation A.7; section 2.2 of the paper drops the
minus), with `M_i = d_x d_theta l_i` and H the mean Hessian + (l2 + damping) I. Then `FI = v' G^+ v` with
`v = d theta' grad l(z')`, `G = sum_c P_c s_c s_c'` and `s_c = d theta' d_theta log P_c + d_x log P_c`. Eigenvalues of G
under 1e-10 of the largest count as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import oracles
import torch
from oracles import Loss
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

Table = tuple[Tensor, Tensor]
Aggregate = str

KEPT = 1e-10
# Numbers of the M of one batch of rows: 32 MB.
M_FLOATS = 1 << 22


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, y, reduction="none")


# --- Any model, a row at a time


@dataclass(frozen=True)
class Subject:
    """A model as a function of the parameters named, flat and in the order of `named_parameters()`, and of one row."""

    model: nn.Module
    names: Sequence[str] | None = None
    loss: Loss = cross_entropy

    @property
    def theta(self) -> Tensor:
        oracles.check_model(self.model)
        chosen = oracles.chosen_parameters(self.model, self.names)
        return torch.cat([value.detach().flatten() for value in chosen.values()])

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """`[K]` of one row."""
        chosen = oracles.chosen_parameters(self.model, self.names)
        parts = theta.split([value.numel() for value in chosen.values()])
        values = {name: part.view(chosen[name].shape) for name, part in zip(chosen, parts, strict=True)}
        return functional_call(self.model, values, (x[None],))[0]

    def log_p(self, theta: Tensor, x: Tensor) -> Tensor:
        return torch.log_softmax(self.logits(theta, x), 0)

    def loss_of(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.logits(theta, x)[None], y[None])[0]

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Of one row's loss in theta: `[p]`."""
        return grad(self.loss_of)(self.theta, x, y).detach()

    def likeliest(self, x: Tensor) -> Tensor:
        """The model's own labels `[n]`."""
        with torch.no_grad():
            return self.model(x).argmax(1)


class Row(NamedTuple):
    """What FI needs of the perturbed row: `P [K]`, the gradients of `log P_c` `[K, p]` and `[K, d]`, `M [p, d]`."""

    P: Tensor
    in_theta: Tensor
    in_x: Tensor
    M: Tensor


def row_of(of: Subject, x: Tensor, y: Tensor) -> Row:
    """All by autograd: M is the Jacobian in x of the gradient in theta."""
    theta = of.theta
    in_theta, in_x = jacrev(of.log_p, argnums=(0, 1))(theta, x)
    M = jacfwd(jacrev(of.loss_of, argnums=0), argnums=1)(theta, x, y)
    P = of.log_p(theta, x).exp()
    return Row(*(t.detach() for t in (P, in_theta, in_x.flatten(1), M.flatten(1))))


def truncated(M: Tensor, rank: int | None) -> Tensor:
    """The nearest matrix of that rank."""
    if rank is None:
        return M
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]


def mean_curvature(of: Subject, train: Table, l2: float = 0.0, damping: float = 0.0) -> Tensor:
    """`Hbar`: the mean Hessian + (l2 + damping) I, `[p, p]`."""
    H = oracles.hessian(of.model, of.loss, *train, of.names)
    return H + (l2 + damping) * torch.eye(len(H), dtype=H.dtype)


def symmetric_inverse(H: Tensor) -> Tensor:
    """Of a curvature; a softmax head without a ridge is singular in the shift of all classes, which nothing feels."""
    return torch.linalg.pinv(H, rtol=len(H) * torch.finfo(H.dtype).eps, hermitian=True)


def moved_parameters(row: Row, H_inverse: Tensor, n: int) -> Tensor:
    """`d theta / d w`, `[p, d]`."""
    return -(H_inverse @ row.M) / n


def metric(row: Row, moved: Tensor) -> Tensor:
    """`G`, `[d, d]`."""
    s = row.in_theta @ moved + row.in_x
    return sum(P_c * torch.outer(s_c, s_c) for P_c, s_c in zip(row.P, s, strict=True))


def measure(row: Row, gradient: Tensor, H_inverse: Tensor, n: int) -> Tensor:
    """`FI` of one row on one loss, whose gradient in theta is `[p]`."""
    moved = moved_parameters(row, H_inverse, n)
    v = moved.T @ gradient
    return v @ torch.linalg.pinv(metric(row, moved), rtol=KEPT, hermitian=True) @ v


def rows_of(of: Subject, train: Table, rank: int | None = None) -> Iterator[Row]:
    for x, y in zip(*train, strict=True):
        row = row_of(of, x, y)
        yield row._replace(M=truncated(row.M, rank))


def mean_gradient(of: Subject, valid: Table) -> Tensor:
    return torch.stack([of.gradient(x, y) for x, y in zip(*valid, strict=True)]).mean(0)


def fi_util_naive(of: Subject, train: Table, valid: Table, H: Tensor, rank: int | None = None) -> Tensor:
    """Algorithm 1: FI of every training row on the mean validation loss, `[n]`. With a rank, Algorithm 5."""
    gradient, H_inverse, n = mean_gradient(of, valid), symmetric_inverse(H), len(train[0])
    return torch.stack([measure(row, gradient, H_inverse, n) for row in rows_of(of, train, rank)])


def fi_pairs_naive(of: Subject, labeled: Table, pool_x: Tensor, H: Tensor, rank: int | None = None) -> Tensor:
    """Algorithm 2 before its aggregate: FI(z', z_i) of every pool row on every labelled one, `[m, n]`."""
    H_inverse, n = symmetric_inverse(H), len(labeled[0])
    rows = list(rows_of(of, labeled, rank))
    gradients = [of.gradient(x, y) for x, y in zip(pool_x, of.likeliest(pool_x), strict=True)]
    return torch.stack([torch.stack([measure(row, g, H_inverse, n) for row in rows]) for g in gradients])


def aggregated(pairs: Tensor, how: Aggregate = "trimmed_mean") -> Tensor:
    """`[m, n] -> [m]`: "trimmed_mean" (the middle 80 %), "mean", "median" or "quantile:<q>"."""
    values = pairs.cpu().numpy()
    if how == "mean":
        return torch.from_numpy(values.mean(1))
    if how == "trimmed_mean":
        n = values.shape[1]
        middle = np.sort(values, axis=1)[:, n // 10 : n - n // 10]
        return torch.from_numpy(middle.mean(1))
    q = 0.5 if how == "median" else float(how.removeprefix("quantile:"))
    return torch.from_numpy(np.quantile(values, q, axis=1))


def curvature_of_layers(model: nn.Module, blocks: Mapping[str, Tensor]) -> Tensor:
    """A block-diagonal curvature from those of layers, `[r, o i, o i]` each, in the order of `named_parameters()`.

    Args:
        model: whose layers they are.
        blocks: of every layer by its name, the entries of `[o, i]` in row-major order, the bias last.
    """
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    total = torch.zeros(sum(sizes.values()), sum(sizes.values()), dtype=torch.float64)
    for layer, block_rpp in blocks.items():
        module = model.get_submodule(layer)
        named = [(f"{layer}.{name}".lstrip("."), v) for name, v in module.named_parameters(recurse=False)]
        places = [starts[name] + torch.arange(value.numel()).view(value.shape) for name, value in named]
        for place, block in zip(oracles.layer_matrix(module, *places).flatten(1), block_rpp, strict=True):
            total[place[:, None], place] = block
    return total


# --- Softmax heads, batched: the peer of benchmarks


@dataclass(frozen=True)
class Head:
    """A softmax head `W h + b` on the features, or on what `embed` makes of them: `[B, ...] -> [B, h]`."""

    weight: Tensor
    bias: Tensor
    embed: Callable[[Tensor], Tensor] | None = None

    def inputs(self, x: Tensor) -> Tensor:
        """`(h, 1)` of every row, `[B, i]`."""
        with torch.no_grad():
            h = x.flatten(1) if self.embed is None else self.embed(x)
        return torch.cat([h.double(), torch.ones(len(h), 1, dtype=torch.float64)], 1)

    def probabilities(self, a: Tensor) -> Tensor:
        return (a[:, :-1] @ self.weight.T + self.bias).softmax(1)

    def embedding_jacobian(self, x: Tensor) -> Tensor:
        """`[B, h, d]`, the passes backward for all rows and all of h in one batch."""
        return vmap(jacrev(self.embed_one))(x).flatten(2).detach().double()

    def embed_one(self, x: Tensor) -> Tensor:
        assert self.embed is not None
        return self.embed(x[None])[0]


def head_gradients(a: Tensor, P: Tensor, y: Tensor) -> Tensor:
    """Row gradients `[n, K i]`."""
    e = P - nn.functional.one_hot(y, P.shape[1])
    return (e[:, :, None] * a[:, None]).flatten(1)


def head_curvature(a: Tensor, P: Tensor, shift: float) -> Tensor:
    """The mean Hessian + shift, `[K i, K i]`: `K (K + 1) / 2` matrix products."""
    K, i = P.shape[1], a.shape[1]
    H = torch.empty(K, i, K, i, dtype=torch.float64)
    for c in range(K):
        for e in range(c + 1):
            weight = P[:, c] * ((1.0 if c == e else 0.0) - P[:, e])
            H[c, :, e] = H[e, :, c] = (a * weight[:, None]).T @ a / len(a)
    return H.view(K * i, K * i) + shift * torch.eye(K * i, dtype=torch.float64)


def dense_rows(head: Head, train: Table, H_inverse: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """`M [B, p, d]` and `G^+ [B, d, d]` of batches of rows, in order."""
    (x, y), n = train, len(train[0])
    d, (K, h), p = x[0].numel(), head.weight.shape, len(H_inverse)
    by_class = H_inverse.view(K, h + 1, p)
    for rows in torch.arange(n).split(max(1, M_FLOATS // (p * d))):
        a = head.inputs(x[rows])
        P = head.probabilities(a)
        e = P - nn.functional.one_hot(y[rows], K)
        B = torch.diag_embed(P) - P[:, :, None] * P[:, None]
        if head.embed is None:
            J_x = head.weight.expand(len(rows), K, d)
        else:
            J_h = head.embedding_jacobian(x[rows])
            J_x = head.weight @ J_h
        M = (B @ J_x)[:, :, None] * a[:, None, :, None]
        if head.embed is None:
            M[:, :, torch.arange(d), torch.arange(d)] += e[:, :, None]
        else:
            M[:, :, :h] += e[:, :, None, None] * J_h[:, None]
        M = M.flatten(1, 2)
        # d_theta of logit c is a in block c: its product with H^-1 needs no more than that block of rows.
        solved = torch.matmul(a, by_class).transpose(0, 1)
        T = J_x - solved @ M / n
        S = P.sqrt()[:, :, None] * (T - P[:, None] @ T)
        yield M, torch.linalg.pinv(S.transpose(1, 2) @ S, rtol=KEPT, hermitian=True)


def written_rows(head: Head, train: Table, H_inverse: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """`d theta [p, d]` and `G^+ [d, d]` of every row, as the algorithms form them: `H^-1 M` first."""
    n, K = len(train[0]), len(head.weight)
    for x, y in zip(*train, strict=True):
        a = head.inputs(x[None])
        P = head.probabilities(a)[0]
        M = ((torch.diag(P) - torch.outer(P, P)) @ head.weight)[:, None] * a[0, None, :, None]
        M[:, : x.numel()] += (P - nn.functional.one_hot(y, K))[:, None, None] * torch.eye(x.numel(), dtype=M.dtype)
        moved = -(H_inverse @ M.flatten(0, 1)) / n
        T = head.weight + torch.einsum("i,cid->cd", a[0], moved.view(K, -1, x.numel()))
        S = P.sqrt()[:, None] * (T - P @ T)
        yield moved, torch.linalg.pinv(S.T @ S, rtol=KEPT, hermitian=True)


def fi_util_written(head: Head, train: Table, valid: Table, l2: float) -> Tensor:
    """Algorithm 1 for a softmax head on its features, `[n]`, with nothing hoisted but the inverse and the gradient."""
    a = head.inputs(train[0])
    H_inverse = symmetric_inverse(head_curvature(a, head.probabilities(a), l2))
    a = head.inputs(valid[0])
    gradient = head_gradients(a, head.probabilities(a), valid[1]).mean(0)
    out = []
    for moved, G_plus in written_rows(head, train, H_inverse):
        v = gradient @ moved
        out.append(v @ G_plus @ v)
    return torch.stack(out)


def fi_active_written(head: Head, labeled: Table, pool_x: Tensor, l2: float) -> Tensor:
    """Algorithm 2 for a softmax head on its features, `[m]`: all pool rows of a labelled row in one product."""
    a = head.inputs(labeled[0])
    H_inverse = symmetric_inverse(head_curvature(a, head.probabilities(a), l2))
    a = head.inputs(pool_x)
    P = head.probabilities(a)
    gradients = head_gradients(a, P, P.argmax(1))
    columns = []
    for moved, G_plus in written_rows(head, labeled, H_inverse):
        v = gradients @ moved
        columns.append(((v @ G_plus) * v).sum(1))
    return aggregated(torch.stack(columns, 1))


def fi_util_dense(head: Head, train: Table, valid: Table, l2: float, damping: float = 0.0) -> Tensor:
    """Algorithm 1 for a softmax head, `[n]`."""
    a = head.inputs(train[0])
    H_inverse = symmetric_inverse(head_curvature(a, head.probabilities(a), l2 + damping))
    a = head.inputs(valid[0])
    solved = H_inverse @ head_gradients(a, head.probabilities(a), valid[1]).mean(0) / len(train[0])
    parts = []
    for M, G_plus in dense_rows(head, train, H_inverse):
        v = torch.matmul(solved, M)
        parts.append((v * torch.bmm(G_plus, v[:, :, None])[:, :, 0]).sum(1))
    return torch.cat(parts)


def fi_pairs_dense(head: Head, labeled: Table, pool_x: Tensor, l2: float, damping: float = 0.0) -> Tensor:
    """Algorithm 2 for a softmax head before its aggregate, `[m, n]`: all pool rows of a labelled row in one product."""
    a = head.inputs(labeled[0])
    H_inverse = symmetric_inverse(head_curvature(a, head.probabilities(a), l2 + damping))
    a = head.inputs(pool_x)
    P = head.probabilities(a)
    solved = head_gradients(a, P, P.argmax(1)) @ H_inverse / len(labeled[0])
    columns = []
    for batch in dense_rows(head, labeled, H_inverse):
        for M, G_plus in zip(*batch, strict=True):
            v = solved @ M
            columns.append(((v @ G_plus) * v).sum(1))
    return torch.stack(columns, 1)


def fi_active_dense(
    head: Head, labeled: Table, pool_x: Tensor, l2: float, damping: float = 0.0, how: Aggregate = "trimmed_mean"
) -> Tensor:
    """Algorithm 2 for a softmax head: the aggregate of every pool row, `[m]`."""
    return aggregated(fi_pairs_dense(head, labeled, pool_x, l2, damping), how)
