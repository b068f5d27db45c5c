"""What the tape holds is each layer's true row gradient, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from core.cases import Pooled, cross_entropy, error, influence
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayinf.core import layer_inputs, row_gradients
from rayinf.core.blocks import Block, find_blocks
from rayinf.core.capture import capture, forward
from rayinf.core.fisher import logit_gradient
from rayinf.core.influence import ForwardPass, add_queries, dense_rows, row_products, self_products
from rayinf.errors import InputError

GROUPED = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
CASES = {
    "linear": lambda: (Pooled(nn.Linear(5, 4), 4, 3), torch.randn(6, 1, 5)),
    "linear, more outputs": lambda: (Pooled(nn.Linear(2, 7), 7, 3), torch.randn(6, 1, 2)),
    "linear without bias": lambda: (Pooled(nn.Linear(5, 4, bias=False), 4, 3), torch.randn(6, 1, 5)),
    "linear over tokens": lambda: (Pooled(nn.Linear(5, 4), 4, 3), torch.randn(6, 7, 5)),
    "linear over tokens without bias": lambda: (Pooled(nn.Linear(5, 4, bias=False), 4, 3), torch.randn(6, 7, 5)),
    "linear over a grid": lambda: (Pooled(nn.Linear(5, 4), 4, 3), torch.randn(6, 2, 3, 5)),
    "linear called twice": lambda: (Pooled(nn.Linear(5, 5), 5, 3, calls=2), torch.randn(6, 3, 5)),
    "conv2d": lambda: (Pooled(nn.Conv2d(3, 4, (2, 3), padding=(0, 1)), 4, 3, True), torch.randn(6, 3, 5, 6)),
    "conv2d 1x1": lambda: (Pooled(nn.Conv2d(3, 4, 1), 4, 3, True), torch.randn(6, 3, 5, 6)),
    "conv2d grouped": lambda: (Pooled(nn.Conv2d(4, 6, 3, **GROUPED), 6, 3, True), torch.randn(6, 4, 9, 8)),
    "conv2d depthwise": lambda: (
        Pooled(nn.Conv2d(4, 4, (3, 2), groups=4, bias=False, padding="same"), 4, 3, True),
        torch.randn(6, 4, 5, 5),
    ),
    "conv2d circular": lambda: (
        Pooled(nn.Conv2d(2, 4, 3, padding=(1, 2), padding_mode="circular"), 4, 3, True),
        torch.randn(6, 2, 5, 5),
    ),
    "conv2d of one position": lambda: (Pooled(nn.Conv2d(4, 6, 3, groups=2), 6, 3, True), torch.randn(6, 4, 3, 3)),
    "conv1d grouped": lambda: (Pooled(nn.Conv1d(4, 6, 3, **GROUPED), 6, 3, True), torch.randn(6, 4, 11)),
    "conv1d reflected": lambda: (
        Pooled(nn.Conv1d(2, 4, 3, padding=2, padding_mode="reflect"), 4, 3, True),
        torch.randn(6, 2, 8),
    ),
    "embedding": lambda: (Pooled(nn.Embedding(9, 4), 4, 3), torch.randint(9, (6, 7))),
    "embedding of one word": lambda: (Pooled(nn.Embedding(9, 4), 4, 3), torch.randint(9, (6, 1))),
    "embedding with padding": lambda: (Pooled(nn.Embedding(5, 4, padding_idx=2), 4, 3), torch.randint(5, (6, 7))),
}


def ready(model: nn.Module) -> nn.Module:
    return model.double().eval()


def build(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = CASES[name]()
    return ready(model), x.double() if x.is_floating_point() else x, torch.arange(len(x)) % 3


@contextmanager
def forward_pass(
    model: nn.Module, x: Any, y: Tensor, chosen: str | list[str] = "all"
) -> Generator[tuple[ForwardPass, Tensor]]:
    """A batch that was passed forward, and the gradient of its losses in the logits."""
    blocks = find_blocks(model, chosen)
    with capture(model, blocks) as captured:
        logits = forward(model, x)
        found = ForwardPass(model, dict(model.named_modules()), blocks, captured, logits, x)
        yield found, logit_gradient(cross_entropy, logits, y)[1]


def rows_of(model: nn.Module, x: Any, y: Tensor, chosen: str | list[str] = "all") -> dict[str, Tensor]:
    """Row gradients `[B, r, o, i]` by block."""
    with forward_pass(model, x, y, chosen) as (found, cotangent):
        rows = dense_rows(found, cotangent)
    parts = rows.split([b.numel for b in found.blocks], dim=1)
    return {b.name: part.reshape(-1, *b.shape) for b, part in zip(found.blocks, parts, strict=True)}


def random_like(blocks: tuple[Block, ...], count: int) -> dict[str, Tensor]:
    return {b.name: torch.randn(count, *b.shape, dtype=torch.float64) for b in blocks}


def products(rows: dict[str, Tensor], queries: dict[str, Tensor]) -> Tensor:
    return sum(rows[name].flatten(1) @ queries[name].flatten(1).T for name in queries)


@pytest.fixture(params=["whole", "tiny"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tiles and slices as they are, and so small that there are many of both."""
    if request.param == "tiny":
        monkeypatch.setattr(layer_inputs, "TILE_FLOATS", 250)
        monkeypatch.setattr(row_gradients, "SLICE_FLOATS", 40)
    return request.param


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("name", CASES)
def test_row_gradients_are_autograds(name: str) -> None:
    model, x, y = build(name)
    found = rows_of(model, x, y)
    assert set(found) == {"layer", "head"}
    for layer, rows in found.items():
        truth = oracles.layer_row_gradients(model, cross_entropy, x, y, layer)
        assert truth.abs().max() > 1e-3
        torch.testing.assert_close(rows, truth)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("name", CASES)
