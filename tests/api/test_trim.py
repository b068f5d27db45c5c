"""Trimming: which rows go, from which scores; and the models before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

import rayinf
from rayinf import Scores
from rayinf.api.trim import trim

VALUES = np.array([0.5, -2.0, 0.0, -0.5, 3.0, -2.0, 1.0, -1.0])
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])


def scored(name: str, values: Any = VALUES, **more: Any) -> Scores:
    return Scores.from_numpy(values, [name], **more)


# --- Rules


@pytest.mark.parametrize("name", ["fi", "fi_rank", "self_influence"])
def test_the_largest_go(name: str) -> None:
    found = trim(scored(name), budget=3)
    assert found.removed.tolist() == [4, 6, 0]
    assert found.kept.tolist() == [1, 2, 3, 5, 7]
    assert found.row_ids.tolist() == [5, 1, 7, 3, 2]
    assert found.metadata == {"by": name, "rule": "largest", "budget": 3, "floor": 0, "removed": 3}
    assert found.before is None


@pytest.mark.parametrize("name", ["total", "category_1", "anything"])
def test_the_most_negative_go(name: str) -> None:
    assert trim(scored(name), budget=2).removed.tolist() == [1, 5]
    found = trim(scored(name), budget=8)
    assert found.removed.tolist() == [1, 5, 7, 3]
    assert found.kept.tolist() == [0, 2, 4, 6]
    assert found.row_ids.tolist() == [4, 6, 0, 2]
    assert found.metadata["rule"] == "most negative"
    assert found.metadata["removed"] == 4
    assert len(trim(scored(name), budget=0).removed) == 0


def test_of_equal_values_the_earlier_row_goes() -> None:
    assert trim(scored("total"), budget=1).removed.tolist() == [1]
    assert trim(scored("fi", np.ones(8)), budget=3).removed.tolist() == [0, 1, 2]


def test_ids_of_text() -> None:
    ids = [f"r{k}" for k in range(8)]
    found = trim(scored("total", row_ids=ids), budget=3)
    assert found.removed.tolist() == ["r1", "r5", "r7"]
    assert found.kept.tolist() == ["r0", "r2", "r3", "r4", "r6"]
    assert found.to_pandas()["row_id"].tolist() == ["r4", "r6", "r0", "r2", "r3", "r7", "r5", "r1"]


def test_a_floor_is_passed_over() -> None:
    """Class 2 is at its floor from the start, class 1 after one row, class 0 after two."""
    found = trim(scored("fi", labels=LABELS), budget=4, floor=1)
    assert found.removed.tolist() == [4, 6, 0, 2]
    found = trim(scored("fi", labels=LABELS), budget=4, floor=2)
    assert found.removed.tolist() == [0, 2]
    assert found.metadata["removed"] == 2
    assert trim(scored("total", labels=LABELS), budget=4, floor=2).removed.tolist() == [1, 3]
    names = np.array(["a", "b", "c"])[LABELS]
    assert trim(scored("total", labels=names), budget=4, floor=1).removed.tolist() == [1, 5, 7, 3]
    assert len(trim(scored("fi", labels=names), budget=4, floor=5).removed) == 0


def test_fi_of_a_share_of_the_rows() -> None:
    held = pa.table(
        {
            "row_id": [10, 11, 12, 13],
            "fi": pa.array([None, 5.0, None, 1.0]),
            "fi_rank": [0.3, 0.9, 1.0, 0.1],
        }
    )
    assert trim(Scores(held), budget=2).removed.tolist() == [12, 11]
    found = trim(Scores(held), budget=1, by="fi")
    assert found.removed.tolist() == [11]
    assert found.row_ids.tolist() == [13, 10, 12]
    with pytest.raises(rayinf.InputError, match=r"budget=3 is more than the 2 rows that have.*by='fi_rank'"):
        trim(Scores(held), budget=3, by="fi")


# --- Labels


def test_labels_from_numpy() -> None:
    assert scored("a").labels is None
    held = scored("a", labels=LABELS.astype(np.uint8))
    assert held.labels is not None
    assert held.labels.dtype == np.int64
    assert held.labels.tolist() == LABELS.tolist()
    assert held.columns == ["a"]
    assert held.table.schema.names == ["row_id", "a"]
    assert held.to_numpy().shape == (8, 1)
    assert scored("label", labels=list("aabbccdd")).labels.tolist() == list("aabbccdd")
    for wrong, message in (
        (LABELS[:5], "5 labels for 8 rows"),
        ([0.5] * 8, "labels must be integers or text"),
        ([None] * 8, "null"),
    ):
        with pytest.raises(rayinf.InputError, match=message):
            scored("a", labels=wrong)
    with pytest.raises(rayinf.InputError, match=":label"):
        scored(":label")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_labels_of_a_run(text: bool, folder: bool, tmp_path: Path) -> None:
    """Also where the id column is called label, and the label something else."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    marks = np.array(["no", "yes"])[y] if text else y
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    pq.write_table(
        pa.table({"features": lists, "y": marks, "label": range(100, 140)}), tmp_path / "t", row_group_size=9
    )
    task = rayinf.Task(nn.Linear(3, 2).double(), label="y", row_id="label")
    out = tmp_path / "run" if folder else None
    asked: dict[str, Any] = {"curvature": "identity", "halves": True, "out": out}
    scores = rayinf.influence(task, tmp_path / "t", tmp_path / "t", **asked)
    assert scores.columns == ["total"]
    assert scores.labels is not None
    assert scores.labels.tolist() == marks.tolist()
    assert scores.halves is not None
    assert scores.halves[1].labels.tolist() == marks.tolist()  # type: ignore[union-attr]
    found = trim(scores, budget=40, floor=19)
    assert set(found.kept.tolist()) <= set(range(100, 140))
    assert len(found.removed) <= 2
    if folder:
        assert len(pq.read_table(tmp_path / "run" / "scores").schema.names) == 5
        again = rayinf.influence(task, tmp_path / "t", tmp_path / "t", **asked)
        np.testing.assert_array_equal(again.to_numpy(), scores.to_numpy())


