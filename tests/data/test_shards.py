"""Shards of a table: the same rows whatever the row groups, the size of a read, the batch and the order."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.samples import VALID, WIDTH, close, naive, rows, table, task, values

from rayinf.data import tables
from rayinf.data.batches import BatchReader, Columns
from rayinf.data.shards import Shard
from rayinf.data.tables import MemoryTable, ParquetTable, Table, as_table
from rayinf.errors import InputError

COLUMNS = Columns(("features",), True, "label", "id", ("g",))


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows a read, 128 a shard."""
    monkeypatch.setattr(tables, "READ_ROWS", 64)
    monkeypatch.setattr(tables, "READS_PER_SHARD", 2)


def long_table(n: int, seed: int = 0) -> pa.Table:
    x, y = rows(n, seed)
    ids = np.random.default_rng(seed).permutation(n)
    return table(x, y, id=ids, g=[f"group {k % 5}" for k in range(n)])


def write(t: pa.Table, path: Path, groups: list[int]) -> None:
    """A Parquet file of row groups of these sizes."""
    with pq.ParquetWriter(path, t.schema) as writer:
        start = 0
        for size in groups:
            writer.write_table(t.slice(start, size), row_group_size=max(size, 1))
            start += size


def read(found: Table, order: Any, size: int) -> dict[int, list[Any]]:
    """Features, labels, ids, groups and starts of shards read by one reader in some order."""
    reader = BatchReader(found, COLUMNS)
    out: dict[int, list[Any]] = {}
    for k in order:
        batches = list(reader.read(found.shards[k], size))
        assert all(0 < len(b) <= size for b in batches)
        starts = np.cumsum([found.shards[k].start, *(len(b) for b in batches)])
        assert [b.start for b in batches] == starts[:-1].tolist()
        out[k] = [
            np.concatenate([b.x for b in batches]),
            np.concatenate([b.labels for b in batches]),
            pa.chunked_array([b.ids for b in batches]).to_numpy(),
            np.concatenate([b.extra["g"] for b in batches]),
        ]
    return out


def check(found: Table, t: pa.Table, order: Any, size: int) -> None:
    """The shards hold the table's rows, each once, in its order."""
    parts = read(found, order, size)
    joined = [np.concatenate([parts[k][c] for k in sorted(parts)]) for c in range(4)]
    np.testing.assert_array_equal(joined[0], np.stack(t["features"].to_numpy()))
    for got, name in zip(joined[1:], ("label", "id", "g"), strict=True):
        np.testing.assert_array_equal(got, t[name].to_numpy())


