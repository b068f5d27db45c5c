"""The files of a path, in order, and errors for files and file systems that cannot be read."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from data.fake_s3 import bucket
from data.samples import VALID, X, Y, close, naive, table, task

import rayinf
from rayinf.data import sources
from rayinf.data.kept_table import KeptTable
from rayinf.data.sources import could_hold
from rayinf.data.tables import as_table, files_of
from rayinf.data.unreadable import corrupt

TRUE = naive(X, Y, VALID)


def value(train: Any, **arguments: Any) -> rayinf.Scores:
    return rayinf.influence(task(), train, VALID, curvature="identity", **arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ninety rows in three files, in order of their names."""
    where = tmp_path / "table"
    (where / "deep").mkdir(parents=True)
    for name, start, stop in (("a.parquet", 0, 40), ("b.parquet", 40, 41), ("deep/0.pq", 41, 90)):
        pq.write_table(table(X[start:stop], Y[start:stop]), where / name)
    return where


def decoy(path: Path) -> None:
    """Rows of the table once more, where they must not be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(X[:7], Y[:7]), path)


HIDDEN = (
    ".ipynb_checkpoints/a-checkpoint.parquet",
    "._a.parquet",
    ".hidden.parquet",
    "_temporary/0/part.parquet",
    "_delta_log/00.checkpoint.parquet",
    "deep/.cache/x/y.parquet",
    "deep/_metadata.parquet",
)


@pytest.mark.parametrize("form", ["folder", "glob", "URI"])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_folders_are_not_data(name: str, form: str, folder: Path) -> None:
    decoy(folder / name)
    for other in ("_SUCCESS", "_metadata", ".DS_Store", "deep/notes.txt"):
        (folder / other).write_text("")
    given = {"folder": folder, "glob": str(folder / "**" / "*.p*[qt]"), "URI": folder.as_uri()}[form]
    assert close(value(given).to_numpy()[:, 0], TRUE)
    # Else the rows would count twice, and every value would shrink.
    assert not close(naive(np.r_[X, X[:7]], np.r_[Y, Y[:7]], VALID)[:90], TRUE)


def test_what_was_asked_for_by_name_is_read(tmp_path: Path) -> None:
    """A hidden file, the files of a hidden folder, and a folder under a hidden one."""
    for name in ("_x/t.parquet", ".y/z/_t.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(table(X, Y), tmp_path / name)
    for given in ("_x/t.parquet", "_x", "_x/*.parquet", "_*/*.parquet", ".y/z/_t.parquet", ".y/z/_*.parquet"):
        assert close(value(str(tmp_path / given)).to_numpy()[:, 0], TRUE), given
    with pytest.raises(rayinf.InputError, match=r"no Parquet file at .* that is data: 1 lie in .*begin with \. or _"):
        value(tmp_path / ".y")


def test_a_run_in_the_folder_of_the_table_is_not_data(folder: Path) -> None:
    run = folder / "deep" / "run"
    value((X, Y), out=run)
    decoy(run / "trim" / "kept.parquet")
    assert close(value(folder).to_numpy()[:, 0], TRUE)
    for text in ("{", "null"):  # cut short, or damaged: still a run
        (run / "run.json").write_text(text)
        assert close(value(folder).to_numpy()[:, 0], TRUE)
    (run / "run.json").write_text('{"experiment": 5}')  # someone else's file of that name hides nothing
    with pytest.raises(rayinf.InputError, match="other columns or types"):
        value(folder)


def test_a_folder_that_is_nothing_but_a_run(tmp_path: Path) -> None:
    value((X, Y), out=tmp_path / "tables" / "run")
    with pytest.raises(rayinf.InputError, match="it is the folder of a run"):
        value(tmp_path / "tables" / "run")
    with pytest.raises(rayinf.InputError, match=r"that is data: 1 lie in run folders"):
        value(tmp_path / "tables")


def test_the_files_in_the_order_in_which_they_are_read(folder: Path, tmp_path: Path) -> None:
    names = [str(folder / n) for n in ("a.parquet", "b.parquet", "deep/0.pq")]
    assert value(folder).metadata["files"] == names
    assert value(folder, out=tmp_path / "run").metadata["files"] == names
    assert rayinf.Scores.load(tmp_path / "run").metadata["files"] == names
    assert value((X, Y)).metadata["files"] == []
    opened = as_table(folder, [], [], "train")
    assert files_of(KeptTable(opened, np.arange(90) > 5)) == names


def test_a_list_of_paths_in_its_own_order(folder: Path) -> None:
    rest = [str(folder / "b.parquet"), folder / "deep"]
    scores = value([*rest, str(folder / "a*.parquet")])
    assert scores.metadata["files"] == [str(folder / n) for n in ("b.parquet", "deep/0.pq", "a.parquet")]
    assert close(scores.to_numpy()[:, 0], TRUE[np.r_[40:90, 0:40]])
    with pytest.raises(rayinf.InputError, match=r"names the file .*b.parquet 2 times"):
        value([folder, folder / "b.parquet"])
    with pytest.raises(rayinf.InputError, match="no Parquet file at"):
        value([folder, folder / "nowhere"])


# --- out


@pytest.mark.parametrize("form", ["folder", "glob", "deeper glob", "link"])
def test_an_out_inside_the_table_is_refused_before_any_work(form: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    before = sorted(folder.rglob("*"))
    given = {
        "folder": folder,
        "glob": str(folder / "**" / "*.p*"),
        "deeper glob": str(tmp_path / "*" / "*" / "*.pq"),
        "link": tmp_path / "link",
    }[form]
    for name in ("train", "valid"):
        tables = {"train": (X, Y), "valid": VALID, name: given}
        with pytest.raises(rayinf.InputError, match=rf"lies inside {name} .*outside the table"):
            rayinf.influence(task(), **tables, curvature="identity", out=folder / "run")
    assert sorted(folder.rglob("*")) == before


def test_an_out_beside_the_table_is_fine(folder: Path, tmp_path: Path) -> None:
    for k, given in enumerate((folder / "a.parquet", str(folder / "*.parquet"), [folder / "b.parquet"])):
        assert value(given, out=folder / f"run{k}").path is not None
    assert value(folder, out=tmp_path / "table2").path is not None
    with pytest.raises(rayinf.InputError, match="is a file of train"):
        value(folder, out=folder / "a.parquet")


def test_what_a_glob_could_hold() -> None:
    for root, place, held in (
        ("/d", "/d/run", True),
        ("/d", "/d", True),
        ("/d", "/data/run", False),
        ("/d/*.parquet", "/d/run", False),
        ("/d/*/*.parquet", "/d/run", True),
        ("/d/*/*.parquet", "/d/x/run", False),
        ("/d/p*/*.parquet", "/d/run", False),
        ("/d/**/*.parquet", "/d/x/y/run", True),
        ("/d/a/*.parquet", "/d/run", False),
    ):
        assert could_hold(root, place) is held, (root, place)


WHERE = ["/proc/x", "/proc/self/x/y", "/dev/null/x", "/tmp/" + "n" * 300, "a\0b", "~nobody-of-this-name/x"]


@pytest.mark.parametrize("out", WHERE)
def test_an_out_that_cannot_be_made(out: str) -> None:
    with pytest.raises(rayinf.InputError, match="Fix: pass a") as caught:
        value((X, Y), out=out)
    assert len(str(caught.value)) < 500


def test_trying_an_out_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(rayinf.InputError, match="curvature"):
        rayinf.influence(task(), (X, Y), VALID, curvature="hessian", out=tmp_path / "x" / "y")
    with pytest.raises(rayinf.InputError, match="no column"):
        rayinf.influence(task(label="y"), table(X, Y), VALID, out=tmp_path / "x" / "y")
    assert list(tmp_path.iterdir()) == []


# --- What is not Parquet


def _write(where: Path) -> dict[str, tuple[Path, str]]:
    """Files of every other kind, and the errors."""
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": [1, 2]})
    buffer, raw = io.BytesIO(), io.BytesIO()
    np.savez(buffer, x=X)
    np.save(raw, X)
    whole = io.BytesIO()
    pq.write_table(table(X, Y), whole)
    pa.feather.write_feather(pa.Table.from_pandas(frame), where / "t.feather")
    held: dict[str, tuple[bytes, str]] = {
        "t.csv": (frame.to_csv().encode(), r"it is CSV or other text \(it begins ',a,b'\).*pandas.read_csv"),
        "renamed.parquet": (frame.to_csv(index=False).encode(), r"it begins 'a,b'\).*pandas.read_csv"),
        "t.json": (frame.to_json().encode(), r"it is JSON.*pandas.read_json\(\.\.\.\)"),
        "t.jsonl": (frame.to_json(orient="records", lines=True).encode(), "JSON.*lines=True"),
        "t.npz": (buffer.getvalue(), r"zip archive.*arrays \(X, y\) that numpy.load"),
        "t.npy": (raw.getvalue(), r"NumPy file.*arrays \(X, y\) that numpy.load"),
        "t.xlsx": (b"PK\x03\x04" + bytes(40), "pandas.read_excel"),
        "t.csv.gz": (gzip.compress(b"a,b"), "gzip archive"),
        "t.pkl": (pickle.dumps(frame), "pandas.read_pickle"),
        "t.feather": ((where / "t.feather").read_bytes(), "pyarrow.feather.read_table"),
        "zero.parquet": (b"", r"the file is empty \(0 bytes\)"),
        "cut.parquet": (whole.getvalue()[:-9], "the file is cut short.*restore"),
        "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        "page.parquet": (b"<!DOCTYPE html><html>Not found</html>", "download the file again"),
        "noise.parquet": (bytes(range(255, 100, -1)), "neither begins nor ends as Parquet.*restore"),
        "secret.parquet": (b"PARE" + bytes(30) + b"PARE", "encrypted"),
    }
    for name, (data, _) in held.items():
        (where / name).write_bytes(data)
    return {name: (where / name, expected) for name, (_, expected) in held.items()}


def test_files_of_other_kinds(tmp_path: Path) -> None:
    for file, expected in _write(tmp_path).values():
        with pytest.raises(rayinf.InputError, match=f"(?s){file} .*cannot be read as Parquet: .*{expected}") as caught:
            value(file)
        if "restore" not in expected:
            assert "restore the file" not in str(caught.value)


def test_a_folder_without_parquet_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "README"):
        (tmp_path / name).write_text("a,b")
    with pytest.raises(rayinf.InputError, match=r"no Parquet file at .*: it holds 2 .csv, 1 README.*pandas.read_csv"):
        value(tmp_path)


def test_what_an_error_of_the_system_means() -> None:
    for error, expected in (
        (PermissionError(13, "Permission denied"), "permission denied"),
        (FileNotFoundError(2, "gone"), "not there any more"),
        (IsADirectoryError(21, "x"), "is a folder"),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation: 403"), "access is denied.*credentials"),
        (
            OSError("AWS Error NETWORK_CONNECTION during X: curlCode: 6, Could not resolve hostname"),
            "cannot be reached",
        ),
        (OSError("AWS Error NO_SUCH_BUCKET during X: no"), "does not exist"),
        (OSError("AWS Error UNKNOWN (HTTP status 301) during X"), "region"),
        (OSError("Corrupt snappy compressed data."), "cannot be read as Parquet.*restore"),
    ):
        found = str(corrupt("b/t.parquet", "footer", error))
        assert re.search(expected, found), found
        assert ("restore or rewrite" in found) == ("Parquet" in expected)


# --- S3


def _parquet(start: int, stop: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table(X[start:stop], Y[start:stop]), buffer)
    return buffer.getvalue()


FILES = {
    "t/p0.parquet": _parquet(0, 40),
    "t/p1.parquet": _parquet(40, 90),
    "t/_tmp/p3.parquet": _parquet(0, 5),
    "t/.x.parquet": b"junk",
    "t/run/run.json": b'{"verb": "influence"}',
    "t/run/scores/part-00000.parquet": _parquet(0, 3),
    "t/notes.csv": b"a,b",
    "u/one.parquet": _parquet(0, 90),
}


@pytest.mark.slow
def test_a_bucket() -> None:
    """Folders and globs, and neither hidden files nor runs in them."""
    with bucket(FILES) as options:
        for path in ("t", "t/", "t/*.parquet", "t/p[01].parquet", "*/p*.parquet", "t/**/*.parquet", "u/one.parquet"):
            scores = value(f"s3://me:SECRET@b/{path}{options}")
            assert close(scores.to_numpy()[:, 0], TRUE), path
            assert scores.metadata["files"] == (
                ["b/u/one.parquet"] if path.startswith("u") else ["b/t/p0.parquet", "b/t/p1.parquet"]
            )
        for path, expected in (("none", "no Parquet file at"), ("t/*.pq", "no Parquet file at"), ("t/*.csv", "is CSV")):
            with pytest.raises(rayinf.InputError, match=expected) as caught:
                value(f"s3://me:SECRET@b/{path}{options}")
            assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("lists", [False, True])
def test_a_bucket_that_refuses(lists: bool) -> None:
    """All of it, or only its files: this is not damage of a file."""
    with bucket(FILES, 403, lists) as options:
        for path in ("t/*.parquet", "u/*.parquet"):
            with pytest.raises(rayinf.InputError, match=r"access is denied.*credentials") as caught:
                value(f"s3://me:SECRET@b/{path}{options}")
            assert "restore" not in str(caught.value)
            assert "SECRET" not in str(caught.value)


def test_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ANSWER_SECONDS", 1.0)
    begin = time.monotonic()
    with bucket(FILES, 0) as options, pytest.raises(rayinf.InputError, match=r"does not answer within 1 s.*network"):
        value(f"s3://me:SECRET@b/t{options}")
    assert time.monotonic() - begin < 20


def test_a_bucket_without_a_path() -> None:
    with pytest.raises(rayinf.InputError, match=r"must name a folder or file|cannot be opened"):
        value("s3://?region=us-east-1")
