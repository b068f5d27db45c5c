"""The scan of a table: its fingerprint, its counts, duplicate ids, and its copy in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.samples import STORAGE, VALID, X, Y, table, task

import rayinf
from rayinf.data import file_state, repeated_ids, tables
from rayinf.data.batches import BatchReader, Columns
from rayinf.data.known_scans import known
from rayinf.data.scan import TableScan, check_unique_ids, merge_scans, scan_shard
from rayinf.data.tables import MemoryTable, Table, as_table
from rayinf.engine import stages

GROUPS = [f"g{k % 3}" for k in range(len(X))]
IDS = np.random.default_rng(9).permutation(len(X))


def scan(given: Any, row_id: str | None = "id", extra: Sequence[str] = ("g",), size: int = 8192) -> TableScan:
    """One scan of a table of features, labels, ids and groups."""
    found: Table = as_table(given, [], [], "train")
    columns = Columns(("features",), True, "label", row_id, tuple(extra))
    reader = BatchReader(found, columns)
    return merge_scans([scan_shard(reader, s, columns, size) for s in found.shards], found)


def full(x: Any = X, y: Any = Y, storage: str = "fixed lists", **more: Any) -> pa.Table:
    return table(x, y, storage, **{"id": IDS, "g": GROUPS, **more})


def changed(values: Any, at: int, new: Any) -> Any:
    out = np.array(values)
    out[at] = new
    return out


def test_counts_and_shape() -> None:
    found = scan(full(y=changed(Y, 0, 7)))
    assert found.rows == 90
    assert found.counts["label"] == {
        int(v): int(n) for v, n in zip(*np.unique(changed(Y, 0, 7), return_counts=True), strict=True)
    }
    assert found.counts["g"] == {"g0": 30, "g1": 30, "g2": 30}
    assert list(found.counts["label"]) == sorted(found.counts["label"])
    assert (found.shape, found.dtype, found.increasing) == ((16,), "float32", False)
    assert scan(full(storage="tensors")).shape == (1, 4, 4)
    assert scan(full(id=np.arange(90))).increasing
    assert not scan(full(id=changed(np.arange(90), 50, 49))).increasing


def test_shards_may_be_scanned_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster they come as they finish. The ids rise over all 4,000 rows, in the table's order."""
    monkeypatch.setattr(tables, "READ_ROWS", 64)
    n = 4000
    t = table(np.resize(X, (n, 16)), np.resize(Y, n), id=np.arange(n))
    columns, found = Columns(("features",), True, "label", "id"), MemoryTable(t)
    parts = [scan_shard(BatchReader(found, columns), s, columns, 100) for s in found.shards]
    assert len(parts) > 3
    assert merge_scans(parts[::-1], found) == merge_scans(parts, found)
    assert merge_scans(parts[::-1], found).increasing


def test_a_label_that_is_also_a_group_is_counted_once() -> None:
    assert scan(full(), extra=("label", "g")).counts["label"] == scan(full()).counts["label"]


def test_a_scan_survives_json() -> None:
    import json

    for found in (scan(full()), scan(full(y=[f"c{k}" for k in Y]))):
        assert TableScan.from_json(json.loads(json.dumps(found.to_json()))) == found


# --- Fingerprint


@pytest.mark.parametrize("storage", STORAGE)
def test_fingerprint_changes_with_any_value(storage: str) -> None:
    base = scan(full(storage=storage)).fingerprint
    bit = X.copy()
    bit[89, 15] = np.nextafter(bit[89, 15], np.float32(9))
    swapped = X.copy()
    swapped[[3, 4]] = X[[4, 3]]
    others = {
        "last bit of a feature": full(bit, storage=storage),
        "two rows swapped": full(swapped, storage=storage),
        "a label": full(y=changed(Y, 40, (Y[40] + 1) % 3), storage=storage),
        "an id": full(storage=storage, id=changed(IDS, 7, 1000)),
        "a group": full(storage=storage, g=changed(GROUPS, 7, "g9")),
        "a row less": full(storage=storage).slice(0, 89),
        "a row twice": pa.concat_tables([full(storage=storage), full(storage=storage).slice(89)]),
    }
    found = {name: scan(t).fingerprint for name, t in others.items()}
    assert len({base, *found.values()}) == 1 + len(others), found


