"""Columns in tiles: the values of one tile, whatever is stopped, lost or left out meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import small_job as job
from engine import test_on_error as spoilt
from torch import nn

import rayinf
from rayinf.engine import column_tiles, memory, pipeline, scoring

Tables = tuple[Path, Path]
ALL: list[Any] = ["total", "category", "slice:group"]
GAP: list[Any] = ["category", rayinf.demographic_parity(favourable=1), "total"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("tables")
    return job.write(folder / "train.parquet", 60, 1, 20), job.write(folder / "valid.parquet", 30, 2, 15)


def value(tables: Tables, **given: Any) -> rayinf.Scores:
    task = rayinf.Task(job.model(), group="group", transform=given.pop("transform", job.same))
    return rayinf.influence(task, *tables, **{"objective": ALL, "curvature": "kfac", "damping": 1e-3, **given})


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of two groups."""
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 2)


def check_same(found: rayinf.Scores, truth: rayinf.Scores) -> None:
    """Names, order, metadata; and values to the rounding of float32."""
    assert found.columns == truth.columns
    assert found.table["row_id"].equals(truth.table["row_id"])
    a, b = found.to_numpy(), truth.to_numpy()
    assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
    for key in set(truth.metadata) - {"seconds", "objective_values"}:
        assert found.metadata[key] == truth.metadata[key], key
    assert found.metadata["objective_values"] == pytest.approx(truth.metadata["objective_values"])


def leftovers(out: Path) -> list[Path]:
    return [*out.glob("columns-*"), *out.glob("factors/summary-*"), *out.glob("factors/*-[0-9]*")]


@pytest.mark.parametrize(
    ("curvature", "objective", "halves"), [("ekfac", ALL, False), ("kfac", GAP, True), ("identity", ALL, True)]
)
def test_the_values_of_one_tile(
    curvature: str, objective: Any, halves: bool, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"objective": objective, "curvature": curvature, "halves": halves}
    truth = value(tables, **given)
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 2)
    check_same(value(tables, **given), truth)
    check_same(value(tables, **given, out=tmp_path / "run"), truth)
    assert not leftovers(tmp_path / "run")


@pytest.mark.parametrize(("step", "at"), [("score", 1), ("derive", 2), ("take_in", 2)])
@pytest.mark.usefixtures("of_two")
def test_a_run_that_was_stopped_goes_on_in_its_tile(
    step: str, at: int, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bytes; tiles that were done are not begun again."""
    value(tables, out=tmp_path / "whole")
    calls, real = [], getattr(pipeline, step)

    def stopped(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) > at:
            raise KeyboardInterrupt
        return real(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, step, stopped)
        with pytest.raises(KeyboardInterrupt):
            value(tables, out=tmp_path / "run")
    done = len([*(tmp_path / "run").glob("columns-*/part-00002.parquet")])
    passes: list[int] = []
    scored = scoring.Score.__call__

    def counted(self: Any, item: Any) -> Any:
        passes.append(item.index)
        return scored(self, item)

    monkeypatch.setattr(scoring.Score, "__call__", counted)
    value(tables, out=tmp_path / "run")
    assert job.digest(tmp_path / "run") == job.digest(tmp_path / "whole")
    assert len(passes) == 3 * (3 - done)
    assert not leftovers(tmp_path / "run")


@pytest.mark.usefixtures("of_two")
def test_a_damaged_part_of_a_finished_run_is_made_anew(tables: Tables, tmp_path: Path) -> None:
    value(tables, out=tmp_path / "run")
    before = job.digest(tmp_path / "run")
    (tmp_path / "run" / "scores" / "part-00001.parquet").write_bytes(b"")
    value(tables, out=tmp_path / "run")
    assert job.digest(tmp_path / "run") == before


@pytest.mark.parametrize("kept", [False, True])
def test_a_shard_that_fails_in_a_later_tile_has_no_value(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no column: its values of earlier tiles are taken back."""
    monkeypatch.setattr("rayinf.engine.failed_shards._PAUSES", (0.0, 0.0))
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 1)
    good = spoilt.write(tmp_path / "train", spoilt.X)
    prepared, rows = [], scoring.Score.rows
    prepare = scoring.Score.prepare

    def noted(self: Any, arrays: Any) -> None:
        prepared.append(self)
        prepare(self, arrays)

    def failing(self: Any, shard: Any, table: Any = None) -> Any:
        if len(prepared) == 2 and shard.index == 1:
            raise rayinf.errors.RowsError("these rows fail", "mend them.")
        return rows(self, shard, table)

    monkeypatch.setattr(scoring.Score, "prepare", noted)
    monkeypatch.setattr(scoring.Score, "rows", failing)
    out = tmp_path / "run" if kept else None
    with spoilt.SKIPPED:
        found = spoilt.value(good, out, objective="category", curvature="kfac", on_error="skip")
    gaps = np.isnan(np.stack([found.table[c].to_numpy() for c in found.columns]))
    assert gaps[:, 20:40].all() and gaps.sum() == 3 * 20


