"""What verbs make of rows that a run has left out (`on_error="skip"`): null values in their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import rayinf
from rayinf.data.scores import LABEL_COLUMN, Scores
from rayinf.data.vectors import InfluenceRows, Vectors
from rayinf.training.harmful_rows import HarmRule, jointly_harmful

ROWS = 120
GONE = range(30, 50)
RNG = np.random.default_rng(1)
CENTRES = RNG.normal(size=(3, 4)) * 1.5


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    y = RNG.integers(0, 3, count)
    return (CENTRES[y] + RNG.normal(size=(count, 4))).astype(np.float32), np.where(RNG.random(count) < 0.1, 0, y)


TRAIN, VALID, TEST = rows(ROWS), rows(60), rows(60)


@pytest.fixture(scope="module")
def task() -> rayinf.Task:
    return rayinf.logistic_regression(TRAIN, l2=1e-2)


@pytest.fixture(scope="module")
def whole(task: rayinf.Task) -> Scores:
    return rayinf.influence(task, TRAIN, VALID, objective="category", curvature="exact", halves=True)


def without(scores: Scores, fill: float | None = None) -> Scores:
    """The scores as a run gives them that has left out a shard; or with a number there."""
    table = scores.source
    assert isinstance(table, pa.Table)
    mask = np.isin(np.arange(ROWS), GONE)
    held: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        value = pa.scalar(fill, column.type) if pa.types.is_floating(column.type) else None
        held[name] = column if name in ("row_id", LABEL_COLUMN) else pa.compute.if_else(pa.array(mask), value, column)
    entry = {"table": "train", "file": None, "rows": [30, 49], "count": 20, "stage": "scores", "error": "raised"}
    return Scores(pa.table(held), {**scores.metadata, **({} if fill is not None else {"skipped": [entry]})})


def test_values(whole: Scores) -> None:
    scores = without(whole)
    assert scores.skipped_rows == 20 and whole.skipped_rows == 0
    assert np.flatnonzero(np.isnan(scores.to_numpy()).all(1)).tolist() == list(GONE)
    assert np.isfinite(scores.to_numpy()).sum() == 3 * 100
    halves = scores.halves
    assert halves is not None
    assert np.flatnonzero(np.isnan(halves[1].to_numpy()).any(1)).tolist() == list(GONE)


def test_trim_removes_no_row_without_a_value(whole: Scores) -> None:
    scores, column = without(whole), whole.columns[1]
    found = rayinf.trim(scores, 100, by=column)
    harmful = np.flatnonzero(np.nan_to_num(scores.to_numpy()[:, 1]) < 0)
    assert sorted(found.removed) == harmful.tolist()
    assert np.isfinite(found.metadata["predicted_change"])
    assert set(GONE) <= set(found.kept.tolist())
    with pytest.raises(rayinf.InputError, match=r"more than the 100 rows that have a value") as caught:
        rayinf.trim(scores, 101, by=column)
    assert "fi_rank" not in caught.value.fix
    unsigned = Scores(scores.source, {**scores.metadata, "signed": False})
    assert not set(GONE) & set(rayinf.trim(unsigned, 100, by=column).removed.tolist())


def test_linear_programs_count_them_as_0(whole: Scores) -> None:
    scores, zeros = without(whole), without(whole, 0.0)
    target = Vectors.of(whole).labels[0]
    mine, theirs = (rayinf.reweight_lp(s, targets=[target], alpha=0.9) for s in (scores, zeros))
    assert (np.asarray(mine.weights)[list(GONE)] == 1).all()
    np.testing.assert_array_equal(mine.weights, theirs.weights)
    ceilings = [rayinf.ceiling(s) for s in (scores, zeros)]
    assert ceilings[0].to_text() == ceilings[1].to_text()
    vectors = [InfluenceRows(Vectors.of(s), (0, 1, 2)) for s in (scores, zeros)]
    np.testing.assert_array_equal(vectors[0].held(), vectors[1].held())
    np.testing.assert_array_equal(jointly_harmful(scores), jointly_harmful(zeros))
    assert not set(GONE) & set(jointly_harmful(scores).tolist())


def test_values_that_are_missing_for_another_reason_are_refused(whole: Scores) -> None:
    scores = Scores(without(whole).source, whole.metadata)
    with pytest.raises(rayinf.InputError, match=r"The score of row 30 in .* is nan"):
        rayinf.ceiling(scores)


def test_label_issues(task: rayinf.Task, whole: Scores) -> None:
    scores, by = without(whole), whole.columns[0]
    table = rayinf.label_issues(scores, task, TRAIN, by=by).table
    assert np.isfinite(table["quality"].to_numpy()).all()
    gone = table.filter(pa.compute.is_in(table["row_id"], pa.array(list(GONE))))
    assert gone["value"].null_count == gone.num_rows
    assert not any(gone["suspect"].to_pylist())


def test_a_column_of_one_objective(whole: Scores) -> None:
    from rayinf.core.objective_parser import parse

    named = without(whole)
    table = named.source
    assert isinstance(table, pa.Table)
    scores = Scores(table.select(["row_id", whole.columns[0]]).rename_columns(["row_id", "total"]), named.metadata)
    rule = HarmRule.of(parse("total", None), 50, "valid")
    assert not rule.harmful(scores)[list(GONE)].any()


def test_what_trains(task: rayinf.Task, whole: Scores) -> None:
    """The predicted changes are those of values of 0."""
    scores, zeros = without(whole), without(whole, 0.0)
    measured = [rayinf.lds(task, TRAIN, VALID, s, subsets=5) for s in (scores, zeros)]
    assert measured[0].to_text() == measured[1].to_text()
    checks = [rayinf.removal_check(task, TRAIN, VALID, TEST, s, share=0.05, seeds=1) for s in (scores, zeros)]
    assert checks[0].to_text() == checks[1].to_text()


def test_members_of_an_ensemble() -> None:
    """A row that one member cannot be valued on has no mean."""
    torch.manual_seed(0)

    class Picky(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((self.bias[0] > 1) & (x[:, 0] > 1e6).any()):
                raise ValueError("too large")
            return super().forward(x)

    model = Picky(4, 3)
    states = [{k: v + add for k, v in model.state_dict().items()} for add in (0.0, 2.0)]
    many = np.concatenate([TRAIN[0]] * 80), np.concatenate([TRAIN[1]] * 80)
    many[0][1003, 0] = 1e7
    of = rayinf.Task(model, ensemble=states)
    with pytest.warns(rayinf.errors.SkippedWarning):
        found = rayinf.influence(of, many, VALID, curvature="identity", on_error="skip")
    (left,) = found.metadata["skipped"]
    gone = np.flatnonzero(np.isnan(found.to_numpy()).all(1))
    assert [gone[0], gone[-1], len(gone)] == [*left["rows"], left["count"]]
    assert np.isfinite(found.to_numpy()).all(1).sum() == len(many[0]) - left["count"]


def test_what_a_command_prints(whole: Scores, capsys: pytest.CaptureFixture[str]) -> None:
    from rayinf.summaries import print_influence

    print_influence(without(whole))
    assert "20 rows have no value" in capsys.readouterr().out
    print_influence(whole)
    assert "no value" not in capsys.readouterr().out
