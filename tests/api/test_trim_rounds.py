"""Rounds of trimming, against the same in plain NumPy; where they stop; folders; tables of every form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from engine import fault_jobs
from scipy.optimize import minimize
from torch import nn

import rayinf
from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.kept_table import KeptTable
from rayinf.data.run_folder import owner_of
from rayinf.data.tables import ParquetTable, as_table
from rayinf.training.checkpoint import load_checkpoint

Rows = tuple[np.ndarray, np.ndarray]
L2 = 0.1


def disc(n: int, centre: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    angle, radius = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.uniform(0, 1, n))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + centre


def discs(n: int, seed: int, flips: tuple[int, int] = (0, 0), gap: float = 1.1) -> tuple[Rows, np.ndarray]:
    """Two discs that a line separates, `n` rows each, and which of them got the other's label."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([disc(n, (-gap, 0), rng), disc(n, (gap, 0), rng)])
    y = np.repeat([0, 1], n)
    flipped = np.zeros(2 * n, bool)
    for k, count in enumerate(flips):
        flipped[k * n + rng.choice(n, count, replace=False)] = True
    return (x, np.where(flipped, 1 - y, y)), flipped


def small() -> tuple[Rows, Rows, Rows]:
    """Training, validation and test rows."""
    return discs(50, 9, (12, 8))[0], discs(40, 509)[0], discs(60, 2)[0]


# --- The same in plain NumPy


def naive_fit(x: np.ndarray, y: np.ndarray, l2_sum: float, classes: int) -> np.ndarray:
    """`[K, d + 1]` that minimises the sum of losses and `l2_sum / 2` times the squared norm."""
    a, onehot = np.c_[x, np.ones(len(x))], np.eye(classes)[y]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = flat.reshape(classes, -1)
        z = a @ theta.T
        top = z.max(1)
        log_sum = top + np.log(np.exp(z - top[:, None]).sum(1))
        p = np.exp(z - log_sum[:, None])
        loss = (log_sum - z[np.arange(len(y)), y]).sum() + l2_sum / 2 * (theta**2).sum()
        return loss, ((p - onehot).T @ a + l2_sum * theta).ravel()

    tight = {"gtol": 1e-10, "ftol": 1e-16, "maxiter": 5000}
    return minimize(value, np.zeros(classes * a.shape[1]), jac=True, method="L-BFGS-B", options=tight).x.reshape(
        classes, -1
    )


def naive_vectors(theta: np.ndarray, train: Rows, valid: Rows, l2_sum: float) -> np.ndarray:
    """`P [n, K]` from the dense Hessian."""
    classes, width = theta.shape

    def parts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a = np.c_[x, np.ones(len(x))]
        z = a @ theta.T
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return a, p, ((p - np.eye(classes)[y])[:, :, None] * a[:, None, :]).reshape(len(x), -1)

    a, p, g = parts(*train)
    hessian = l2_sum * np.eye(classes * width)
    for row, q in zip(a, p, strict=True):
        hessian += np.kron(np.diag(q) - np.outer(q, q), np.outer(row, row))
    queries = parts(*valid)[2]
    sums = np.stack([queries[valid[1] == k].sum(0) for k in range(classes)])
    return g @ np.linalg.solve(hessian, sums.T)


def naive_rounds(train: Rows, valid: Rows, rounds: int, keep_the_sum: bool = True) -> np.ndarray:
    """The round in which each row goes, with no regard to accuracy."""
    (x, y), n = train, len(train[1])
    round_of = np.zeros(n, int)
    for r in range(1, rounds + 1):
        left = np.flatnonzero(round_of == 0)
        ridge = L2 * (n if keep_the_sum else len(left))
        theta = naive_fit(x[left], y[left], ridge, 2)
        vectors = naive_vectors(theta, (x[left], y[left]), valid, ridge)
        harmful = left[(vectors <= 0).all(1)]
        if not len(harmful):
            break
        round_of[harmful] = r
    return round_of


