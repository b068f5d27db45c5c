"""A file counts while its manifest lists it and its bytes agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from engine.faulty_disk import FaultyDisk, Killed

from rayinf.data import disk
from rayinf.data.checked_folder import MANIFEST, CheckedFolder, Entry
from rayinf.data.files import write_json
from rayinf.errors import RunError


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_bytes().splitlines()]


def test_files_come_back_in_another_process(tmp_path: Path) -> None:
    files = CheckedFolder(tmp_path, "me")
    files.put_json("a/x.json", {"k": [1, 2.5]})
    files.put_table("t.parquet", pa.table({"v": [1, 2, 3]}))
    files.put_arrays("s.safetensors", {"a": np.arange(3.0)})
    again = CheckedFolder(tmp_path, "me")
    assert list(again.names()) == ["a/x.json", "s.safetensors", "t.parquet"]
    assert again.json("a/x.json") == {"k": [1, 2.5]}
    table, arrays = again.table("t.parquet"), again.arrays("s.safetensors")
    assert table is not None and table["v"].to_pylist() == [1, 2, 3]
    assert arrays is not None and arrays["a"].tolist() == [0, 1, 2]
    assert again.is_sound("t.parquet", rows=3)
    assert not again.is_sound("t.parquet", rows=4)


def test_files_of_another_owner_do_not_exist(tmp_path: Path) -> None:
    CheckedFolder(tmp_path, "me").put_json("x.json", {"k": 1})
    other = CheckedFolder(tmp_path, "you")
    assert other.json("x.json") is None
    other.put_json("y.json", {})
    assert list(CheckedFolder(tmp_path, "you").names()) == ["y.json"]
    assert list(CheckedFolder(tmp_path, "me").names()) == []


@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_flipped_bit_a_cut_a_swap_and_an_edited_digit_are_seen(at: int, tmp_path: Path) -> None:
    files = CheckedFolder(tmp_path, "me")
    for k in range(3):
        files.put_arrays(f"{k}.safetensors", {"a": np.arange(4.0) + k})
    files.put_json("x.json", {"accuracy": 0.91})
    whole = (tmp_path / "0.safetensors").read_bytes()
    held = bytearray(whole)
    held[at] ^= 1
    (tmp_path / "0.safetensors").write_bytes(held)
    (tmp_path / "x.json").write_text((tmp_path / "x.json").read_text().replace("0.91", "0.97"))
    one, two = ((tmp_path / f"{k}.safetensors").read_bytes() for k in (1, 2))
    (tmp_path / "1.safetensors").write_bytes(two)
    (tmp_path / "2.safetensors").write_bytes(one)
    for found in (files, CheckedFolder(tmp_path, "me")):  # also by who has checked them before
        assert [found.arrays(f"{k}.safetensors") for k in range(3)] == [None] * 3
        assert found.json("x.json") is None
    (tmp_path / "1.safetensors").write_bytes(one[:-3])
    assert CheckedFolder(tmp_path, "me").arrays("1.safetensors") is None


def test_a_file_that_is_there_but_not_listed_does_not_count(tmp_path: Path) -> None:
    files = CheckedFolder(tmp_path, "me")
    files.put_json("x.json", {})
    write_json(tmp_path / "stray.json", {"k": 1})
    assert files.json("stray.json") is None
    assert not CheckedFolder(tmp_path, "me").is_sound("stray.json")


def test_a_line_that_was_cut_costs_that_file_alone(tmp_path: Path) -> None:
    files = CheckedFolder(tmp_path, "me")
    for k in range(3):
        files.put_json(f"{k}.json", {"k": k})
    whole = (tmp_path / MANIFEST).read_bytes()
    for cut in (2, 40, 100):
        (tmp_path / MANIFEST).write_bytes(whole[:-cut])
        again = CheckedFolder(tmp_path, "me")
        assert list(again.names()) == ["0.json", "1.json"]
        again.put_json("3.json", {"k": 3})  # does not run into the line that was cut
        assert list(CheckedFolder(tmp_path, "me").names()) == ["0.json", "1.json", "3.json"]


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    files = CheckedFolder(tmp_path, "me")
    for k in range(3):
        files.put_json(f"{k}.json", {"k": k})
    whole = (tmp_path / MANIFEST).read_bytes()
    place = whole.index(b"1.json")
    for at in range(place - 10, place + 120, 3):
        held = bytearray(whole)
        held[at] ^= 2
        (tmp_path / MANIFEST).write_bytes(held)
        again = CheckedFolder(tmp_path, "me")
        assert {n for n in again.names() if again.is_sound(n)} == {"0.json", "2.json"}, at


def test_removed_files_are_gone_and_cleaned_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CheckedFolder(tmp_path, "me")
    files.put_json("x.json", {})
    files.put_json("y.json", {})
    files.remove("x.json")
    assert not (tmp_path / "x.json").exists()
    monkeypatch.setattr(disk, "used", FaultyDisk(1, "killed before"))
    with pytest.raises(Killed):
        files.remove("y.json")
    monkeypatch.undo()
    assert (tmp_path / "y.json").exists()
    again = CheckedFolder(tmp_path, "me")
    assert list(again.names()) == []
    again.clean()
    assert not (tmp_path / "y.json").exists()


def test_closing_orders_the_manifest(tmp_path: Path) -> None:
    files = CheckedFolder(tmp_path, "me")
    for k in (2, 0, 1):
        files.put_json(f"{k}.json", {"k": k})
    digest = files.close()
    assert [line.get("file") for line in lines(tmp_path)] == [None, "0.json", "1.json", "2.json"]
    assert digest == files.close()


def test_a_full_disk_keeps_what_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CheckedFolder(tmp_path, "me")
    files.put_json("x.json", {})
    monkeypatch.setattr(disk, "used", FaultyDisk(2, "full"))  # the file is whole, its line is cut
    with pytest.raises(RunError, match=r"manifest.jsonl cannot be written: .*No space left"):
        files.put_json("y.json", {})
    monkeypatch.undo()
    again = CheckedFolder(tmp_path, "me")
    assert list(again.names()) == ["x.json"]
    again.put_json("y.json", {"k": 1})
    assert CheckedFolder(tmp_path, "me").json("y.json") == {"k": 1}


def test_entries_of_other_processes_are_listed(tmp_path: Path) -> None:
    files = CheckedFolder(tmp_path, "me")
    write_json(tmp_path / "x.json", {"k": 1})
    files.add(Entry.of(tmp_path, "x.json", 5))
    assert CheckedFolder(tmp_path, "me").is_sound("x.json", rows=5)
