"""Retraining: on some rows, with weights, from a stream; and measuring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rayinf
from rayinf.api.evaluate import evaluate
from rayinf.api.retrain import retrain
from rayinf.training import shuffle

RNG = np.random.default_rng(0)
N, D, K = 97, 5, 3
Y = np.arange(N) % K
X = (RNG.normal(size=(N, D)) + Y[:, None] * 0.7).astype(np.float32)
KEEP = RNG.random(N) < 0.7
FIT = rayinf.Fit("sgd", 0.1, "cosine", epochs=3, batch_size=16, momentum=0.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K))


def task(**arguments: Any) -> rayinf.Task:
    return rayinf.Task(**{"model": network(), "fit": FIT, "l2": 0.01, **arguments})


def weights(of: rayinf.Task) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in of.build().parameters()])


def same(a: rayinf.Task, b: rayinf.Task, tolerance: float = 1e-6) -> bool:
    return torch.allclose(weights(a), weights(b), atol=tolerance, rtol=0)


def shards(folder: Path, rows: int, x: np.ndarray = X, y: Any = Y) -> Path:
    table = pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), D), "label": y})
    pq.write_table(table, folder / "t.parquet", row_group_size=rows)
    return folder / "t.parquet"


# --- By minibatches


def test_against_a_plain_loop() -> None:
    """Initialised by reset_parameters, permuted by a seeded generator, the last row joined to the batch before."""
    found = retrain(task(), (X, Y), seed=7)
    model = network()
    torch.manual_seed(7)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(steps, 3 * 6)
    generator = torch.Generator().manual_seed(7)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(3):
        order = torch.randperm(N, generator=generator)
        assert N % 16 == 1
        for k in [*order[:80].split(16), order[80:]]:
            steps.zero_grad()
            ridge = sum(p.square().sum() for p in model.parameters())
            (F.cross_entropy(model(x[k]), y[k]) + 0.005 * ridge).backward()
            steps.step()
            falling.step()
    assert same(found, task(model=model), 1e-5)
    assert found.classes == (0, 1, 2)
    assert found.fit == FIT


def test_the_task_is_left_alone() -> None:
    given = task()
    before = weights(given)
    found = retrain(given, (X, Y))
    assert torch.equal(weights(given), before)
    assert not same(found, given)
    assert isinstance(found.model, nn.Module)
    assert not found.model.training


def test_same_seed_same_weights() -> None:
    first = retrain(task(), (X, Y), seed=1)
    assert torch.equal(weights(first), weights(retrain(task(), (X, Y), seed=1)))
    assert not same(first, retrain(task(), (X, Y), seed=2))
    once = retrain(task(fit=dataclasses.replace(FIT, fresh=False)), (X, Y), seed=1)
    assert not same(first, once)


@pytest.mark.parametrize("keep", [KEEP, KEEP.tolist(), np.flatnonzero(KEEP), set(np.flatnonzero(KEEP).tolist())])
def test_kept_rows_are_the_filtered_table(keep: Any, tmp_path: Path) -> None:
    """Whatever the shards, and whether the mask is a mask or positions."""
    filtered = retrain(task(), (X[KEEP], Y[KEEP]), seed=3)
    assert torch.equal(weights(retrain(task(), (X, Y), keep=keep, seed=3)), weights(filtered))
    assert torch.equal(weights(retrain(task(), shards(tmp_path, 10), keep=keep, seed=3)), weights(filtered))


def test_weights() -> None:
    ones = retrain(task(), (X, Y), weights=np.ones(N), seed=3)
    assert same(ones, retrain(task(), (X, Y), seed=3))
    doubled = retrain(task(l2=0.02), (X, Y), weights=np.full(N, 2.0), seed=3)
    half = dataclasses.replace(FIT, lr=0.05)
    assert same(retrain(task(l2=0.02, fit=half), (X, Y), weights=np.full(N, 2.0), seed=3), ones, 1e-5)
    assert not same(doubled, ones, 1e-3)
    some = RNG.random(N)
    kept = retrain(task(), (X, Y), keep=KEEP, weights=some, seed=3)
    assert same(kept, retrain(task(), (X[KEEP], Y[KEEP]), weights=some[KEEP], seed=3))


def test_the_sum_of_the_ridge() -> None:
    kept = int(KEEP.sum())
    found = retrain(task(l2=0.3), (X, Y), keep=KEEP, rows=N, seed=3)
    assert same(found, retrain(task(l2=0.3 * N / kept), (X[KEEP], Y[KEEP]), seed=3))
    assert found.l2 == 0.3


def test_the_ridge_is_on_what_is_valued() -> None:
    """With a huge ridge on the last layer, that layer is gone and the first is not."""
    found = retrain(task(l2=9.0, parameters="last", fit=dataclasses.replace(FIT, epochs=40)), (X, Y))
    first, last = (m.weight.detach().norm() for m in (found.model[0], found.model[2]))
    assert float(last) < 0.05
    assert float(first) > 0.5


class Seen(nn.Module):
    """A linear layer that writes down its batches in training."""

    rows: ClassVar[list[Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Seen.rows.append(x[:, 0].detach().clone())
        return self.head(x)


@pytest.mark.parametrize("size", [7, 64, 100])
def test_a_table_that_does_not_fit_is_streamed(size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every kept row once an epoch, in batches of the size asked for, in orders that differ."""
    monkeypatch.setattr(shuffle, "BUFFER_ROWS", 50)
    n = 401
    x = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.float32)
    table = pa.table(
        {"features": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 2), "label": np.arange(n) % 2}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=30)
    keep = np.arange(n) % 4 > 0
    fit = rayinf.Fit("sgd", 1e-6, "linear", epochs=2, batch_size=size)
    Seen.rows = []
    first = retrain(rayinf.Task(Seen(), fit=fit), tmp_path / "t.parquet", keep=keep, seed=1)
    batches = Seen.rows
    kept = int(keep.sum())
    assert kept % 100 == 0
    sizes = [len(b) for b in batches]
    each = [size] * (kept // size) + [kept % size] * (kept % size > 0)
    assert sizes == each * 2
    orders = torch.cat(batches).reshape(2, kept)
    assert all(o.sort().values.tolist() == np.flatnonzero(keep).tolist() for o in orders)
    assert not torch.equal(orders[0], orders[1])
    assert float((orders[0][1:] > orders[0][:-1]).float().mean()) < 0.6
    again = retrain(rayinf.Task(Seen(), fit=fit), tmp_path / "t.parquet", keep=keep, seed=1)
    assert torch.equal(weights(first), weights(again))


@pytest.mark.parametrize("rows", [33, 49, 97])
def test_no_batch_of_one_row(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm could not train on it."""
    norm = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, K))
    for buffer in (65_536, 20):
        monkeypatch.setattr(shuffle, "BUFFER_ROWS", buffer)
        found = retrain(task(model=norm), (X[:rows], Y[:rows]))
        assert bool(torch.isfinite(weights(found)).all())


def test_transform_strings_and_a_loss_of_the_users() -> None:
    """Labels of text, features that a transform doubles, a custom loss."""
    names = np.array(["cat", "dog", "eel"])[Y]
    given = task(transform=_double, loss=_loss)
    found = retrain(given, (X / 2, names), seed=3)
    assert same(found, retrain(task(), (X, Y), seed=3), 1e-5)
    assert found.classes == ("cat", "dog", "eel")
    assert (
        evaluate(found, (X / 2, names))["accuracy_eel"]
        == evaluate(dataclasses.replace(found, transform=None, classes=None), (X, Y))["accuracy_2"]
    )


def _double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


# --- A softmax head


def logistic(x: np.ndarray, y: Any, l2: float = 1e-2) -> rayinf.Task:
    return rayinf.logistic_regression((x, y), l2=l2)


def test_a_head_is_fitted_to_convergence() -> None:
    given = logistic(X, Y)
    assert same(retrain(given, (X, Y)), given)
    assert same(retrain(given, (X, Y), keep=KEEP), logistic(X[KEEP], Y[KEEP]))
    images = X[:, :4].reshape(N, 1, 2, 2)
    flat = retrain(rayinf.Task(nn.Sequential(nn.Flatten(), nn.Linear(4, K).double()), l2=1e-2), (images, Y))
    assert same(flat, logistic(images, Y))


def test_a_head_with_many_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conjugate-gradient Newton steps take weights too."""
    from rayinf.core import train

    some = RNG.random(N) + 0.1
    newton = retrain(logistic(X, Y), (X, Y), weights=some)
    monkeypatch.setattr(train, "MOST_NEWTON", 1)
    assert same(retrain(logistic(X, Y), (X, Y), weights=some), newton)


def test_weights_of_a_head() -> None:
    """0 and 1 are removal with the sum of the ridge kept; 2 is a row that stands twice."""
    removed = retrain(logistic(X, Y), (X, Y), weights=KEEP.astype(float))
    assert same(removed, retrain(logistic(X, Y), (X, Y), keep=KEEP, rows=N))
    assert same(removed, logistic(X[KEEP], Y[KEEP], l2=1e-2 * N / int(KEEP.sum())))
    assert not same(removed, logistic(X[KEEP], Y[KEEP]), 1e-3)
    twice = np.concatenate([np.arange(N), np.flatnonzero(KEEP)])
    assert same(retrain(logistic(X, Y), (X, Y), weights=1.0 + KEEP, rows=len(twice)), logistic(X[twice], Y[twice]))
    scaled = retrain(logistic(X, Y), (X, Y), weights=np.full(N, 3.0))
    assert same(scaled, logistic(X, Y, l2=1e-2 / 3))


def test_a_leave_one_out_refit_is_what_influence_predicts() -> None:
    """With the sum of the ridge kept."""
    given = logistic(X, Y)
    y = RNG.integers(0, K, 200)
    valid = (RNG.normal(size=(200, D)) + y[:, None] * 0.7 + 0.5, y)
    predicted = rayinf.influence(given, (X, Y), valid, curvature="exact").to_numpy()[::10, 0]
    before = evaluate(given, valid)["loss"]
    changes = []
    for k in range(0, N, 10):
        refit = retrain(given, (X, Y), keep=np.arange(N) != k, rows=N)
        changes.append(200 * (evaluate(refit, valid)["loss"] - before))
    assert np.corrcoef(changes, predicted)[0, 1] > 0.99
    assert np.abs(changes - predicted).max() < 0.2 * np.abs(predicted).max()


# --- A function of the user's


def test_a_function_trains() -> None:
    told: list[Any] = []

    def trainer(asked: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
        told.append((asked.l2, train, weights, seed))
        return network().train()

    table = (X, Y)
    found = retrain(task(fit=trainer), table, seed=5)
    retrain(task(fit=trainer, l2=0.3), table, keep=KEEP, weights=np.full(N, 2.0), rows=N)
    assert told[0][0] == 0.01
    assert told[0][1] is table
    assert told[0][2] is None
    assert told[0][3] == 5
    assert told[1][0] == pytest.approx(0.3 * N / KEEP.sum())
    assert told[1][2].tolist() == (2.0 * KEEP).tolist()
    assert same(found, task())
    assert not found.model.training
    with pytest.raises(rayinf.InputError, match="returned a int"):
        retrain(task(fit=lambda *_: 3), table)


# --- Measures


def test_evaluate(tmp_path: Path) -> None:
    given = task(fit=None)
    with torch.no_grad():
        logits = given.model(torch.from_numpy(X))
    hit = logits.argmax(1).numpy() == Y
    found = evaluate(given, shards(tmp_path, 10))
    assert list(found) == ["rows", "loss", "accuracy", "accuracy_0", "accuracy_1", "accuracy_2"]
    assert found["rows"] == N
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.from_numpy(Y))), rel=1e-6)
    assert found["accuracy"] == pytest.approx(hit.mean())
    for c in range(K):
        assert found[f"accuracy_{c}"] == pytest.approx(hit[c == Y].mean())
    some = evaluate(given, (X[Y != 1], Y[Y != 1]))
    assert some["accuracy_1"] is None
    assert some["accuracy_2"] == found["accuracy_2"]


