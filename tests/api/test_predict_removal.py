"""Removing many rows at once: Newton's step against a naive one and against retraining; which rows; runs that go on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from core.cases import case, cross_entropy, drawn_labels
from core.test_loo import newton, validation_losses, with_ones
from engine import fault_jobs
from torch import Tensor, nn

import rayinf
from rayinf.engine import removal, removal_stages

Patch = pytest.MonkeyPatch
L2, DAMPING, TIME, LAYERS = 1e-2, 1e-3, 4.0, ("0", "2")
CHANGES = ["first_order_change", "second_order_change", "linear_change"]


def gone_rows(n: int) -> np.ndarray:
    """A quarter of the rows, not evenly spread."""
    return np.random.default_rng(5).random(n) < 0.25


def response(eigenvalues: Tensor, unrolled: bool) -> Tensor:
    """`1 / (x + l2 + damping)`, or that of a training for the time T."""
    x = eigenvalues + L2
    return (1 - torch.exp(-TIME * x)) / x if unrolled else 1 / (x + DAMPING)


def after_step(model: nn.Module, step: Tensor) -> nn.Module:
    """A copy of the model, moved."""
    moved = copy.deepcopy(model)
    vector = nn.utils.parameters_to_vector(moved.parameters()).detach()
    nn.utils.vector_to_parameters(vector + step, moved.parameters())
    return moved


@lru_cache
def kronecker_truth(method: str, unrolled: bool) -> tuple[Tensor, nn.Module]:
    """First-order changes `[1 + K]`, and the model after Newton's step, layer by layer."""
    c = case("mlp")
    gone = torch.from_numpy(gone_rows(len(c.train[0])))
    n, kept = len(gone), (c.train[0][~gone], c.train[1][~gone])
    first, steps, along, shift = (
        torch.zeros(1 + c.classes, dtype=torch.float64),
        [],
        0.0,
        L2 if unrolled else L2 + DAMPING,
    )
    for name in LAYERS:
        sums = oracles.factors(c.model, cross_entropy, *c.train, name)
        q = oracles.eigenbasis(sums)
        if method == "ekfac":
            before = oracles.textbook_lambda(c.model, cross_entropy, *c.train, name, basis=q)
            after = oracles.textbook_lambda(c.model, cross_entropy, *kept, name, basis=q) * len(kept[0]) / n
        else:
            before = oracles.kfac_lambda(c.model, cross_entropy, *c.train, name)
            left = oracles.factors(c.model, cross_entropy, *kept, name)
            a, g = (torch.diagonal(v.mT @ m @ v, dim1=1, dim2=2) for v, m in ((q.Q_A, left.A), (q.Q_G, left.G)))
            after = g[:, :, None] * a[:, None, :] / (n * left.N)
        rows = oracles.layer_row_gradients(c.model, cross_entropy, *c.train, name)
        step, old = (
            q.Q_G @ (response(v, unrolled) / n * (q.Q_G.mT @ rows[gone].sum(0) @ q.Q_A)) @ q.Q_A.mT
            for v in (after, before)
        )
        valid = oracles.layer_row_gradients(c.model, cross_entropy, *c.valid, name).flatten(1) @ old.flatten()
        first += torch.stack([valid.sum(), *(valid[c.valid[1] == k].sum() for k in range(c.classes))])
        along += float((after * (q.Q_G.mT @ step @ q.Q_A).square()).sum())
        steps += [step[0, :, :-1].flatten(), step[0, :, -1]]
    step = torch.cat(steps)
    true = float(step @ oracles.ggn(c.model, cross_entropy, *kept) @ step) * len(kept[0]) / n
    size = float(step.square().sum())
    if unrolled:  # of a training along the step alone, with either curvature
        per_time = size / TIME
        x, y = ((v + L2 * size) / per_time for v in (along, true))
        length = (1 - math.exp(-y)) / y / ((1 - math.exp(-x)) / x)
    else:
        length = (along + shift * size) / (true + shift * size)
    return first, after_step(c.model, length * step)


@lru_cache
def dense_truth(method: str, unrolled: bool) -> tuple[Tensor, nn.Module]:
    """The same with the whole matrix."""
    c = case("mlp")
    gone = torch.from_numpy(gone_rows(len(c.train[0])))
    n, kept = len(gone), (c.train[0][~gone], c.train[1][~gone])
    matrix = oracles.ggn if method == "ggn" else oracles.hessian
    before = matrix(c.model, cross_entropy, *c.train)
    after = matrix(c.model, cross_entropy, *kept) * len(kept[0]) / n
    rows = oracles.row_gradients(c.model, cross_entropy, *c.train)[gone].sum(0)
    steps = []
    for m in (before, after):
        values, vectors = torch.linalg.eigh(m)
        steps.append(vectors @ (response(values, unrolled) / n * (vectors.T @ rows)))
    valid = oracles.row_gradients(c.model, cross_entropy, *c.valid) @ steps[0]
    moved = after_step(c.model, steps[1])
    return torch.stack([valid.sum(), *(valid[c.valid[1] == k].sum() for k in range(c.classes))]), moved


