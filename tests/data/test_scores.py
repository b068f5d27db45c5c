"""Scores in memory and on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.samples import VALID, X, Y, close, naive, table, task
from run_folders import edit_record

import rayinf
from rayinf import Scores

VALUES = np.arange(12.0).reshape(4, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five shards, with ids, two objectives and halves."""
    folder = tmp_path_factory.mktemp("scores")
    pq.write_table(table(X, Y, id=[f"r{k}" for k in range(90)]), folder / "t.parquet", row_group_size=20)
    rayinf.influence(
        task(row_id="id"),
        folder / "t.parquet",
        VALID,
        objective=["total", "category"],
        curvature="identity",
        halves=True,
        out=folder / "run",
    )
    return folder / "run"


# --- From numbers of any origin


def test_from_numpy() -> None:
    scores = Scores.from_numpy(VALUES, ["a", "b", "c"])
    assert scores.columns == ["a", "b", "c"]
    assert len(scores) == 4
    np.testing.assert_array_equal(scores.to_numpy(), VALUES)
    assert scores.table.schema.names == ["row_id", "a", "b", "c"]
    assert scores.table["row_id"].to_pylist() == [0, 1, 2, 3]
    assert scores.halves is None
    assert scores.path is None
    frame = scores.to_pandas()
    assert frame.columns.tolist() == ["row_id", "a", "b", "c"]
    assert frame["b"].tolist() == [1.0, 4.0, 7.0, 10.0]


@pytest.mark.parametrize("values", [[1, 2, 3], np.array([[1], [2], [3]], np.int8), np.float32([1, 2, 3])])
def test_from_numpy_of_one_column(values: Any) -> None:
    scores = Scores.from_numpy(values, ["fi"])
    np.testing.assert_array_equal(scores.to_numpy(), [[1.0], [2.0], [3.0]])
    assert scores.table.schema.field("fi").type == pa.float64()


@pytest.mark.parametrize("ids", [["d", "b", "a", "c"], np.array([7, 5, 9, -1]), pa.array([4, 3, 2, 1])])
def test_from_numpy_with_ids(ids: Any) -> None:
    scores = Scores.from_numpy(VALUES, ["a", "b", "c"], row_ids=ids)
    assert scores.table["row_id"].to_pylist() == (ids.to_pylist() if isinstance(ids, pa.Array) else list(ids))
    np.testing.assert_array_equal(scores.to_numpy(), VALUES)


@pytest.mark.parametrize(
    ("values", "columns", "ids", "message"),
    [
        (VALUES, ["a", "b"], None, r"\(4, 3\)"),
        (VALUES, ["a", "b", "b"], None, "one name a column"),
        (VALUES, ["a", "b", "row_id"], None, "row_id"),
        (VALUES[None], ["a", "b", "c"], None, r"\(1, 4, 3\)"),
        (VALUES, ["a", "b", "c"], [1, 2, 3], "row_ids holds 3 ids"),
        (VALUES, ["a", "b", "c"], [1, 2, 3, 1], "3 different"),
        (np.where(VALUES == 7, np.nan, VALUES), ["a", "b", "c"], None, r"values\[2, 1\] is nan"),
        (np.where(VALUES == 7, np.inf, VALUES), ["a", "b", "c"], None, r"values\[2, 1\] is inf"),
    ],
)
def test_what_from_numpy_refuses(values: Any, columns: list[str], ids: Any, message: str) -> None:
    with pytest.raises(rayinf.InputError, match=message):
        Scores.from_numpy(values, columns, ids)


# --- Of a run


def test_a_run_in_a_folder_and_in_memory_agree(run: Path) -> None:
    t = pq.read_table(run.parent / "t.parquet")
    memory = rayinf.influence(
        task(row_id="id"), t, VALID, objective=["total", "category"], curvature="identity", halves=True
    )
    disk = Scores.load(run)
    assert memory.columns == disk.columns == ["total", "category_0", "category_1", "category_2"]
    assert disk.path == run
    assert memory.path is None
    assert len(memory) == len(disk) == 90
    assert memory.table["row_id"].to_pylist() == disk.table["row_id"].to_pylist() == t["id"].to_pylist()
    assert close(memory.to_numpy(), disk.to_numpy())
    assert close(disk.to_numpy()[:, 0], naive(X, Y, VALID))
    assert disk.to_pandas()["category_1"].tolist() == disk.to_numpy()[:, 2].tolist()


