"""Fairness and robustness objectives against their naive definitions, finite differences and refits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import oracles_fairness as truth
import pandas as pd
import pytest
import torch
from core.cases import drawn_labels, fit, fit_to_optimum
from torch import Tensor, nn

import rayinf
from rayinf import demographic_parity, equal_opportunity, robustness

L2 = 1e-2
EPSILON, STEPS = 0.05, 4
OBJECTIVES = ["total", "category", "demographic_parity", "equal_opportunity", "robustness"]


def table(x: Tensor, y: Tensor, group: Tensor) -> pd.DataFrame:
    held = pd.DataFrame(x.numpy(), columns=[f"x{k}" for k in range(x.shape[1])])
    return held.assign(label=y.numpy(), sex=np.array(["f", "m", "x"])[group.numpy()])


@lru_cache
def problem(kind: str, classes: int, groups: int = 2) -> tuple[nn.Sequential, rayinf.Task, pd.DataFrame, pd.DataFrame]:
    """A fitted model and its tables; groups hang on the first feature, so that there are gaps."""
    torch.manual_seed(5)
    x = torch.randn(160, 4, dtype=torch.float64)
    y = drawn_labels(x, classes)
    group = torch.bucketize(x[:, 0] + torch.randn(160, dtype=torch.float64), torch.linspace(-1, 1, groups + 1)[1:-1])
    if kind == "linear":
        model: Any = fit_to_optimum(nn.Sequential(nn.Linear(4, classes)), x[:100], y[:100], L2)
    else:
        model = fit(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)), x[:100], y[:100], 80)
    task = rayinf.Task(model, features=[f"x{k}" for k in range(4)], group="sex", l2=L2)
    return model, task, table(x[:100], y[:100], group[:100]), table(x[100:], y[100:], group[100:])


def tensors(frame: pd.DataFrame) -> tuple[Tensor, Tensor, np.ndarray[Any, Any]]:
    x = torch.tensor(frame[[f"x{k}" for k in range(4)]].to_numpy())
    return x, torch.tensor(frame["label"].to_numpy()), frame["sex"].to_numpy()


def values(kind: str, classes: int, favourable: int) -> dict[str, truth.Value]:
    """Every objective as a function of the model, attacked rows held fixed."""
    model, _, _, valid = problem(kind, classes)
    x, y, sex = tensors(valid)
    men = torch.from_numpy(sex == "m")
    linear = truth.closest_point(model, x, 1.3) if kind == "linear" and classes == 2 else x
    fgsm = truth.projected(model, x, y, EPSILON, 1, EPSILON)
    pgd = truth.projected(model, x, y, EPSILON, STEPS, 2.5 * EPSILON / STEPS)
    return {
        "total": lambda m: truth.losses(m, x, y).sum(),
        "demographic_parity": lambda m: truth.parity(m, x, men, favourable).abs(),
        "equal_opportunity": lambda m: truth.opportunity(m, x, y, men, favourable).abs(),
        "linear": lambda m: truth.losses(m, linear, y).sum(),
        "fgsm": lambda m: truth.losses(m, fgsm, y).sum(),
        "pgd": lambda m: truth.losses(m, pgd, y).sum(),
    }


def gap_named(name: str, favourable: int | None) -> Any:
    return {
        "total": "total",
        "demographic_parity": demographic_parity(favourable),
        "equal_opportunity": equal_opportunity(favourable),
        "linear": robustness(),
        "fgsm": robustness("fgsm", epsilon=EPSILON),
        "pgd": robustness("pgd", epsilon=EPSILON, steps=STEPS),
    }[name]


CASES = [
    (kind, classes, favourable, name)
    for kind in ("linear", "mlp")
    for classes, favourable in ((2, None), (2, 0), (3, 1))
    for name in ("demographic_parity", "equal_opportunity", "linear", "fgsm", "pgd")
    if name != "linear" or (kind == "linear" and classes == 2)
]


@pytest.mark.parametrize(("kind", "classes", "favourable", "name"), CASES)
def test_values_and_influence_are_those_of_the_definition(
    kind: str, classes: int, favourable: int | None, name: str
) -> None:
    """Without curvature n I(i) is the product of two gradients; every objective's is checked to 1e-8."""
    model, task, train, valid = problem(kind, classes)
    value = values(kind, classes, classes - 1 if favourable is None else favourable)[name]
    scores = rayinf.influence(task, train, valid, objective=gap_named(name, favourable), curvature="identity")
    query = truth.gradient(value, model, list(model.parameters()))
    rows = truth.row_gradients(model, *tensors(train)[:2])
    expected = (rows @ query / len(train)).numpy()
    np.testing.assert_allclose(scores.to_numpy()[:, 0], expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert next(iter(scores.metadata["objective_values"].values())) == pytest.approx(value(model).item(), rel=1e-10)
    difference = truth.finite_difference(value, model)
    assert float((difference - query).abs().max() / query.abs().max()) < 1e-5


def test_exact_influence_is_that_of_a_dense_hessian() -> None:
    model, task, train, valid = problem("linear", 2)
    x, y, _ = tensors(train)
    scores = rayinf.influence(task, train, valid, objective=OBJECTIVES, curvature="exact")
    inverse = torch.linalg.inv(truth.hessian(model, x, y, L2)) / len(x)
    rows = truth.row_gradients(model, x, y)
    functions = values("linear", 2, 1)
    for column, name in {"demographic_parity": "demographic_parity", "equal_opportunity": "equal_opportunity",
                         "robustness": "linear"}.items():  # fmt: skip
        query = truth.gradient(functions[name], model, list(model.parameters()))
        expected = (rows @ inverse @ query).numpy()
        found = scores.to_pandas()[column].to_numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_together_they_are_what_they_are_alone() -> None:
    _, task, train, valid = problem("mlp", 2)
    how: dict[str, Any] = {"curvature": "ekfac", "halves": True}
    several = [*OBJECTIVES[:4], robustness("pgd", epsilon=EPSILON), "slice:sex"]
    together = rayinf.influence(task, train, valid, objective=several, **how)
    for one in several:
        alone = rayinf.influence(task, train, valid, objective=one, **how)
        assert alone.halves is not None
        assert together.halves is not None
        for a, b in zip([alone, *alone.halves], [together, *together.halves], strict=True):
            for column in a.columns:
                x, y = (s.to_pandas()[column].to_numpy() for s in (a, b))
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * np.abs(x).max())


