"""The inverse of influence values: chosen, told, and against naive forms that share no code with the package."""

import math
from functools import cache
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rayinf

N, D, K = 60, 5, 3


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def rows(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, D)) * np.array([2.0, 1.0, 1.0, 0.5, 0.2])
    y = (x[:, :K] + 0.7 * generator.standard_normal((n, K))).argmax(1)
    return x, y


TRAIN, VALID = rows(0, N), rows(1, 20)


@cache
def network(steps: int = 60) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, K)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    x, y = torch.from_numpy(TRAIN[0]), torch.from_numpy(TRAIN[1])
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def total(task: rayinf.Task, **more: Any) -> np.ndarray:
    return rayinf.influence(task, TRAIN, VALID, **more).to_pandas()["total"].to_numpy()


def gradients(model: nn.Module, table: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
    return oracles.row_gradients(model, cross_entropy, torch.from_numpy(table[0]), torch.from_numpy(table[1]))


def phi(x: np.ndarray) -> np.ndarray:
    return np.array([1.0 if v == 0 else -math.expm1(-v) / v for v in x.ravel()]).reshape(x.shape)


def ekfac(model: nn.Module, f: Any) -> np.ndarray:
    """Values under EKFAC with any function `f(lambda [o, i], layer)` in the place of the inverse, times n."""
    x, y = (torch.from_numpy(v) for v in TRAIN)
    xv, yv = (torch.from_numpy(v) for v in VALID)
    out = np.zeros(N)
    for layer in ("0", "2"):
        basis = oracles.eigenbasis(oracles.factors(model, cross_entropy, x, y, layer))
        level = oracles.textbook_lambda(model, cross_entropy, x, y, layer, basis=basis)

        def rotated(x_: torch.Tensor, y_: torch.Tensor, layer: str = layer, basis: Any = basis) -> torch.Tensor:
            return basis.Q_G.mT @ oracles.layer_row_gradients(model, cross_entropy, x_, y_, layer) @ basis.Q_A

        query = rotated(xv, yv).sum(0).numpy()
        out += (rotated(x, y).numpy() * (query * f(level.numpy(), layer))).sum((1, 2, 3)) / N
    return out


def test_the_exact_inverse_of_a_finite_training_is_what_training_does() -> None:
    """From the minimum, a row is weighted down, and gradient descent goes on for T."""
    task = rayinf.logistic_regression(TRAIN, l2=0.05)
    model = task.build()
    x, y = (torch.from_numpy(v) for v in TRAIN)
    xv, yv = (torch.from_numpy(v) for v in VALID)
    rate, steps, k, size = 0.05, 60, 7, 1e-4
    held = [p.detach().clone().double() for p in model.parameters()]

    def after(weight: float) -> float:
        w, b = (p.clone().requires_grad_() for p in held)
        weights = torch.ones(N, dtype=torch.float64)
        weights[k] = weight
        for _ in range(steps):
            loss = (weights * cross_entropy(x @ w.T + b, y)).sum() / N + 0.025 * (w.square().sum() + b.square().sum())
            grads = torch.autograd.grad(loss, (w, b))
            w, b = ((p - rate * g).detach().requires_grad_() for p, g in zip((w, b), grads, strict=True))
        return float(cross_entropy(xv @ w.T + b, yv).sum().detach())

    truth = (after(1 - size) - after(1 + size)) / (2 * size)
    found = total(task, curvature="exact", training_time=rate * steps)[k]
    assert found == pytest.approx(truth, rel=0.03)
    assert total(task, curvature="exact")[k] != pytest.approx(truth, rel=0.3)


@pytest.mark.parametrize("curvature", ["exact", "ggn"])
def test_a_dense_curvature(curvature: str) -> None:
    model, time = network(), 3.0
    x, y = (torch.from_numpy(v) for v in TRAIN)
    h = getattr(oracles, "hessian" if curvature == "exact" else "ggn")(model, cross_entropy, x, y)
    values, vectors = np.linalg.eigh(h.numpy())
    f = vectors @ np.diag(time * phi(time * (values + 0.01))) @ vectors.T
    truth = gradients(model, TRAIN).numpy() @ f @ gradients(model, VALID).sum(0).numpy() / N
    found = total(rayinf.Task(model, l2=0.01), curvature=curvature, training_time=time)
    np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-9)


def test_ekfac_with_a_time() -> None:
    model = network()
    truth = ekfac(model, lambda level, layer: 3.0 * phi(3.0 * (level + 0.01)))
    np.testing.assert_allclose(total(rayinf.Task(model, l2=0.01), training_time=3.0), truth, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        total(rayinf.Task(model, l2=0.01), inverse="unrolled", training_time=3.0), truth, rtol=1e-6, atol=1e-9
    )


def held_out(model: nn.Module) -> float:
    return float(gradients(model, VALID).square().sum(1).mean() / gradients(model, TRAIN).square().sum(1).mean())


