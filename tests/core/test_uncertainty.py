"""Uncertainties against loops in plain Python, and dropout whose masks do not know the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayinf.core.capture import forward
from rayinf.core.dropout import consistent_dropout, mc_log_probabilities, require_dropout
from rayinf.core.uncertainty import bald, entropy, least_confidence, margin
from rayinf.errors import InputError


def slow_entropy(p: list[float]) -> float:
    return -sum(v * math.log(v) for v in p if v > 0)


def softmax(z: list[float]) -> list[float]:
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


SLOW: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[list[float]], float]]] = {
    "entropy": (entropy, slow_entropy),
    "margin": (margin, lambda p: sorted(p)[-2] - sorted(p)[-1]),
    "least_confidence": (least_confidence, lambda p: 1 - max(p)),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_against_a_loop(name: str, dtype: torch.dtype, classes: int) -> None:
    fast, slow = SLOW[name]
    logits = (3 * torch.randn(20, classes, generator=torch.Generator().manual_seed(0))).to(dtype)
    values = fast(logits)
    assert values.dtype == torch.float64
    expected = [slow(softmax(z)) for z in logits.tolist()]
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", SLOW)
def test_the_largest_is_the_most_uncertain(name: str) -> None:
    fast, _ = SLOW[name]
    values = fast(torch.tensor([[9.0, 0, 0], [1.0, 0.9, 0], [0, 0, 0], [800.0, 0, -800]]))
    assert values.argsort(descending=True).tolist() == [2, 1, 0, 3]
    assert torch.isfinite(values).all()


def test_sure_rows_keep_their_order() -> None:
    logits = torch.tensor([[50.0, 0], [60.0, 0]])
    assert least_confidence(logits).tolist() == pytest.approx([math.exp(-50), math.exp(-60)])
    assert entropy(logits)[0] > entropy(logits)[1] > 0


def test_bald_against_a_loop() -> None:
    logits = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    logits[:, 0] = logits[:1, 0]  # all samples agree
    logits[:, 1] = torch.tensor([[0.0, -math.inf, -math.inf]])
    p = logits.softmax(2).tolist()
    expected = []
    for b in range(8):
        mean = [sum(p[s][b][c] for s in range(5)) / 5 for c in range(3)]
        expected.append(slow_entropy(mean) - sum(slow_entropy(p[s][b]) for s in range(5)) / 5)
    found = bald(logits.log_softmax(2))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-14)
    assert abs(found[0]) < 1e-14 and found[1] == 0 and (found[2:] > 0).all()


class Images(nn.Module):
    """Every kind of mask, one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.channels = nn.Conv2d(2, 4, 3), nn.Dropout2d(0.4)
        self.hidden, self.units = nn.Linear(36, 36), nn.Dropout(0.5)
        self.alpha, self.whole, self.off = nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.2), nn.Dropout(0.0)
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(self.channels(self.conv(x)).relu().flatten(1))
        return self.head(self.off(self.whole(self.alpha(torch.selu(self.units(self.hidden(x)))))))


@pytest.fixture
def images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Images().double(), torch.randn(10, 2, 5, 5, dtype=torch.float64)


def test_samples_depend_on_neither_batch_nor_order(images: tuple[nn.Module, Tensor]) -> None:
    model, x = images
    whole = mc_log_probabilities(model, forward, x, 4, 7)
    assert whole.shape == (4, 10, 3) and whole.dtype == torch.float64
    assert torch.allclose(whole.exp().sum(2), torch.ones(4, 10, dtype=torch.float64))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    parts = [mc_log_probabilities(model, forward, v, 4, 7) for v in x[order].split([1, 6, 3])]
    assert torch.allclose(torch.cat(parts, 1), whole[:, order], rtol=0, atol=1e-12)


def test_samples_and_seeds_differ_and_can_be_had_again(images: tuple[nn.Module, Tensor]) -> None:
    model, x = images
    first = mc_log_probabilities(model, forward, x, 3, 0)
    torch.manual_seed(99)  # torch's own generator has no say
    assert torch.equal(first, mc_log_probabilities(model, forward, x, 3, 0))
    assert torch.equal(first[:2], mc_log_probabilities(model, forward, x, 2, 0))
    other = mc_log_probabilities(model, forward, x, 3, 1)
    for a, b in ((first[0], first[1]), (first[0], other[0]), (first[2], other[2])):
        assert not torch.allclose(a, b)