def test_rounds_are_those_of_plain_numpy() -> None:
    train, valid, test = small()
    expected = naive_rounds(train, valid, 10)
    assert expected.max() >= 3  # else a first round would do
    found = rayinf.trim_rounds(rayinf.logistic_regression(train, l2=L2), train, valid, test=test)
    assert found.reason == "no row that is left harms every class."
    assert found.round_of.tolist() == expected.tolist()
    assert found.rounds == expected.max()
    frame = found.to_pandas()
    assert frame["removed"].tolist() == [int((expected == r).sum()) if r else 0 for r in range(expected.max() + 1)]
    assert frame["rows"].tolist() == [int(((expected == 0) | (expected > r)).sum()) for r in range(expected.max() + 1)]
    theta = naive_fit(train[0][expected == 0], train[1][expected == 0], L2 * len(train[1]), 2)
    model = found.task.build()
    assert np.allclose(np.c_[model.weight.detach(), model.bias.detach()], theta, atol=1e-5)
    assert found.task.l2 == pytest.approx(L2 * len(train[1]) / (expected == 0).sum())
    logits = np.c_[test[0], np.ones(len(test[0]))] @ theta.T
    last = frame.iloc[-1]
    for k in (0, 1):
        mine = test[1] == k
        assert last[f"test_accuracy_{k}"] == pytest.approx((logits[mine].argmax(1) == k).mean())
    assert last["test_accuracy"] == pytest.approx((logits.argmax(1) == test[1]).mean())


def test_the_sum_of_the_ridge_matters() -> None:
    """The control of the test before this one: rounds with the mean penalty kept are others."""
    train, valid, _ = small()
    assert naive_rounds(train, valid, 10).tolist() != naive_rounds(train, valid, 10, keep_the_sum=False).tolist()


def test_synthetic_set_of_the_paper() -> None:
    """The paper's 300 + 300 rows with 50 and 20 flipped."""
    (train, flipped), (valid, _), (test, _) = discs(300, 0, (50, 20)), discs(300, 100), discs(1000, 200)
    found = rayinf.trim_rounds(rayinf.logistic_regression(train, l2=1 / 600), train, valid, test=test)
    assert (~found.mask & flipped).sum() >= 35
    assert (~found.mask & ~flipped).sum() <= 3
    frame = found.to_pandas()
    kept = frame[~frame["undone"]]
    for k in (0, 1):
        assert kept[f"test_accuracy_{k}"].iloc[-1] >= kept[f"test_accuracy_{k}"].iloc[0]


# --- Where rounds stop


def falling() -> tuple[Rows, Rows]:
    """A validation set on which a round lowers the loss of both classes, and the accuracy too."""
    for seed in range(40):
        train, valid = discs(40, seed, (8, 4), 0.85)[0], discs(40, seed + 1000, gap=0.85)[0]
        found = rayinf.trim_rounds(rayinf.logistic_regression(train, l2=L2), train, valid)
        if "undone" in found.reason and found.rounds:
            return train, valid
    raise AssertionError("no such set")


def test_a_round_that_lowers_accuracy_is_undone() -> None:
    train, valid = falling()
    task = rayinf.logistic_regression(train, l2=L2)
    found = rayinf.trim_rounds(task, train, valid)
    frame = found.to_pandas()
    assert frame["undone"].tolist() == [False] * (len(frame) - 1) + [True]
    assert frame["valid_accuracy"].iloc[-1] < frame["valid_accuracy"].iloc[-2]
    assert frame["valid_accuracy"].iloc[:-1].is_monotonic_increasing
    assert found.rounds == len(frame) - 2
    assert (~found.mask).sum() == frame["removed"].iloc[:-1].sum() == len(found.removed)
    assert found.reason.startswith(f"accuracy on valid fell from {frame['valid_accuracy'].iloc[-2]:.2%}")
    assert rayinf.evaluate(found.task, valid)["accuracy"] == frame["valid_accuracy"].iloc[-2]
    assert "(undone)" in found.to_text() and found.to_text().endswith(f"Stopped: {found.reason}")
    shorter = rayinf.trim_rounds(task, train, valid, rounds=found.rounds)
    assert shorter.round_of.tolist() == found.round_of.tolist()
    assert shorter.reason == f"all {found.rounds} rounds are used up."