def test_the_time_of_a_fit_and_what_validation_rows_say() -> None:
    model, h = network(600), held_out(network(600))
    assert h > 1.5
    fit = rayinf.Fit("sgd", lr=0.1, schedule="cosine", epochs=4, batch_size=16, momentum=0.5, weight_decay=0.02)
    steps = 4 * 4  # of 60 rows by 16
    rates = sum(0.1 * 0.5 * (1 + math.cos(math.pi * k / steps)) for k in range(steps)) / (1 - 0.5)
    task = rayinf.Task(model, fit=fit)
    truth = ekfac(model, lambda level, layer: h**0.5 * rates * phi(rates * (h * level + 0.02)))
    scores = rayinf.influence(task, TRAIN, VALID)
    np.testing.assert_allclose(scores.to_pandas()["total"], truth, rtol=1e-6, atol=1e-9)
    assert scores.metadata["inverse"] == "unrolled"
    assert scores.metadata["training_time"] == pytest.approx(rates)
    assert scores.metadata["held_out_curvature"] == pytest.approx(h)
    plain = ekfac(model, lambda level, layer: rates * phi(rates * (level + 0.02)))
    np.testing.assert_allclose(total(task, inverse="unrolled"), plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "sum_of_rates"),
    [("constant", 8 * 0.1), ("linear", 0.1 * (1 + 7 / 8 + 6 / 8 + 5 / 8 + 4 / 8 + 3 / 8 + 2 / 8 + 1 / 8))],
)
def test_schedules(schedule: str, sum_of_rates: float) -> None:
    fit = rayinf.Fit("sgd", lr=0.1, schedule=schedule, epochs=2, batch_size=16, momentum=0.0)
    scores = rayinf.influence(rayinf.Task(network(), fit=fit), TRAIN, VALID)
    assert scores.metadata["training_time"] == pytest.approx(sum_of_rates)