def test_the_model_is_left_as_it_was(images: tuple[nn.Module, Tensor]) -> None:
    model, x = images
    model.train()
    model.get_submodule("conv").eval()
    before = [m.training for m in model.modules()]
    mc_log_probabilities(model, forward, x, 1, 0)
    assert [m.training for m in model.modules()] == before
    with pytest.raises(InputError, match="Kernel size"):
        mc_log_probabilities(model, forward, x[..., :1], 1, 0)
    assert [m.training for m in model.modules()] == before
    assert torch.backends.mha.get_fastpath_enabled()
    model.eval()
    assert torch.equal(model(x), model(x))


def masked(module: nn.Module, x: Tensor, sample: int = 0) -> Tensor:
    with consistent_dropout(module, 3) as masks:
        masks.begin(sample)
        return module(x)


@pytest.mark.parametrize(
    ("module", "shape", "channels"),
    [
        (nn.Dropout(0.3), (4, 6, 50), False),
        (nn.Dropout(0.3, inplace=True), (4, 300), False),
        (nn.Dropout1d(0.3), (4, 300, 5), True),
        (nn.Dropout2d(0.3), (4, 300, 2, 3), True),
        (nn.Dropout3d(0.3), (4, 300, 2, 2, 2), True),
        (nn.AlphaDropout(0.3), (4, 300), False),
        (nn.FeatureAlphaDropout(0.3), (4, 300, 2), True),
    ],
)
def test_masks_are_those_of_torch_shared_by_rows(module: nn.Module, shape: tuple[int, ...], channels: bool) -> None:
    """The two values that torch's own training mode can give, in its proportion, at the same places in every row."""
    x = torch.ones(shape, dtype=torch.float64)
    found = masked(module, x)
    torch.manual_seed(0)
    torchs = module.train()(torch.ones(shape, dtype=torch.float64)).unique()
    assert torch.allclose(found.unique(), torchs, rtol=1e-6)
    assert torch.equal(found, found[:1].expand(shape))
    if channels:
        assert torch.equal(
            found,
            found.flatten(2)[..., :1].expand(*shape[:2], 1).reshape(*shape[:2], *[1] * (x.dim() - 2)).expand(shape),
        )
    dropped = (found[0] == torchs.min()).double().mean().item()
    assert abs(dropped - 0.3) < 0.08
    assert not torch.equal(found, masked(module, torch.ones(shape, dtype=torch.float64), 1))


@pytest.mark.parametrize("module", [nn.Dropout(1.0), nn.AlphaDropout(1.0)])
def test_all_is_dropped_at_one(module: nn.Module) -> None:
    assert torch.equal(masked(module, torch.ones(2, 5)), torch.zeros(2, 5))


def test_every_call_has_its_own_mask() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.drop(x), self.drop(x)], 1)

    out = masked(Twice(), torch.ones(2, 64))
    assert not torch.equal(out[:, 0], out[:, 1])


def test_a_transformer_drops_out_too() -> None:
    """Its fused layer, which eval mode takes without gradients, has no hooks."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)

    def pooled(model: nn.Module, x: Any) -> Tensor:
        return model(x).mean(1)

    x = torch.randn(6, 5, 8)
    out = mc_log_probabilities(layer, pooled, x, 2, 0)
    assert not torch.allclose(out[0], out[1])
    assert torch.allclose(out[:, 2:3], mc_log_probabilities(layer, pooled, x[2:3], 2, 0), atol=1e-6)


class Functional(nn.Module):
    """Declares dropout, and drops out by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5, self.training)


class Flattened(nn.Module):
    """Tokens as rows of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x.flatten(0, 1)).view(x.shape).sum(1)


def test_what_cannot_be_done_is_said() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))):
        with pytest.raises(InputError, match=r'no dropout module with p > 0.*Fix: .*strategy="entropy"'):
            require_dropout(model)
    require_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))

    def run(model: nn.Module, x: Any) -> Tensor:
        return model(x)

    with pytest.raises(InputError, match="None of the model's dropout modules ran"):
        mc_log_probabilities(Functional(), run, torch.ones(2, 3), 2, 0)
    with pytest.raises(InputError, match="ran on 8 rows in a batch of 2"):
        mc_log_probabilities(Flattened(), run, torch.ones(2, 4, 3), 2, 0)