def test_random_row_groups_batches_and_orders(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for trial in range(25):
        groups = rng.choice([0, 1, 3, 63, 64, 65, 127, 128, 129, 300], size=rng.integers(1, 6)).tolist()
        groups = groups if sum(groups) else [5]
        t = long_table(sum(groups), trial)
        where = tmp_path / str(trial)
        where.mkdir()
        cut = int(rng.integers(0, len(groups)))
        write(t, where / "0.parquet", groups[:cut])
        write(t.slice(sum(groups[:cut])), where / "1.parquet", groups[cut:])
        found = as_table(where, [], [], "train")
        assert found.num_rows == t.num_rows
        assert [s.index for s in found.shards] == list(range(len(found.shards)))
        assert [s.start for s in found.shards] == np.cumsum([0, *(s.rows for s in found.shards)])[:-1].tolist()
        assert all(0 < s.rows <= 128 for s in found.shards)
        order = range(len(found.shards))
        for way in (order, order[::-1], rng.permutation(order), [*rng.permutation(order), *order]):
            check(found, t, way, int(rng.integers(1, 200)))


def test_a_table_in_memory_is_cut_alike_whatever_its_chunks() -> None:
    rng = np.random.default_rng(3)
    t = long_table(1111)
    for _ in range(5):
        cuts = [0, *sorted(rng.integers(0, 1111, 6).tolist()), 1111]
        chunked = pa.concat_tables([t.slice(a, b - a) for a, b in pairwise(cuts)])
        found = MemoryTable(chunked)
        assert found.shards == MemoryTable(t).shards
        check(found, t, rng.permutation(len(found.shards)), int(rng.integers(1, 300)))
        check(MemoryTable(chunked.slice(100, 800)), t.slice(100, 800), range(7), 50)


def test_a_row_group_cut_into_shards_is_decoded_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = long_table(1000)
    write(t, tmp_path / "t.parquet", [700, 300])
    found = as_table(tmp_path, [], [], "train")
    assert isinstance(found, ParquetTable)
    assert [s.rows for s in found.shards] == [128] * 5 + [60, 128, 128, 44]
    sought: list[Shard] = []
    seek = tables._ParquetReader._seek
    monkeypatch.setattr(
        tables._ParquetReader, "_seek", lambda self, shard: (sought.append(shard), seek(self, shard))[1]
    )
    check(found, t, range(9), 50)
    assert [s.offset for s in sought] == [0, 0]
    check(found, t, range(9)[::-1], 50)
    assert len(sought) == 2 + 9


def test_reads_that_do_not_fit_the_shards(tmp_path: Path) -> None:
    """pyarrow may give batches of other sizes than requested: what is left of one is kept for the next shard."""
    t = long_table(1000)
    write(t, tmp_path / "t.parquet", [700, 300])
    rng = np.random.default_rng(1)
    for size in (1, 37, 64, 200, 10_000):
        found = as_table(tmp_path, [], [], "train")
        assert isinstance(found, ParquetTable)
        found = dataclasses.replace(found, read_rows=size)
        for way in (range(9), range(9)[::-1], *(rng.permutation(9) for _ in range(3))):
            check(found, t, way, 50)


@pytest.mark.parametrize(("offset", "missing"), [(990, 118), (5000, 4000)])
def test_a_row_group_that_is_shorter_than_the_footer_said(offset: int, missing: int, tmp_path: Path) -> None:
    """A file that was rewritten since it was opened."""
    write(long_table(1000), tmp_path / "t.parquet", [1000])
    found = as_table(tmp_path, [], [], "train")
    shard = dataclasses.replace(found.shards[0], offset=offset)
    with pytest.raises(InputError, match=rf"t.parquet \(row group 0\).*{missing} rows are missing"):
        list(BatchReader(found, COLUMNS).read(shard, 50))


def test_a_reader_left_in_the_middle_of_a_shard_starts_the_next_one_at_its_own_place(tmp_path: Path) -> None:
    t = long_table(1000)
    write(t, tmp_path / "t.parquet", [1000])
    found = as_table(tmp_path, [], [], "train")
    for size in (1, 64, 1000):
        for then in (0, 1, 5):
            reader = BatchReader(found, COLUMNS)
            first = next(reader.read(found.shards[0], size))
            assert first.ids.to_pylist() == t["id"][: len(first)].to_pylist()
            shard = found.shards[then]
            ids = [i for b in reader.read(shard, 50) for i in b.ids.to_pylist()]
            assert ids == t["id"].slice(shard.start, shard.rows).to_pylist()


def test_reads_hold_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two of rows that take at most `READ_BYTES`, between 64 and `READ_ROWS`."""
    pq.write_table(long_table(2000), tmp_path / "t.parquet", use_dictionary=False)
    footer = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    a_row = footer.total_byte_size / 2000
    monkeypatch.setattr(tables, "READ_ROWS", 1024)
    for held, expected in ((10, 64), (200, 128), (300, 256), (5000, 1024)):
        monkeypatch.setattr(tables, "READ_BYTES", int(held * a_row) + 1)
        found = as_table(tmp_path, [], [], "train")
        assert isinstance(found, ParquetTable)
        assert found.read_rows == expected
        assert max(s.rows for s in found.shards) == min(2 * expected, 2000)


def test_shards_are_the_same_whenever_the_table_is_opened(tmp_path: Path) -> None:
    write(long_table(1000), tmp_path / "t.parquet", [700, 300])
    first, second = (as_table(tmp_path / "t.parquet", [], [], "train") for _ in range(2))
    assert first.shards == second.shards
    assert first.stat == second.stat != ""
    write(long_table(1000, 1), tmp_path / "t.parquet", [700, 300])
    assert as_table(tmp_path / "t.parquet", [], [], "train").stat != first.stat


def test_scores_of_a_large_row_group(tmp_path: Path) -> None:
    """End to end, beside naive scores: one row group in nine shards, and the same rows in many row groups."""
    t = long_table(1100)
    x, y = np.stack(t["features"].to_numpy()).reshape(-1, WIDTH), t["label"].to_numpy()
    true = naive(x, y, VALID)
    for name, groups in (("one", [1100]), ("some", [1, 99, 700, 300]), ("tens", [10] * 110)):
        write(t, tmp_path / name, groups)
        for size in (7, 1000):
            assert close(values(task(row_id="id"), tmp_path / name, batch_size=size), true), (name, size)


def test_tables_survive_pickling(tmp_path: Path) -> None:
    import pickle

    t = long_table(300)
    write(t, tmp_path / "t.parquet", [300])
    for found in (as_table(tmp_path, [], [], "train"), MemoryTable(t)):
        again = pickle.loads(pickle.dumps(found))
        assert again.shards == found.shards
        check(again, t, range(len(found.shards)), 100)
