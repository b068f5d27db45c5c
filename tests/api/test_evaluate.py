"""Measuring a model on a table, and trimming by a gap: where it stops, and what a refit then does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import rayinf
from rayinf import Scores
from rayinf.errors import InputError
from rayinf.select.trim import use_up

GAPS = ["demographic_parity", "equal_opportunity"]


def frame(n: int, seed: int) -> pd.DataFrame:
    """Labels that hang on the group, so that there is a gap."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    x = rng.normal(size=(n, 3)) + 0.1 * group[:, None]
    y = (x @ [1.0, -0.2, 0.5] + rng.normal(size=n) > 0.6).astype(int)
    return pd.DataFrame(x, columns=["a", "b", "c"]).assign(label=np.where(y == 1, "yes", "no"), sex=group)


@pytest.fixture(scope="module")
def fitted() -> tuple[rayinf.Task, pd.DataFrame, pd.DataFrame]:
    train, test = frame(400, 0), frame(300, 1)
    return rayinf.logistic_regression(train, l2=1e-2, features=["a", "b", "c"], group="sex"), train, test


def numpy_values(task: rayinf.Task, table: pd.DataFrame, attacked: rayinf.Task | None = None) -> dict[str, float]:
    model, aimed = task.build(), (attacked or task).build()
    x = torch.tensor(table[["a", "b", "c"]].to_numpy(), dtype=next(model.parameters()).dtype)
    p = model(x).softmax(1).detach().numpy()
    y, g = (table["label"] == "yes").to_numpy(), table["sex"].to_numpy() == 1
    loss = -np.log(p[np.arange(len(p)), y.astype(int)])
    head: Any = [m for m in aimed.modules() if isinstance(m, nn.Linear)][0]  # noqa: RUF015
    w, b = (head.weight[1] - head.weight[0]).detach(), (head.bias[1] - head.bias[0]).detach()
    moved = x - 1.3 * ((x @ w + b) / (w @ w))[:, None] * w
    q = model(moved).softmax(1).detach().numpy()
    return {
        "loss": loss.mean(),
        "accuracy": ((p[:, 1] > 0.5) == y).mean(),
        "accuracy_yes": (p[y, 1] > 0.5).mean(),
        "total": loss.sum(),
        "demographic_parity_signed": p[g, 1].mean() - p[~g, 1].mean(),
        "demographic_parity_hard": abs((p[g, 1] > 0.5).mean() - (p[~g, 1] > 0.5).mean()),
        "equal_opportunity": abs(loss[g & y].mean() - loss[~g & y].mean()),
        "equal_opportunity_hard": abs((p[g & y, 1] > 0.5).mean() - (p[~g & y, 1] > 0.5).mean()),
        "robustness": -np.log(q[np.arange(len(q)), y.astype(int)]).sum(),
        "robustness_accuracy": ((q[:, 1] > 0.5) == y).mean(),
    }


def test_everything_is_measured(fitted: tuple[rayinf.Task, pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    task, train, test = fitted
    other = rayinf.retrain(task, train, keep=np.arange(150))
    test.to_parquet(tmp_path / "test.parquet", row_group_size=70)
    for against in (None, task):
        found = rayinf.evaluate(other, tmp_path / "test.parquet", ["total", *GAPS, "robustness"], against=against)
        for name, value in numpy_values(other, test, against).items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        assert found["demographic_parity"] == abs(found["demographic_parity_signed"])
    assert set(rayinf.evaluate(task, test)) == {"rows", "loss", "accuracy", "accuracy_no", "accuracy_yes"}


def test_what_cannot_be_measured_is_refused(fitted: tuple[rayinf.Task, pd.DataFrame, pd.DataFrame]) -> None:
    task, _, test = fitted
    for objective, table, what in (
        ("demographic_parity", test.assign(sex=1), "holds one value"),
        ("nonsense", test, "is unknown"),
        ("slice:town", test, "no column 'town'"),
    ):
        with pytest.raises(InputError, match=what):
            rayinf.evaluate(task, table, objective)


def test_trimming_by_a_gap_stops_where_it_is_used_up(
    fitted: tuple[rayinf.Task, pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    task, train, valid = fitted
    scores = rayinf.influence(task, train, valid, GAPS, curvature="exact", out=tmp_path / "run")
    for by in GAPS:
        values = scores.to_pandas()[by].to_numpy()
        gap = scores.metadata["objective_values"][by]
        ranked = np.sort(values)
        left = [abs(gap + ranked[:k].sum()) for k in range((values < 0).sum() + 1)]
        best = int(np.argmin(left))
        assert best > 2
        for held in (scores, Scores.load(tmp_path / "run")):
            kept = rayinf.trim(held, 400, by=by)
            assert len(kept.removed) == best
            assert kept.metadata["used_up"] == (best < (values < 0).sum())
            assert kept.metadata["gap"] == pytest.approx(gap)
            assert kept.metadata["predicted_gap"] == pytest.approx(left[best])
        few = rayinf.trim(scores, best // 2, by=by)
        assert len(few.removed) == best // 2
        assert few.metadata["predicted_gap"] == pytest.approx(left[best // 2])
    # A gap of a tenth of what all harmful rows together are predicted to close.
    values = scores.to_pandas()["demographic_parity"].to_numpy()
    told = {"objective_details": {"demographic_parity": {"signed": 0.1 * values[values < 0].sum()}}}
    small = rayinf.trim(Scores(scores.table, told), 400, by="demographic_parity")
    assert 2 < len(small.removed) < (values < 0).sum() / 4
    assert small.metadata["predicted_gap"] < np.abs(values).max() / 2
    unknown = Scores.from_numpy(scores.to_numpy(), GAPS)
    assert len(rayinf.trim(unknown, 400, by=GAPS[0]).removed) == (scores.to_numpy()[:, 0] < 0).sum()


def test_a_refit_without_the_trimmed_rows_has_the_predicted_gap(
    fitted: tuple[rayinf.Task, pd.DataFrame, pd.DataFrame],
) -> None:
    task, train, valid = fitted
    scores = rayinf.influence(task, train, valid, "demographic_parity", curvature="exact")
    how: dict[str, Any] = {"retrain": True, "task": task, "train": train, "valid": valid}
    kept = rayinf.trim(scores, 30, **how, objective=["demographic_parity", "robustness"])
    assert kept.before is not None
    assert kept.after is not None
    assert kept.before["demographic_parity"] == pytest.approx(kept.metadata["gap"], rel=1e-4)
    predicted, found = (
        kept.before["demographic_parity"] - v
        for v in (kept.metadata["predicted_gap"], kept.after["demographic_parity"])
    )
    assert predicted > 0.005
    assert found == pytest.approx(predicted, rel=0.35)
    # Attacked rows are those of the task's own model, before and after.
    refit = rayinf.retrain(task, train, keep=kept.mask)
    own = rayinf.evaluate(refit, valid, "robustness", against=task)
    assert kept.after["robustness_accuracy"] == own["robustness_accuracy"]


def test_the_fewest_rows_of_equal_predictions_go() -> None:
    order, all_of = np.array([2, 0, 1]), np.ones(3, bool)
    values = np.array([-0.5, -0.5, -1.0])
    assert use_up(order, all_of, values, 1.0).tolist() == [False, False, True]
    assert use_up(order, all_of, values, 1.25).tolist() == [False, False, True]
    assert use_up(order, all_of, values, 0.4).tolist() == [False, False, False]
    assert use_up(order, all_of, values, 9.0).tolist() == [True, True, True]
    assert use_up(order, np.array([True, True, False]), values, 0.5).tolist() == [True, False, False]
