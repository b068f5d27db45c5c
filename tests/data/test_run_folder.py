"""A run's folder: claimed by one config, resumed where it stopped, left alone when finished."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data.samples import VALID, X, Y, table, task

import rayinf
from rayinf import Scores
from rayinf.data import files, process
from rayinf.data.run_folder import RunFolder, differences

RECORD: dict[str, Any] = {"identity": {"seed": 0, "curvature": "ekfac", "l2": 0.1, "classes": ["a"]}, "parts": 0}


# --- The folder by itself


def test_begin_and_finish(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    assert folder.read() is None
    assert folder.begin(RECORD) is False
    assert folder.read() == {**RECORD, "status": "running"}
    folder.release()
    assert folder.begin(RECORD) is False
    folder.finish({**RECORD, "metadata": {"rows": 3}})
    folder.release()
    assert folder.begin(RECORD) is True
    held = folder.read()
    assert held is not None
    assert list(held.pop("manifests")) == ["manifest.jsonl"]
    assert held == {**RECORD, "metadata": {"rows": 3}, "status": "finished"}
    assert sorted(p.name for p in folder.path.iterdir()) == ["manifest.jsonl", "run.json"]


def test_another_config_is_refused_by_its_keys(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(RECORD)
    folder.release()
    before = (folder.path / "run.json").read_bytes()
    other = {"identity": {"seed": 1, "curvature": "ekfac", "classes": ["b"], "new": True}}
    with pytest.raises(rayinf.InputError) as caught:
        folder.begin(other)
    for part in ("seed: 0 -> 1", "l2: 0.1 -> None", "classes: ['a'] -> ['b']", "new: None -> True"):
        assert part in str(caught.value)
    assert "curvature" not in str(caught.value)
    assert (folder.path / "run.json").read_bytes() == before


def test_differences() -> None:
    assert differences({"a": 1, "b": (1, 2)}, {"a": 1.0, "b": [1, 2]}) == []
    assert differences({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]
    (long,) = differences({"a": "x" * 100}, {"a": "y"})
    assert len(long) < 80


def test_temporaries_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(RECORD)
    folder.release()
    with process.mark() as mark:
        dead = f"tmp.{mark[:8]}{2**22 + 1:08x}{0:08x}{0:08x}"
    left = [folder.path / f"run.json.{dead}", folder.path / "scores" / f"part-00000.parquet.{dead}"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    folder.begin(RECORD)
    assert not any(file.exists() for file in left)


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(rayinf.InputError, match="is not empty and holds no run"):
        RunFolder(tmp_path).begin(RECORD)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("deeper", ["", "run", "run/of/today"])
def test_a_file_where_the_folder_should_be(deeper: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(rayinf.InputError, match="x is a file"):
        RunFolder(tmp_path / "x" / deeper).begin(RECORD)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7"])
def test_a_damaged_run_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(rayinf.InputError, match=r"run.json is damaged"):
        RunFolder(tmp_path).begin(RECORD)
    assert (tmp_path / "run.json").read_text() == text


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.log("start", verb="influence")
    folder.log("shard", index=3, path=Path("x"))
    lines = [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "shard"]
    assert lines[1]["index"] == 3
    assert lines[0]["time"] <= lines[1]["time"]
    assert folder.begin(RECORD) is False  # a log alone does not make a run


# --- Runs that stop and go on


def bytes_of(run: Path) -> dict[str, bytes]:
    """Scores and factors, which carry no time."""
    return {str(p.relative_to(run)): p.read_bytes() for d in ("scores", "factors") for p in (run / d).rglob("*.*")}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 rows in 9 row groups."""
    file = tmp_path_factory.mktemp("train") / "train.parquet"
    pq.write_table(table(X, Y), file, row_group_size=10)
    time.sleep(0.2)  # the scan of a file that has just changed is not kept
    return file


Go = Callable[[Path], Scores]


@pytest.fixture(scope="module", params=["ekfac", "exact", "identity"])
def go(request: pytest.FixtureRequest, train: Path) -> Go:
    def run(out: Path) -> Scores:
        return rayinf.influence(task(l2=0.1), train, VALID, "category", curvature=request.param, halves=True, out=out)

    return run