def test_a_class_is_never_emptied() -> None:
    """The two rows of class 1 lie beyond class 0, and its validation rows on the other side."""
    rng = np.random.default_rng(0)
    x, y = np.concatenate([disc(30, (-1, 0), rng), [[-4.0, 0.0], [-4.0, 0.2]]]), np.repeat([0, 1], [30, 2])
    held = np.concatenate([disc(30, (-1, 0), rng), [[6.0, 0.0]] * 8]), np.repeat([0, 1], [30, 8])
    task = rayinf.logistic_regression((x, y), l2=L2)
    harmful = (rayinf.influence(task, (x, y), held, "category", curvature="exact").to_numpy() <= 0).all(1)
    assert harmful[-2:].all()
    found = rayinf.trim_rounds(task, (x, y), held)
    assert found.reason == "round 1 would leave no row of class 1."
    assert found.rounds == 0
    assert len(found.removed) == 0
    assert found.mask.all()
    assert len(found.table) == 1
    assert found.task is task


# --- Other objectives, and rows that judge


def grouped(rows: Rows, seed: int) -> pa.Table:
    """With a column of groups that leans to the class."""
    x, y = rows
    group = (y + (np.random.default_rng(seed).random(len(y)) < 0.3)) % 2
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 2)
    return pa.table({"features": features, "label": y, "group": group})


@pytest.mark.parametrize("objective", ["total", "demographic_parity"])
def test_one_objective_with_a_budget_is_a_loop_of_influence_and_retrain(objective: str) -> None:
    """Written out: value, remove the most negative, fit again, and compare on rows that no value looks at."""
    train, valid, held = (grouped(rows, k) for k, rows in enumerate(small()))
    task, n = rayinf.logistic_regression(train, l2=L2, group="group"), len(train)
    found = rayinf.trim_rounds(task, train, valid, objective=objective, budget=6, held_out=held, rounds=5)
    left, now, gone = np.arange(n), task, np.zeros(n, int)
    costs = [rayinf.evaluate(task, held, objective)[objective]]
    for r in range(1, 6):
        scores = rayinf.influence(now, train.take(left), valid, objective, curvature="exact")
        values = scores.to_numpy()[:, 0]
        worst = [k for k in np.argsort(values, kind="stable")[:6] if values[k] < 0]
        if objective != "total":
            gap = scores.metadata["objective_values"][objective]
            after = [abs(gap + values[worst[:k]].sum()) for k in range(len(worst) + 1)]
            worst = worst[: int(np.argmin(after))]
        if not worst:
            break
        stay = np.setdiff1d(left, left[worst])
        now = rayinf.retrain(task, train, keep=np.isin(np.arange(n), stay), rows=n, paired=True)
        now = replace(now, l2=L2 * n / len(stay))
        costs.append(rayinf.evaluate(now, held, objective)[objective])
        if costs[-1] > costs[-2]:
            break
        gone[left[worst]], left = r, stay
    assert found.round_of.tolist() == gone.tolist() and gone.max() >= 1
    frame = found.to_pandas()
    np.testing.assert_allclose(frame[f"held_out_{objective}"], costs, rtol=1e-9)
    assert f"valid_{objective}" in frame and frame["undone"].sum() == (costs[-1] > costs[-2])


def test_held_out_rows_judge_in_the_place_of_the_validation_rows() -> None:
    train, valid, test = small()
    wrong = (test[0], 1 - test[1])  # to these each improvement is a loss
    found = rayinf.trim_rounds(rayinf.logistic_regression(train, l2=L2), train, valid, held_out=wrong)
    frame = found.to_pandas()
    assert frame["undone"].any() and found.reason.startswith("accuracy on held_out fell from")
    assert frame["valid_accuracy"].iloc[-1] >= frame["valid_accuracy"].iloc[-2]


def test_a_budget_takes_the_worst_of_the_jointly_harmful() -> None:
    train, valid, _ = small()
    task = rayinf.logistic_regression(train, l2=L2)
    values = rayinf.influence(task, train, valid, "category", curvature="exact").to_numpy()
    harmful = np.flatnonzero((values <= 0).all(1))
    assert len(harmful) > 3
    found = rayinf.trim_rounds(task, train, valid, rounds=1, budget=3)
    expected = sorted(harmful[np.argsort(values[harmful].sum(1), kind="stable")[:3]])
    assert np.flatnonzero(found.round_of).tolist() == expected


