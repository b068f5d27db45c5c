"""Online trimming: each batch valued and trimmed on its own, endless streams, stopped ones, and bad batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import rayinf
from rayinf.errors import InputError

FEATURES = ["a", "b"]


def frame(seed: int, n: int = 80) -> pd.DataFrame:
    """Noisy labels; a column that is no feature."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = (x.sum(1) + 0.7 * rng.normal(size=n) > 0).astype(int)
    y = np.where(rng.random(n) < 0.3, 1 - y, y)
    return pd.DataFrame(x, columns=FEATURES).assign(label=y, origin=[f"{seed}-{k}" for k in range(n)])


def endless(taken: list[int]) -> Iterator[pd.DataFrame]:
    seed = 0
    while True:
        taken.append(seed)
        yield frame(seed)
        seed += 1


@pytest.fixture(scope="module")
def task() -> rayinf.Task:
    return rayinf.logistic_regression(frame(99), l2=1e-2, features=FEATURES)


VALID = frame(100, 120)


def test_each_batch_is_valued_under_its_own_model_and_trimmed(task: rayinf.Task) -> None:
    taken: list[int] = []
    parts = list(islice(rayinf.trim_stream(task, endless(taken), VALID, 0.1), 3))
    assert taken == [0, 1, 2]
    for k, part in enumerate(parts):
        batch = frame(k)
        model = rayinf.retrain(task, batch)
        scores = rayinf.influence(model, batch, VALID, curvature="exact")
        np.testing.assert_array_equal(part.scores.to_numpy(), scores.to_numpy())
        assert part.index == k
        assert part.selection.removed.tolist() == rayinf.trim(scores, 8).removed.tolist()
        kept = batch.drop(index=part.selection.removed)
        pd.testing.assert_frame_equal(part.table.to_pandas(), kept.reset_index(drop=True))
        assert len(part.table) == 72


@pytest.mark.parametrize(("budget", "gone"), [(3, 3), (500, None), (0.5, None)])
def test_budgets(task: rayinf.Task, budget: float, gone: int | None) -> None:
    """Never more than the rows that harm."""
    (part,) = rayinf.trim_stream(task, [frame(0)], VALID, budget)
    harmful = int((part.scores.to_numpy() < 0).sum())
    assert len(part.selection.removed) == (min(harmful, 40) if budget == 0.5 else gone or harmful)


def test_without_refit_a_learner_is_followed() -> None:
    """The module is trained on between batches, and each batch is valued under what it then is."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    task = rayinf.Task(model, features=FEATURES, l2=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    found, expected = [], []
    for k, part in enumerate(rayinf.trim_stream(task, map(frame, range(3)), VALID, refit=False)):
        found.append(part.scores.to_numpy())
        expected.append(rayinf.influence(task, frame(k), VALID, curvature="exact").to_numpy())
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.5)
        before = [p.detach().clone() for p in model.parameters()]
    np.testing.assert_array_equal(found, expected)


def test_forms_of_tables_and_a_batch_without_a_class(task: rayinf.Task, tmp_path: Path) -> None:
    frame(1).to_parquet(tmp_path / "b.parquet", row_group_size=30)
    ones = frame(2).assign(label=1)
    given: list[Any] = [pa.Table.from_pandas(frame(0)), tmp_path / "b.parquet", str(tmp_path / "b.parquet"), ones,
                        (frame(3)[FEATURES].to_numpy(), frame(3)["label"].to_numpy())]  # fmt: skip
    parts = list(rayinf.trim_stream(task, given, VALID, objective=["total", "category"], by="category_1"))
    assert parts[1].selection.removed.tolist() == parts[2].selection.removed.tolist()
    assert parts[1].table.to_pandas()["origin"].str.startswith("1-").all()
    assert parts[4].table.column_names == [*FEATURES, "label"]
    assert [p.index for p in parts] == list(range(5))


def test_a_stopped_stream_goes_on(task: rayinf.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(islice(rayinf.trim_stream(task, endless([]), VALID, out=tmp_path / "s"), 2))
    from rayinf.engine import scoring

    valued: list[int] = []
    before = scoring.Score.table

    def counted(self: Any, shard: Any) -> Any:
        valued.append(1)
        return before(self, shard)

    monkeypatch.setattr(scoring.Score, "table", counted)
    again = list(islice(rayinf.trim_stream(task, endless([]), VALID, out=tmp_path / "s"), 2))
    assert not valued
    for a, b in zip(first, again, strict=True):
        assert a.table.equals(b.table)
        assert (
            pq.read_table(tmp_path / "s" / f"batch-{a.index:05d}" / "kept.parquet").to_pylist() == a.table.to_pylist()
        )
    list(islice(rayinf.trim_stream(task, endless([]), VALID, out=tmp_path / "s"), 3))
    assert valued
    with pytest.raises(InputError, match=r"Batch 0 of the stream: .*another"):
        list(rayinf.trim_stream(task, [frame(7)], VALID, out=tmp_path / "s"))


@pytest.mark.parametrize("budget", [0, 1.0, -0.1, 0.0, True, float("nan"), "10%", -3])
def test_budgets_that_are_none(task: rayinf.Task, budget: Any) -> None:
    with pytest.raises(InputError, match="budget must be a share in") as caught:
        rayinf.trim_stream(task, [frame(0)], VALID, budget)
    assert "Fix: " in str(caught.value)


@pytest.mark.parametrize(
    "batches", [frame(0), "b.parquet", Path("b"), pa.table({"a": [1]}), (np.ones((3, 2)), np.ones(3)), 5]
)
def test_what_is_no_stream(task: rayinf.Task, batches: Any) -> None:
    with pytest.raises(InputError, match=r"batches=.*(is a single table|must be an iterable of tables)") as caught:
        rayinf.trim_stream(task, batches, VALID)
    assert "Fix: " in str(caught.value)


BAD = {
    "has no rows": frame(0).iloc[:0],
    "no column 'b'": frame(0).drop(columns="b"),
    "is null in row 0": frame(0).assign(a=np.nan),
    "which is not a table": 3,
    "label": frame(0).assign(label=7),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_batch_is_named_and_earlier_ones_are_not_lost(task: rayinf.Task, what: str) -> None:
    stream = rayinf.trim_stream(task, [frame(0), frame(1), BAD[what]], VALID)
    assert [next(stream).index, next(stream).index] == [0, 1]
    with pytest.raises(InputError, match=rf"Batch 2 of the stream: .*{what}") as caught:
        next(stream)
    assert str(caught.value).count("Fix: ") == 1
