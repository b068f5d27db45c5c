"""A file that grows line by line, in a store by parts: read as one, joined, and never mixed with what came before."""

from pathlib import Path

import pytest

from rayinf.data import appended
from rayinf.data.appended import AppendedFile, parts, read_appended
from rayinf.data.checked_folder import MANIFEST, CheckedFolder
from rayinf.data.files import try_to_remove
from rayinf.errors import RunError
from rayinf.store.places import open_place


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return tmp_path
    if request.param == "memory":
        place = open_place(f"memory://{tmp_path.name}/{request.node.name.replace('[', '-')}")
    else:
        place = open_place(f"s3://bucket/{tmp_path.name}{request.getfixturevalue('s3').options}")
    try_to_remove(place)
    return place


def lines(path):
    return list(read_appended(path)) if path.exists() or path.parent.is_dir() else []


def test_lines_in_order(folder):
    file = AppendedFile(folder / "log")
    for k in range(5):
        file.append(b"%d\n" % k)
    again = AppendedFile(folder / "log")  # another process goes on
    again.append(b"5\n")
    assert lines(folder / "log") == [b"%d\n" % k for k in range(6)]
    again.join()
    assert lines(folder / "log") == [b"%d\n" % k for k in range(6)]
    assert (folder / "log").read_bytes() == b"0\n1\n2\n3\n4\n5\n"
    again.append(b"6\n")
    assert lines(folder / "log")[-1] == b"6\n"
    assert b"6" in appended.last_bytes(folder / "log", 100)


def test_lines_that_may_wait_are_put_together(folder, monkeypatch):
    file = AppendedFile(folder / "log")
    for k in range(9):
        file.append(b"%d\n" % k, soon=True)
    if not isinstance(folder, Path):
        assert lines(folder / "log") == [b"0\n"]  # the first at once
    file.flush()
    assert len(lines(folder / "log")) == 9
    monkeypatch.setattr(appended, "FLUSH_LINES", 2)
    file.append(b"9\n", soon=True)
    file.append(b"10\n", soon=True)
    assert len(lines(folder / "log")) == 11


def test_many_parts_are_joined(folder, monkeypatch):
    monkeypatch.setattr(appended, "MOST_PARTS", 4)
    file = AppendedFile(folder / "log")
    for k in range(11):
        file.append(b"%d\n" % k)
    assert lines(folder / "log") == [b"%d\n" % k for k in range(11)]
    if not isinstance(folder, Path):
        assert len(parts(folder / "log")) < 4


def test_a_file_that_is_written_anew_has_none_of_its_old_lines(folder, monkeypatch):
    file = AppendedFile(folder / "log")
    file.replace(lambda p: p.write_bytes(b"a\n"))
    file.append(b"old\n")
    for content in (b"b\n", b"a\n", b"a\n"):  # also where the new file is the same as an earlier one
        file.append(b"old\n")
        file.replace(lambda p, content=content: p.write_bytes(content))
        assert lines(folder / "log") == [content]


@pytest.mark.parametrize("folder", ["memory", "s3"], indirect=True)
def test_parts_that_a_crash_left_behind_do_not_count(folder, monkeypatch):
    file = AppendedFile(folder / "log")
    file.append(b"old\n")
    monkeypatch.setattr(AppendedFile, "_remove_parts", lambda self: None)  # killed before they are removed
    file.replace(lambda p: p.write_bytes(b"new\n"))
    monkeypatch.undo()
    assert len(parts(folder / "log")) == 1
    assert lines(folder / "log") == [b"new\n"]
    again = AppendedFile(folder / "log")
    again.append(b"newer\n")
    again.clean()
    assert lines(folder / "log") == [b"new\n", b"newer\n"]
    assert len(parts(folder / "log")) == 1


def test_a_checked_folder(folder):
    files = CheckedFolder(folder, "me")
    files.put_json("a.json", {"x": 1})
    files.put_json("b.json", {"x": 2})
    files.remove("b.json")
    other = CheckedFolder(folder, "me")
    assert list(other.names()) == ["a.json"] and other.json("a.json") == {"x": 1} and other.is_sound("a.json")
    assert not (folder / "b.json").exists()
    digest = other.close()
    assert list(CheckedFolder(folder, "me").names()) == ["a.json"] and len(digest) == 64
    assert list(CheckedFolder(folder, "another").names()) == []
    assert {p.name for p in folder.iterdir()} - {f"{MANIFEST}.parts"} == {"a.json", MANIFEST}


def test_a_damaged_file_in_a_store(s3, bucket, tmp_path):
    place = open_place(f"s3://bucket/{tmp_path.name}{s3.options}")
    files = CheckedFolder(place, "me")
    files.put_json("a.json", {"x": 1})
    files.put_arrays("b.safetensors", {})
    bucket.write(f"{tmp_path.name}/a.json", b"{}")
    bucket.remove(f"{tmp_path.name}/b.safetensors")
    again = CheckedFolder(place, "me")
    assert not again.is_sound("a.json") and again.json("a.json") is None and again.arrays("b.safetensors") is None


@pytest.mark.slow
def test_a_store_that_is_away_is_no_damage(s3, tmp_path, monkeypatch):
    from rayinf.store import retries

    place = open_place(f"s3://bucket/{tmp_path.name}{s3.options}")
    files = CheckedFolder(place, "me")
    files.put_json("a.json", {"x": 1})
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.1)
    s3.stop()
    for ask in (
        lambda: files.json("a.json"),
        lambda: CheckedFolder(place, "me"),
        lambda: files.put_json("b.json", {}),
    ):
        with pytest.raises(RunError, match=r"cannot be reached.*Fix: check the network"):
            ask()
    s3.start()
    assert list(CheckedFolder(place, "me").names()) == ["a.json"]
