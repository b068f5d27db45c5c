"""An unchanged table is scanned once in a process, and once for a run's folder; a changed one is scanned again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_server
from data.samples import VALID, X, Y, table, task

import rayinf
from rayinf.data import file_state, known_scans
from rayinf.data.batches import BatchReader, Columns
from rayinf.data.kept_table import KeptTable
from rayinf.data.known_scans import KnownScans, known
from rayinf.data.scan import TableScan, merge_scans, scan_shard
from rayinf.data.tables import Table, as_table
from rayinf.engine import stages

WIDE = Columns(("features",), True, "label", "id", ("g", "h"))
# Columns of one read: with and without the label and what depends on it.
NARROWER = [
    replace(WIDE, row_id=row_id, extra=extra) for row_id, extra in product(("id", None), ((), ("g",), ("h", "g")))
] + [replace(WIDE, label=None, row_id=row_id, extra=()) for row_id in ("id", None)]


def full(x: Any = X, y: Any = Y, **more: Any) -> pa.Table:
    ids = np.random.default_rng(0).permutation(len(x))
    return table(x, y, **{"id": ids, "g": np.arange(len(x)) % 3, "h": [f"h{k % 4}" for k in range(len(x))], **more})


def scanned(found: Table, columns: Columns) -> TableScan:
    reader = BatchReader(found, columns)
    return merge_scans([scan_shard(reader, s, columns, 64) for s in found.shards], found)


def settle() -> None:
    """Until a file's clock has moved on."""
    time.sleep(1.2 * file_state._TICK_NS / 1e9)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing is known from other tests."""
    known._held.clear()
    yield
    known._held.clear()


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of tables, one for each shard that is scanned."""
    found: list[str] = []

    def counted(reader: BatchReader, *rest: Any) -> Any:
        found.append(reader._table.name)
        return scan_shard(reader, *rest)

    for module in (stages, known_scans):
        monkeypatch.setattr(module, "scan_shard", counted)
    return found


@pytest.mark.parametrize("wanted", NARROWER)
def test_a_scan_of_fewer_columns(wanted: Columns) -> None:
    """It is the same as if only they had been read: counts in their order, digests, and the fingerprint."""
    found = as_table(full(), [], [], "train")
    narrow, truth = scanned(found, WIDE).narrowed(wanted), scanned(found, wanted)
    assert narrow == truth
    assert (list(narrow.counts), list(narrow.joint)) == (list(truth.counts), list(truth.joint))
    assert len({scanned(found, c).fingerprint for c in NARROWER}) == len(NARROWER)


def test_a_scan_answers_for_its_columns_alone(tmp_path: Path) -> None:
    pq.write_table(full(), tmp_path / "t.parquet")
    settle()
    found, own = as_table(tmp_path / "t.parquet", [], [], "train"), KnownScans()
    own.keep(found, NARROWER[1], scanned(found, NARROWER[1]))
    others = [replace(WIDE, label="g"), replace(WIDE, features=("h",)), replace(WIDE, single=False), WIDE]
    assert [own.find(found, c) for c in others] == [None] * 4
    assert own.find(found, NARROWER[1]) == scanned(found, NARROWER[1])
    own.keep(found, WIDE, scanned(found, WIDE))
    assert len(own.all()[found.scan_key]) == 1  # it covers the other
    assert own.find(found, NARROWER[1]) == scanned(found, NARROWER[1])


def test_only_the_last_tables_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_scans, "_MOST_TABLES", 2)
    own, columns, tables = KnownScans(), replace(WIDE, row_id=None, extra=()), []
    for k in range(3):
        pq.write_table(full(), tmp_path / f"{k}.parquet")
    settle()
    for k in range(3):
        tables.append(as_table(tmp_path / f"{k}.parquet", [], [], "train"))
        own.keep(tables[-1], columns, scanned(tables[-1], columns))
        assert own.find(tables[0], columns) is not None  # used last
    assert [own.find(t, columns) is None for t in tables] == [False, True, False]


# --- Never a scan of other rows


def swapped(path: Path, other: Path) -> None:
    other.replace(path)


def in_place(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def with_the_old_times(path: Path, other: Path) -> None:
    held = path.stat()
    in_place(path, other)
    os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))


def swapped_with_the_old_times(path: Path, other: Path) -> None:
    shutil.copystat(path, other)
    other.replace(path)


def touched(path: Path, other: Path) -> None:
    path.touch()


def appended(path: Path, other: Path) -> None:
    pq.write_table(pa.concat_tables([pq.read_table(path), pq.read_table(other)]), path)


@pytest.mark.parametrize(
    "change", [swapped, in_place, with_the_old_times, swapped_with_the_old_times, touched, appended]
)
def test_a_changed_table_is_scanned_again(
    change: Callable[[Path, Path], None], tmp_path: Path, scans: list[str]
) -> None:
    path, other = tmp_path / "t.parquet", tmp_path / "other"
    pq.write_table(table(X, Y), path)
    pq.write_table(table(X, np.roll(Y, 1)), other)
    assert path.stat().st_size == other.stat().st_size
    settle()
    before = rayinf.evaluate(task(), path)
    assert scans == ["test"] * len(as_table(path, [], [], "test").shards)
    scans.clear()
    assert rayinf.evaluate(task(), path) == before
    assert scans == []
    change(path, other)
    settle()
    after = rayinf.evaluate(task(), path)
    assert scans
    known._held.clear()
    assert after == rayinf.evaluate(task(), path)
    assert (after != before) == (change is not touched)


