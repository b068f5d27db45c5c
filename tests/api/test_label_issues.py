"""Label issues: against a naive form, on rows with known wrong labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import rayinf
from rayinf.core.margins import likeliest_other

N, CLASSES = 200, 3
RNG = np.random.default_rng(0)
CLEAN = np.arange(N) % CLASSES
X = (RNG.normal(size=(N, 4)) + 3 * np.eye(CLASSES, 4)[CLEAN]).astype(np.float32)
WRONG = np.arange(0, N, 10)
Y = CLEAN.copy()
Y[WRONG] = (Y[WRONG] + 1) % CLASSES
NAMES = np.array(["ant", "bee", "cow"])
VALID = (X[50:110] + 0.1, CLEAN[50:110])


def rows(labels: np.ndarray = Y) -> pa.Table:
    """Ids that are not positions."""
    features = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 4)
    return pa.table({"features": features, "label": labels, "row_id": [f"r{k}" for k in range(N)]})


@pytest.fixture(scope="module")
def found() -> tuple[rayinf.Task, rayinf.Scores, rayinf.LabelIssues]:
    """A fitted head, its values, and its issues."""
    task = rayinf.logistic_regression(rows(), l2=1e-2, row_id="row_id")
    scores = rayinf.influence(task, rows(), VALID, ["total", "category"])
    return task, scores, rayinf.label_issues(scores, task, rows())


def average_ranks(values: np.ndarray) -> np.ndarray:
    """1 for the least; of equal values the mean."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def test_naive(found: tuple[rayinf.Task, rayinf.Scores, rayinf.LabelIssues]) -> None:
    task, scores, issues = found
    logits = task.build()(torch.from_numpy(X).double()).detach().numpy()
    other = np.array([max((c for c in range(CLASSES) if c != Y[i]), key=lambda c: logits[i, c]) for i in range(N)])
    margin = np.array([logits[i, Y[i]] - logits[i, other[i]] for i in range(N)])
    value = scores.to_pandas()["total"].to_numpy()
    quality = (average_ranks(margin) + 0.1 * average_ranks(value)) / (1.1 * N)
    order = np.argsort(quality, kind="stable")
    frame = issues.to_pandas()
    assert list(frame["row_id"]) == [f"r{k}" for k in order]
    assert list(frame["label"]) == list(Y[order])
    assert list(frame["suggested"]) == list(other[order])
    np.testing.assert_allclose(frame["margin"], margin[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(frame["quality"], quality[order], rtol=1e-12)
    np.testing.assert_array_equal(frame["value"], value[order])
    np.testing.assert_array_equal(frame["suspect"], ((margin < 0) & (value < 0))[order])
    by_class = scores.to_pandas()[[f"category_{k}" for k in range(CLASSES)]].to_numpy()
    harms = [str(row.argmin()) if row.min() < 0 else None for row in by_class[order]]
    assert [None if h != h else h for h in frame["harms"]] == harms


def test_wrong_labels_are_found_with_their_right_class(
    found: tuple[rayinf.Task, rayinf.Scores, rayinf.LabelIssues],
) -> None:
    frame = found[2].to_pandas().head(len(WRONG))
    at = frame["row_id"].str.removeprefix("r").astype(int).to_numpy()
    assert np.isin(at, WRONG).sum() >= 18
    both = np.isin(at, WRONG)
    assert (frame["suggested"].to_numpy()[both] == CLEAN[at[both]]).mean() > 0.9
    assert set(found[2].suspects) <= set(found[2].to_pandas()["row_id"])
    assert f"{len(found[2].suspects)} of 200 labels are suspect" in found[2].to_text()


def test_labels_of_text_and_a_limit() -> None:
    table = rows(NAMES[Y])
    task = rayinf.logistic_regression(table, l2=1e-2, row_id="row_id")
    scores = rayinf.influence(task, table, (VALID[0], NAMES[VALID[1]]))
    frame = rayinf.label_issues(scores, task, table, limit=7).to_pandas()
    assert len(frame) == 7 and set(frame["label"]) | set(frame["suggested"]) <= set(NAMES)
    assert (frame["label"] != frame["suggested"]).all() and "harms" not in frame


def test_batches_change_nothing(found: tuple[rayinf.Task, rayinf.Scores, rayinf.LabelIssues]) -> None:
    again = rayinf.label_issues(found[1], found[0], rows(), batch_size=7).to_pandas()
    assert list(again["row_id"]) == list(found[2].to_pandas()["row_id"])


def test_refusals(found: tuple[rayinf.Task, rayinf.Scores, rayinf.LabelIssues]) -> None:
    task, scores, _ = found
    with pytest.raises(rayinf.InputError, match="by='loss' is not a column"):
        rayinf.label_issues(scores, task, rows(), by="loss")
    with pytest.raises(rayinf.InputError, match="by='self_influence' has no sign"):
        rayinf.label_issues(rayinf.self_influence(task, rows()), task, rows(), by="self_influence")
    with pytest.raises(rayinf.InputError, match="another model than the task's: the weights differ"):
        rayinf.label_issues(scores, rayinf.logistic_regression(rows(), l2=1e-1, row_id="row_id"), rows())
    with pytest.raises(rayinf.InputError, match="another table"):
        rayinf.label_issues(scores, task, rows(CLEAN))


def test_the_likeliest_other_of_equal_ones_is_the_first() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [5.0, 1.0, 1.0], [0.0, 2.0, 2.0]])
    assert likeliest_other(logits, torch.tensor([0, 0, 1])).tolist() == [1, 1, 2]