# --- Before and after


def blobs(n: int, seed: int, wrong: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, 2)) + 1.5 * (2 * y[:, None] - 1)
    return x, np.where(rng.random(n) < wrong, 1 - y, y)


TRAIN, VALID, TEST = blobs(120, 0, 0.3), blobs(200, 1), blobs(300, 2)


def test_before_and_after() -> None:
    task = rayinf.logistic_regression(TRAIN, l2=1e-2)
    scores = rayinf.influence(task, TRAIN, VALID, curvature="exact")
    found = trim(scores, budget=20, retrain=True, task=task, train=TRAIN, test=TEST)
    assert found.before is not None
    assert found.after is not None
    assert list(found.before) == ["rows", "loss", "accuracy", "accuracy_0", "accuracy_1", "train_rows"]
    assert (found.before["rows"], found.before["train_rows"], found.after["train_rows"]) == (300, 120, 100)
    assert found.after["loss"] < found.before["loss"]
    kept = rayinf.logistic_regression((TRAIN[0][found.kept], TRAIN[1][found.kept]), l2=1e-2)
    weight, bias = (p.detach().numpy() for p in kept.build().parameters())
    right = (TEST[0] @ weight.T + bias).argmax(1) == TEST[1]
    assert found.after["accuracy"] == pytest.approx(right.mean())
    assert found.after["accuracy_1"] == pytest.approx(right[TEST[1] == 1].mean())
    on_valid = trim(scores, budget=20, retrain=True, task=task, train=TRAIN, valid=VALID)
    assert on_valid.before is not None
    assert on_valid.before["rows"] == 200


def test_before_and_after_by_a_fit() -> None:
    task = rayinf.Task(
        nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), fit=rayinf.Fit(lr=0.02, epochs=3, batch_size=16)
    )
    scores = rayinf.influence(task, TRAIN, VALID)
    asked: dict[str, Any] = {"retrain": True, "task": task, "train": TRAIN, "test": TEST}
    found = trim(scores, 20, **asked, seed=4)
    again = trim(scores, 20, **asked, seed=4)
    assert found.before == again.before
    assert found.after == again.after
    assert found.before != trim(scores, 20, **asked, seed=5).before


# --- Bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"by": "nope"}, r"by='nope' is not a column of the scores; they have 'a', 'b'"),
        ({}, r"have 2 columns: 'a', 'b'.*by='a'"),
        ({"by": "a", "budget": -1}, "budget=-1"),
        ({"by": "a", "budget": 2.5}, r"budget=2\.5"),
        ({"by": "a", "budget": True}, "budget=True"),
        ({"by": "a", "budget": 9}, "budget=9 is more than the 8 rows"),
        ({"by": "a", "budget": 1, "floor": -1}, "floor=-1"),
        ({"by": "a", "budget": 1, "floor": 2}, "carry no labels"),
        ({"by": "a", "budget": 1, "retrain": True}, "task, train, test is missing"),
    ],
)
def test_what_trim_refuses(more: dict[str, Any], message: str) -> None:
    with pytest.raises(rayinf.InputError, match=message):
        trim(Scores.from_numpy(np.stack([VALUES, VALUES], axis=1), ["a", "b"]), **more)