def test_fingerprint_tells_types_and_shapes_apart() -> None:
    """The same bytes as other numbers, or in another shape, are another table."""
    raw = np.arange(90 * 16, dtype=np.uint8).reshape(90, 16)
    one = {scan((lambda a: table(a, Y, id=IDS, g=GROUPS))(a)).fingerprint for a in (raw, raw.view(np.int8))}
    assert len(one) == 2
    lists, nested, tensors = (scan(full(storage=s)).fingerprint for s in ("lists", "lists of lists", "tensors"))
    assert len({lists, nested, tensors}) == 3
    assert scan(full(storage="fixed lists")).fingerprint == lists


def test_fingerprint_tells_where_a_text_ends() -> None:
    prints = {
        scan(full(g=[first, second] * 45)).fingerprint
        for first, second in (("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"))
    }
    assert len(prints) == 4


def test_fingerprint_is_stable(tmp_path: Path) -> None:
    """Over re-reads, batches, and chunks in memory."""
    t = full()
    pq.write_table(t, tmp_path / "t.parquet", row_group_size=40)
    base, read = scan(t).fingerprint, scan(tmp_path / "t.parquet").fingerprint
    for size in (1, 7, 89, 90, 8192):
        assert scan(t, size=size).fingerprint == base
        assert scan(tmp_path / "t.parquet", size=size).fingerprint == read
    pieces = pa.concat_tables([t.slice(0, 1), t.slice(1, 50), t.slice(51)])
    assert scan(pieces).fingerprint == base


def test_fingerprint_sees_only_the_columns_of_the_task() -> None:
    t = full()
    assert scan(t.append_column("more", pa.array(IDS))).fingerprint == scan(t).fingerprint
    assert scan(t, row_id=None).fingerprint == scan(full(id=IDS + 1), row_id=None).fingerprint
    assert scan(t, row_id=None).fingerprint != scan(t).fingerprint


# --- What is refused


def test_numbers_near_the_largest_are_finite() -> None:
    """Their sum overflows, and they do not."""
    large = np.full((90, 16), 1e308)
    large[::2] *= -1
    assert scan(full(large)).dtype == "float64"
    assert scan(full(np.full((90, 16), 6e4, np.float16))).dtype == "float16"
    for wrong in (np.nan, np.inf, -np.inf):
        held = large.copy()
        held[77, 3] = wrong
        with pytest.raises(rayinf.InputError, match=r"'features'\[3\] holds -?(nan|inf) in row 77"):
            scan(full(held))


def test_too_many_groups_are_counted_over_all_shards() -> None:
    x, y = np.tile(X, (12, 1)), np.tile(Y, 12)
    fits = table(x, y, id=np.arange(1080), g=np.arange(1080) % 1000)
    assert len(scan(fits).counts["g"]) == 1000
    with pytest.raises(rayinf.InputError, match=r"'g' has 1,001 or more different values"):
        scan(table(x, y, id=np.arange(1080), g=np.arange(1080) % 1001))
    # Labels may be many.
    assert len(scan(table(x, np.arange(1080), id=np.arange(1080), g=y)).counts["label"]) == 1080


# --- Duplicate ids


