"""The removal check: cells against plain NumPy and direct trainings, resuming, Ray, and what it refuses."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from engine.fault_jobs import digest
from torch import nn

import rayinf

WIDTH, CLASSES = 4, 3
SHARE = 0.25


def rows(n: int, seed: int, shares: tuple[float, ...] = (0.5, 0.3, 0.2)) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of different sizes."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(CLASSES), np.round(np.array(shares) * n).astype(int)))
    return (rng.normal(size=(len(y), WIDTH)) + 1.5 * np.eye(CLASSES, WIDTH)[y]).astype(np.float32), y


TRAIN, VALID, TEST = rows(90, 0), rows(60, 1), rows(200, 2, (0.2, 0.3, 0.5))


@pytest.fixture(scope="module")
def task() -> rayinf.Task:
    return rayinf.logistic_regression(TRAIN, l2=1e-1)


@pytest.fixture(scope="module")
def scores(task: rayinf.Task) -> rayinf.Scores:
    return rayinf.influence(task, TRAIN, VALID, "category", curvature="exact")


@pytest.fixture(scope="module")
def network() -> rayinf.Task:
    fit = rayinf.Fit(optimizer="adam", lr=1e-2, epochs=3, batch_size=16)
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    return rayinf.retrain(rayinf.Task(model, l2=1e-2, fit=fit), TRAIN)


def naive_top(column: np.ndarray, side: str) -> list[int]:
    """The top share of the rows of a sign, by sorting pairs."""
    sign = -1 if side == "helpful" else 1
    mine = sorted((sign * v, i) for i, v in enumerate(column) if sign * v < 0)
    return [i for _, i in mine[: max(int(SHARE * len(mine)), 1)]]


def naive_measures(task: rayinf.Task) -> tuple[np.ndarray, np.ndarray]:
    """Sum of test losses and accuracy of every class, by a forward pass."""
    model = task.build()
    with torch.no_grad():
        logits = model(torch.from_numpy(TEST[0]).to(next(model.parameters()).dtype)).double()
    losses = -torch.log_softmax(logits, 1).numpy()[np.arange(len(TEST[1])), TEST[1]]
    right = logits.argmax(1).numpy() == TEST[1]
    classes = range(CLASSES)
    return np.array([losses[TEST[1] == k].sum() for k in classes]), np.array(
        [right[TEST[1] == k].mean() for k in classes]
    )


def naive(task: rayinf.Task, values: np.ndarray, seeds: list[int], side: str) -> dict[str, np.ndarray]:
    """All cells of a side, a training at a time."""
    valid, test = (np.bincount(y) for y in (VALID[1], TEST[1]))
    predicted = np.zeros((CLASSES, CLASSES))
    loss, accuracy = (np.zeros((len(seeds), CLASSES, CLASSES)) for _ in range(2))
    for k in range(CLASSES):
        gone = naive_top(values[:, k], side)
        predicted[k] = sum(values[i] for i in gone) * test / valid
        keep = np.array([i not in gone for i in range(len(values))])
        for s, seed in enumerate(seeds):
            without = naive_measures(rayinf.retrain(task, TRAIN, keep=keep, seed=seed, rows=len(values), paired=True))
            whole = naive_measures(rayinf.retrain(task, TRAIN, seed=seed))
            loss[s, k], accuracy[s, k] = (a - b for a, b in zip(without, whole, strict=True))
    means = loss / test
    return {
        "predicted": predicted,
        "predicted_mean": predicted / test,
        "loss": loss.mean(0),
        "loss_std": loss.std(0, ddof=1) if len(seeds) > 1 else np.full_like(predicted, np.nan),
        "loss_mean": means.mean(0),
        "loss_mean_std": means.std(0, ddof=1) if len(seeds) > 1 else np.full_like(predicted, np.nan),
        "accuracy": accuracy.mean(0),
        "accuracy_std": accuracy.std(0, ddof=1) if len(seeds) > 1 else np.full_like(predicted, np.nan),
    }


# --- Cells


def test_a_head_against_plain_numpy(task: rayinf.Task, scores: rayinf.Scores) -> None:
    found = rayinf.removal_check(task, TRAIN, VALID, TEST, scores, SHARE)
    assert found.metadata == {"share": SHARE, "seeds": 1, "rows": {"train": 90, "valid": 60, "test": 200}}
    assert len(found.notes) == 1 and "goes to convergence" in found.notes[0]
    loss, accuracy = naive_measures(task)
    assert np.allclose(found.baseline["loss"], loss / np.bincount(TEST[1]), atol=1e-7)
    assert np.allclose(found.baseline["accuracy"], accuracy)
    for side in ("helpful", "harmful"):
        for name, cells in naive(task, scores.to_numpy(), [0], side).items():
            assert np.allclose(found.values(side, name), cells, atol=1e-6, equal_nan=True), name
        lines = found.to_pandas().query("side == @side")
        assert lines["removed"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert lines["measured"].tolist() == [0, 1, 2] * 3
        counts = [len(naive_top(scores.to_numpy()[:, k], side)) for k in range(CLASSES)]
        assert lines["rows"].tolist() == np.repeat(counts, CLASSES).tolist()
    # Refits keep the sum of the ridge: here that is what makes the prediction right to some percent.
    own = np.diag(found.values("harmful", "loss")) / np.diag(found.values("harmful", "predicted"))
    assert np.abs(own - 1).max() < 0.35


def test_second_order_stands_beside_the_first(task: rayinf.Task, scores: rayinf.Scores) -> None:
    """That of `predict_removal` for the same rows, with the curvature of the scores; none for scores without one."""
    found = rayinf.removal_check(task, TRAIN, VALID, TEST, scores, share=SHARE, seeds=1)
    values = scores.to_numpy()
    for side in ("helpful", "harmful"):
        for k in range(CLASSES):
            gone = naive_top(values[:, k], side)
            own = rayinf.predict_removal(task, TRAIN, VALID, gone, "category", curvature="exact").to_pandas()
            scaled = own["second_order_change"] / np.bincount(VALID[1]) * np.bincount(TEST[1])
            np.testing.assert_allclose(found.values(side, "predicted_second")[k], scaled, rtol=1e-5)
        measured = found.values(side, "loss")
        for name, column in (("error", "predicted"), ("error_second", "predicted_second")):
            wrong = np.linalg.norm(found.values(side, column) - measured) / np.linalg.norm(measured)
            assert found.summary[side][name] == pytest.approx(wrong)
    bare = rayinf.Scores.from_numpy(values, scores.columns)
    other = rayinf.removal_check(task, TRAIN, VALID, TEST, bare, share=SHARE, seeds=1)
    assert np.isnan(other.values("helpful", "predicted_second")).all()
    assert any("second order is not predicted" in note for note in other.notes)


def test_the_sum_of_the_ridge_matters(task: rayinf.Task, scores: rayinf.Scores) -> None:
    """The control of the test before this one: with the mean penalty kept, cells move."""
    gone = naive_top(scores.to_numpy()[:, 0], "helpful")
    keep = np.array([i not in gone for i in range(90)])
    kept, moved = (naive_measures(rayinf.retrain(task, TRAIN, keep=keep, rows=n))[0] for n in (90, None))
    assert np.abs(kept - moved).max() > 1e-3


def test_a_network_averages_seeds(network: rayinf.Task) -> None:
    scores = rayinf.influence(network, TRAIN, VALID, "category")
    found = rayinf.removal_check(network, TRAIN, VALID, TEST, scores, SHARE, seeds=2, seed=5)
    assert found.notes == ()
    for side in ("helpful", "harmful"):
        for name, cells in naive(network, scores.to_numpy(), [5, 6], side).items():
            assert np.allclose(found.values(side, name), cells, atol=1e-5), name


def test_text_labels_files_and_scores_of_any_origin(tmp_path: Path, scores: rayinf.Scores) -> None:
    """Parquet in row groups, labels of text, scores without labels or metadata; columns in another order."""
    names = np.array(["c", "a", "b"])  # in sorted order they are other classes
    paths = {}
    for name, (x, y) in {"train": TRAIN, "valid": VALID, "test": TEST}.items():
        columns = {f"x{j}": x[:, j] for j in range(WIDTH)}
        table = pa.table({**columns, "label": names[y].tolist(), "row_id": np.arange(len(y)) + 100})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=17)
        paths[name] = tmp_path / f"{name}.parquet"
    own = rayinf.logistic_regression(paths["train"], l2=1e-1, features=[f"x{j}" for j in range(WIDTH)])
    held = rayinf.Scores.from_numpy(
        scores.to_numpy(), [f"category_{n}" for n in names], row_ids=np.arange(len(TRAIN[1])) + 100
    )
    found = rayinf.removal_check(own, *paths.values(), held, SHARE)
    plain = rayinf.removal_check(rayinf.logistic_regression(TRAIN, l2=1e-1), TRAIN, VALID, TEST, scores, SHARE)
    assert found.labels == ("c", "a", "b")
    assert plain.labels == (0, 1, 2)
    for side in ("helpful", "harmful"):
        for name in ("predicted", "loss", "accuracy"):
            assert np.allclose(found.values(side, name), plain.values(side, name), atol=1e-5), name


def test_a_class_that_no_row_harms(task: rayinf.Task, scores: rayinf.Scores) -> None:
    values = scores.to_numpy().copy()
    values[:, 1] = np.abs(values[:, 1])
    held = rayinf.Scores.from_numpy(values, scores.columns)
    found = rayinf.removal_check(task, TRAIN, VALID, TEST, held, SHARE)
    assert "no training row is harmful to class 1: nothing was removed there." in found.notes
    for name in ("predicted", "loss", "accuracy"):
        assert np.isnan(found.values("harmful", name)[1]).all()
        assert np.isfinite(found.values("harmful", name)[[0, 2]]).all()
        assert np.isfinite(found.values("helpful", name)).all()
    assert found.summary["harmful"]["classes"] == 2
    assert found.summary["harmful"]["cells"] == 6
    assert found.table.filter(pa.array(found.to_pandas()["loss"].isna()))["rows"].to_pylist() == [0, 0, 0]


# --- Folders


class Counted:
    """Trains a linear model; counts how often, and fails at a given time."""

    def __init__(self, fail: int | None = None, error: type[BaseException] = ZeroDivisionError) -> None:
        self.calls, self.fail, self.error = 0, fail, error

    def __getstate__(self) -> dict[str, Any]:
        return {}  # counts are no part of what it is

    def __call__(self, task: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
        if self.calls == self.fail:
            self.fail = None
            raise self.error
        self.calls += 1
        model = nn.Linear(WIDTH, CLASSES)
        x, y = torch.from_numpy(train[0]), torch.from_numpy(train[1])
        w = torch.ones(len(y)) if weights is None else torch.from_numpy(weights).float()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) / 10)
        steps = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(10):
            steps.zero_grad()
            (w * nn.functional.cross_entropy(model(x), y, reduction="none")).mean().backward()
            steps.step()
        return model


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_resumes_after_an_error(
    task: rayinf.Task, scores: rayinf.Scores, tmp_path: Path, error: type[BaseException]
) -> None:
    fit = Counted(fail=5, error=error)
    values = rayinf.Scores.from_numpy(scores.to_numpy(), scores.columns)
    given = (replace(task, fit=fit, model=nn.Linear(WIDTH, CLASSES)), TRAIN, VALID, TEST, values, SHARE, 2)
    with pytest.raises(rayinf.InputError if issubclass(error, Exception) else error):
        rayinf.removal_check(*given, out=tmp_path / "run")
    assert len(list((tmp_path / "run" / "trainings").iterdir())) == 5
    with pytest.raises(rayinf.InputError, match="no finished removal check"):
        rayinf.RemovalCheck.load(tmp_path / "run")
    (tmp_path / "run" / "trainings" / "all-seed0.json").write_text("{")  # damaged: made again
    found = rayinf.removal_check(*given, out=tmp_path / "run")
    assert fit.calls == 14 + 1
    whole = rayinf.removal_check(*given)
    assert fit.calls == 14 + 1 + 14
    assert found.table.equals(whole.table)
    assert found.summary == whole.summary
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    again = rayinf.removal_check(*given, out=tmp_path / "run")
    assert fit.calls == 29
    assert again.table.equals(whole.table)
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    loaded = rayinf.RemovalCheck.load(tmp_path / "run")
    assert loaded.table.equals(whole.table)
    assert (loaded.summary, loaded.baseline, loaded.labels, loaded.notes, loaded.metadata) == (
        whole.summary,
        whole.baseline,
        whole.labels,
        whole.notes,
        whole.metadata,
    )


def test_a_folder_of_another_check(task: rayinf.Task, scores: rayinf.Scores, tmp_path: Path) -> None:
    rayinf.removal_check(task, TRAIN, VALID, TEST, scores, SHARE, out=tmp_path)
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    assert {"train", "valid", "test", "share", "seed", "removals", "fit", "l2"} <= set(identity)
    other = rayinf.Scores.from_numpy(-scores.to_numpy(), scores.columns)
    for change in (
        (task, TRAIN, VALID, TEST, scores, 0.3),
        (task, TRAIN, VALID, TEST, other, SHARE),
        (task, TRAIN, VALID, rows(200, 3), scores, SHARE),
        (replace(task, l2=0.2), TRAIN, VALID, TEST, scores, SHARE),
    ):
        with pytest.raises(rayinf.InputError, match="holds a run of another config"):
            rayinf.removal_check(*change, out=tmp_path)


def test_more_seeds_go_on_from_what_is_there(scores: rayinf.Scores, task: rayinf.Task, tmp_path: Path) -> None:
    fit = Counted()
    values = rayinf.Scores.from_numpy(scores.to_numpy(), scores.columns)
    given = (replace(task, fit=fit, model=nn.Linear(WIDTH, CLASSES)), TRAIN, VALID, TEST, values, SHARE)
    one = rayinf.removal_check(*given, 1, out=tmp_path / "run")
    assert fit.calls == 7
    three = rayinf.removal_check(*given, 3, out=tmp_path / "run")
    assert fit.calls == 21
    rayinf.removal_check(*given, 3, out=tmp_path / "whole")
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert three.table.equals(rayinf.RemovalCheck.load(tmp_path / "whole").table)
    before = digest(tmp_path / "run")
    fewer = rayinf.removal_check(*given, 1, out=tmp_path / "run")
    assert fewer.table.equals(one.table) and fewer.notes == one.notes and digest(tmp_path / "run") == before
    assert fit.calls == 42 and rayinf.verify(tmp_path / "run").ok
    with pytest.raises(rayinf.InputError, match="another config: seed: 0 -> 1"):
        rayinf.removal_check(*given, 3, out=tmp_path / "run", seed=1)


@pytest.mark.slow
def test_on_ray(ray_session: None, network: rayinf.Task, tmp_path: Path) -> None:
    scores = rayinf.influence(network, TRAIN, VALID, "category")
    given = (network, TRAIN, VALID, TEST, scores, SHARE, 2)
    here = rayinf.removal_check(*given)
    there = rayinf.removal_check(*given, cluster=rayinf.Cluster(address="auto", workers=2), out=tmp_path)
    pd.testing.assert_frame_equal(there.to_pandas(), here.to_pandas(), rtol=1e-5, atol=1e-7)
    assert len(list((tmp_path / "trainings").iterdir())) == 14


# --- What is told


def test_a_constant_learning_rate_is_warned_of(network: rayinf.Task) -> None:
    scores = rayinf.influence(network, TRAIN, VALID, "category")
    constant = replace(network, fit=replace(network.fit, schedule="constant", epochs=1))
    with pytest.warns(UserWarning, match='schedule="constant"'):
        found = rayinf.removal_check(constant, TRAIN, VALID, TEST, scores, SHARE, seeds=1)
    assert len(found.notes) == 2
    assert "noise can drown" in found.notes[0] and "one seed" in found.notes[1]
    assert all(f"Note: {note}" in found.to_text() for note in found.notes)


def test_a_decaying_one_is_not(network: rayinf.Task) -> None:
    scores = rayinf.influence(network, TRAIN, VALID, "category")
    short = replace(network, fit=replace(network.fit, epochs=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rayinf.removal_check(short, TRAIN, VALID, TEST, scores, SHARE, seeds=1)


# --- Bad input


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("rayinf.api.removal_check.Retraining", lambda *a, **k: pytest.fail("a model was trained"))
    return


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, True, "all", float("nan")])
def test_share_out_of_range(task: rayinf.Task, scores: rayinf.Scores, no_training: None, share: Any) -> None:
    with pytest.raises(rayinf.InputError, match="share must be a number in"):
        rayinf.removal_check(task, TRAIN, VALID, TEST, scores, share)


@pytest.mark.parametrize("numbers", [{"seeds": 0}, {"seeds": 1.5}, {"seeds": True}, {"seed": -1}])
def test_seeds_out_of_range(
    task: rayinf.Task, scores: rayinf.Scores, no_training: None, numbers: dict[str, Any]
) -> None:
    with pytest.raises(rayinf.InputError, match=f"{next(iter(numbers))}=.*must be an integer (>=|from)"):
        rayinf.removal_check(task, TRAIN, VALID, TEST, scores, SHARE, **numbers)


def test_what_does_not_fit(task: rayinf.Task, scores: rayinf.Scores, no_training: None, tmp_path: Path) -> None:
    def refused(message: str, *given: Any, share: float = SHARE, out: Any = None) -> None:
        with pytest.raises(rayinf.InputError, match=message):
            rayinf.removal_check(*given, share, out=out)

    few = tuple(a[:80] for a in TRAIN)
    refused("train has 80 rows, and the scores have 90", task, few, VALID, TEST, scores)
    refused("valid has 200 rows, and the scores were computed for 60", task, TRAIN, TEST, TEST, scores)
    lacks = TEST[1] != 1
    refused("test has no row of class 1", task, TRAIN, VALID, (TEST[0][lacks], TEST[1][lacks]), scores)
    total = rayinf.influence(task, TRAIN, VALID, curvature="exact")
    refused("no column for a class", task, TRAIN, VALID, TEST, total)
    odd = rayinf.Scores.from_numpy(scores.to_numpy(), ["one", "two", "three"])
    refused("a column 'one', which is not a class", task, TRAIN, VALID, TEST, odd)
    refused("scores must be rayinf.Scores", task, TRAIN, VALID, TEST, scores.to_numpy())
    deep = rayinf.Task(nn.Sequential(nn.Linear(WIDTH, 3), nn.ReLU(), nn.Linear(3, CLASSES)))
    refused("does not say how its model is trained", deep, TRAIN, VALID, TEST, scores)
    refused("lies on a web server", task, TRAIN, VALID, TEST, scores, out="https://host/run")
    table = {"features": pa.FixedSizeListArray.from_arrays(TRAIN[0].ravel(), WIDTH), "label": TRAIN[1]}
    shifted = pa.table({**table, "row_id": np.arange(90) + 1})
    known = rayinf.Scores.from_numpy(scores.to_numpy(), scores.columns, row_ids=np.arange(90) + 7)
    refused("Row 0 of train has the id 1, and the scores have 7", task, shifted, VALID, TEST, known)


def test_a_removal_that_takes_a_whole_class(task: rayinf.Task, no_training: None) -> None:
    values = np.where(TRAIN[1][:, None] == np.arange(CLASSES), 1.0, -1.0) + np.arange(90)[:, None] * 1e-6
    values[:, 2] = -np.where(TRAIN[1] == 1, 1.0, 0.01)
    held = rayinf.Scores.from_numpy(values, [f"category_{k}" for k in range(CLASSES)])
    with pytest.raises(rayinf.InputError) as caught:
        rayinf.removal_check(task, TRAIN, VALID, TEST, held, 0.3)
    told = "Removing the 27 rows that are most harmful to class 2 takes all 27 training rows of class 1."
    assert caught.value.what == told