@pytest.mark.usefixtures("of_two")
def test_validation_rows_without_a_gradient(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some tiles they may have none; of all of them the run is refused."""
    flat = rayinf.Objective("flat", rows=_constant)
    found = value(tables, objective=[flat, "total", "category"])
    assert not found.table["flat"].to_numpy().any() and found.table["category_0"].to_numpy().any()
    with pytest.raises(rayinf.InputError, match="None of the 30 validation rows has a gradient"):
        value(tables, objective=[flat, flat.named("b"), flat.named("c")])


def _constant(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.sum(1) * 0


CLASSES, INPUTS = 128, 90


def head() -> tuple[nn.Linear, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A linear head that is Bayes' rule of its rows, whose inputs differ much in size."""
    rng = np.random.default_rng(0)
    means, size = 0.4 * rng.normal(size=(CLASSES, INPUTS)), np.arange(1, INPUTS + 1) ** -1.0
    parts = []
    for rows in (512, 256):
        y = np.arange(rows) % CLASSES
        parts.append((((means[y] + rng.normal(size=(rows, INPUTS))) * size).astype(np.float32), y))
    model = nn.Linear(INPUTS, CLASSES)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(means / size))
        model.bias.copy_(torch.from_numpy(-(means**2).sum(1) / 2))
    return model, *parts


def test_thin_queries_of_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two validation rows a class: as near to the values in float64 as dense ones are."""
    model, train, valid = head()
    seen: list[str] = []
    prepare = scoring.Score.prepare

    def noted(self: Any, arrays: Any) -> None:
        seen.extend(k for k in arrays if k.startswith(("U/", "left/")))
        prepare(self, arrays)

    monkeypatch.setattr(scoring.Score, "prepare", noted)

    def values(**more: Any) -> np.ndarray:
        return rayinf.influence(rayinf.Task(model), train, valid, "category", curvature="kfac", **more).to_numpy()

    truth, dense = values(precision="fp64"), values()
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 48)
    found = values()
    assert seen == ["U/"] * 2 + ["left/"] * 3
    size = np.abs(truth).max()
    assert np.abs(found - truth).max() <= max(1.5 * np.abs(dense - truth).max(), 1e-6 * size)
    assert np.abs(found - dense).max() <= 2e-6 * size


def test_tiles_of_targets(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; a gap is never divided; at least some columns of a large model, and one of the largest."""
    held: list[Any] = []
    monkeypatch.setattr(memory, "check_fits", lambda *given: held.append(given))
    monkeypatch.setattr("rayinf.engine.run.check_fits", lambda *given: held.append(given))
    value(tables, objective=GAP)
    given, probed = held[0][:2]
    assert column_tiles.column_tiles(given, probed) == [((0, 3), (0, 2), (0, 1))]
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 2)
    tiles = column_tiles.column_tiles(given, probed)
    none = (0, 0)
    assert tiles == [((0, 2), none, none), ((2, 3), none, none), (none, (0, 2), none), (none, none, (0, 1))]
    monkeypatch.undo()
    each = 4 * (2 * probed.parameters + 2 * probed.blocks[0].numel)
    monkeypatch.setattr(column_tiles, "TILE_BYTES", 30 * each)
    assert column_tiles.columns_at_once(given, probed) == 30
    monkeypatch.setattr(column_tiles, "TILE_BYTES", 3 * each)
    assert column_tiles.columns_at_once(given, probed) == 16
    monkeypatch.setattr(column_tiles, "MOST_BYTES", 10 * each - 1)
    assert column_tiles.columns_at_once(given, probed) == 9
    monkeypatch.setattr(column_tiles, "MOST_BYTES", 0)
    monkeypatch.setattr(column_tiles, "TILE_BYTES", 0)
    assert column_tiles.columns_at_once(given, probed) == 1


def test_what_is_refused_is_a_tile(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes, not those of all columns."""
    needs: list[Any] = []
    real = memory.query_bytes
    monkeypatch.setattr(memory, "query_bytes", lambda *given: needs.append(real(*given)) or needs[-1])
    value(tables, objective="category")
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 1)
    value(tables, objective="category")
    whole, tile = needs[0], needs[-1]
    assert tile.size * 3 == whole.size
    assert tile.what.startswith("1 column over") and tile.what.endswith("(a tile of 3 columns)")


def test_a_plan_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are those of a tile, and of thin queries."""
    model, train, valid = head()
    monkeypatch.setattr(column_tiles, "columns_at_once", lambda *given: 32)
    monkeypatch.setattr("rayinf.engine.plan._SECONDS", 0.0)
    cost = rayinf.plan(rayinf.Task(model), train, valid, "category", curvature="kfac")
    memory_of = {s.name: s.memory for s in cost.stages}
    fixed = memory_of["scan train"]
    # Sums in float64, queries in float32, and a copy of the sums; a rank of 6 for each of two rows.
    assert memory_of["queries"] - fixed == (8 + 4 + 8) * 32 * CLASSES * (INPUTS + 1)
    assert memory_of["scores"] - fixed == 2 * 4 * 32 * 12 * (CLASSES + INPUTS + 1)


def test_the_same_bytes_on_a_cluster(ray_session: None, tables: Tables, tmp_path: Path, of_two: None) -> None:
    value(tables, out=tmp_path / "here")
    value(tables, out=tmp_path / "there", cluster=rayinf.Cluster(workers=2))
    assert job.digest(tmp_path / "here") == job.digest(tmp_path / "there")
    assert not leftovers(tmp_path / "there")