def test_one_column_needs_a_budget() -> None:
    train, valid, _ = small()
    task = rayinf.logistic_regression(train, l2=L2)
    with pytest.raises(rayinf.InputError, match="objective='total' is one column"):
        rayinf.trim_rounds(task, train, valid, objective="total")
    with pytest.raises(rayinf.InputError, match="budget must be an integer >= 1"):
        rayinf.trim_rounds(task, train, valid, objective="total", budget=0)


# --- Folders


def same(a: rayinf.TrimRounds, b: rayinf.TrimRounds) -> bool:
    """Whether all of two results is the same."""
    pairs = zip(a.task.build().state_dict().values(), b.task.build().state_dict().values(), strict=True)
    return (
        a.table.equals(b.table)
        and a.row_ids.tolist() == b.row_ids.tolist()
        and a.round_of.tolist() == b.round_of.tolist()
        and a.reason == b.reason
        and a.task.l2 == b.task.l2
        and all(torch.equal(v, w) for v, w in pairs)
    )


def test_a_folder_gives_the_same_and_is_only_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid, test = small()
    given = (rayinf.logistic_regression(train, l2=L2), train, valid)
    plain, found = (rayinf.trim_rounds(*given, test=test, out=out) for out in (None, tmp_path / "run"))
    assert found.rounds >= 3 and same(plain, found)
    assert rayinf.verify(tmp_path / "run").ok
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    for name in ("influence", "train_anew", "measure_model"):
        monkeypatch.setattr(f"rayinf.api.trim_rounds.{name}", lambda *a, **k: pytest.fail("work was done"))
    assert same(rayinf.trim_rounds(*given, test=test, out=tmp_path / "run"), plain)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")} == before


def test_more_rounds_go_on_from_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid, _ = small()
    given = (rayinf.logistic_regression(train, l2=L2), train, valid)
    whole = rayinf.trim_rounds(*given, out=tmp_path / "whole")
    two = rayinf.trim_rounds(*given, out=tmp_path / "run", rounds=2)
    assert two.reason == "all 2 rounds are used up." and whole.rounds > 2
    valued, plain = [], rayinf.influence
    monkeypatch.setattr("rayinf.api.trim_rounds.influence", lambda *a, **k: valued.append(1) or plain(*a, **k))
    assert same(rayinf.trim_rounds(*given, out=tmp_path / "run"), whole)
    assert len(valued) == whole.rounds + 1 - 2
    assert fault_jobs.digest(tmp_path / "run") == fault_jobs.digest(tmp_path / "whole")
    assert same(rayinf.trim_rounds(*given, out=tmp_path / "run", rounds=2), two)
    assert len(valued) == whole.rounds - 1


@pytest.mark.parametrize("lost", ["round-2.parquet", "round-1.safetensors", "round-2.json"])
def test_a_damaged_step_is_done_again(lost: str, tmp_path: Path) -> None:
    train, valid, _ = small()
    given = (rayinf.logistic_regression(train, l2=L2), train, valid)
    whole = rayinf.trim_rounds(*given, out=tmp_path / "run", rounds=2)
    before = fault_jobs.digest(tmp_path / "run")
    (tmp_path / "run" / lost).write_bytes((tmp_path / "run" / lost).read_bytes()[:-3])
    assert same(rayinf.trim_rounds(*given, out=tmp_path / "run", rounds=2), whole)
    assert fault_jobs.digest(tmp_path / "run") == before


def test_a_folder_of_other_rounds_is_refused(tmp_path: Path) -> None:
    train, valid, test = small()
    task = rayinf.logistic_regression(train, l2=L2)
    rayinf.trim_rounds(task, train, valid, out=tmp_path / "run", rounds=1)
    for said, changed in (
        ("seed: 0 -> 1", {"seed": 1}),
        ("damping: None -> 0.1", {"damping": 0.1}),
        ("the validation table", {"valid": test}),
        ("the test table is added", {"test": test}),
        ("budget: None -> 3", {"budget": 3}),
        ("the model", {"task": rayinf.logistic_regression(valid, l2=L2)}),
    ):
        given = {"task": task, "train": train, "valid": valid, "rounds": 1, "out": tmp_path / "run", **changed}
        with pytest.raises(rayinf.InputError, match=f"another config: {said}"):
            rayinf.trim_rounds(**given)