def test_another_table_than_the_scores() -> None:
    task = rayinf.logistic_regression(TRAIN)
    scores = rayinf.influence(task, TRAIN, VALID, curvature="exact")
    asked: dict[str, Any] = {"budget": 5, "retrain": True, "task": task, "test": TEST}
    with pytest.raises(rayinf.InputError, match="train has 200 rows, and the scores have 120"):
        trim(scores, **asked, train=VALID)
    with pytest.raises(rayinf.InputError, match=r"train, test is missing"):
        trim(scores, budget=5, retrain=True, task=task)
    x, y = TRAIN
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 2)
    named = pa.table({"features": lists, "label": y, "row_id": [f"r{k}" for k in range(120)]})
    trim(scores, **asked, train=named)  # scores by position
    own = rayinf.influence(task, named, VALID, curvature="exact")
    trim(own, **asked, train=named)
    with pytest.raises(rayinf.InputError, match=r"Row 0 of train has the id 'r119'.* scores have 'r0'"):
        trim(own, **asked, train=named.take(list(range(119, -1, -1))))
    numbered = named.set_column(2, "row_id", pa.array(range(500, 620)))
    with pytest.raises(rayinf.InputError, match="Row 0 of train has the id 500"):
        trim(own, **asked, train=numbered)


def test_nothing_is_left_to_train_on() -> None:
    task = rayinf.logistic_regression(TRAIN)
    scores = Scores.from_numpy(np.ones(120), ["fi"])
    with pytest.raises(rayinf.InputError, match="None of the 120 rows is left"):
        trim(scores, 120, retrain=True, task=task, train=TRAIN, test=TEST)


def test_what_the_budget_is_predicted_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """To both orders, with the curvature of the scores, and without training."""
    task = rayinf.logistic_regression(TRAIN, l2=1e-2)
    scores = rayinf.influence(task, TRAIN, VALID, curvature="exact")
    monkeypatch.setattr("rayinf.api.trim.train_anew", lambda *a, **k: pytest.fail("a training"))
    given = {"task": task, "train": TRAIN, "valid": VALID}
    found = trim(scores, budget=10, predict=True, objective=["total", "category"], **given)
    gone = ~found.mask
    own = rayinf.predict_removal(task, TRAIN, VALID, gone, ["total", "category"], curvature="exact")
    assert found.predicted is not None
    assert found.predicted.equals(own.table)
    assert found.metadata["predicted_change"] == pytest.approx(scores.to_numpy()[gone].sum())
    first = found.predicted["first_order_change"].to_pylist()[0]
    assert first == pytest.approx(found.metadata["predicted_change"], rel=1e-4)
    assert trim(scores, budget=10).predicted is None
    for wrong, said in (
        ({"scores": scores, "task": task}, "predict=True needs task, train, and valid: train, valid is missing"),
        ({"scores": Scores.from_numpy(scores.to_numpy(), ["total"]), **given}, "do not say one of a single model"),
        ({"scores": scores, **given, "train": (TRAIN[0] + 1, TRAIN[1])}, "another table"),
    ):
        with pytest.raises(rayinf.InputError, match=said):
            trim(**wrong, budget=10, predict=True)  # type: ignore[arg-type]


def test_a_gap_is_predicted_to_both_orders_with_the_loss() -> None:
    """Two classes, groups that lean to them; first order is what `trim` itself stops by."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=200) > 0).astype(int)
    group = (x[:, 0] + 2 * rng.normal(size=200) > 0).astype(int)
    train, valid = ((x[s], y[s], group[s]) for s in (slice(0, 140), slice(140, 200)))
    task = rayinf.logistic_regression(train, l2=1e-2, group="group")
    scores = rayinf.influence(task, train, valid, "demographic_parity", curvature="exact")
    found = trim(scores, budget=12, predict=True, task=task, train=train, valid=valid)
    assert found.predicted is not None
    lines = {line["objective"]: line for line in found.predicted.to_pylist()}
    assert list(lines) == ["demographic_parity", "total"]
    gap = lines["demographic_parity"]
    assert gap["now"] == pytest.approx(found.metadata["gap"], rel=1e-5)
    assert gap["first_order"] == pytest.approx(found.metadata["predicted_gap"], rel=1e-4)
    refit = rayinf.retrain(task, train, keep=found.mask, rows=140)
    truth = rayinf.evaluate(refit, valid, "demographic_parity")["demographic_parity"]
    assert abs(gap["second_order"] - truth) < abs(gap["first_order"] - truth) < abs(gap["now"] - truth)