def losses(model: nn.Module) -> Tensor:
    """Summed over all validation rows, and over those of each class."""
    c = case("mlp")
    with torch.no_grad():
        loss = cross_entropy(model(c.valid[0]), c.valid[1])
    return torch.stack([loss.sum(), *(loss[c.valid[1] == k].sum() for k in range(c.classes))])


def predicted(curvature: str, gone: Any, unrolled: bool = False, **more: Any) -> pd.DataFrame:
    c = case("mlp")
    task = rayinf.Task(c.model, l2=L2)
    train, valid = ((x.numpy(), y.numpy()) for x, y in (c.train, c.valid))
    how = {"training_time": TIME, "inverse": "unrolled"} if unrolled else {"damping": DAMPING}
    if curvature == "exact" and not unrolled:
        how = {"damping": DAMPING}
    given = {"objective": ["total", "category"], "curvature": curvature, **how, **more}
    return rayinf.predict_removal(task, train, valid, gone, **given).to_pandas()


KINDS = [(m, u) for m in ("ekfac", "kfac", "ggn") for u in (False, True)] + [("exact", True)]


def errors(method: str, unrolled: bool) -> list[float]:
    """How far first order, second order and the values now are from the naive ones, in units of the changes."""
    c = case("mlp")
    gone = gone_rows(len(c.train[0]))
    truth = kronecker_truth if method in ("ekfac", "kfac") else dense_truth
    first, moved = truth(method, unrolled)
    found, now = predicted(method, gone, unrolled), losses(c.model)
    second = losses(moved) - now
    assert (first - second).norm() > 1e-2 * second.norm()  # else the orders would be one
    ours = [torch.tensor(found[name].to_numpy()) for name in (*CHANGES[:2], "now")]
    return [float((a - b).norm() / second.norm()) for a, b in zip(ours, (first, second, now), strict=True)]


@pytest.mark.parametrize(("method", "unrolled"), KINDS)
def test_both_orders_are_the_naive_ones(method: str, unrolled: bool) -> None:
    assert max(errors(method, unrolled)) < 1e-7


def _unchanged(patch: Patch) -> None:
    """The curvature of all rows in place of that of the rows that stay."""
    patch.setattr(removal, "remaining", lambda factors, removed, solver: factors)


def _of_the_rows_left(patch: Patch) -> None:
    """The mean over the rows that stay instead of all: `(H - H_S / n) n / n'`."""
    right = removal.remaining

    def wrong(factors: Any, removed: Any, solver: Any) -> Any:
        found = right(factors, removed, solver)
        return {k: v * 4 / 3 if k.startswith(("L/", "mean")) else v for k, v in found.items()}

    patch.setattr(removal, "remaining", wrong)


def _backwards(patch: Patch) -> None:
    right = removal.newton_step
    patch.setattr(removal, "newton_step", lambda *a: {k: -v for k, v in right(*a).items()})


def _at_the_fit(patch: Patch) -> None:
    """Evaluated where the model is."""
    right = removal_stages.MovedValues.prepare
    patch.setattr(
        removal_stages.MovedValues, "prepare", lambda self, arrays: right(self, {k: 0 * v for k, v in arrays.items()})
    )


def _as_long_as_it_comes(patch: Patch) -> None:
    """The length that EKFAC gives."""
    patch.setattr(removal, "step_length", lambda step, *rest: {**step, "length": np.array(1.0)})


def _curvature_of_all_rows(patch: Patch) -> None:
    """The length by the GGN of all rows."""
    right = removal.step_length
    patch.setattr(
        removal, "step_length", lambda step, along, removed, *rest: right(step, along, {"along": np.zeros(1)}, *rest)
    )


MUTANTS = [(m, k) for m in (_unchanged, _of_the_rows_left, _backwards, _at_the_fit) for k in ("ekfac", "ggn")]
MUTANTS += [(m, "ekfac") for m in (_as_long_as_it_comes, _curvature_of_all_rows)]


