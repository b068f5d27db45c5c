"""Objectives: what a row is worth it for. Their query vectors are gradients of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from core.cases import case, cross_entropy, error
from torch import Tensor, nn

import rayinf
from rayinf import Objective
from rayinf.core.objective_parser import parse
from rayinf.core.objectives import LABEL, Target, objective_details, query_vectors, sources
from rayinf.core.objectives import weights as group_weights
from rayinf.errors import InputError


def gap_of_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean loss of the second group over that of the first."""
    means = sums / counts
    return means[1] - means[0]


def spread(sums: Tensor, counts: Tensor) -> Tensor:
    """Not linear in the sums."""
    return (sums / counts).std()


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """How far the label's logit lies under the mean logit."""
    return logits.mean(1) - logits.gather(1, y[:, None])[:, 0]


def brier(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.softmax(1) - torch.nn.functional.one_hot(y, logits.shape[1])).square().sum(1)


ALL = [
    "total",
    "category",
    "slice:region",
    Objective("gap", split="sex", combine=gap_of_means),
    Objective("spread", rows=brier, split="region", combine=spread),
    Objective("brier", rows=brier),
    Objective("squared", combine=lambda sums, counts: (sums[0] / counts[0]).square()),
    margin,
]
COLUMNS = [
    "total",
    *(f"category_{c}" for c in range(3)),
    *(f"slice_region_{r}" for r in ("east", "north", "west")),
    *("gap", "spread", "brier", "squared", "margin"),
]