def test_products_sums_and_self_products(name: str) -> None:
    model, x, y = build(name)
    rows = {n: oracles.layer_row_gradients(model, cross_entropy, x, y, n) for n in ("layer", "head")}
    with forward_pass(model, x, y) as (found, cotangent):
        queries, weights = random_like(found.blocks, 5), torch.randn(len(x), 3, dtype=torch.float64)
        weights[::2, 0] = 0
        weights[:, 1] = 0
        inverse = {n: v[0].square() for n, v in random_like(found.blocks, 1).items()}
        eigenbases = {b.name: (*_rotations(b), inverse[b.name]) for b in found.blocks}
        given = row_products(_again(found, x), cotangent, queries)
        sums: dict[str, Tensor] = {}
        add_queries(sums, _again(found, x), cotangent, weights, "V")
        add_queries(sums, _again(found, x), cotangent, weights, "V")
        own = self_products(_again(found, x), cotangent, eigenbases)
    torch.testing.assert_close(given, products(rows, queries))
    truth = torch.zeros(len(x), dtype=torch.float64)
    for n, held in rows.items():
        torch.testing.assert_close(sums[f"V/{n}"], 2 * torch.einsum("bq,broi->qroi", weights, held))
        q_a, q_g, d = eigenbases[n]
        truth += ((q_g.mT @ (held if q_a is None else held @ q_a)).square() * d).sum((1, 2, 3))
    torch.testing.assert_close(own, truth)


def _again(found: ForwardPass, x: Any) -> ForwardPass:
    """The same batch with a graph of its own."""
    with capture(found.model, found.blocks) as captured:
        return ForwardPass(found.model, found.modules, found.blocks, captured, forward(found.model, x), x)


def _rotations(block: Block) -> tuple[Tensor | None, Tensor]:
    r, o, i = block.shape
    q_g = torch.linalg.qr(torch.randn(r, o, o, dtype=torch.float64)).Q
    return None if block.kind == "embedding" else torch.linalg.qr(torch.randn(r, i, i, dtype=torch.float64)).Q, q_g