@pytest.fixture(scope="module")
def done(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("done") / "run"
    go(out)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def unfinish(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    (run / "run.json").write_text(json.dumps(files.sealed({**(files.unsealed(record) or {}), "status": "running"})))


def test_a_run_in_its_own_folder(done: Path) -> None:
    names = {p.name for p in done.iterdir()}
    assert {"run.json", "manifest.jsonl", "log.jsonl", "scores", "factors", "scans.json"} == names
    assert sorted(p.name for p in (done / "scores").iterdir()) == [f"part-{k:05d}.parquet" for k in range(9)]
    assert not [p for p in done.rglob("*") if "tmp" in p.name]


def test_a_second_run_gives_the_same_bytes(done: Path, go: Go, tmp_path: Path) -> None:
    go(tmp_path / "run")
    assert bytes_of(tmp_path / "run") == bytes_of(done)


def test_a_finished_run_is_left_alone(copy: Path, go: Go) -> None:
    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in copy.rglob("*.*") if p.name not in ("log.jsonl", "scans.json")}

    before = times()
    scores = go(copy)
    assert times() == before
    assert len(scores) == 90


def test_a_run_without_some_shards_goes_on(copy: Path, go: Go, done: Path) -> None:
    """Only they are computed again, to the same bytes."""
    unfinish(copy)
    gone = [copy / "scores" / f"part-{k:05d}.parquet" for k in (0, 4, 8)]
    for file in gone:
        file.unlink()
    kept = {p: p.stat().st_mtime_ns for p in (copy / "scores").iterdir()}
    go(copy)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert bytes_of(copy) == bytes_of(done)
    assert json.loads((copy / "run.json").read_text()) == json.loads((done / "run.json").read_text())


def test_a_finished_run_that_lost_a_shard_computes_it_again(copy: Path, go: Go, done: Path) -> None:
    (copy / "scores" / "part-00003.parquet").unlink()
    go(copy)
    assert bytes_of(copy) == bytes_of(done)


def test_a_run_without_factors_goes_on(copy: Path, go: Go, done: Path) -> None:
    unfinish(copy)
    shutil.rmtree(copy / "factors")
    (copy / "scores" / "part-00001.parquet").unlink()
    go(copy)
    assert bytes_of(copy) == bytes_of(done)


def test_damaged_shards_are_computed_again(copy: Path, go: Go, done: Path) -> None:
    """Cut short, with a value changed, and of other rows."""
    unfinish(copy)
    parts = [copy / "scores" / f"part-{k:05d}.parquet" for k in range(9)]
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    parts[2].write_bytes(b"")
    held = bytearray(parts[5].read_bytes())
    held[pq.read_metadata(parts[5]).row_group(0).column(2).data_page_offset + 60] ^= 1
    parts[5].write_bytes(held)
    short = pq.read_table(parts[7]).slice(1)
    files.write_part(parts[7], short)
    damaged = bytes_of(copy)
    go(copy)
    assert bytes_of(copy) == bytes_of(done)
    changed = {k for k, held in bytes_of(done).items() if damaged[k] != held}
    assert changed == {f"scores/part-0000{k}.parquet" for k in (1, 2, 5, 7)}


def test_a_disk_that_is_full_for_a_while(go: Go, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished shards are kept; the same call goes on, to the bytes of a run that nothing disturbed."""
    written = 0
    write = pq.write_table

    def full(t: Any, path: Path, **options: Any) -> None:
        nonlocal written
        written += 1
        if written > 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(t, path, **options)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files.pq, "write_table", full)
        with pytest.raises(rayinf.RunError, match=r"part-00004.parquet cannot be written.*No space left"):
            go(out)
    assert sorted(p.name for p in (out / "scores").iterdir()) == [f"part-{k:05d}.parquet" for k in range(4)]
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    with pytest.raises(rayinf.InputError, match="not finished"):
        Scores.load(out)
    kept = {p: p.stat().st_mtime_ns for p in (out / "scores").iterdir()}
    go(out)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert bytes_of(out) == bytes_of(done)


def test_a_table_that_changes_under_a_run(train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moving = Path(shutil.copy(train, tmp_path / "train.parquet"))
    write = pq.write_table

    def then_change(t: Any, path: Path, **options: Any) -> None:
        write(t, path, **options)
        os.utime(moving, ns=(1, len(str(path))))

    monkeypatch.setattr(files.pq, "write_table", then_change)
    with pytest.raises(rayinf.RunError, match=r"train .*train.parquet\) changed while the run was going"):
        rayinf.influence(task(), moving, VALID, curvature="identity", out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "damping": {"damping": 0.5},
    "curvature": {"curvature": "kfac"},
    "fisher": {"fisher": "empirical"},
    "halves": {"halves": True},
    "objective": {"objective": "category"},
    "batch_size": {"batch_size": 8},
    "precision": {"precision": "bf16"},
    "valid": {"valid": (VALID[0] + 1, VALID[1])},
    "train": {"train": (X + 1, Y)},
    "l2": {"task": task(l2=0.2)},
    "classes": {"task": task(l2=0.1, classes=[2, 1, 0])},
    "parameters": {"task": task(l2=0.1, parameters="last")},
    "loss": {"task": task(l2=0.1, loss=lambda z, y: -z.log_softmax(1)[range(len(y)), y])},
    "transform": {"task": task(l2=0.1, transform=lambda x: x)},
}


SAID = {
    "valid": "the validation table has other values",
    "train": "the training table has other values",
    "loss": "loss: cross_entropy -> a function",
    "transform": "transform: None -> a function",
}


def test_another_config_on_a_folder(tmp_path: Path) -> None:
    """The message names the key, and only that; nothing of the run is touched."""
    base: dict[str, Any] = {"task": task(l2=0.1), "train": (X, Y), "valid": VALID}
    rayinf.influence(**base, out=tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.*")}
    for key, change in CHANGES.items():
        with pytest.raises(rayinf.InputError) as caught:
            rayinf.influence(**{**base, **change}, out=tmp_path / "run")
        assert f"{tmp_path / 'run'} holds a run of another config: {SAID.get(key, f'{key}: ')}" in str(caught.value)
        assert re.search("[0-9a-f]{16}", str(caught.value)) is None, key
        assert ";" not in str(caught.value), key
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.*")} == before