# --- Bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"keep": np.ones(96, bool)}, r"keep is a mask \[96\] for 97 rows"),
        ({"keep": [97]}, r"the id 97, which is not among the positions 0 to 96 \(1 of 1 ids"),
        ({"keep": {-1}}, "the id -1, which is not among"),
        ({"keep": [0.5]}, r"keep is an array \[1\] of float64"),
        ({"keep": []}, "keep is empty: no row is left"),
        ({"keep": 3}, "keep is a int"),
        ({"keep": "abc"}, "keep is a str"),
        ({"keep": [1, True]}, r"keep is an array \[2\] of object"),
        ({"keep": [[1, 2]]}, r"keep is an array \[1, 2\]"),
        ({"keep": [3, 1, 3]}, "the id 3 more than once"),
        ({"keep": ["a"]}, "ids of the table are integers, and keep holds text"),
        ({"keep": np.zeros(N, bool)}, "None of the 97 rows is left"),
        ({"weights": np.ones(96)}, r"weights are \[96\] for 97 rows"),
        ({"weights": -np.ones(N)}, "not all finite"),
        ({"weights": np.full(N, np.nan)}, "not all finite"),
        ({"weights": np.zeros(N)}, "None of the 97 rows is left"),
        ({"weights": (~KEEP).astype(float), "keep": KEEP}, "None of the 97 rows is left"),
        ({"seed": -1}, "seed must be an integer"),
        ({"rows": 0}, "rows=0"),
    ],
)
def test_what_retrain_refuses(more: dict[str, Any], message: str) -> None:
    with pytest.raises(rayinf.InputError, match=message):
        retrain(task(), (X, Y), **more)