class Rich(nn.Module):
    """Called by keyword, before ReLU in place, not at all; and norms, which have no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.conv, self.norm = nn.Linear(4, 6), nn.Conv1d(6, 4, 3), nn.LayerNorm(4)
        self.batch, self.head, self.unused = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu_(self.tokens(input=x))
        hidden = self.batch(self.conv(hidden.transpose(1, 2))).relu_().transpose(1, 2)
        return self.head(self.norm(hidden).mean(1))


def rich() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Rich().double()
    x = torch.randn(9, 5, 4, dtype=torch.float64)
    model(x)  # running statistics of the norm
    return model.eval(), x, torch.arange(9) % 3


def test_unusual_calls_and_parameters_without_a_rule() -> None:
    model, x, y = rich()
    found = rows_of(model, x, y)
    for name in ("tokens", "conv", "head", "unused"):
        torch.testing.assert_close(found[name], oracles.layer_row_gradients(model, cross_entropy, x, y, name))
    for name in ("norm.weight", "norm.bias", "batch.weight", "batch.bias"):
        truth = oracles.row_gradients(model, cross_entropy, x, y, [name])
        assert truth.abs().max() > 1e-3
        torch.testing.assert_close(found[name][:, 0, 0], truth)


def test_a_tape_gives_many_cotangents_beside_parameters_without_a_rule() -> None:
    model, x, y = rich()
    with forward_pass(model, x, y) as (found, cotangent):
        first, second = (dense_rows(found, k * cotangent, last=k == 2) for k in (1, 2))
        assert {n: len(v) for n, v in found.captured.inputs.items()} == {"tokens": 1, "conv": 1, "head": 1}
    torch.testing.assert_close(second, 2 * first)


def test_a_layer_that_is_never_called_is_worth_nothing() -> None:
    model, x, y = rich()
    with forward_pass(model, x, y, ["head", "unused"]) as (found, cotangent):
        eigenbases = {"head": (None, None, torch.ones(1, 3, 5, dtype=torch.float64))}
        own = self_products(found, cotangent, eigenbases)
    head = oracles.layer_row_gradients(model, cross_entropy, x, y, "head")
    torch.testing.assert_close(own, head.square().sum((1, 2, 3)))


class Checkpointed(nn.Module):
    """Runs its first layer again while gradients pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(lambda x: self.layer(x).tanh_(), x, use_reentrant=False).mean(1))


def test_activation_checkpointing() -> None:
    torch.manual_seed(0)
    model, x, y = ready(Checkpointed()), torch.randn(6, 7, 5, dtype=torch.float64), torch.arange(6) % 3
    with forward_pass(model, x, y) as (found, cotangent):
        first, second = (dense_rows(found, cotangent, last=k == 1) for k in range(2))
    assert torch.equal(first, second)
    truth = oracles.layer_row_gradients(model, cross_entropy, x, y, "layer").flatten(1)
    torch.testing.assert_close(first[:, : truth.shape[1]], truth)


