"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

from rayinf.data import files
from rayinf.data.files import read_arrays, sound_part, sweep, write_arrays, write_json, write_part, write_whole
from rayinf.errors import RunError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ARRAYS = {"b": np.arange(6.0).reshape(2, 3), "a": np.arange(3, dtype=np.float32), "rows": np.array(7.0)}
PART = pa.table({"row_id": np.arange(500), "total": np.random.default_rng(0).normal(size=500)})


def fails_half_way(error: BaseException) -> object:
    def write(path: Path) -> None:
        path.write_text("half of it")
        raise error

    return write


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_whole_file_and_no_temporary(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er" / "x.txt"
    write_whole(file, lambda p: p.write_text("one"))
    write_whole(file, lambda p: p.write_text("two"))
    assert file.read_text() == "two"
    assert everything(tmp_path) == {"deep/er/x.txt"}


@pytest.mark.parametrize("error", [FULL, PermissionError("no"), SafetensorError("I/O error: No space left on device")])
def test_a_full_disk_leaves_what_was_there(error: Exception, tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    with pytest.raises(RunError, match=r"x.txt cannot be written: .*Fix: free space"):
        write_whole(file, fails_half_way(error))
    assert everything(tmp_path) == set()
    file.write_text("old")
    with pytest.raises(RunError) as caught:
        write_whole(file, fails_half_way(error))
    assert caught.value.__cause__ is error
    assert file.read_text() == "old"
    assert everything(tmp_path) == {"x.txt"}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_other_errors_pass_and_leave_no_temporary(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(type(error)):
        write_whole(tmp_path / "x.txt", fails_half_way(error))
    assert (tmp_path / "x.txt").read_text() == "old"
    assert everything(tmp_path) == {"x.txt"}


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_json(tmp_path / "x" / "run.json", {})


@pytest.mark.parametrize("writer", ["save_file", "write_table"])
def test_every_writer_says_that_the_disk_is_full(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own for it."""
    error = FULL if writer == "write_table" else SafetensorError(f"Error while serializing: I/O error: {FULL}")

    def full(_: object, path: Path, **__: object) -> None:
        path.write_text("half")
        raise error

    monkeypatch.setattr(files if writer == "save_file" else files.pq, writer, full)
    write = write_arrays if writer == "save_file" else write_part
    with pytest.raises(RunError, match="No space left"):
        write(tmp_path / "x", ARRAYS if writer == "save_file" else PART)
    assert everything(tmp_path) == set()


def test_temporaries_are_swept(tmp_path: Path) -> None:
    """Those of this package, and those that safetensors makes beside its target."""
    (tmp_path / "factors" / "partial").mkdir(parents=True)
    for name in ("run.json.tmp.00ff", "factors/basis.safetensors.tmp.1", "factors/partial/.tmpAb12Cd"):
        (tmp_path / name).write_text("")
    kept = {"run.json", "factors/basis.safetensors", "scores.parquet", "factors/partial/0-1.safetensors"}
    for name in kept:
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert everything(tmp_path) == kept


# --- Arrays


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    """Their shapes too: a number has no axis."""
    arrays = {**ARRAYS, "turned": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "view": np.arange(20)[::3]}
    write_arrays(tmp_path / "x.safetensors", arrays)
    found = read_arrays(tmp_path / "x.safetensors")
    assert found is not None
    assert sorted(found) == sorted(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    assert everything(tmp_path) == {"x.safetensors"}


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    write_arrays(tmp_path / "1", ARRAYS)
    write_arrays(tmp_path / "2", dict(reversed(ARRAYS.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_others_may_read_arrays_like_any_file(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.safetensors", ARRAYS)
    write_json(tmp_path / "x.json", {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "x.json").stat().st_mode


def test_no_arrays_or_damaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    assert read_arrays(file) is None
    write_arrays(file, ARRAYS)
    whole = file.read_bytes()
    for cut in (0, 5, 40, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert read_arrays(file) is None


# --- Parts


def test_equal_parts_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_part(tmp_path / name, PART)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_sound_part_and_every_damaged_one(tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    columns = ["row_id", "total"]
    assert not sound_part(file, 500, columns)
    write_part(file, PART)
    assert sound_part(file, 500, columns)
    assert not sound_part(file, 499, columns)
    assert not sound_part(file, 500, columns[::-1])
    assert not sound_part(file, 500, ["row_id", "other"])
    whole = file.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert not sound_part(file, 500, columns)
    found = []
    for at in range(4, len(whole), 17):
        held = bytearray(whole)
        held[at] ^= 0xFF
        file.write_bytes(held)
        found.append(not sound_part(file, 500, columns))
        # Some bytes (statistics, the name of the writer) tell nothing of the values.
        assert found[-1] or pq.read_table(file).equals(PART), at
    assert np.mean(found) > 0.9