def test_halves_have_gaps_of_their_own() -> None:
    """A half's column is the influence on the gap of its own rows, whatever the sign of the whole gap."""
    model, task, train, valid = problem("mlp", 2)
    scores = rayinf.influence(task, train, valid, objective="demographic_parity", curvature="identity", halves=True)
    x, _, sex = tensors(valid)
    men = torch.from_numpy(sex == "m")
    rows = truth.row_gradients(model, *tensors(train)[:2])
    assert scores.halves is not None
    # Which half a row is in is the package's decision: a column with a slice for every row shows it.
    named = valid.assign(row=np.arange(len(valid)))
    single = rayinf.influence(task, train, named, objective="slice:row", curvature="identity", halves=True)
    assert single.halves is not None
    for half, of in zip(scores.halves, single.halves, strict=True):
        inside = torch.tensor([np.abs(of.to_pandas()[f"slice_row_{k}"]).max() > 0 for k in range(len(valid))])
        value = lambda m, i=inside: truth.parity(m, x[i], men[i], 1).abs()  # noqa: E731
        expected = (rows @ truth.gradient(value, model, list(model.parameters())) / len(train)).numpy()
        np.testing.assert_allclose(half.to_numpy()[:, 0], expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["demographic_parity", "equal_opportunity"])
def test_three_groups_are_each_compared_with_the_rest(name: str) -> None:
    model, task, train, valid = problem("mlp", 3, groups=3)
    x, y, sex = tensors(valid)
    scores = rayinf.influence(task, train, valid, objective=getattr(rayinf, name)(1), curvature="identity")
    assert scores.columns == [f"{name}_{g}" for g in ("f", "m", "x")]
    rows = truth.row_gradients(model, *tensors(train)[:2])
    for k, g in enumerate(("f", "m", "x")):
        one = torch.from_numpy(sex == g)
        if name == "demographic_parity":
            value = lambda m, o=one: truth.parity(m, x, o, 1)  # noqa: E731
        else:
            value = lambda m, o=one: truth.opportunity(m, x, y, o, 1)  # noqa: E731
        signed = value(model).item()
        query = np.sign(signed) * (rows @ truth.gradient(value, model, list(model.parameters()))).numpy() / len(train)
        np.testing.assert_allclose(scores.to_numpy()[:, k], query, rtol=0, atol=1e-8 * np.abs(query).max())
        details = scores.metadata["objective_details"][f"{name}_{g}"]
        assert details["signed"] == pytest.approx(signed, rel=1e-9)