class Tied(nn.Module):
    """Words in, words out, through one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.middle, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        return self.out(torch.tanh(self.middle(self.words(ids)).mean(1) * scale))


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_tied_weights_and_several_inputs(form: str) -> None:
    """A tied matrix has a gradient from two places: it has no rule, and its own row gradients."""
    torch.manual_seed(0)
    model = ready(Tied())
    ids, scale, y = torch.randint(5, (6, 3)), torch.rand(6, 1, dtype=torch.float64), torch.arange(6) % 5
    found = rows_of(model, (ids, scale) if form == "tuple" else {"ids": ids, "scale": scale}, y)
    assert set(found) == {"words.weight", "middle", "out.bias"}
    names = {"words.weight": ["words.weight"], "out.bias": ["out.bias"], "middle": ["middle.weight"]}
    params = dict(model.named_parameters())
    for k in range(6):
        loss = cross_entropy(model(ids[k : k + 1], scale[k : k + 1]), y[k : k + 1]).sum()
        for block, (name,) in names.items():
            (truth,) = torch.autograd.grad(loss, params[name], retain_graph=True)
            rows = found[block][k, 0]
            torch.testing.assert_close(rows[:, :-1] if block == "middle" else rows[0].view_as(truth), truth)


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "grad": [(n, p.requires_grad, p.grad) for n, p in model.named_parameters()],
        "training": [m.training for m in model.modules()],
        "ids": [id(p) for p in model.parameters()],
    }


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model, x, y = rich()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.norm.train()
    before, values = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    try:
        with forward_pass(model, x, y) as (found, cotangent):
            dense_rows(found, cotangent)
            if fails:
                raise InterruptedError
    except InterruptedError:
        pass
    assert state(model) == before
    assert all(torch.equal(values[k], v) for k, v in model.state_dict().items())


def test_a_frozen_model_in_training_mode_is_valued_the_same() -> None:
    """What a fit leaves behind (frozen layers, training mode) is nobody's business but the caller's."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double().eval()
    table = (torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3)
    named = {"parameters": ["0", "3"]}  # layers that are named are valued, frozen or not
    truth = influence(model, table, table, named)
    model.train()[0].requires_grad_(False)
    before = state(model)
    assert torch.equal(influence(model, table, table, named), truth)
    assert state(model) == before


class Blind(nn.Module):
    """A frozen encoder under torch.no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.tanh(self.encoder(x))
        return self.head(hidden)


def test_a_layer_without_gradients_is_named() -> None:
    torch.manual_seed(0)
    model = ready(Blind())
    table = (torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3)
    with pytest.raises(InputError, match=r"Layer 'encoder' ran without gradients .*Fix: leave it out"):
        influence(model, table, table)
    before = state(model)
    with pytest.raises(InputError), forward_pass(model, *table):
        pass
    assert state(model) == before
    assert influence(model, table, table, {"parameters": ["head"]}).abs().max() > 0


class Turned(nn.Module):
    """Tokens first, rows second; and an embedding of the places in a row, which knows no rows at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.places, self.head = nn.Linear(5, 4), nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return self.head(torch.tanh(hidden + self.places(torch.arange(x.shape[1]))).mean(1))


@pytest.mark.parametrize("length", [2, 7])
@pytest.mark.parametrize(("layer", "shape"), [("layer", r"\[{}, 6, 5\]"), ("places", r"\[{}\]")])
def test_a_layer_whose_first_axis_is_not_the_batch_is_refused(layer: str, shape: str, length: int) -> None:
    model, x = ready(Turned()), torch.randn(6, length, 5, dtype=torch.float64)
    with pytest.raises(InputError, match=f"Layer '{layer}' takes {shape.format(length)} .*in a batch of 6 rows"):
        rows_of(model, x, torch.arange(6) % 3, [layer])


@pytest.mark.parametrize("curvature", ["ekfac", "identity"])
@pytest.mark.parametrize("length", [2, 7])
def test_such_a_layer_is_refused_by_the_whole_job(length: int, curvature: str) -> None:
    model = ready(Turned())
    table = (torch.randn(12, length, 5, dtype=torch.float64), torch.arange(12) % 3)
    with pytest.raises(InputError, match="its first axis is not the batch"):
        influence(model, table, table, curvature=curvature)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_tiny_gradients(half: torch.dtype) -> None:
    """Gradients of sure rows are of size 1e-7: under what fp16 holds, were they not scaled."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    truth = rows_of(model, x, y)
    blocks = find_blocks(model, "all")
    with capture(model, blocks, half=half is torch.float16) as captured:
        logits = forward(model, x, half)
        cotangent = 1e-7 * logit_gradient(cross_entropy, logits, y)[1]
        found = dense_rows(ForwardPass(model, dict(model.named_modules()), blocks, captured, logits, x), cotangent)
    assert found.dtype == torch.float32
    assert error(1e7 * found, torch.cat([v.flatten(1) for v in truth.values()], dim=1)) < 0.03