@pytest.mark.parametrize("curvature", ["ekfac", "ggn"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_has_a_time_a_layer(optimizer: str, curvature: str) -> None:
    model, h = network(600), held_out(network(600))
    fit = rayinf.Fit(optimizer, lr=1e-2, schedule="constant", epochs=4, batch_size=16, weight_decay=0.1)
    g = gradients(model, TRAIN)
    step = {
        name: float((part.square().mean(0) * h / 16).sqrt().mean()) + 1e-8
        for name, part in zip(("0", "2"), g.split([D * 4 + 4, 4 * K + K], 1), strict=True)
    }
    task = rayinf.Task(model, fit=fit)
    scores = rayinf.influence(task, TRAIN, VALID, curvature=curvature)
    rates = 16 * 1e-2
    for name in step:
        assert scores.metadata["training_time"][name] == pytest.approx(rates / step[name], rel=1e-6)
    if curvature == "ekfac":

        def f(level: np.ndarray, layer: str) -> np.ndarray:
            time, decay = rates / step[layer], 0.1 * (step[layer] if optimizer == "adamw" else 1.0)
            return h**0.5 * time * phi(time * (h * level + decay))

        np.testing.assert_allclose(scores.to_pandas()["total"], ekfac(model, f), rtol=1e-5, atol=1e-9)


def test_where_nothing_is_known_the_damping_follows_from_the_rows() -> None:
    model, h = network(600), held_out(network(600))

    def rule(level: np.ndarray, held: float) -> np.ndarray:
        return held**0.5 / (held * level + 3 * level.mean() * level.size / (N * (K - 1)))

    scores = rayinf.influence(rayinf.Task(model), TRAIN, VALID)
    np.testing.assert_allclose(scores.to_pandas()["total"], ekfac(model, lambda v, _: rule(v, h)), rtol=1e-6)
    assert (scores.metadata["inverse"], scores.metadata["damping"]) == ("damped", "sample:3")
    found = total(rayinf.Task(model), damping="sample:3")
    np.testing.assert_allclose(found, ekfac(model, lambda v, _: rule(v, 1.0)), rtol=1e-6)
    peers = ekfac(model, lambda v, _: 1 / (v + 0.1 * v.mean()))
    np.testing.assert_allclose(total(rayinf.Task(model), damping="layer_mean:0.1"), peers, rtol=1e-6)


def test_a_fit_that_goes_on_from_the_weights_does_not_say_how_they_were_made() -> None:
    fit = rayinf.Fit("sgd", fresh=False)
    scores = rayinf.influence(rayinf.Task(network(), fit=fit), TRAIN, VALID)
    assert scores.metadata["inverse"] == "damped"
    told = rayinf.influence(rayinf.Task(network(), fit=fit), TRAIN, VALID, inverse="unrolled")
    assert told.metadata["inverse"] == "unrolled"


@pytest.mark.parametrize("curvature", ["exact", "ggn", "ekfac", "kfac"])
def test_a_model_at_its_minimum_has_the_values_that_it_had(curvature: str) -> None:
    task = rayinf.logistic_regression(TRAIN, l2=0.01)
    former = 0.0 if curvature in ("exact", "ggn") else "layer_mean:0.1"
    np.testing.assert_array_equal(total(task, curvature=curvature), total(task, curvature=curvature, damping=former))


def test_pairs_and_self_influence_have_it_too() -> None:
    model, h = network(600), held_out(network(600))
    fit = rayinf.Fit("sgd", lr=0.1, schedule="constant", epochs=2, batch_size=60, momentum=0.0)
    task = rayinf.Task(model, fit=fit)
    found = rayinf.pairs(task, TRAIN, VALID, top=N).to_pandas()
    by_row = found.drop_duplicates(["valid_row_id", "row_id"]).groupby("row_id")["value"].sum()
    np.testing.assert_allclose(by_row.to_numpy(), total(task), rtol=1e-5, atol=1e-8)
    own = rayinf.self_influence(task, TRAIN)
    assert own.metadata["training_time"] == pytest.approx(0.2)
    assert "held_out_curvature" not in own.metadata
    assert h > 1


def test_borrowed_factors_give_the_same_values(tmp_path: Any) -> None:
    task = rayinf.Task(network(600), fit=rayinf.Fit("adam"))
    first = rayinf.influence(task, TRAIN, VALID, out=tmp_path / "run")
    again = rayinf.influence(task, TRAIN, VALID, factors=tmp_path / "run")
    assert first.to_pandas().equals(again.to_pandas())
    damped = rayinf.influence(task, TRAIN, VALID, damping=0.1, out=tmp_path / "damped")
    other = rayinf.influence(task, TRAIN, VALID, factors=tmp_path / "damped")
    np.testing.assert_allclose(other.to_pandas()["total"], first.to_pandas()["total"], rtol=1e-9)
    assert not np.allclose(damped.to_pandas()["total"], first.to_pandas()["total"])


def test_rows_of_another_table_are_valued_by_the_training_of_the_old_one(tmp_path: Any) -> None:
    """Some of the old rows, with the factors of all, have the values of the first run, but for n."""
    task = rayinf.Task(network(600), fit=rayinf.Fit("sgd", lr=0.1, epochs=4, batch_size=16))
    first = rayinf.influence(task, TRAIN, VALID, out=tmp_path)
    some = rayinf.influence(task, (TRAIN[0][:20], TRAIN[1][:20]), VALID, factors=tmp_path)
    assert some.metadata["training_time"] == first.metadata["training_time"]
    np.testing.assert_allclose(
        some.to_pandas()["total"] * (20 / N), first.to_pandas()["total"][:20], rtol=1e-6, atol=1e-12
    )


def test_removal_check_values_rows_itself() -> None:
    task = rayinf.Task(network(), fit=rayinf.Fit("sgd", lr=0.1, epochs=2, batch_size=30))
    given = {"test": VALID, "seeds": 1}
    for how in ({}, {"inverse": "damped"}, {"training_time": 3.0}):
        scores = rayinf.influence(task, TRAIN, VALID, objective="category", **how)
        own = rayinf.removal_check(task, TRAIN, VALID, **given, **how)
        assert own.table.equals(rayinf.removal_check(task, TRAIN, VALID, scores=scores, **given).table)
    with pytest.raises(rayinf.InputError, match="scores are given"):
        rayinf.removal_check(task, TRAIN, VALID, scores=scores, training_time=3.0, **given)


def test_a_search_values_rows_for_a_training_as_long_as_its_own() -> None:
    task = rayinf.Task(network(), fit=rayinf.Fit("sgd", lr=0.1, epochs=50, batch_size=30, schedule="constant"))
    search = rayinf.Search(iterations=1, lr=0.02)
    found = rayinf.pareto_reweight(task, TRAIN, VALID, None, [0], search=search)
    scores = rayinf.influence(
        task, TRAIN, VALID, "category", halves=True, training_time=2 * 0.02 / (1 - 0.9)
    )  # two steps
    told = rayinf.pareto_reweight(task, TRAIN, VALID, scores, [0], search=search)
    np.testing.assert_allclose(found.weights, told.weights, rtol=1e-6)


def test_another_training_is_another_run(tmp_path: Any) -> None:
    model = network()
    rayinf.influence(rayinf.Task(model, fit=rayinf.Fit("sgd", epochs=3)), TRAIN, VALID, out=tmp_path)
    with pytest.raises(rayinf.InputError, match=r"fit\.epochs: 3 -> 4"):
        rayinf.influence(rayinf.Task(model, fit=rayinf.Fit("sgd", epochs=4)), TRAIN, VALID, out=tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inverse": "unrolled", "damping": 0.1}, "has no damping"),
        ({"inverse": "unrolled"}, "pass training_time=T"),
        ({"inverse": "unrolled", "training_time": 1.0, "curvature": "identity"}, "no eigenvalues"),
        ({"inverse": "damped", "training_time": 1.0}, "contradict"),
        ({"damping": 0.1, "training_time": 1.0}, "contradict"),
        ({"training_time": 0}, "finite number > 0"),
        ({"training_time": "long"}, "finite number > 0"),
        ({"inverse": "unroled"}, "auto"),
        ({"damping": "sample"}, "sample:3"),
        ({"damping": "0.1"}, "without quotes"),
        ({"damping": "layer_mean:-1"}, "layer_mean:0.1"),
        ({"damping": -0.1}, "finite number >= 0"),
    ],
)
def test_arguments_that_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(rayinf.InputError, match=said) as caught:
        total(rayinf.Task(network(0)), **given)
    assert "Fix:" in str(caught.value)