@pytest.mark.parametrize(("mutant", "method"), MUTANTS)
def test_mutants_are_seen(mutant: Callable[[Patch], None], method: str, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    assert max(errors(method, False)) > 1e-3


def test_the_linear_change_is_that_along_the_step() -> None:
    """Of a step so small that objectives are linear along it, it is the change itself."""
    found = predicted("ekfac", gone_rows(82), damping=1e6)
    np.testing.assert_allclose(found["linear_change"], found["second_order_change"], rtol=1e-4)
    np.testing.assert_allclose(found["linear_change"], found["first_order_change"], rtol=1e-4)
    assert (found["linear_change"] != 0).all()


def test_second_order_is_nearer_to_leaving_rows_out() -> None:
    """Of a convex model at its minimum: a tenth of the rows that help or harm a class, and a fit to the others."""
    classes, n, ridge = 3, 300, 5e-2
    torch.manual_seed(2)
    x = oracles.correlated_inputs(n + 100, 5, seed=2)
    y = drawn_labels(x, classes)
    train, valid = (x[:n], y[:n]), (x[n:], y[n:])
    a = with_ones(train[0])
    full = newton(a, train[1], classes, ridge)
    head = nn.Linear(5, classes).double()
    with torch.no_grad():
        head.weight.copy_(full[:, :-1])
        head.bias.copy_(full[:, -1])
    task = rayinf.Task(nn.Sequential(head), l2=ridge)
    arrays = [(u.numpy(), v.numpy()) for u, v in (train, valid)]
    values = rayinf.influence(task, *arrays, objective="category", curvature="exact").to_numpy()
    sets = {}
    for k in range(classes):
        for sign in (1, -1):
            own = sign * values[:, k]
            sets[f"{k}, {sign}"] = own >= np.sort(own)[-((own > 0).sum() // 10)]
    found = rayinf.predict_removal(task, *arrays, sets, objective=["total", "category"], curvature="exact").to_pandas()
    before, wrong = validation_losses(full, valid), []
    for name, gone in sets.items():
        left = torch.from_numpy(~gone)
        kept = int(left.sum())
        refit = newton(a[left], train[1][left], classes, ridge * n / kept)  # the sum of the ridge stays
        true = (validation_losses(refit, valid) - before).numpy()
        mine = found[found["set"] == name]
        np.testing.assert_allclose(mine["first_order_change"].to_numpy()[1:], values[gone].sum(0), rtol=1e-9)
        wrong.append([np.linalg.norm(mine[c] - true) / np.linalg.norm(true) for c in CHANGES])
    print(f"\nrelative errors of first order, second, linear: {np.round(wrong, 3).tolist()}")
    ratios = [second / first for first, second, _ in wrong]
    assert max(ratios) < 0.45
    assert np.median(ratios) < 1 / 3


def frame(n: int, seed: int) -> pd.DataFrame:
    """Two groups with a gap between them."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    x = rng.normal(size=(n, 2)) + 0.2 * group[:, None]
    y = (x @ [1.0, -0.5] + rng.normal(size=n) > 0.3).astype(int)
    return pd.DataFrame(x, columns=["a", "b"]).assign(label=y, sex=group, key=[f"r{k}" for k in rng.permutation(n)])


def test_gaps_and_attacks_are_those_of_the_moved_model(monkeypatch: Patch) -> None:
    """Gaps are absolute in both orders; attacks are aimed at the model as it is."""
    train, valid = frame(120, 0), frame(80, 1)
    task = rayinf.logistic_regression(train, l2=L2, features=["a", "b"], group="sex")
    objectives = ["demographic_parity", "robustness", "total"]
    values = rayinf.influence(task, train, valid, objectives, curvature="exact").to_numpy()
    gone = values[:, 0] <= np.sort(values[:, 0])[24]
    moved: list[Any] = []
    right = removal_stages.MovedValues.prepare

    def keep(self: Any, arrays: Any) -> None:
        right(self, arrays)
        moved.extend(self.moved)

    monkeypatch.setattr(removal_stages.MovedValues, "prepare", keep)
    found = rayinf.predict_removal(task, train, valid, gone, objectives, curvature="exact").to_pandas()
    model = task.build()
    model.load_state_dict({**model.state_dict(), **moved[0]})
    truth = rayinf.evaluate(rayinf.Task(model, features=["a", "b"], group="sex"), valid, objectives, against=task)
    np.testing.assert_allclose(found["second_order"], [truth[c] for c in found["objective"]], rtol=1e-6)
    first = found["now"].to_numpy() + values[gone].sum(0)
    assert first[0] < 0  # the gap's predicted change more than uses it up
    np.testing.assert_allclose(found["first_order"], np.abs(first), rtol=1e-5)


def test_every_form_of_rows_is_the_same_rows(tmp_path: Path) -> None:
    """Ids are never positions."""
    train, valid = frame(90, 0), frame(60, 1)
    fitted = rayinf.logistic_regression(train, l2=L2, features=["a", "b"], row_id="key")
    selection = rayinf.trim(rayinf.influence(fitted, train, valid, curvature="ggn"), budget=12)
    gone = ~selection.mask
    assert gone.sum() == 12
    forms = {
        "of": selection,
        "mask": gone,
        "list": gone.tolist(),
        "ids": selection.removed,
        "set": set(selection.removed),
    }
    found = rayinf.predict_removal(fitted, train, valid, forms, curvature="ggn").to_pandas()
    assert found["set"].tolist() == list(forms)
    assert found.drop(columns="set").drop_duplicates().shape[0] == 1
    one = rayinf.predict_removal(fitted, train, valid, selection.removed, curvature="ggn")
    pd.testing.assert_frame_equal(one.to_pandas().drop(columns="set"), found.drop(columns="set").iloc[:1])
    assert one.to_text().startswith("12 rows go: total from ")
    numbers = train.assign(row_id=(np.arange(90) + 7) % 90)
    numbered = rayinf.logistic_regression(numbers, l2=L2, features=["a", "b"])
    by_id = rayinf.predict_removal(numbered, numbers, valid, [7, 8, 9], curvature="ggn").to_pandas()
    by_mask = rayinf.predict_removal(numbered, numbers, valid, np.arange(90) < 3, curvature="ggn").to_pandas()
    pd.testing.assert_frame_equal(by_id, by_mask)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([5, 4000], "rows names the id 4000, which is not among the positions 0 to 81"),
        ([5, 5], "rows names the id 5 more than once"),
        (["a"], "The row ids of the table are integers, and rows holds text"),
        ([], "rows is empty"),
        ({}, "rows holds no set"),
        ({1: [2]}, "names that are not texts"),
        (np.ones(7, bool), r"rows is a mask \[7\] for 82 rows"),
        (np.ones(82, bool), "rows names all of the 82 rows"),
        ({"worst": np.zeros(82, bool)}, r"rows\['worst'\] names none of the 82 rows"),
        ("class", "takes all [0-9]+ training rows of class 1"),
        (None, "rows is a NoneType"),
    ],
)
def test_wrong_rows_are_refused_before_any_work(rows: Any, said: str, tmp_path: Path) -> None:
    given = case("mlp").train[1].numpy() == 1 if isinstance(rows, str) else rows
    with pytest.raises(rayinf.InputError, match=said):
        predicted("ekfac", given, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_selection_of_another_table_and_factors_of_one_are_refused(tmp_path: Path) -> None:
    c = case("mlp")
    task = rayinf.Task(c.model, l2=L2)
    train, valid = ((x.numpy(), y.numpy()) for x, y in (c.train, c.valid))
    other = (train[0] + 1, train[1])
    selection = rayinf.trim(rayinf.influence(task, other, valid, out=tmp_path / "other"), budget=3)
    with pytest.raises(rayinf.InputError, match="of another table"):
        rayinf.predict_removal(task, train, valid, selection)
    with pytest.raises(rayinf.InputError, match="summed over other rows"):
        rayinf.predict_removal(task, train, valid, [1, 2], factors=tmp_path / "other")


def test_a_run_goes_on_and_is_read_again(tmp_path: Path, monkeypatch: Patch) -> None:
    """Stopped between steps, it ends at the bytes of a run that was not; and other rows are another run."""
    gone = {"a": gone_rows(82), "b": [1, 2, 3]}
    whole = predicted("ekfac", gone, out=tmp_path / "whole")
    pd.testing.assert_frame_equal(whole, predicted("ekfac", gone))
    right, calls = removal.newton_step, []

    def stops(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*given)

    with monkeypatch.context() as patch:
        patch.setattr(removal, "newton_step", stops)
        with pytest.raises(KeyboardInterrupt):
            predicted("ekfac", gone, out=tmp_path / "run")
    predicted("ekfac", gone, out=tmp_path / "run")
    files = [(tmp_path / name / "prediction.parquet").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]
    assert rayinf.verify(tmp_path / "run").ok
    pd.testing.assert_frame_equal(rayinf.RemovalPrediction.load(tmp_path / "run").to_pandas(), whole)
    with pytest.raises(rayinf.InputError, match="removed"):
        predicted("ekfac", {**gone, "b": [1, 2, 4]}, out=tmp_path / "run")
    with pytest.raises(rayinf.InputError, match="no finished prediction"):
        rayinf.RemovalPrediction.load(tmp_path / "nothing")


def test_batches_do_not_matter() -> None:
    gone = gone_rows(82)
    whole, small = (predicted("kfac", gone, batch_size=size) for size in (None, 7))
    np.testing.assert_allclose(whole[CHANGES], small[CHANGES], rtol=1e-9)


@pytest.mark.slow
def test_on_ray(ray_session: None, tmp_path: Path) -> None:
    """The bytes of a run in one process, with two sets that workers see as tables of their own."""
    tables = fault_jobs.make_tables(tmp_path)
    fault_jobs.predict_removal(tables, tmp_path / "here")
    fault_jobs.predict_removal(tables, tmp_path / "there", cluster=rayinf.Cluster(workers=2))
    files = [(tmp_path / name / "prediction.parquet").read_bytes() for name in ("here", "there")]
    assert files[0] == files[1]