def test_hard_gaps_and_accuracy_are_reported() -> None:
    model, task, train, valid = problem("linear", 2)
    x, y, sex = tensors(valid)
    scores = rayinf.influence(task, train, valid, objective=OBJECTIVES, curvature="identity")
    details = scores.metadata["objective_details"]
    predicted = model(x).argmax(1).numpy()
    men, good = sex == "m", y.numpy() == 1
    assert details["demographic_parity"]["hard"] == pytest.approx(abs(predicted[men].mean() - predicted[~men].mean()))
    rates = [predicted[g & good].mean() for g in (men, ~men)]
    assert details["equal_opportunity"]["hard"] == pytest.approx(abs(rates[0] - rates[1]))
    attacked = model(truth.closest_point(model, x, 1.3)).argmax(1)
    assert details["robustness"]["accuracy"] == pytest.approx((attacked == y).double().mean().item())
    assert "total" not in details


def test_no_gap_counts_as_positive() -> None:
    """At 0 the slope is that of the second group's mean less the first's, not 0."""
    combine = demographic_parity(group="sex").combine
    assert combine is not None
    for second, sign in ((2.0, 1), (2.0 - 1e-9, -1), (2.0 + 1e-9, 1)):
        sums = torch.tensor([4.0, second], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(combine(sums, torch.tensor([2.0, 1.0])).sum(), sums)
        assert slope.tolist() == [-sign / 2, sign]


def test_the_own_attack_of_a_user() -> None:
    model, task, train, valid = problem("linear", 2)
    x, y, _ = tensors(valid)
    scores = rayinf.influence(task, train, valid, objective=robustness(shifted), curvature="identity")
    value = lambda m: truth.losses(m, x + 0.5, y).sum()  # noqa: E731
    rows = truth.row_gradients(model, *tensors(train)[:2])
    expected = (rows @ truth.gradient(value, model, list(model.parameters())) / len(train)).numpy()
    np.testing.assert_allclose(scores.to_numpy()[:, 0], expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def shifted(predict: Any, x: Tensor, labels: Tensor, loss: Any) -> Tensor:
    return x + 0.5


def test_an_attack_stays_in_its_range() -> None:
    model, _, _, valid = problem("mlp", 2)
    x, y, _ = tensors(valid)
    attack = robustness("pgd", epsilon=0.3, steps=5, clip=(-1.0, 1.0)).attack
    assert attack is not None
    inside = x.clamp(-1, 1)
    moved = attack(model, inside, y, lambda z, t: torch.nn.functional.cross_entropy(z, t, reduction="none"))
    assert moved.abs().max() <= 1
    assert (moved - inside).abs().max() <= 0.3 + 1e-12
    assert truth.losses(model, moved, y).sum() > truth.losses(model, inside, y).sum()


@lru_cache
def toy() -> tuple[rayinf.Task, pd.DataFrame, pd.DataFrame]:
    """The toy of Chhabra 2024: two isotropic Gaussians in the plane, 150 + 100 rows, a group that follows the class."""
    rng = np.random.default_rng(11)

    def draw(n: int) -> pd.DataFrame:
        y = rng.integers(0, 2, n)
        x = rng.normal(size=(n, 2)) * 1.3 + np.where(y[:, None] == 1, [0.8, 1.0], [-0.8, -1.0])
        group = np.where(rng.random(n) < 0.8, y, 1 - y)
        return pd.DataFrame({"x1": x[:, 0], "x2": x[:, 1], "label": y, "sensitive": group})

    train, valid = draw(150), draw(100)
    return rayinf.logistic_regression(train, l2=L2, features=["x1", "x2"], group="sensitive"), train, valid


def test_leave_one_out_on_the_toy() -> None:
    """Refits keep the sum of the ridge (rows=150), and attacked rows are those of the first model."""
    task, train, valid = toy()
    objectives = ["total", "demographic_parity", "equal_opportunity", "robustness"]
    scores = rayinf.influence(task, train, valid, objective=objectives, curvature="exact").to_pandas()
    before = rayinf.evaluate(task, valid, objectives)
    changes = []
    left_out = range(0, len(train), 3)
    for k in left_out:
        refit = rayinf.retrain(task, train, keep=np.arange(len(train)) != k, rows=len(train))
        after = rayinf.evaluate(refit, valid, objectives, against=task)
        changes.append([after[o] - before[o] for o in objectives])
    actual = pd.DataFrame(changes, columns=objectives)
    correlation = scores.loc[left_out, objectives].reset_index(drop=True).corrwith(actual, method="spearman")
    print(correlation.to_dict())
    assert (correlation >= 0.98).all()
