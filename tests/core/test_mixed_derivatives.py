"""Products with mixed derivatives: on the tape against dense Jacobians, and closed forms of a head against the tape."""

import pytest
import torch
from torch import Tensor, nn

from rayinf.core.blocks import find_blocks, to_matrix
from rayinf.core.influence_measure import contrasts
from rayinf.core.linear_head import HeadRows, is_plain_head
from rayinf.core.lowrank import project, right_subspace
from rayinf.core.mixed_derivatives import Inverse, RecordedRows


def smooth(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss whose derivatives in the logits do not add up to 0."""
    return (logits - nn.functional.one_hot(labels, logits.shape[1])).square().sum(1) + logits[:, 0].exp()


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


LOSSES = {"cross_entropy": plain, "smooth": smooth}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def random_eigenbases(blocks):
    def orthogonal(r, d):
        return torch.linalg.qr(torch.randn(r, d, d, dtype=torch.float64)).Q

    eigenbases = {}
    for b in blocks:
        r, o, i = b.shape
        eigenbases[b.name] = (orthogonal(r, i), orthogonal(r, o), torch.rand(r, o, i, dtype=torch.float64))
    return eigenbases


def dense_of(eigenbases, blocks):
    """The dense matrix that eigenbases stand for."""
    parts = []
    for b in blocks:
        q_a, q_g, d = eigenbases[b.name]
        for k in range(b.shape[0]):
            basis = torch.kron(q_g[k], q_a[k])
            parts.append(basis @ torch.diag(d[k].flatten()) @ basis.T)
    return torch.block_diag(*parts)


@pytest.fixture(scope="module", params=list(LOSSES))
def forward_pass(request):
    torch.manual_seed(1)
    model = network()
    blocks = tuple(b for b in find_blocks(model, "all") if b.kind != "loose")
    x, y = torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    params = {n: v.detach() for n, v in model.named_parameters()}

    def row_gradient(x_row, of):
        found = torch.func.grad(lambda p: of(torch.func.functional_call(model, p, (x_row[None],))))(params)
        return torch.cat([to_matrix(b, [found[n] for n in b.parameters]).flatten() for b in blocks])

    loss = LOSSES[request.param]
    m_bpd = torch.stack(
        [
            torch.func.jacrev(lambda r, k=k: row_gradient(r, lambda z: loss(z, y[k : k + 1])[0]))(x[k]).flatten(1)
            for k in range(5)
        ]
    )
    rows = RecordedRows(model, blocks, x, y, request.param if request.param == "cross_entropy" else loss)
    return rows, blocks, m_bpd, row_gradient, (model, x)


def test_products(forward_pass):
    rows, blocks, m_bpd, _, _ = forward_pass
    f_bdk = torch.randn(5, 32, 3, dtype=torch.float64)
    mf_bpk = m_bpd @ f_bdk
    assert torch.allclose(rows.columns(f_bdk, None), mf_bpk.transpose(1, 2), rtol=1e-9, atol=1e-12)
    assert torch.allclose(rows.gram(f_bdk), m_bpd.transpose(1, 2) @ mf_bpk, rtol=1e-9, atol=1e-12)
    u = {b.name: torch.randn(1, *b.shape, dtype=torch.float64) for b in blocks}
    flat = torch.cat([u[b.name].flatten() for b in blocks])
    assert torch.allclose(rows.slopes(u), torch.einsum("bpd,p->bd", m_bpd, flat), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "eigenbasis"])
def test_total_derivatives(forward_pass, kind):
    rows, blocks, m_bpd, row_gradient, (model, x) = forward_pass
    eigenbases = random_eigenbases(blocks)
    dense = dense_of(eigenbases, blocks)
    inverse = Inverse(dense, {}) if kind == "dense" else Inverse(None, eigenbases)
    direct, moved = rows.jacobians(inverse)
    c_bkc = contrasts(rows.logits.detach())
    for b in range(5):
        for k in range(2):
            gradient = row_gradient(x[b], lambda z, b=b, k=k: (z[0] * c_bkc[b, k]).sum())
            assert torch.allclose(moved[b, k], m_bpd[b].T @ dense @ gradient, rtol=1e-8, atol=1e-11)
            in_x = torch.func.grad(lambda v, b=b, k=k: (model(v[None])[0] * c_bkc[b, k]).sum())(x[b])
            assert torch.allclose(direct[b, k], in_x.flatten(), rtol=1e-9, atol=1e-12)


def test_columns_in_the_eigenbasis(forward_pass):
    """Products of columns there with rotated rows are those with the dense inverse."""
    rows, blocks, m_bpd, _, _ = forward_pass
    eigenbases = random_eigenbases(blocks)
    plain_eigenbases = {n: (a, g, torch.ones_like(d)) for n, (a, g, d) in eigenbases.items()}
    f_bdk = torch.randn(5, 32, 2, dtype=torch.float64)
    found = rows.columns(f_bdk, Inverse(None, eigenbases)) @ rows.columns(
        f_bdk, Inverse(None, plain_eigenbases)
    ).transpose(1, 2)
    mf_bpk = m_bpd @ f_bdk
    truth = mf_bpk.transpose(1, 2) @ dense_of(eigenbases, blocks) @ mf_bpk
    assert torch.allclose(found, truth, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["dense", "eigenbasis"])
def test_a_heads_closed_forms(loss, bias, kind):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=bias)).double().eval()
    blocks = find_blocks(model, "all")
    x, y = torch.randn(7, 2, 3, dtype=torch.float64), torch.randint(0, 4, (7,))
    given = loss if loss == "cross_entropy" else LOSSES[loss]
    captured, head = RecordedRows(model, blocks, x, y, given), HeadRows(model, blocks[0], x, y, given)
    eigenbases = random_eigenbases(blocks)
    dense = dense_of(eigenbases, blocks)
    inverse = Inverse(dense, {}) if kind == "dense" else Inverse(None, eigenbases)
    for a, b in zip(captured.jacobians(inverse), head.jacobians(inverse), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    f_bdk = torch.randn(7, 6, 3, dtype=torch.float64)
    assert torch.allclose(captured.columns(f_bdk, None), head.columns(f_bdk, None), rtol=1e-9, atol=1e-12)
    # A head's columns are never left in the eigenbasis.
    assert torch.allclose(head.columns(f_bdk, inverse), head.columns(f_bdk, None) @ dense, rtol=1e-9, atol=1e-12)
    assert torch.allclose(captured.gram(f_bdk), head.gram(f_bdk), rtol=1e-9, atol=1e-12)
    u = {blocks[0].name: torch.randn(1, *blocks[0].shape, dtype=torch.float64)}
    assert torch.allclose(captured.slopes(u), head.slopes(u), rtol=1e-9, atol=1e-12)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * 1.0)


def test_what_is_a_plain_head():
    x = torch.randn(4, 2, 3)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    assert is_plain_head(flat, find_blocks(flat, "all"), x)
    assert is_plain_head(flat[1], find_blocks(flat[1], "all"), x.flatten(1))
    for model in (nn.Sequential(nn.ReLU(), nn.Linear(6, 3)), Scaled(), nn.Sequential(nn.Linear(6, 3), nn.Tanh())):
        assert not is_plain_head(model, find_blocks(model, "all"), x.flatten(1))
    deep = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    assert not is_plain_head(deep, find_blocks(deep, "last"), x.flatten(1))
    assert not is_plain_head(nn.Linear(3, 3), find_blocks(nn.Linear(3, 3), "all"), x)


def test_leading_directions():
    torch.manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(4, s, 30, dtype=torch.float64)).Q for s in (50, 40))
    values = 2.0 ** -torch.arange(30, dtype=torch.float64)
    m = left * values @ right.transpose(1, 2)
    found, share = right_subspace(lambda f: m.transpose(1, 2) @ (m @ f), torch.randn(4, 40, 11, dtype=torch.float64), 3)
    truth = right[:, :, :3]
    assert torch.allclose(found @ found.transpose(1, 2), truth @ truth.transpose(1, 2), atol=1e-7)
    captured = (m @ found).flatten(1).norm(dim=1) / m.flatten(1).norm(dim=1)
    assert torch.allclose(share, captured, atol=0.1)  # the norm is an estimate from few directions
    x = torch.randn(4, 2, 40, dtype=torch.float64)
    assert torch.allclose(project(project(x, found), found), project(x, found), atol=1e-12)
    whole, share = right_subspace(
        lambda f: m.transpose(1, 2) @ (m @ f), torch.eye(40, dtype=torch.float64).expand(4, -1, -1), 3
    )
    assert torch.allclose(whole @ whole.transpose(1, 2), truth @ truth.transpose(1, 2), atol=1e-9)
    assert torch.allclose(share, captured, atol=1e-9)
