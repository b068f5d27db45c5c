"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors import SafetensorError

from rayinf.data import files, process
from rayinf.data.files import read_arrays, sweep, temporary, write_arrays, write_json, write_part, write_whole
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


def test_temporaries_of_dead_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    """Not those of a process that is alive, and not a user's file that looks alike."""
    (tmp_path / "factors" / "partial").mkdir(parents=True)
    with process.mark() as mark:
        dead_pid = f"{mark[:8]}{2**22 + 1:08x}{0:08x}{0:08x}"  # over the largest process number
        other_machine = f"{'0' * 8}{mark[8:]}"
    dead = [f"run.json.tmp.{dead_pid}", f"factors/b.safetensors.tmp.{dead_pid}"]
    kept = {"run.json", ".tmpnote", "note.tmp.txt", "factors/partial/.tmpAb12Cd", "x.tmp.00ff"}
    for name in {*dead, *kept, f"x.tmp.{other_machine}"}:
        (tmp_path / name).write_text("")
    (tmp_path / f"factors/c.safetensors.tmp.{dead_pid}").mkdir()
    (tmp_path / f"factors/c.safetensors.tmp.{dead_pid}" / "tensors").write_text("half")
    with temporary(tmp_path / "alive.json") as alive:
        alive.write_text("half")
        sweep(tmp_path, elsewhere=False)
        assert everything(tmp_path) == {*kept, f"x.tmp.{other_machine}", alive.name}
        sweep(tmp_path)
        assert everything(tmp_path) == {*kept, alive.name}
    assert everything(tmp_path) == kept
    assert not (tmp_path / f"factors/c.safetensors.tmp.{dead_pid}").exists()


# --- Arrays


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    """Their shapes too: a number has no axis."""
    arrays = {**ARRAYS, "transposed": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "view": np.arange(20)[::3]}
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
