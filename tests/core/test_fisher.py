"""The Fisher in the logits: columns whose outer products add up to it, and labels that are drawn by row."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from core.cases import Table, case, cross_entropy, drawn_labels, error, fit, influence
from torch import Tensor, nn

import rayinf
from rayinf.core import fisher
from rayinf.data.batches import row_keys, uniforms
from rayinf.errors import InputError

CLASSES = 40


def gram(columns_sbc: Tensor) -> Tensor:
    """`[B, C, C]`."""
    return torch.einsum("sbc,sbd->bcd", columns_sbc, columns_sbc)


def softmax_fisher(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def sure_logits(classes: int, slack: float) -> Tensor:
    """Rows whose first, and whose last, class has probability 1 - slack; the others share the rest unevenly."""
    shares = torch.arange(1, classes, dtype=torch.float64)
    p = torch.cat([torch.tensor([1 - slack], dtype=torch.float64), slack * shares / shares.sum()])
    return torch.stack([p, p.flip(0)]).log()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_columns_add_up_to_the_softmax_fisher(classes: int) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(20, classes, dtype=torch.float64)
    columns = fisher.columns(logits, torch.zeros(20, dtype=torch.long), "cross_entropy", "true", None)
    assert columns.shape == (classes - 1, 20, classes)
    torch.testing.assert_close(gram(columns), softmax_fisher(logits), rtol=1e-12, atol=1e-14)
    assert columns.sum(2).abs().max() < 1e-14  # no gradient along a shift of all logits


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_nearly_sure_rows_keep_their_digits(classes: int) -> None:
    """Of a row with P = 1 - 1e-12 the Fisher is of size 1e-12, and still right in nearly all digits."""
    logits = sure_logits(classes, 1e-12)
    found = gram(fisher.columns(logits, torch.zeros(2, dtype=torch.long), "cross_entropy", "true", None))
    p = logits.softmax(1)
    off = p[:, :, None] * p[:, None, :] * (1 - torch.eye(classes, dtype=torch.float64))
    truth = torch.diag_embed(off.sum(2)) - off
    assert error(found, truth) < 1e-9
    assert 1e-13 < float(truth.abs().max()) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_one_hot_row_has_no_fisher(dtype: torch.dtype) -> None:
    logits = torch.tensor([[2000.0, 0.0, -5.0], [0.0, -1000.0, 3000.0]], dtype=dtype)
    columns = fisher.columns(logits, torch.tensor([1, 2]), "cross_entropy", "true", None)
    assert torch.equal(columns, torch.zeros(2, 2, 3, dtype=dtype))


def test_the_empirical_fisher_is_the_gradient_of_the_given_label() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    found = fisher.columns(logits, y, "cross_entropy", "empirical", None)
    torch.testing.assert_close(found, (logits.softmax(1) - F.one_hot(y, 4))[None])


def focal(logits: Tensor, y: Tensor) -> Tensor:
    """Focal loss: not convex in the logits."""
    log_p = logits.log_softmax(1).gather(1, y[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2) * log_p


def logit_hessians(loss: oracles.Loss, logits: Tensor, y: Tensor) -> Tensor:
    def of_one(z: Tensor, label: Tensor) -> Tensor:
        return loss(z[None], label[None])[0]

    rows = zip(logits, y, strict=True)
    return torch.stack([torch.autograd.functional.hessian(lambda z, k=k: of_one(z, k), row) for row, k in rows])


def test_a_convex_loss_is_factored_as_its_hessian() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 4

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y, reduction="none", label_smoothing=0.1) + 0.05 * z.square().sum(1)

    truth = logit_hessians(loss, logits, y)
    assert torch.linalg.eigvalsh(truth).min() > 0.05
    torch.testing.assert_close(gram(fisher.columns(logits, y, loss, "true", None)), truth)


def test_negative_curvature_of_a_loss_is_clipped() -> None:
    torch.manual_seed(0)
    logits, y = 2 * torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 4
    truth = logit_hessians(focal, logits, y)
    values, vectors = torch.linalg.eigh(truth)
    assert values.min() < -1e-2
    clipped = vectors @ torch.diag_embed(values.clamp(min=0)) @ vectors.mT
    torch.testing.assert_close(gram(fisher.columns(logits, y, focal, "true", None)), clipped)


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "ggn"])
def test_cross_entropy_as_a_function_scores_the_same(curvature: str) -> None:
    c = case("mlp")
    named, called = (
        influence(c.model, c.train, c.valid, {"loss": loss}, curvature=curvature, damping=1e-4)
        for loss in ("cross_entropy", cross_entropy)
    )
    assert error(called, named) < 1e-9


def test_a_loss_that_is_a_mean_is_refused() -> None:
    c = case("mlp")
    with pytest.raises(InputError, match=r"returned \(\) for a batch of 4 rows.*reduction=\"none\""):
        influence(c.model, c.train, c.valid, {"loss": F.cross_entropy})


def test_a_function_of_many_classes_has_no_true_fisher() -> None:
    logits = torch.randn(3, CLASSES)
    with pytest.raises(InputError, match='pass fisher="empirical"'):
        fisher.columns(logits, torch.zeros(3, dtype=torch.long), cross_entropy, "true", torch.rand(3, fisher.DRAWS))


def test_drawn_labels_are_unbiased() -> None:
    """The mean over many rows with one P: within five standard errors of the Fisher, entry by entry."""
    torch.manual_seed(0)
    n = 20_000
    logits = torch.randn(1, CLASSES, dtype=torch.float64).expand(n, CLASSES)
    x = np.random.default_rng(0).normal(size=(n, 3))
    draws = torch.from_numpy(uniforms(row_keys(x, np.zeros(n, dtype=np.int64)), 0, fisher.DRAWS))
    assert abs(float(draws.mean()) - 0.5) < 5 / (12 * draws.numel()) ** 0.5
    correlation = torch.corrcoef(draws.T) - torch.eye(fisher.DRAWS)
    assert correlation.abs().max() < 5 / n**0.5
    columns = fisher.columns(logits, torch.zeros(n, dtype=torch.long), "cross_entropy", "true", draws)
    assert columns.shape == (fisher.DRAWS, n, CLASSES)
    truth = softmax_fisher(logits[:1])[0]
    labels = torch.eye(CLASSES, dtype=torch.float64)
    p = logits[0].softmax(0)
    outer = torch.einsum("kc,kd->kcd", p - labels, p - labels)
    deviation = (torch.einsum("k,kcd->cd", p, outer.square()) - truth.square()).clamp(min=0).sqrt()
    found = torch.einsum("snc,snd->cd", columns, columns) / n
    assert ((found - truth).abs() < 6 * deviation / (n * fisher.DRAWS) ** 0.5 + 1e-12).all()


@lru_cache
def many_classes() -> tuple[nn.Module, Table, Table]:
    torch.manual_seed(0)
    x = oracles.correlated_inputs(140, 6, seed=0)
    y = torch.cat([torch.arange(CLASSES), drawn_labels(x, CLASSES)])[:140]
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    fit(model, x[CLASSES:], y[CLASSES:], 30)
    return model, (x[CLASSES:], y[CLASSES:]), (x[:60], y[:60])


def many_scores(order: Tensor | None = None, dtype: torch.dtype = torch.float64, **how: object) -> Tensor:
    model, (x, y), valid = many_classes()
    order = torch.arange(len(x)) if order is None else order
    train, valid = (x[order].to(dtype), y[order]), (valid[0].to(dtype), valid[1])
    kind = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)).to(dtype)
    kind.load_state_dict(model.state_dict())
    found = influence(kind.eval(), train, valid, damping=1e-4, **how)
    return found[torch.argsort(order)].double()


def by_column(found: Tensor, truth: Tensor) -> float:
    """The largest error, each column in units of its largest value."""
    return float(((found - truth).abs().amax(0) / truth.abs().amax(0)).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawn_labels_depend_on_neither_batch_nor_order(dtype: torch.dtype) -> None:
    whole = many_scores(dtype=dtype, batch_size=64)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    for other in ({"batch_size": 1}, {"batch_size": 7}, {"batch_size": 64, "order": order}):
        assert by_column(many_scores(dtype=dtype, **other), whole) < 1e-5
    assert by_column(many_scores(dtype=dtype, batch_size=64, seed=1), whole) > 1e-2


def test_drawn_labels_agree_with_themselves_and_say_so() -> None:
    model, train, valid = many_classes()
    scores = rayinf.influence(rayinf.Task(model), train, valid)
    agreement = scores.metadata["drawn_labels_agreement"]
    assert set(agreement) == {"0", "2"}
    assert all(0.5 < value <= 1 for value in agreement.values())
