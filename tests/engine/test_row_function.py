"""What is not a function of the row is refused before any work, each kind with its own message; honest models pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rayinf

WIDTH, CLASSES = 6, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, WIDTH)).astype(np.float32), np.arange(40) % CLASSES


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), *middle, nn.Tanh(), nn.Linear(8, CLASSES))


def value(task: rayinf.Task, rows: int = 40, **more: Any) -> rayinf.Scores:
    table = (X[:rows], Y[:rows])
    return rayinf.influence(task, table, table, **{"curvature": "identity", **more})


class Through(nn.Module):
    """Layers, with something done to what is between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last, self.between = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


# --- Models


@pytest.mark.parametrize(
    "between",
    [
        lambda h: F.dropout(h, 0.5),
        lambda h: h + torch.randn_like(h),
        lambda h: h + 0.05 * torch.rand_like(h),
    ],
)
def test_a_model_that_is_random(between: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(rayinf.InputError, match=r"gives other logits for the same 4 rows.*random.*training=self"):
        value(rayinf.Task(Through(between)))


def test_a_model_that_keeps_a_state() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * self.calls

    with pytest.raises(rayinf.InputError, match="gives other logits for the same 4 rows"):
        value(rayinf.Task(Counting(WIDTH, CLASSES)))


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h - h.mean(0),
        lambda h: (h - h.mean()) / (h.std() + 1e-5),
        lambda h: h / h.abs().max(),
        lambda h: h.softmax(0),
        lambda h: torch.cumsum(h, 0),
        lambda h: h.flip(0),
        lambda h: h * (torch.arange(len(h))[:, None] + 1),  # by the place in the batch
        lambda h: h * len(h),
    ],
)
def test_a_model_that_mixes_rows(between: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(rayinf.InputError, match=r"logits of one row depend on other rows of its batch.*BatchNorm"):
        value(rayinf.Task(Through(between)))


def test_batchnorm_that_never_takes_its_running_means() -> None:
    with pytest.raises(rayinf.InputError, match=r"depend on other rows|batch of one row"):
        value(rayinf.Task(network(nn.BatchNorm1d(8, track_running_stats=False))))


def test_a_model_that_drops_the_axis_of_one_row() -> None:
    class Squeezing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    with pytest.raises(rayinf.InputError, match=r"The model returns \[3\] for a batch of one row.*\[4, 3\] for 4"):
        value(rayinf.Task(Squeezing(WIDTH, CLASSES)))


def test_a_model_that_fails_on_one_row() -> None:
    def picky(h: Tensor) -> Tensor:
        if len(h) == 1:
            raise ValueError("no single rows here")
        return h

    with pytest.raises(rayinf.InputError, match=r"fails on a batch of one row \(row 0.*no single rows here"):
        value(rayinf.Task(Through(picky)))


class Attention(nn.Module):
    """Rows of features as tokens, through a transformer."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.up = nn.Linear(1, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.up(x[..., None])).mean(1))


def convolutions() -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for c_in, c_out in ((1, 8), (8, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(16, CLASSES))  # fmt: skip


class ToHalf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


@pytest.mark.parametrize(
    "model",
    [
        network(nn.BatchNorm1d(8), nn.Dropout(0.5)),
        network(nn.LayerNorm(8)),
        convolutions(),
        nn.Sequential(ToHalf(), convolutions().to(torch.bfloat16)),
        convolutions().double(),
        Attention(),
        nn.Sequential(ToHalf(), Attention().to(torch.bfloat16)),
        nn.Linear(WIDTH, CLASSES),
    ],
)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_honest_models_pass(model: nn.Module, scale: float) -> None:
    from rayinf.engine.probe import probe
    from rayinf.training.open_table import open_table

    table = (X * np.float32(scale), Y)
    worker, _ = open_table(rayinf.Task(model), table, "train")
    assert probe(worker.job).logits == CLASSES


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_rows_pass_and_are_looked_at(rows: int) -> None:
    value(rayinf.Task(network()), rows)
    with pytest.raises(rayinf.InputError, match="random"):
        value(rayinf.Task(Through(lambda h: F.dropout(h, 0.5))), rows)


# --- Transforms


def shuffled(x: np.ndarray) -> np.ndarray:
    """Rows in another order, never as they came."""
    return np.roll(x, np.random.default_rng().integers(1, max(len(x), 2)), axis=0)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (lambda x: x + np.random.default_rng().normal(size=x.shape), "other values for the same 4 rows.*random"),
        (lambda x: x * (np.random.default_rng().random(x.shape) < 0.5), "other values for the same 4 rows.*random"),
        (lambda x: x[::-1].copy(), "returns the rows in another order than it gets them"),
        (lambda x: np.sort(x, axis=0), "depends on the rest of its batch"),
        (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-6), "depends on the rest of its batch"),
        (lambda x: x - x.min(), "depends on the rest of its batch"),
        (lambda x: x.squeeze(), r"returns \[6\] for a batch of one row.*\[4, 6\] for 4 rows.*squeeze"),
        (lambda x: x[None].squeeze(), r"returns \[6\] for a batch of one row"),
        (lambda x: x if len(x) > 1 else 1 / 0, r"fails on a batch of one row: .*ZeroDivisionError"),
    ],
)
def test_transforms_that_are_refused(transform: Callable[[np.ndarray], Any], said: str) -> None:
    with pytest.raises(rayinf.InputError, match=rf"Task\(transform=\.\.\.\) .*{said}"):
        value(rayinf.Task(network(), transform=transform))


def test_a_transform_that_shuffles() -> None:
    messages = []
    for _ in range(20):
        with pytest.raises(rayinf.InputError, match=r"Task\(transform=\.\.\.\) returns the rows in another order") as e:
            value(rayinf.Task(network(), transform=shuffled))
        messages.append(str(e.value))
    assert any("each time" in message for message in messages)


def test_every_part_of_an_input_is_looked_at() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, CLASSES)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(a + b)

    value(rayinf.Task(Two(), transform=lambda x: {"a": x, "b": 2 * x}))
    value(rayinf.Task(Two(), transform=lambda x: (x, np.ones(WIDTH, np.float32))))  # one for all rows
    with pytest.raises(rayinf.InputError, match="depends on the rest of its batch"):
        value(rayinf.Task(Two(), transform=lambda x: {"a": x, "b": x - x.mean(0)}))
    with pytest.raises(rayinf.InputError, match=r"returns \[6\] for a batch of one row"):
        value(rayinf.Task(Two(), transform=lambda x: (x, (2 * x).squeeze())))


class Words(nn.Module):
    """A mean of embeddings over the tokens that are there."""

    def __init__(self, honest: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table, self.head, self.honest = nn.Embedding(20, 8), nn.Linear(8, CLASSES), honest

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids > 0).float() if self.honest else torch.ones(ids.shape)
        return self.head((self.table(ids) * there[..., None]).sum(1) / there.sum(1, keepdim=True))


def padded(texts: np.ndarray) -> np.ndarray:
    """Tokens, padded to the longest text of the batch."""
    out = np.zeros((len(texts), max(len(t) for t in texts)), np.int64)
    for row, text in zip(out, texts, strict=True):
        row[: len(text)] = [ord(c) - ord("a") + 1 for c in text]
    return out


def test_padding_to_the_longest_of_a_batch() -> None:
    """Other shapes in other batches are fine where the model looks past the padding."""
    texts = ["abc", "bcdefg", "c", "hi", "abcdefghij", "d", "kl", "m"]
    table = pa.table({"features": texts, "label": [0, 1, 2, 0, 1, 2, 0, 1]})
    rayinf.influence(rayinf.Task(Words(True), transform=padded), table, table, curvature="identity")
    with pytest.raises(rayinf.InputError, match="logits of one row depend on other rows"):
        rayinf.influence(rayinf.Task(Words(False), transform=padded), table, table, curvature="identity")


# --- Losses and objectives


LOSSES: list[tuple[Callable[[Tensor, Tensor], Tensor], str]] = [
    (lambda z, y: cross_entropy(z, y) * cross_entropy(z, y).mean(), "depends on other rows of its batch"),
    (lambda z, y: cross_entropy(z - z.mean(0), y), "depends on other rows of its batch"),
    (lambda z, y: cross_entropy(z, y) / len(y), "depends on other rows of its batch"),
    (lambda z, y: cross_entropy(z, y) * torch.arange(len(y)), "depends on other rows of its batch"),
    (lambda z, y: cross_entropy(z, y) * torch.rand(len(y)), "gives other values for the same rows.*random"),
    (lambda z, y: cross_entropy(z, y).squeeze(), r"returned \[\] for a batch of 1 rows"),
]


@pytest.mark.parametrize(("loss", "said"), LOSSES)
def test_losses_that_are_refused(loss: Any, said: str) -> None:
    for model in (network(), zero()):  # with logits of 0, all rows have one loss
        with pytest.raises(rayinf.InputError, match=rf"The loss .*{said}|The loss {said}"):
            value(rayinf.Task(model, loss=loss))
        with pytest.raises(rayinf.InputError, match=rf"Objective 'mine' .*{said}|Objective 'mine' {said}"):
            value(rayinf.Task(model), objective=rayinf.Objective("mine", rows=loss))


def zero() -> nn.Module:
    model = nn.Linear(WIDTH, CLASSES)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_honest_losses_pass(scale: float) -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])

    def focal(z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(1).gather(1, y[:, None])[:, 0]
        return (1 - p) ** 2 * cross_entropy(z, y)

    for loss in (
        focal,
        lambda z, y: F.cross_entropy(z, y, weight=weights, reduction="none", label_smoothing=0.1),
        lambda z, y: F.multi_margin_loss(z, y, reduction="none"),
        nn.CrossEntropyLoss(reduction="none"),
    ):
        model = network()
        with torch.no_grad():
            model[-1].weight.mul_(scale)
        value(rayinf.Task(model, loss=loss))


def test_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(rayinf.InputError, match="random"):
        value(rayinf.Task(Through(lambda h: F.dropout(h, 0.5))), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
