"""Figures of a removal check, by hand; its text and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayinf.api.removal_check_result import Changes, RemovalCheck
from rayinf.data.run_folder import RunFolder
from rayinf.errors import InputError
from rayinf.training.agreement import rank_correlation, slope

TESTS = np.array([10, 20])


def changes(loss: np.ndarray, accuracy: np.ndarray) -> Changes:
    predicted = np.array([[4.0, -1.0], [2.0, 6.0]])
    return Changes(np.array([3, 5]), predicted, loss, accuracy)


def check() -> RemovalCheck:
    """Two seeds; on the helpful side all is as predicted, on the harmful side little."""
    good = np.array([[[8.0, -4.0], [2.0, 6.0]], [[8.0, 0.0], [6.0, 18.0]]])
    bad = np.array([[[-1.0, 3.0], [2.0, 6.0]], [[-1.0, 3.0], [2.0, 6.0]]])
    sides = {
        "helpful": changes(good, np.array([[[-0.2, 0.1], [-0.05, -0.1]]] * 2)),
        "harmful": changes(bad, np.array([[[0.0, 0.1], [-0.05, -0.1]]] * 2)),
    }
    metadata = {"share": 0.25, "seeds": 2, "rows": {"train": 40, "valid": 20, "test": 30}}
    return RemovalCheck.of(sides, TESTS, {"loss": [0.5, 0.6], "accuracy": [0.9, 0.8]}, ["a", "b"], ["mind"], metadata)


def test_figures() -> None:
    found = check()
    # mean losses: predicted .4 -.05 .2 .3, measured .8 -.1 .4 .6
    assert found.summary["helpful"] == {
        "spearman_loss": pytest.approx(1.0),
        "spearman_loss_sum": pytest.approx(1.0),
        "slope": pytest.approx(2.0),
        "slope_sum": pytest.approx(np.polyfit([4, -1, 2, 6], [8, -2, 4, 12], 1)[0]),
        "spearman_accuracy": pytest.approx(1.0),
        "sign_loss": 2,
        "sign_accuracy": 2,
        "classes": 2,
        "cells": 4,
        "ratio": pytest.approx(2.0),
        "error": pytest.approx(0.5),
        "error_second": None,
    }
    # measured -.1 .15 .2 .3
    harmful = found.summary["harmful"]
    assert harmful["spearman_loss"] == pytest.approx(-0.2)
    assert harmful["slope"] == pytest.approx(np.polyfit([0.4, -0.05, 0.2, 0.3], [-0.1, 0.15, 0.2, 0.3], 1)[0])
    assert (harmful["sign_loss"], harmful["sign_accuracy"]) == (1, 1)  # no change of accuracy is not right
    assert harmful["ratio"] == pytest.approx((-0.25 + 1.0) / 2)


def test_cells() -> None:
    found = check()
    assert found.values("helpful", "loss").tolist() == [[8.0, -2.0], [4.0, 12.0]]
    assert found.values("helpful", "loss_mean") == pytest.approx(np.array([[0.8, -0.1], [0.4, 0.6]]))
    assert found.values("helpful", "predicted_mean") == pytest.approx(np.array([[0.4, -0.05], [0.2, 0.3]]))
    assert found.values("helpful", "loss_std") == pytest.approx(np.sqrt([[0, 8], [8, 72]]))
    assert found.values("helpful", "loss_mean_std") == pytest.approx(np.sqrt([[0, 8], [8, 72]]) / TESTS)
    assert found.to_pandas()["rows"].tolist() == [3, 3, 5, 5] * 2
    for wrong in (("neither", "loss"), ("helpful", "rows")):
        with pytest.raises(InputError, match="there is no such cell"):
            found.values(*wrong)


def test_text() -> None:
    text = check().to_text()
    assert text.startswith("Top 25% of the rows that help or harm each class removed, 2 seeds averaged:")
    assert "helpful: rank correlation of predicted and measured change over 4 cells 1.00 (loss)" in text
    assert "sign is right for 1 (loss) and 1 (accuracy) of 2 classes" in text
    assert "slope of measured on predicted change 2.00 (loss)" in text
    assert text.endswith("Note: mind")


def test_rank_correlation() -> None:
    a = np.array([1.0, 2.0, 3.0, np.nan])
    assert rank_correlation(a, np.array([2.0, 9.0, 10.0, 0.0])) == pytest.approx(1.0)
    assert rank_correlation(a, np.array([2.0, np.nan, 10.0, 0.0])) is None
    assert rank_correlation(a, np.ones(4)) is None


def test_slope() -> None:
    a = np.array([1.0, 2.0, 4.0, np.nan])
    assert slope(a, np.array([5.0, 8.0, 14.0, 0.0])) == pytest.approx(3.0)
    assert slope(a, np.array([5.0, np.nan, np.nan, 0.0])) is None
    assert slope(np.ones(4), a) is None


def test_files(tmp_path: Path) -> None:
    found = check()
    with RunFolder(tmp_path) as run:
        run.begin({"identity": {}})
        found.save(run.files)
    held = RemovalCheck.load(tmp_path)
    assert held.table.equals(found.table)
    assert (held.summary, held.baseline, held.labels, held.notes) == (
        found.summary,
        found.baseline,
        found.labels,
        found.notes,
    )
    assert held.metadata == found.metadata
    with pytest.raises(InputError, match="no finished removal check"):
        RemovalCheck.load(tmp_path / "nowhere")
