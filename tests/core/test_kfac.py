"""The sums behind K-FAC and EKFAC against the oracles, however they are cut into batches, tiles and slices."""

from __future__ import annotations

from collections.abc import Iterator

import oracles
import pytest
import torch
from core.cases import Pooled, cross_entropy, error
from torch import Tensor, nn

from rayinf.core import fisher, kfac, layer_inputs, row_gradients
from rayinf.core.blocks import find_blocks
from rayinf.core.capture import capture, forward
from rayinf.core.kfac import Basis, Sums
from rayinf.core.layer_inputs import output_positions, tiles

# A layer, its inputs, and classes such that S = K - 1 Fisher columns; the names give the side that is rotated by Q
# first.
CASES = {
    "one position": lambda: (Pooled(nn.Linear(5, 4), 4, 3), (8, 1, 5), 3),
    "one position, groups": lambda: (Pooled(nn.Conv2d(4, 6, 3, groups=2), 6, 3, True), (8, 4, 3, 3), 3),
    "inputs and gradients": lambda: (Pooled(nn.Linear(5, 4), 4, 3), (8, 3, 5), 3),
    "inputs alone": lambda: (Pooled(nn.Conv2d(1, 6, 1), 6, 3, True), (8, 1, 3, 3), 3),
    "gradients alone": lambda: (Pooled(nn.Conv1d(6, 2, 3), 2, 2, True), (8, 6, 11), 2),
    "neither": lambda: (Pooled(nn.Conv1d(1, 2, 1), 2, 2, True), (8, 1, 9), 2),
    "groups": lambda: (Pooled(nn.Conv2d(4, 6, 2, groups=2, bias=False), 6, 4, True), (8, 4, 3, 4), 4),
    "called twice": lambda: (Pooled(nn.Linear(4, 4), 4, 3, calls=2), (8, 3, 4), 3),
    "words": lambda: (Pooled(nn.Embedding(7, 4), 4, 3), None, 3),
    "one word": lambda: (Pooled(nn.Embedding(7, 4), 4, 3), 1, 3),
}
WAYS = {
    "inputs and gradients": (True, True),
    "inputs alone": (True, False),
    "gradients alone": (False, True),
    "neither": (False, False),
}


def build(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, shape, classes = CASES[name]()
    words = torch.randint(7, (8, shape or 5)) if not isinstance(shape, tuple) else None
    x = torch.randn(*shape, dtype=torch.float64) if words is None else words
    return model.double().eval(), x, torch.arange(8) % classes


def batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(size), y.split(size), strict=True)


def columns_of(logits: Tensor, y: Tensor) -> Tensor:
    return fisher.columns(logits, y, "cross_entropy", "true", None)


def covariance(model: nn.Module, x: Tensor, y: Tensor, size: int, mask: Tensor | None = None) -> Sums:
    blocks, modules = find_blocks(model, "all"), dict(model.named_modules())
    sums: Sums = {}
    for k, (part, labels) in enumerate(batches(x, y, size)):
        with capture(model, blocks) as captured:
            logits = forward(model, part)
            kept = None if mask is None else mask[k * size : (k + 1) * size]
            kfac.add_covariance(
                sums, blocks, modules, captured, logits, fisher.Columns(columns_of(logits, labels)), kept
            )
    return sums


def eigenvalue_sums(model: nn.Module, x: Tensor, y: Tensor, size: int, basis: Basis, halves: bool = False) -> Sums:
    """`L` of the layer under test alone."""
    block, *_ = find_blocks(model, ["layer"])
    sums: Sums = {}
    for part, labels in batches(x, y, size):
        with capture(model, [block]) as captured:
            logits = forward(model, part)
            columns = columns_of(logits, labels)
            found = [captured.gradients(logits, c)["layer"] for c in columns]
            g_sbrto = torch.stack([output_positions(block, g) for g in found])
            for tile in tiles(block, model.get_submodule("layer"), captured.inputs["layer"], found[0]):
                kfac.add_lambda(sums, block, basis, tile, g_sbrto[:, tile.rows], halves)
    return sums


def whole(lower: Tensor) -> Tensor:
    return lower.tril() + lower.tril(-1).mT


