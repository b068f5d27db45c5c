"""An `out` inside a table's folder is refused by every loop before anything is trained, asked or written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training import small_learning as small

import rayinf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Labelled rows in a folder of their own."""
    x, y = small.LABELED
    where = tmp_path / "table"
    where.mkdir()
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    pq.write_table(pa.table({"features": features, "label": y}), where / "t.parquet")
    return where


def scores() -> rayinf.Scores:
    return rayinf.influence(small.task(), small.LABELED, small.TEST, objective="category", curvature="identity")


def fitted() -> rayinf.Task:
    task = small.task()
    return rayinf.Task(task.model, l2=task.l2, fit=rayinf.Fit(epochs=1, batch_size=8), classes=task.classes)


class WorkDoneError(Exception):
    """Something was trained, or asked."""


def forbidden(*given: Any, **more: Any) -> Any:
    raise WorkDoneError


LOOPS: dict[str, Callable[[Path, Path], Any]] = {
    "active_learning": lambda t, out: small.learn(pool=t, oracle=forbidden, out=out),
    "active_learning, labeled": lambda t, out: small.learn(labeled=str(t), oracle=forbidden, out=out),
    "active_learning, test": lambda t, out: small.learn(test=[t], oracle=forbidden, out=out),
    "acquire": lambda t, out: rayinf.acquire(small.task(), small.LABELED, t, 2, "entropy", out=out),
    "removal_check": lambda t, out: rayinf.removal_check(small.task(), t, small.TEST, small.TEST, scores(), out=out),
    "lds": lambda t, out: rayinf.lds(small.task(), t, small.TEST, scores(), subsets=3, out=out),
    "pareto_reweight": lambda t, out: rayinf.pareto_reweight(fitted(), t, small.TEST, scores(), targets=[0], out=out),
    "trim_stream": lambda t, out: list(rayinf.trim_stream(small.task(), [t], small.TEST, budget=0.1, out=out)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_an_out_inside_a_table(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("active_learning", "trim_stream"):
        monkeypatch.setattr(f"rayinf.api.{module}.train_anew", forbidden)
    for module in ("api.removal_check", "training.subset_trainings"):
        monkeypatch.setattr(f"rayinf.{module}.Retraining", forbidden)
    with pytest.raises(rayinf.InputError, match=r"lies inside .*outside the table"):
        LOOPS[name](folder, folder / "run")
    assert [p.name for p in folder.iterdir()] == ["t.parquet"]
    # Elsewhere it goes on: to the training that is forbidden here, or to its end.
    with suppress(WorkDoneError):
        LOOPS[name](folder, tmp_path / "run")


def test_a_list_of_paths_in_the_loops(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as one table, and relative ones wherever the process may be."""
    monkeypatch.chdir(folder)
    x, y = small.TEST
    for k, rows in enumerate((slice(0, 40), slice(40, 90))):
        features = pa.FixedSizeListArray.from_arrays(pa.array(x[rows].reshape(-1)), x.shape[1])
        pq.write_table(pa.table({"features": features, "label": y[rows]}), tmp_path / f"test{k}.parquet")
    test = ["../test0.parquet", Path("../test1.parquet")]
    assert small.measures(small.learn(test=test, rounds=1)) == small.measures(small.learn(rounds=1))
    found = rayinf.removal_check(small.task(), ["t.parquet"], small.TEST, test, scores(), share=0.2)
    plain = rayinf.removal_check(small.task(), small.LABELED, small.TEST, small.TEST, scores(), share=0.2)
    assert found.table.to_pandas().round(9).equals(plain.table.to_pandas().round(9))
