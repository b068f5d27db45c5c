"""Whether files of a table have changed, without reading them."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayinf
from rayinf.data.changes import have_changed, in_order
from rayinf.data.tables import as_table


@pytest.fixture
def folder(tmp_path):
    """Three files."""
    for k in range(3):
        pq.write_table(pa.table({"x": np.arange(4.0) + k}), tmp_path / f"{k}.parquet")
    return tmp_path


def stat_of(given):
    return as_table(given, [], [], "train").stat


def test_files_that_are_left_alone_have_not_changed(folder, monkeypatch):
    given = [str(folder / "1.parquet"), folder / "0.parquet"]
    stats = [(stat_of(g), g) for g in (folder, str(folder), given)]
    monkeypatch.setattr(pq, "ParquetFile", None)  # no footer is read again
    assert not any(have_changed(stat, g, "train") for stat, g in stats)


@pytest.mark.parametrize("change", ["time", "size", "inode", "another file", "one file less", "order"])
def test_any_change_is_seen(folder, change):
    given = sorted(folder.glob("*.parquet")) if change == "order" else folder
    stat, file = stat_of(given), folder / "1.parquet"
    state = file.stat()
    if change == "time":
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    elif change == "size":
        with file.open("ab") as opened:
            opened.write(b"\0")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "inode":
        shutil.copy2(file, folder / "copy")
        (folder / "copy").rename(file)
    elif change == "another file":
        shutil.copy2(file, folder / "9.parquet")
    elif change == "one file less":
        file.unlink()
    else:
        given = given[::-1]
    assert have_changed(stat, given, "train")


def test_files_that_are_gone_are_refused(folder):
    given = sorted(folder.glob("*.parquet"))
    stat = stat_of(given)
    given[2].unlink()
    with pytest.raises(rayinf.InputError, match=r"2\.parquet"):
        have_changed(stat, given, "train")


def test_a_table_in_memory_does_not_change():
    table = pa.table({"x": np.arange(4.0)})
    assert not have_changed(stat_of(table), table, "train")


def test_files_are_looked_at_in_order():
    assert list(in_order(len, ["a" * k for k in range(200)])) == list(range(200))
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda file: 1 / len(file), ["a", ""]))
