"""Columns in tiles: the values of one tile, whatever is stopped, lost or left out meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine import small_job as job

import rayinf
from rayinf.engine import column_tiles

OBJECTIVES: dict[str, Any] = {
    "all": ["total", "category", "slice:group"],
    "gap": ["category", "demographic_parity", "total"],
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return job.write(folder / "train.parquet", 200, 1, 50), job.write(folder / "valid.parquet", 60, 2, 30)


def value(tables: tuple[Path, Path], objective: Any = "all", **given: Any) -> rayinf.Scores:
    if objective == "gap":
        favourable = rayinf.demographic_parity(favourable=1)
        given = {"objective": ["category", favourable, "total"], **given}
    task = rayinf.Task(job.model(), group="group", transform=given.pop("transform", job.same))
    return rayinf.influence(task, *tables, **{"objective": OBJECTIVES["all"], **given})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of two groups."""
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 2)


def same(found: rayinf.Scores, truth: rayinf.Scores) -> None:
    """Names, order, metadata, and values to the rounding of float32."""
    assert found.columns == truth.columns
    assert found.table["row_id"].equals(truth.table["row_id"])
    a, b = found.to_numpy(), truth.to_numpy()
    assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
    known = [{k: v for k, v in s.metadata.items() if k not in ("seconds", "of")} for s in (found, truth)]
    for key, held in known[1].items():
        assert known[0][key] == (pytest.approx(held) if key == "objective_values" else held), key


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("objective", ["all", "gap"])
@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "identity"])
def test_the_values_of_one_tile(
    curvature: str,
    objective: str,
    halves: bool,
    tables: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"objective": objective, "curvature": curvature, "halves": halves, "damping": 1e-3}
    truth = value(tables, **given)
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 2)
    same(value(tables, **given), truth)
    same(value(tables, **given, out=tmp_path / "run"), truth)
    assert not [*(tmp_path / "run").glob("columns-*"), *(tmp_path / "run" / "factors").glob("s*-*")]