def test_a_change_within_a_tick_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was changed just before it is opened may change again and keep its times: such a scan is not kept."""
    path = tmp_path / "t.parquet"
    pq.write_table(table(X, Y), path)
    changed = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    for later, keeps in ((0, False), (file_state._TICK_NS - 1, False), (file_state._TICK_NS, True)):
        monkeypatch.setattr(time, "time_ns", lambda later=later: changed + later)
        assert bool(as_table(path, [], [], "train").scan_key) == keeps
    assert as_table(path, [], [], "train").stat
    # Where a file system counts whole seconds.
    os.utime(path, ns=(10**18 * 3, 10**18 * 3))
    for later, keeps in ((10**9, False), (2 * 10**9, True)):
        monkeypatch.setattr(time, "time_ns", lambda later=later: 10**18 * 3 + later)
        assert bool(as_table(path, [], [], "train").scan_key) == keeps


def test_tables_without_files(tmp_path: Path) -> None:
    memory = as_table(table(X, Y), [], [], "train")
    pq.write_table(table(X, Y), tmp_path / "t.parquet")
    settle()
    disk = as_table(tmp_path / "t.parquet", [], [], "train")
    some = np.arange(len(X)) % 2 == 0
    assert memory.scan_key == KeptTable(memory, some).scan_key == ""
    assert len({t.scan_key for t in (disk, KeptTable(disk, some), KeptTable(disk, ~some))}) == 3
    own, columns = KnownScans(), Columns(("features",), True, "label", None)
    own.keep(memory, columns, scanned(memory, columns))
    assert own.all() == {}
    assert own.find(memory, columns) is None


def test_an_object_is_known_by_its_etag(s3: store_server.Proxy, bucket: store_server.Bucket) -> None:
    """Without waiting for a clock: the times of a store are whole seconds."""
    keys = []
    for y in (Y, Y, np.roll(Y, 1)):
        sink = pa.BufferOutputStream()
        pq.write_table(table(X, y), sink)
        bucket.write("known/t.parquet", sink.getvalue().to_pybytes())
        keys.append(as_table(f"s3://{store_server.BUCKET}/known/t.parquet{s3.options}", [], [], "train").scan_key)
    assert all(keys)
    assert keys[0] != keys[2] != keys[1]


# --- One scan for several verbs, and for a loop


def test_verbs_share_a_scan(tmp_path: Path, scans: list[str]) -> None:
    train, valid = tmp_path / "train.parquet", tmp_path / "valid.parquet"
    pq.write_table(table(X, Y), train)
    pq.write_table(table(*VALID), valid)
    settle()
    head = rayinf.logistic_regression(train, l2=1e-2)
    scores = rayinf.influence(head, train, valid, "category")
    assert sorted(set(scans)) == ["train", "valid"]
    first = len(scans)
    rayinf.retrain(head, train)
    rayinf.evaluate(head, valid, "category")
    rayinf.acquire(head, train, valid, n=2, strategy="entropy")
    rayinf.removal_check(head, train, valid, valid, scores, share=0.2, seeds=1)
    assert len(scans) == first


def test_a_loop_goes_on_without_a_scan(tmp_path: Path, scans: list[str]) -> None:
    """Another process reads the scans in the folder, unless they are damaged."""
    paths = {name: tmp_path / f"{name}.parquet" for name in ("pool", "test")}
    pq.write_table(table(X, Y), paths["pool"])
    pq.write_table(table(*VALID), paths["test"])
    settle()
    head = rayinf.logistic_regression((X[:30], Y[:30]), l2=1e-2)

    def learn(rounds: int) -> list[str]:
        known._held.clear()
        scans.clear()
        rayinf.active_learning(
            head,
            (X[:30], Y[:30]),
            paths["pool"],
            paths["pool"],
            paths["test"],
            rounds,
            3,
            "entropy",
            out=tmp_path / "o",
        )
        return sorted({name for name in scans if name not in ("labeled", "train")})

    assert learn(1) == ["pool", "test"]
    assert learn(2) == []
    (tmp_path / "o" / "scans.json").write_text(
        (tmp_path / "o" / "scans.json").read_text().replace('"rows": 9', '"rows": 8')
    )
    assert learn(2) == ["pool", "test"]


def test_a_table_that_was_refused_is_not_known(tmp_path: Path) -> None:
    twice = np.r_[0, 0 : len(X) - 1]
    pq.write_table(full(id=twice), tmp_path / "t.parquet")
    settle()
    for _ in range(2):
        with pytest.raises(rayinf.InputError, match="more than one row"):
            rayinf.self_influence(replace(task(), row_id="id"), tmp_path / "t.parquet", curvature="identity")
