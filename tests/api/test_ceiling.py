"""`rayinf.ceiling` on scores: what it reads, finds, says, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pareto.vectors import drawn, scipy_gain
from run_folders import write_run

import rayinf
from rayinf import Scores

LABELS = np.random.default_rng(5).choice(["cat", "dog", "owl"], 600)
COLUMNS = ["category_cat", "category_dog", "category_owl"]


def scores(signal: float = 1.0, seed: int = 0, rows: int = 600) -> Scores:
    rng = np.random.default_rng(seed)
    base = signal * drawn("own", rows, 3, seed)
    first, second = (base + rng.standard_normal((rows, 3)) for _ in range(2))
    labels = LABELS if rows == 600 else None
    return Scores.from_numpy(first + second, COLUMNS, labels=labels, halves=(first, second))


def test_what_it_finds() -> None:
    held = scores()
    p = held.to_numpy()
    report = rayinf.ceiling(held)
    assert report.gain == pytest.approx(scipy_gain(p), abs=1e-8)
    assert 0 <= report.gap < 1e-9
    assert report.gain_interval[0] < report.gain < report.gain_interval[1]
    b = np.abs(p).sum(0)
    np.testing.assert_allclose(report.prices, report.dual / b)
    np.testing.assert_allclose(np.abs(p @ report.prices).sum(), report.gain)
    assert set(report.binding) == set(COLUMNS) and report.left_out == ()
    assert report.dual[COLUMNS.index(report.binding[0])] == report.dual.max()
    np.testing.assert_allclose(report.exchange, np.outer(report.prices, 1 / report.prices))
    values = np.linalg.eigvalsh(np.cov(p.T))[::-1]
    np.testing.assert_allclose(report.explained_variance, values / values.sum())
    regions = report.regions
    assert regions.jointly_harmful == (p <= 0).all(1).sum()
    assert regions.jointly_helpful == (p > 0).all(1).sum()
    assert regions.mixed == 600 - regions.jointly_harmful - regions.jointly_helpful
    for j, label in enumerate(report.row_labels):
        np.testing.assert_array_equal(regions.harmful_from[j], (p[label == LABELS] < 0).sum(0))


def test_the_verdict_follows_the_cross_fit() -> None:
    room, noise = rayinf.ceiling(scores(2.0)), rayinf.ceiling(scores(0.0))
    assert room.room is True and room.verdict.startswith("There is room")
    assert noise.gain > 0.5 and noise.room is False
    assert noise.verdict.startswith("No evidence of room")
    assert noise.cross_fit_interval is not None and noise.cross_fit_interval[0] <= 0 <= noise.cross_fit_interval[1]
    alone = rayinf.ceiling(Scores.from_numpy(scores(2.0).to_numpy(), COLUMNS))
    assert alone.cross_fit is None and alone.room is None and alone.cross_fit_interval is None
    assert "halves=True" in alone.verdict and alone.verdict.startswith("No verdict")
    assert alone.gain == pytest.approx(room.gain)


def test_methods_agree_and_shards_do_not_matter(tmp_path: Path) -> None:
    held = scores(rows=12_000)
    base = rayinf.ceiling(held)
    whole = rayinf.ceiling(held, method="highs")
    assert base.passes > whole.passes == 1
    assert whole.gain == pytest.approx(base.gain, rel=1e-8)
    assert whole.cross_fit == pytest.approx(base.cross_fit, abs=1e-3)
    table = held.source
    assert isinstance(table, pa.Table)
    parts = [table.slice(start, rows) for start, rows in [(0, 5000), (5000, 17), (5017, 6983)]]
    sharded = rayinf.ceiling(Scores.load(write_run(tmp_path, parts, {})))
    assert sharded.to_dict() == base.to_dict()


def test_a_class_without_influence_is_left_out_and_named() -> None:
    p = drawn("own", 200, 2)
    report = rayinf.ceiling(Scores.from_numpy(np.c_[p[:, 0], np.zeros(200), p[:, 1]], COLUMNS))
    assert report.left_out == ("category_dog",)
    assert report.gain == pytest.approx(scipy_gain(p), abs=1e-9)
    assert (report.prices[1], report.dual[1]) == (0, 0)
    assert "Left out" in report.to_text() and "category_dog" in report.to_text()
    json.dumps(report.to_dict(), allow_nan=False)
    assert np.isnan(report.pairwise[1]).all()


def test_words_and_json() -> None:
    report = rayinf.ceiling(scores())
    text = report.to_text()
    for told in (report.verdict, "600 rows, 3 classes", f"{report.gain:.4f}", "cat", "dog", "owl"):
        assert told in text
    held = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert held["gain"] == report.gain and held["cross_fit"] == report.cross_fit
    assert held["classes"] == ["cat", "dog", "owl"]
    assert sum(held["regions"]["by_label"]["joint"]["dog"]) == (LABELS == "dog").sum()
    assert "Cross-fitted gain: none" in rayinf.ceiling(Scores.from_numpy(drawn("own", 30, 2), ["a", "b"])).to_text()
    many = rayinf.ceiling(Scores.from_numpy(drawn("noise", 300, 25), [f"c{k}" for k in range(25)]))
    assert "... and 5 more" in many.to_text()


def test_pictures(tmp_path: Path) -> None:
    report = rayinf.ceiling(scores())
    for file in (
        report.plot(tmp_path / "a.png"),
        report.plot(tmp_path / "b.svg", classes=["dog", "category_cat"], title="Pets"),
        report.plot_classes(tmp_path / "deep" / "c.png"),
    ):
        assert file.stat().st_size > 5000
    p = report.found.sample.p
    text = (tmp_path / "b.svg").read_text()
    assert "Pets" in text
    assert report._two(None) in {(0, 1), (0, 2), (1, 2)}
    assert report._two(["dog", "cat"]) == (1, 0)
    assert report.pairwise[report._two(None)] == report.pairwise.min()
    assert len(p) == 600
    for bad in (["cat"], "cat", ["cat", "cat"], ["cat", "cow"], ["cat", "dog", "owl"]):
        with pytest.raises(rayinf.InputError, match="two of the classes"):
            report.plot(tmp_path / "d.png", classes=bad)
    with pytest.raises(rayinf.InputError, match="cannot be drawn"):
        report.plot(tmp_path / "e.nothing")
    assert not (tmp_path / "d.png").exists()


def test_without_labels_and_with_many_classes(tmp_path: Path) -> None:
    report = rayinf.ceiling(Scores.from_numpy(drawn("noise", 300, 35), [f"c{k}" for k in range(35)]))
    assert report.row_labels == ()
    assert report.plot_classes(tmp_path / "many.png").exists()


@pytest.mark.parametrize(
    ("held", "options", "message"),
    [
        (Scores.from_numpy([[1.0], [2.0]], ["category_a"]), {}, "one class, 'category_a'"),
        (Scores.from_numpy([1.0, 2.0], ["total"]), {}, "no column for a class"),
        (Scores.from_numpy(np.zeros((3, 2)), ["a", "b"]), {}, "none has any influence"),
        (Scores.from_numpy([[1.0, 0.0]], ["a", "b"]), {}, "only 'a' has any influence"),
        (Scores.from_numpy(np.zeros((0, 2)), ["a", "b"]), {}, "no rows"),
        ("run", {}, "scores must be rayinf.Scores"),
        (None, {"method": "simplex"}, "method='simplex'"),
        (None, {"gap": 0.0}, "gap=0.0"),
        (None, {"gap": "1"}, "gap='1'"),
        (None, {"resamples": 1}, "resamples=1"),
        (None, {"seed": -1}, "seed=-1"),
        (None, {"seed": True}, "seed=True"),
    ],
)
def test_what_it_refuses(held: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(rayinf.InputError, match=message):
        rayinf.ceiling(scores() if held is None else held, **options)


def test_a_value_that_is_not_finite_is_found_before_anything_is_said() -> None:
    table = pa.table({"row_id": [0, 1], "category_a": [1.0, 2.0], "category_b": [1.0, float("nan")]})
    with pytest.raises(rayinf.InputError, match="row 1 in 'category_b' is nan"):
        rayinf.ceiling(Scores(table))


def test_of_a_fitted_model() -> None:
    """From labels to the verdict: the classes are named by their labels."""
    rng = np.random.default_rng(0)
    y = rng.choice(["no", "yes"], 300)
    x = rng.standard_normal((300, 3)) + (y == "yes")[:, None]
    task = rayinf.logistic_regression((x, y), l2=1 / 300)
    held = rayinf.influence(task, (x, y), (x[::2], y[::2]), "category", curvature="exact", halves=True)
    report = rayinf.ceiling(held)
    assert report.labels == ("no", "yes") and set(report.row_labels) == {"no", "yes"}
    assert report.cross_fit is not None and report.cross_fit < report.gain
    own = [report.row_labels.index(label) for label in report.labels]
    helpful, harmful = report.regions.helpful_from[own], report.regions.harmful_from[own]
    assert (np.diag(helpful) > np.diag(helpful[::-1])).all()  # a class's own rows help it, the others harm it
    assert (np.diag(harmful) < np.diag(harmful[::-1])).all()
