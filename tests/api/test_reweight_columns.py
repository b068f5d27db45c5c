"""`reweight_lp` over any columns, and with a cross-fit: fairness at little cost in utility; noise that is no gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from core.test_gaps import toy
from pareto.vectors import drawn
from scipy.optimize import linprog

import rayinf
from rayinf.pareto.pull_back import share

GAPS = ("demographic_parity", "equal_opportunity")
OBJECTIVES = ["total", *GAPS]
COLUMNS = ["category_cat", "category_dog", "category_owl"]


@pytest.fixture(scope="module")
def valued() -> rayinf.Scores:
    task, train, valid = toy()
    return rayinf.influence(task, train, valid, objective=OBJECTIVES, curvature="exact")


@pytest.mark.parametrize("gap", GAPS)
def test_the_gap_of_the_retrained_model_falls_and_the_loss_is_kept(gap: str, valued: rayinf.Scores) -> None:
    task, train, valid = toy()
    measured = {}
    for name, columns in (("kept", [gap, "total"]), ("alone", [gap])):
        found = rayinf.reweight_lp(valued, gap, alpha=1.0, radius=0.3, columns=columns)
        again = rayinf.retrain(task, train, weights=found.weights, rows=len(train))
        measured[name] = rayinf.evaluate(again, valid, OBJECTIVES)
        said = found.predicted_change[columns.index(gap)]
    before = rayinf.evaluate(task, valid, OBJECTIVES)
    print(gap, {name: {o: (before[o], m[o]) for o in OBJECTIVES} for name, m in measured.items()})
    fall = before[gap] - measured["kept"][gap]
    assert fall > 0.1 * before[gap] and said > 0
    assert measured["kept"]["total"] < 1.06 * before["total"]
    assert measured["kept"]["total"] <= measured["alone"]["total"]


def test_it_is_the_program_of_these_columns(valued: rayinf.Scores) -> None:
    frame = valued.to_pandas()
    p = frame[["equal_opportunity", "total"]].to_numpy()
    unit = np.abs(p).mean(0)
    found = rayinf.reweight_lp(
        valued, "equal_opportunity", alpha=1.0, radius=0.2, columns=["equal_opportunity", "total"]
    )
    want = linprog(-p[:, 0] / unit[0], A_ub=-(p / unit).T, b_ub=-p.sum(0) / unit, bounds=(0.8, 1.2))
    assert found.objective == pytest.approx(-want.fun * unit[0], rel=1e-7)
    assert found.labels == ("equal_opportunity", "total") and found.crossed is None
    every = rayinf.reweight_lp(valued, ["equal_opportunity"], alpha=1.0, radius=0.2, columns=OBJECTIVES)
    assert every.objective <= found.objective * (1 + 1e-9)
    alone = rayinf.reweight_lp(valued, "total", columns="total", radius=0.2)
    total = frame["total"].to_numpy()
    assert alone.predicted_change[0] == pytest.approx(0.2 * np.abs(total).sum())


def test_weights_move_back_where_the_gap_is_used_up(valued: rayinf.Scores, tmp_path: Any) -> None:
    gap = abs(valued.metadata["objective_details"]["equal_opportunity"]["signed"])
    how: dict[str, Any] = {"alpha": 1.0, "radius": 1.0, "columns": ["equal_opportunity", "total"]}
    found = rayinf.reweight_lp(valued, "equal_opportunity", **how)
    assert found.predicted_change[0] == pytest.approx(gap) and found.predicted_change[1] >= 0
    assert 0 < np.abs(found.weights - 1).max() < 1
    p = valued.to_pandas()[how["columns"]].to_numpy()
    np.testing.assert_allclose(found.predicted_change, found.weights @ p - p.sum(0), rtol=1e-9)
    # Without what says that it is a gap, nothing holds it back.
    bare = rayinf.Scores.from_numpy(p, how["columns"])
    assert rayinf.reweight_lp(bare, "equal_opportunity", **how).predicted_change[0] > gap
    file = tmp_path / "w.parquet"
    streamed = rayinf.reweight_lp(valued, "equal_opportunity", **how, stream=True, out=file)
    assert pq.read_table(file)["weight"].to_numpy().tobytes() == found.weights.tobytes()
    assert streamed.weights.tobytes() == found.weights.tobytes()


def test_how_far_weights_move_by_hand() -> None:
    change, total, floor = np.array([4.0, 1.0]), np.zeros(2), np.array([-1.0, -1.0])
    assert share(change, total, floor, {0: 1.0}) == 0.25
    assert share(change, total, floor, {0: 5.0}) == 1.0
    assert share(-change, total, floor, {0: 1.0}) == 1.0
    assert share(change, total, floor, {0: 2.0, 1: 0.1}) == pytest.approx(0.1)
    assert share(change, total, np.array([0.0, 0.5]), {0: 1.0}) == 0.5  # a demand that weights of 1 do not meet


def noisy(signal: float, seed: int, rows: int = 500) -> rayinf.Scores:
    rng = np.random.default_rng(seed)
    base = signal * drawn("own", rows, 3, seed)
    first, second = (base + rng.standard_normal((rows, 3)) for _ in range(2))
    return rayinf.Scores.from_numpy(first + second, COLUMNS, halves=(first, second))


def test_pure_noise_is_predicted_to_gain_and_does_not_by_cross_fit() -> None:
    how: dict[str, Any] = {"alpha": 0.97, "radius": 0.5, "slack": "scaled"}
    said, seen, told = [], [], 0
    for seed in range(10):
        found = rayinf.reweight_lp(noisy(0.0, seed), "category_dog", **how)
        assert found.crossed is not None
        size = found.classes["absolute"].to_numpy()[1]
        said.append(found.predicted_change[1] / size)
        seen.append(found.crossed[:, 1].sum() / size)
        told += any("No evidence that dog gains" in note for note in found.notes)
    assert np.min(said) > 0.25
    assert abs(np.mean(seen)) < 0.03 and np.max(np.abs(seen)) < 0.12
    assert told >= 5
    real = rayinf.reweight_lp(noisy(3.0, 0), "category_dog", **how)
    assert real.crossed is not None and real.crossed[:, 1].min() > 0
    assert not any("No evidence" in note for note in real.notes)
    assert f"the targets gain {real.crossed[:, 1].sum():.4g} of" in real.to_text()
    np.testing.assert_allclose(real.classes["crossed"], real.crossed.sum(0))


def test_the_cross_fit_judges_by_the_other_half_and_can_be_left_out() -> None:
    scores = noisy(1.0, 4)
    first, second = (
        scores.select([f"{h}_half:{c}" for c in COLUMNS]).to_pandas().to_numpy() for h in ("first", "second")
    )
    how: dict[str, Any] = {"alpha": 0.9, "radius": 0.4, "slack": "scaled"}
    found = rayinf.reweight_lp(scores, "category_cat", **how)
    for k, (own, other) in enumerate(((first, second), (second, first))):
        w = rayinf.reweight_lp(rayinf.Scores.from_numpy(own, COLUMNS), "category_cat", **how).weights
        np.testing.assert_allclose(found.crossed[k], w @ other - other.sum(0), atol=1e-6)
    plain = rayinf.reweight_lp(scores, "category_cat", **how, cross_fit=False)
    whole = rayinf.reweight_lp(rayinf.Scores.from_numpy(first + second, COLUMNS), "category_cat", **how)
    assert plain.crossed is None and plain.weights.tobytes() == whole.weights.tobytes()
    assert plain.classes["crossed"].null_count == 3
    streamed = rayinf.reweight_lp(scores, "category_cat", **how, stream=True)
    assert streamed.weights.tobytes() == found.weights.tobytes()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"columns": ["total", "height"]}, "columns name 'height'; the scores have 'total'"),
        ({"columns": ["total", "total"]}, "names 'total' twice"),
        ({"columns": []}, "columns"),
        ({"columns": 3}, "columns"),
        ({"targets": "total", "columns": ["equal_opportunity"]}, "'total' is not a class"),
        ({"cross_fit": True}, "the scores have no halves"),
        ({"cross_fit": "yes"}, "cross_fit must be True or False"),
    ],
)
def test_columns_that_make_no_sense(given: dict[str, Any], told: str, valued: rayinf.Scores) -> None:
    with pytest.raises(rayinf.InputError, match=told):
        rayinf.reweight_lp(valued, **{"targets": "total", "columns": ["total"], **given})


def test_a_gap_has_no_cross_fit() -> None:
    task, train, valid = toy()
    both = rayinf.influence(
        task, train, valid, objective=["total", "demographic_parity"], curvature="exact", halves=True
    )
    with pytest.raises(rayinf.InputError, match="'demographic_parity' is a gap between groups"):
        rayinf.reweight_lp(both, "total", columns=["total", "demographic_parity"], cross_fit=True)
    found = rayinf.reweight_lp(both, "total", columns=["total", "demographic_parity"], radius=0.2)
    assert found.crossed is None
    assert rayinf.reweight_lp(both, "total", columns=["total"], radius=0.2).crossed is not None