def unique(ids: Any, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    n = len(ids)
    monkeypatch.setattr(tables, "READ_ROWS", 64)
    monkeypatch.setattr(tables, "READS_PER_SHARD", 2)
    monkeypatch.setattr(repeated_ids, "_IDS_AT_ONCE", -(-n // files))
    monkeypatch.setattr(repeated_ids, "_ARRAYS_PER_BLOCK", 3)
    found = MemoryTable(pa.table({"features": np.zeros(n), "label": np.zeros(n, int), "id": ids}), "train")
    assert len(found.shards) > 3
    columns = Columns(("features",), True, "label", "id")
    reader = BatchReader(found, columns)
    check_unique_ids(found, "id", merge_scans([scan_shard(reader, s, columns, 50) for s in found.shards], found))


def as_words(ids: np.ndarray) -> list[str]:
    return [f"id {k:04}" for k in ids]


@pytest.mark.parametrize("files", [1, 2, 7])
@pytest.mark.parametrize("kind", [np.asarray, np.uint64, as_words, lambda v: pa.array(as_words(v)).dictionary_encode()])
def test_duplicate_ids_are_found_in_any_order(kind: Any, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(files)
    for _ in range(2):
        ids = rng.permutation(1000)
        unique(kind(ids), monkeypatch, files)
        a, b = rng.choice(1000, 2, replace=False)
        ids[a] = ids[b]
        with pytest.raises(rayinf.InputError, match=f"'id' has the id '?(id )?0*{ids[b]}'? in more than one row"):
            unique(kind(ids), monkeypatch, files)


@pytest.mark.parametrize("kind", [np.asarray, as_words])
def test_duplicate_ids_among_rising_ones(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side in a batch, over the end of a batch or shard, and in shards that rise but overlap."""
    unique(kind(np.arange(1000)), monkeypatch, 1)
    for at in (1, 49, 50, 64, 127, 128, 129, 256, 999):
        with pytest.raises(rayinf.InputError, match="1 rows repeat an id"):
            unique(kind(changed(np.arange(1000), at, at - 1)), monkeypatch, 1)
    overlapping = np.concatenate([np.arange(0, 512), np.arange(500, 988)])
    with pytest.raises(rayinf.InputError, match="12 rows repeat an id"):
        unique(kind(overlapping), monkeypatch, 1)


def test_rising_ids_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = MemoryTable(pa.table({"id": np.arange(10)}))
    monkeypatch.setattr(MemoryTable, "open", lambda *_: pytest.fail("read again"))
    check_unique_ids(found, "id", TableScan(10, "", {}, (), "", True, {}))


# --- The copy in the run's folder


def test_the_scan_is_kept_while_the_files_are_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[str] = []

    def counted(reader: BatchReader, *rest: Any) -> Any:
        scans.append(reader._table.name)
        return scan_shard(reader, *rest)

    monkeypatch.setattr(stages, "scan_shard", counted)
    train, valid, out = tmp_path / "train.parquet", tmp_path / "valid.parquet", tmp_path / "run"

    def run(**arguments: Any) -> list[str]:
        """What is scanned in a process that knows nothing yet."""
        time.sleep(1.2 * file_state._TICK_NS / 1e9)
        known._held.clear()
        scans.clear()
        rayinf.influence(task(), train, valid, curvature="identity", out=out, **arguments)
        return list(scans)

    pq.write_table(table(X, Y), train)
    pq.write_table(table(*VALID), valid)
    assert run() == ["train", "valid"]
    assert run() == []
    pq.write_table(table(*VALID), valid)  # written again, with the same rows
    assert run() == ["valid"]
    (out / "scans.json").write_text("{")
    assert run() == ["train", "valid"]
    pq.write_table(table(X, changed(Y, 0, (Y[0] + 1) % 3)), train)
    with pytest.raises(rayinf.InputError, match=r"another config: the training table has other values.*label"):
        run()
    assert "train" in scans


def test_tables_in_memory_are_always_scanned(tmp_path: Path) -> None:
    out = tmp_path / "run"
    rayinf.influence(task(), (X, Y), VALID, curvature="identity", out=out)
    rayinf.influence(task(), table(X, Y), VALID, curvature="identity", out=out)
    x = X.copy()
    x[5, 5] += 1
    with pytest.raises(rayinf.InputError, match=r"another config: the training table has other values.*features"):
        rayinf.influence(task(), (x, Y), VALID, curvature="identity", out=out)