class OtherModel(nn.Module):
    """A model of another kind than the task's, with the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2, 2).double()), nn.Parameter(torch.zeros(2).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -(x @ self.weight.T + self.bias) * torch.tensor([1.0, -1.0], dtype=torch.float64)


def test_a_model_of_another_kind_is_never_read_as_the_task_s(tmp_path: Path) -> None:
    """The tensors of its file would fit the task's own model."""
    train, valid, _ = small()
    head = rayinf.logistic_regression(train, l2=L2)
    task = replace(head, fit=lambda task, train, weights, seed: OtherModel())
    whole = rayinf.trim_rounds(task, train, valid, rounds=1, curvature="ggn", damping=0.1)
    for _ in range(2):
        found = rayinf.trim_rounds(task, train, valid, rounds=1, curvature="ggn", damping=0.1, out=tmp_path / "run")
        assert found.to_text() == whole.to_text()
        assert isinstance(found.task.model, OtherModel) == isinstance(whole.task.model, OtherModel)
        assert rayinf.verify(tmp_path / "run").ok
    held = CheckedFolder(tmp_path / "run", owner_of(json.loads((tmp_path / "run" / "run.json").read_text())))
    assert load_checkpoint(held, "round-1.safetensors", task) is None
    assert load_checkpoint(held, "round-1.safetensors", replace(task, model=OtherModel())) is not None


# --- Tables


def test_ids_labels_and_files(tmp_path: Path) -> None:
    """Text ids and labels; in memory, as a frame, and on disk in row groups of which some are left empty."""
    (x, y), (vx, vy), _ = small()
    order = np.argsort(x[:, 0])  # so that harmful rows lie together
    names = np.array(["left", "right"])
    ids = [f"id-{k}" for k in order]
    frame = pd.DataFrame({"a": x[order, 0], "b": x[order, 1], "label": names[y[order]], "row_id": ids})
    valid = pd.DataFrame({"a": vx[:, 0], "b": vx[:, 1], "label": names[vy]})
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "train.parquet", row_group_size=3)
    expected = naive_rounds((x, y), (vx, vy), 10)[order]
    for train in (frame, pa.Table.from_pandas(frame), tmp_path / "train.parquet"):
        task = rayinf.logistic_regression(train, l2=L2, features=["a", "b"])
        found = rayinf.trim_rounds(task, train, valid)
        assert found.round_of.tolist() == expected.tolist()
        assert found.row_ids.tolist() == ids
        assert found.kept.tolist() == [i for i, r in zip(ids, expected, strict=True) if r == 0]
        by_round = [(i, r) for q in range(1, expected.max() + 1) for i, r in zip(ids, expected, strict=True) if r == q]
        assert list(zip(found.removed.tolist(), found.removed_in.tolist(), strict=True)) == by_round
        assert found.mask.tolist() == (expected == 0).tolist()
        assert {"valid_accuracy_left", "valid_accuracy_right"} <= set(found.table.column_names)
        assert "test_accuracy" not in found.table.column_names


def test_a_network_is_trained_as_its_fit_says() -> None:
    """EKFAC, a fit by minibatches; the last model is that of a call of `retrain` on the rows that stay."""
    train, valid, _ = small()
    x, held = train[0].astype(np.float32), (valid[0].astype(np.float32), valid[1])
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    fit = rayinf.Fit(optimizer="adam", lr=2e-2, epochs=20, batch_size=20)
    task = rayinf.retrain(rayinf.Task(model, l2=L2, fit=fit), (x, train[1]), seed=3)
    found = rayinf.trim_rounds(task, (x, train[1]), held, rounds=1, curvature="ekfac", seed=3)
    scores = rayinf.influence(task, (x, train[1]), held, "category").to_numpy()
    harmful = (scores <= 0).all(1)
    assert 0 < harmful.sum() < len(x) / 2
    again = rayinf.retrain(task, (x, train[1]), keep=~harmful, seed=3, rows=len(x), paired=True)
    line = found.to_pandas().iloc[1]
    assert line["removed"] == harmful.sum()
    assert line["valid_loss"] == rayinf.evaluate(again, held)["loss"]


