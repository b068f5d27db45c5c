"""Against pyarrow's own list of a folder, over links, loops, pipes and names that are not UTF-8."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

import rayinf
from rayinf.data.local_files import walk
from rayinf.data.tables import as_table


def nothing(folder: Path) -> None:
    """Only what every folder here has."""


def links(folder: Path) -> None:
    (folder / "file").symlink_to("a.parquet")
    (folder / "folder").symlink_to(folder / "deep" / "deeper")
    (folder / "nowhere").symlink_to("away")
    (folder / "self").symlink_to("self")


def loop(folder: Path) -> None:
    (folder / "deep" / "up").symlink_to("..")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("more", [nothing, links, loop, pipe])
def test_all_files(more: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper" / ".hidden").mkdir(parents=True)
    for name in ("a.parquet", "_b", "deep/c", "deep/deeper/d", "deep/deeper/.hidden/e"):
        (tmp_path / name).touch()
    more(tmp_path)
    listed = pafs.LocalFileSystem().get_file_info(pafs.FileSelector(str(tmp_path), recursive=True))
    assert sorted(walk(str(tmp_path))) == sorted(i.path for i in listed if i.is_file)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    """It is found; a table refuses it."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet")
    Path(odd).touch()
    assert list(walk(str(tmp_path))) == [odd]
    with pytest.raises(rayinf.InputError, match="cannot be opened: 'utf-8' codec can't decode"):
        as_table(tmp_path, [], [], "train")


def test_links_that_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").touch()
    (tmp_path / "link").symlink_to("deep")
    assert list(walk(str(tmp_path), links=False)) == [str(tmp_path / "deep" / "a")]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    assert list(walk(str(tmp_path / "gone"))) == []