def test_halves_add_up(run: Path) -> None:
    """Each half is some rows of the validation set, and they are all of it."""
    scores = Scores.load(run)
    assert scores.halves is not None
    first, second = scores.halves
    for half in (first, second):
        assert half.columns == scores.columns
        assert half.table["row_id"].to_pylist() == scores.table["row_id"].to_pylist()
        assert half.halves is None
        assert not close(half.to_numpy(), scores.to_numpy())
    assert close(first.to_numpy() + second.to_numpy(), scores.to_numpy())


def test_metadata(run: Path) -> None:
    held = Scores.load(run).metadata
    assert held["rows"] == {"train": 90, "valid": 30}
    assert held["classes"] == {"0": 0, "1": 1, "2": 2}
    assert held["curvature"] == "identity"
    assert set(held["objective_values"]) == {"total", "category_0", "category_1", "category_2"}
    assert "positive: the row helps" in held["sign"]


def test_scores_are_read_when_asked_for(run: Path, tmp_path: Path) -> None:
    """Columns, and the number of rows, come from the footers alone; values only when they are read."""
    copy = copied(run, tmp_path)
    scores = Scores.load(copy)
    file = copy / "scores" / "part-00003.parquet"
    held = bytearray(file.read_bytes())
    held[4:400] = bytes(396)
    file.write_bytes(held)
    assert scores.columns[0] == "total"
    assert len(scores) == 90
    with pytest.raises(rayinf.InputError, match="damaged"):
        _ = scores.table


def test_a_run_in_the_home_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    copied(run, tmp_path)
    assert len(Scores.load("~/run")) == 90


def test_scores_cannot_be_set(run: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scores.load(run).path = None  # type: ignore[misc]


# --- A folder that is none


def copied(run: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, to / "run"))


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(rayinf.InputError, match=f"{folder} holds no run"):
            Scores.load(folder)


def test_an_unfinished_run(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    edit_record(copy, status="running")
    with pytest.raises(rayinf.InputError, match="is not finished"):
        Scores.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_run_file(text: str, run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    (copy / "run.json").write_text(text)
    with pytest.raises(rayinf.InputError, match=r"run.json is damaged"):
        Scores.load(copy)


def test_shards_that_are_gone(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path)
    (copy / "scores" / "part-00002.parquet").unlink()
    with pytest.raises(rayinf.InputError, match="holds 4 of 5 shards"):
        Scores.load(copy)


@pytest.mark.parametrize("index", [0, 4])
def test_a_shard_of_other_columns(index: int, run: Path, tmp_path: Path) -> None:
    """A column that it lacks is not read as nulls."""
    copy = copied(run, tmp_path)
    file = copy / "scores" / f"part-{index:05d}.parquet"
    held = pq.read_table(file)
    pq.write_table(held.drop_columns("category_1"), file)
    with pytest.raises(rayinf.InputError, match=r"damaged or gone: has .* bytes instead of"):
        Scores.load(copy).to_numpy()


@pytest.mark.parametrize("index", [0, 4])
def test_a_damaged_shard(index: int, run: Path, tmp_path: Path) -> None:
    """Cut short, or with any byte changed (some of them): it is refused."""
    copy = copied(run, tmp_path)
    true = Scores.load(copy).to_numpy()
    file = copy / "scores" / f"part-{index:05d}.parquet"
    whole = file.read_bytes()
    for damage in (whole[:-9], whole[: len(whole) // 2], b""):
        file.write_bytes(damage)
        with pytest.raises(rayinf.InputError, match=r"damaged.*Fix: run the same command again, which makes it anew"):
            Scores.load(copy).to_numpy()
    for at in range(0, len(whole), 19):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :])
        with pytest.raises(rayinf.InputError, match="another checksum"):
            Scores.load(copy).to_numpy()
    file.write_bytes(whole)
    np.testing.assert_array_equal(Scores.load(copy).to_numpy(), true)