def test_a_file_that_is_rewritten_meanwhile(tmp_path: Path) -> None:
    (x, y), valid, _ = small()
    path = tmp_path / "train.parquet"

    def write(rows: int) -> None:
        pq.write_table(pa.table({"a": x[:rows, 0], "b": x[:rows, 1], "label": y[:rows]}), path)

    write(len(y))
    held = pd.DataFrame({"a": valid[0][:, 0], "b": valid[0][:, 1], "label": valid[1]})

    def fit(task: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
        write(len(y) - 1)
        return nn.Linear(2, 2).double()

    task = rayinf.logistic_regression(path, l2=L2, features=["a", "b"])
    task = rayinf.Task(task.model, l2=L2, features=["a", "b"], fit=fit)
    with pytest.raises(rayinf.RunError, match="changed while the run was going"):
        rayinf.trim_rounds(task, path, held)


@pytest.mark.slow
def test_rows_are_valued_on_ray(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are left, of a file, reach the workers; and rounds ask for them."""
    (x, y), valid, _ = small()
    table = pa.table({"features": pa.FixedSizeListArray.from_arrays(x.ravel(), 2), "label": y})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=10)
    task = rayinf.logistic_regression(tmp_path / "train.parquet", l2=L2)
    cluster = rayinf.Cluster(address="auto", workers=1)
    kept = KeptTable(as_table(tmp_path / "train.parquet", [], [], "train"), naive_rounds((x, y), valid, 1) == 0)
    here, there = (
        rayinf.influence(task, kept, valid, "category", curvature="exact", cluster=c).to_numpy()
        for c in (None, cluster)
    )
    assert len(there) == kept.num_rows < len(x)
    assert np.abs(there - here).max() <= 1e-9 * np.abs(here).max()
    asked = []

    def recorded(*args: Any, **how: Any) -> rayinf.Scores:
        asked.append((type(args[1]), how.pop("cluster")))
        return rayinf.influence(*args, **how)

    monkeypatch.setattr("rayinf.api.trim_rounds.influence", recorded)
    rayinf.trim_rounds(task, tmp_path / "train.parquet", valid, rounds=2, cluster=cluster)
    assert asked == [(ParquetTable, cluster), (KeptTable, cluster)]


# --- Bad input


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True, "many"])
def test_rounds_out_of_range(rounds: Any) -> None:
    train, valid, _ = small()
    with pytest.raises(rayinf.InputError, match="rounds must be an integer >= 1"):
        rayinf.trim_rounds(rayinf.logistic_regression(train, l2=L2), train, valid, rounds=rounds)


def test_what_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid, _ = small()
    task = rayinf.logistic_regression(train, l2=L2)
    monkeypatch.setattr("rayinf.api.trim_rounds.influence", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(rayinf.InputError, match="does not say how its model is trained"):
        rayinf.trim_rounds(rayinf.Task(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))), train, valid)
    with pytest.raises(rayinf.InputError, match="labels that the model has no logit for: 7"):
        rayinf.trim_rounds(task, train, valid, test=(valid[0], np.full(len(valid[1]), 7)))
    with pytest.raises(rayinf.InputError, match="no Parquet file"):
        rayinf.trim_rounds(task, "nowhere.parquet", valid)


def test_what_influence_refuses() -> None:
    train, valid, _ = small()
    task = rayinf.logistic_regression(train, l2=L2)
    one = valid[1] == 0
    with pytest.raises(rayinf.InputError, match="the validation set has no row of class 1"):
        rayinf.trim_rounds(task, train, (valid[0][one], valid[1][one]))
    with pytest.raises(rayinf.InputError, match="curvature='hessian' is unknown"):
        rayinf.trim_rounds(task, train, valid, curvature="hessian")