@pytest.mark.parametrize(
    "model", [network(), nn.Linear(D, K, bias=False), nn.Sequential(nn.Linear(D, K), nn.Identity())]
)
def test_a_model_that_no_fit_says_how_to_train(model: nn.Module) -> None:
    with pytest.raises(rayinf.InputError, match=r"Task\(fit=rayinf.Fit"):
        retrain(task(model=model, fit=None), (X, Y))
    with pytest.raises(rayinf.InputError, match=r"Task\(fit=rayinf.Fit"):
        retrain(task(model=nn.Linear(D, K), fit=None, loss=_loss), (X, Y))


def test_tables_that_do_not_fit() -> None:
    wrong = np.where(Y == 2, 5, Y)
    with pytest.raises(rayinf.InputError, match="no logit for: 5"):
        retrain(task(), (X, wrong))
    with pytest.raises(rayinf.InputError, match="test has labels that the model has no logit for"):
        evaluate(retrain(task(), (X, Y)), (X, wrong))
    holed = X.copy()
    holed[3, 1] = np.nan
    with pytest.raises(rayinf.InputError, match="row 3"):
        retrain(task(), (holed, Y))


@pytest.mark.parametrize("fit", [3, "adam", rayinf.Fit])
def test_a_fit_that_is_none(fit: Any) -> None:
    with pytest.raises(rayinf.InputError, match=r"fit must be a rayinf\.Fit"):
        task(fit=fit)