@pytest.fixture(params=["whole", "tiny"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tiny":
        monkeypatch.setattr(layer_inputs, "TILE_FLOATS", 120)
        monkeypatch.setattr(row_gradients, "SLICE_FLOATS", 30)
        monkeypatch.setattr(kfac, "_STRIPE", 2)
    return request.param


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("name", CASES)
def test_sums_are_the_oracles(name: str, size: int) -> None:
    model, x, y = build(name)
    sums = covariance(model, x, y, size)
    truth = oracles.factors(model, cross_entropy, x, y, "layer")
    a = sums["A/layer"]
    A = torch.diag_embed(a) if a.ndim == 2 else whole(a)
    assert error(A, truth.A) < 1e-12
    assert error(whole(sums["G/layer"]), truth.G) < 1e-12
    assert sums["N/layer"].item() == truth.N
    assert sums["rows"].item() == truth.n

    basis = kfac.decompose(sums, find_blocks(model, ["layer"])[0])
    q_a = torch.eye(a.shape[-1], dtype=torch.float64)[None] if basis.q_a_rii is None else basis.q_a_rii
    held = oracles.Basis(q_a, basis.q_g_roo, basis.l_a_ri, basis.l_g_ro)
    lambdas = oracles.textbook_lambda(model, cross_entropy, x, y, "layer", "true", held)
    found = eigenvalue_sums(model, x, y, size, basis)["L/layer"] / len(x)
    assert error(found, lambdas) < 1e-12
    kfac_lambda = oracles.kfac_lambda(model, cross_entropy, x, y, "layer").flatten().sort().values
    assert error(kfac.kfac_lambda(basis, len(x)).flatten().sort().values, kfac_lambda) < 1e-12


@pytest.mark.parametrize("name", WAYS)
def test_every_order_of_turning_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The four cases above are the four branches: recognised by whether whole slices are requested, and of what."""
    model, x, y = build(name)
    block, *_ = find_blocks(model, ["layer"])
    basis = kfac.decompose(covariance(model, x, y, 8), block)
    with capture(model, [block]) as captured:
        output = model.layer(x)
    raw = next(tiles(block, model.layer, captured.inputs["layer"], [output]))
    seen = []
    right = kfac.row_gradient_slices

    def spy(a: Tensor, g: Tensor, whole: bool = False) -> Iterator[tuple[slice, Tensor]]:
        seen.append((not torch.allclose(a, raw.a_brti.to(a.dtype)), not whole))
        return right(a, g, whole)

    monkeypatch.setattr(kfac, "row_gradient_slices", spy)
    eigenvalue_sums(model, x, y, 8, basis)
    assert set(seen) == {WAYS[name]}


@pytest.mark.parametrize("name", ["one position", "inputs and gradients", "neither", "words"])
def test_even_columns_are_a_part_of_all(name: str) -> None:
    model, x, y = build(name)
    basis = kfac.decompose(covariance(model, x, y, 8), find_blocks(model, ["layer"])[0])
    sums = eigenvalue_sums(model, x, y, 8, basis, halves=True)
    even, both = sums["L_even/layer"], sums["L/layer"]
    columns = columns_of(model(x), y)
    truth = torch.zeros_like(even)
    for column in columns[::2]:
        g = oracles.layer_row_gradients(model, _with(column), x, torch.arange(len(x)), "layer")
        rotated = basis.q_g_roo.mT @ (g if basis.q_a_rii is None else g @ basis.q_a_rii)
        truth += rotated.square().sum(0)
    assert error(even, truth) < 1e-12
    assert (both >= even).all()


def _with(column: Tensor) -> oracles.Loss:
    """A loss whose gradient in the logits of row y is a given column."""
    return lambda logits, y: (logits * column[y]).sum(1)


def test_masked_positions_enter_no_factor() -> None:
    model, x, y = build("inputs and gradients")
    mask = torch.arange(3) < torch.tensor([[1], [2], [3], [3]]).repeat(2, 1)
    sums = covariance(model, x, y, 3, mask)
    a, g = _positions(model, x, y, mask)
    assert error(whole(sums["A/layer"])[0], a.T @ a) < 1e-12
    assert error(whole(sums["G/layer"])[0], g.T @ g) < 1e-12
    assert sums["N/layer"].item() == int(mask.sum())
    assert sums["N/head"].item() == len(x)  # the head has no tokens: the mask does not apply to it


def test_padding_enters_no_factor() -> None:
    """Words of the padding index have no gradient, so that their output gradients do not enter G."""
    torch.manual_seed(0)
    model = Pooled(nn.Embedding(7, 4), 4, 3).double().eval()
    x, y = torch.randint(7, (8, 5)), torch.arange(8) % 3
    _, g = _positions(model, x, y, x != 2)
    model.layer.padding_idx = 2
    sums = covariance(model, x, y, 3)
    counts = torch.bincount(x[x != 2], minlength=7).double()
    assert torch.equal(sums["A/layer"][0], counts)
    assert error(whole(sums["G/layer"])[0], g.T @ g) < 1e-12
    assert sums["N/layer"].item() == counts.sum().item()
    masked = covariance(model, x, y, 3, torch.arange(5).expand(8, 5) < 4)
    assert masked["N/layer"].item() == int((x[:, :4] != 2).sum())


def _positions(model: nn.Module, x: Tensor, y: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the kept positions, and output gradients of all labels there, as samples."""
    a = oracles.layer_positions(model, x, "layer")[:, 0][kept]
    losses = oracles.fisher_losses(model, cross_entropy, x, "true")
    g = [oracles.layer_output_gradients(model, loss, x, y, "layer")[:, 0][kept] for loss in losses]
    return a, torch.cat(g)


def test_float32_rows_are_multiplied_in_float64() -> None:
    """float32 products would be wrong in the eighth digit, and the basis of small eigenvalues with them."""
    torch.manual_seed(0)
    x = torch.randn(1, 4000, 3) * torch.tensor([1e4, 1.0, 1.0])
    sums: Sums = {}
    for part in x.split(700, dim=1):
        kfac.add_gram(sums, "A", part)
    truth = x[0].double().T @ x[0].double()
    assert error(whole(sums["A"])[0], truth) < 1e-13
    assert sums["A"].dtype == torch.float64