def frame(x: Tensor, y: Tensor) -> pd.DataFrame:
    """Features one by one, with groups that depend on them."""
    held = pd.DataFrame(x.numpy(), columns=[f"x{k}" for k in range(x.shape[1])])
    region = np.array(["west", "east", "north"])[(np.arange(len(x)) * 7 // 3) % 3]
    return held.assign(label=y.numpy(), region=region, sex=(x[:, 0] > x[:, 0].median()).long().numpy())


def problem() -> tuple[nn.Module, rayinf.Task, pd.DataFrame, pd.DataFrame]:
    c = case("mlp")
    task = rayinf.Task(c.model, features=[f"x{k}" for k in range(5)])
    return c.model, task, frame(*c.train), frame(*c.valid)


def tensors(task: rayinf.Task, table: pd.DataFrame) -> tuple[Tensor, Tensor]:
    return torch.tensor(table[task.feature_columns].to_numpy()), torch.tensor(table["label"].to_numpy())


def values_of(model: nn.Module, task: rayinf.Task, valid: pd.DataFrame) -> dict[str, Tensor]:
    """Every objective's value, written out once more."""
    x, y = tensors(task, valid)
    logits = model(x)
    loss, quadratic = cross_entropy(logits, y), brier(logits, y)
    region, sex = valid["region"].to_numpy(), torch.tensor(valid["sex"].to_numpy())
    means = torch.stack([quadratic[torch.from_numpy(region == r)].mean() for r in ("east", "north", "west")])
    by_class = {f"category_{c}": loss[y == c].sum() for c in range(3)}
    by_region = {f"slice_region_{r}": loss[torch.from_numpy(region == r)].sum() for r in ("east", "north", "west")}
    return {
        "total": loss.sum(),
        **by_class,
        **by_region,
        "gap": loss[sex == 1].mean() - loss[sex == 0].mean(),
        "spread": means.std(),
        "brier": quadratic.sum(),
        "squared": loss.mean().square(),
        "margin": margin(logits, y).sum(),
    }


@pytest.fixture(scope="module")
def scores() -> rayinf.Scores:
    """All objectives in one pass, through the identity: a query vector's product with every row gradient, over n."""
    _, task, train, valid = problem()
    return rayinf.influence(task, train, valid, objective=ALL, curvature="identity", halves=True)


def test_all_objectives_have_their_columns_and_values(scores: rayinf.Scores) -> None:
    model, task, _, valid = problem()
    assert scores.columns == COLUMNS
    truth = values_of(model, task, valid)
    for name, value in scores.metadata["objective_values"].items():
        assert value == pytest.approx(truth[name].item(), rel=1e-10), name


@pytest.mark.parametrize("name", COLUMNS)
def test_query_vectors_are_gradients(name: str, scores: rayinf.Scores) -> None:
    model, task, train, valid = problem()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(values_of(model, task, valid)[name], parameters)
    query = torch.cat([g.flatten() for g in gradient])[None]
    rows = oracles.row_gradients(model, cross_entropy, *tensors(task, train))
    found = torch.tensor(scores.table[name].to_numpy())
    assert error(found, oracles.identity_influence(query, rows)[:, 0]) < 1e-10


@pytest.mark.parametrize("name", ["gap", "spread", "squared", "margin", "category_1"])
def test_query_vectors_are_finite_differences(name: str, scores: rayinf.Scores) -> None:
    """A step against row 3's gradient moves the objective by the row's score."""
    model, task, train, valid = problem()
    x, y = tensors(task, train.iloc[3:4])
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(cross_entropy(model(x), y).sum(), parameters)
    step, sides = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, g in zip(parameters, gradient, strict=True):
                p += sign * step * g
            sides.append(values_of(model, task, valid)[name])
            for p, g in zip(parameters, gradient, strict=True):
                p -= sign * step * g
    slope = ((sides[0] - sides[1]) / (2 * step)).item()
    assert scores.table[name][3].as_py() * len(train) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_parts_add_up(scores: rayinf.Scores) -> None:
    held = scores.to_pandas()
    for prefix in ("category_", "slice_region_"):
        parts = held[[c for c in held.columns if c.startswith(prefix)]]
        np.testing.assert_allclose(parts.sum(axis=1), held["total"], rtol=1e-10, atol=1e-14)


def test_halves_add_up_where_an_objective_is_a_sum(scores: rayinf.Scores) -> None:
    assert scores.halves is not None
    whole, first, second = scores.to_pandas(), *(h.to_pandas() for h in scores.halves)
    assert list(first.columns) == list(second.columns) == list(whole.columns)
    for name in COLUMNS:
        np.testing.assert_array_equal(first["row_id"], whole["row_id"])
        both = first[name] + second[name]
        if name in ("gap", "spread", "squared"):
            assert error(torch.tensor(both.to_numpy()), torch.tensor(whole[name].to_numpy())) > 0.05
        else:
            np.testing.assert_allclose(both, whole[name], rtol=1e-10, atol=1e-13)
        assert not np.allclose(first[name], second[name])


def test_halves_are_the_rows_own(scores: rayinf.Scores) -> None:
    """Which half a row is in depends on the row and the seed, not on the order of the table."""
    _, task, train, valid = problem()
    how: dict[str, Any] = {"objective": ALL, "curvature": "identity", "halves": True}
    reversed_rows = rayinf.influence(task, train, valid.iloc[::-1], **how)
    other = rayinf.influence(task, train, valid, seed=1, **how)
    assert scores.halves is not None
    assert reversed_rows.halves is not None
    assert other.halves is not None
    np.testing.assert_allclose(reversed_rows.halves[0].to_numpy(), scores.halves[0].to_numpy(), rtol=1e-9, atol=1e-12)
    assert error(*(torch.from_numpy(s.halves[0].to_numpy()) for s in (other, scores))) > 1e-2


def test_combined_groups_in_a_half() -> None:
    """Means in a half are means over the half's own rows."""
    sums = {"S0": torch.tensor([4.0, 9.0, 2.0, 1.0]), "C0": torch.tensor([2.0, 3.0, 1.0, 4.0])}
    block = rayinf.core.blocks.Block("layer", "linear", (1, 1, 1), ("layer.weight",))
    sums["V0/layer"] = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1, 1)
    target = Target(Objective("gap", split="g", combine=gap_of_means), ("a", "b"))
    sums = {k: v.double() for k, v in sums.items()}
    sums["H0"] = torch.zeros(4).double()
    queries = query_vectors(sums, [target], [block], halves=True)
    truth = torch.tensor([10 / 7 - 5 / 3, 2 / 3 - 1 / 2, 8 / 4 - 4 / 1], dtype=torch.float64)
    torch.testing.assert_close(queries["layer"].flatten(), truth)
    assert objective_details(sums, [target]) == {"gap": {"value": pytest.approx(10 / 7 - 6 / 3)}}


def test_objectives_of_one_function_share_its_backward_pass() -> None:
    targets = [
        Target(parse("total")[0], ()),
        Target(Objective("brier", rows=brier), ()),
        Target(Objective("region", rows=brier, split="region"), ("east", "west")),
        Target(parse("category")[0], ("0", "1")),
    ]
    assert sources(targets) == [(None, None), (None, brier)]
    codes = {LABEL: torch.tensor([0, 1, 1]), "region": torch.tensor([1, 0, 1])}
    found = group_weights([targets[0], targets[3]], codes, None, torch.zeros(3))
    assert found.tolist() == [[1, 1, 0], [1, 0, 1], [1, 0, 1]]
    halves = group_weights([targets[1], targets[2]], codes, torch.tensor([0, 1, 1]), torch.zeros(3))
    assert halves.tolist() == [[1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 1]]


def test_one_column_is_the_same_alone_and_among_others(scores: rayinf.Scores) -> None:
    _, task, train, valid = problem()
    for objective, name in ((margin, "margin"), (ALL[3], "gap"), ("slice:region", "slice_region_north")):
        alone = rayinf.influence(task, train, valid, objective=objective, curvature="identity").to_pandas()
        np.testing.assert_allclose(alone[name], scores.to_pandas()[name], rtol=1e-10, atol=1e-14)


def test_strings_of_labels_name_their_columns() -> None:
    _, task, train, valid = problem()
    names = {0: "cat", 1: "dog", 2: "eel"}
    held = [t.assign(label=t["label"].map(names)) for t in (train, valid)]
    scores = rayinf.influence(task, *held, objective="category", curvature="identity")
    assert scores.columns == ["category_cat", "category_dog", "category_eel"]
    plain = rayinf.influence(task, train, valid, objective="category", curvature="identity")
    np.testing.assert_array_equal(scores.to_numpy(), plain.to_numpy())


def test_a_slice_by_a_column_of_numbers() -> None:
    _, task, train, valid = problem()
    scores = rayinf.influence(task, train, valid, objective=["total", "slice:sex"], curvature="identity")
    assert scores.columns == ["total", "slice_sex_0", "slice_sex_1"]
    held = scores.to_numpy()
    np.testing.assert_allclose(held[:, 1] + held[:, 2], held[:, 0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("given", ["totals", "slice:", 3, None, ["total", 0.5], {"total": 1}])
def test_an_unknown_objective_is_refused(given: object) -> None:
    with pytest.raises(InputError, match=r'is unknown\. Fix: use "total", "category"'):
        parse(given)


def test_no_objective_and_one_twice_are_refused() -> None:
    with pytest.raises(InputError, match="is empty"):
        parse([])
    with pytest.raises(InputError, match="'total' is named twice"):
        parse(["total", Objective("total", rows=brier)])


def test_what_the_validation_rows_lack_is_said() -> None:
    _, task, train, valid = problem()
    with pytest.raises(InputError, match="no row of class 2"):
        rayinf.influence(task, train, valid[valid["label"] < 2], objective="category")
    with pytest.raises(InputError, match="no column 'colour'"):
        rayinf.influence(task, train, valid, objective="slice:colour")
    with pytest.raises(InputError, match="give a column 'category_0'"):
        rayinf.influence(task, train, valid, objective=["category", Objective("category_0")])


def test_combine_must_give_a_finite_number_with_a_slope() -> None:
    _, task, train, valid = problem()

    def ask(combine: Any, rows: pd.DataFrame = valid, **how: Any) -> None:
        objective = Objective("gap", split="sex", combine=combine)
        rayinf.influence(task, train, rows, objective=objective, curvature="identity", **how)

    with pytest.raises(InputError, match=r"'gap': combine returned 3\.0"):
        ask(lambda sums, counts: 3.0)
    with pytest.raises(InputError, match="combine returned tensor"):
        ask(lambda sums, counts: sums / counts)
    with pytest.raises(InputError, match="combine returned tensor"):
        ask(lambda sums, counts: counts[0])
    with pytest.raises(InputError, match=r"combine gives inf, or a gradient .*over rows: .* of 0, .* of 1"):
        ask(lambda sums, counts: sums[0] / (counts[1] - counts[1]))
    one_of_a_group = pd.concat([valid[valid["sex"] == 0], valid[valid["sex"] == 1][:1]])
    ask(gap_of_means, one_of_a_group)
    with pytest.raises(InputError, match="in both halves"):
        ask(gap_of_means, one_of_a_group, halves=True)


def test_a_function_of_rows_must_give_one_value_a_row() -> None:
    _, task, train, valid = problem()
    with pytest.raises(InputError, match=r"returned \(\)"):
        rayinf.influence(task, train, valid, objective=lambda logits, y: cross_entropy(logits, y).mean())
