"""Rows that another process has decoded: the same batches as those that a reader of the table gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayinf.data import tables
from rayinf.data.prefetched import Packer, PrefetchedTable, unpacked
from rayinf.data.tables import as_table

ROWS = 1000


@pytest.fixture
def table(tmp_path, monkeypatch):
    """One row group of all kinds of columns, in shards of 128 rows, which are read 64 rows at a time."""
    monkeypatch.setattr(tables, "READ_ROWS", 64)
    monkeypatch.setattr(tables, "READS_PER_SHARD", 2)
    rng = np.random.default_rng(0)
    flat = pa.array(rng.normal(size=ROWS * 6).astype(np.float32))
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2, 3]), pa.FixedSizeListArray.from_arrays(flat, 6)
    )
    texts = pa.array([f"text {k % 7}" if k % 11 else None for k in range(ROWS)])
    held = pa.table(
        {
            "lists": pa.FixedSizeListArray.from_arrays(flat, 6),
            "tensors": tensors,
            "codes": texts.dictionary_encode(),
            "texts": texts,
            "number": np.arange(ROWS),
        }
    )
    pq.write_table(held, tmp_path / "all.parquet", row_group_size=ROWS)
    return as_table(str(tmp_path / "all.parquet"), [], [], "train")


def test_packed_batches_are_the_same_batches(table):
    records = list(table.open(table.schema.names).read(table.shards[3]))
    found = list(unpacked(Packer().pack(records)))
    assert [r.num_rows for r in found] == [r.num_rows for r in records] == [64, 64]
    assert all(a.equals(b) and a.schema.equals(b.schema) for a, b in zip(found, records, strict=True))


def test_a_packed_batch_is_read_without_a_copy():
    values = np.arange(1000.0)
    held = Packer().pack([pa.record_batch({"x": values})])
    [record] = unpacked(held)
    read = record.column("x").to_numpy()
    assert np.shares_memory(read, held)
    assert not read.flags.writeable


def test_memory_is_used_again():
    packer = Packer()
    one, two, three = (pa.record_batch({"x": np.arange(n) + 1.0}) for n in (1000, 10, 2000))
    first = packer.pack([one])
    second = packer.pack([two, two])
    assert np.shares_memory(first, second)
    assert list(unpacked(second)) == [two, two]
    assert list(unpacked(packer.pack([three]))) == [three]
    assert list(unpacked(packer.pack([one]))) == [one]


def test_shards_that_are_not_handed_over_are_read(table):
    asked = []

    def supply(key, shard):
        asked.append((key, shard.index))
        return Packer().pack(reader.read(shard)) if shard.index % 2 else None

    names = ("number", "lists")
    reader, plain = table.open(names), table.open(names)
    prefetched = PrefetchedTable(table, "valid", names, supply)
    mixed = prefetched.open(list(names))
    for shard in table.shards:
        assert list(mixed.read(shard)) == list(plain.read(shard))
    assert asked == [("valid", k) for k in range(len(table.shards))]
    list(prefetched.open(["number"]).read(table.shards[0]))  # other columns than those that are prefetched over
    assert len(asked) == len(table.shards)


def test_a_table_is_called_and_cut_as_before(table):
    prefetched = PrefetchedTable(table, "train", ("number",), lambda key, shard: None)
    for name in ("name", "shards", "schema", "num_rows", "stat", "scan_key"):
        assert getattr(prefetched, name) == getattr(table, name)


@pytest.fixture
def decoded(monkeypatch):
    """Rows of the batches that were decoded."""
    found, plain = [], pq.ParquetFile.iter_batches

    def counted(self, *args, **options):
        for batch in plain(self, *args, **options):
            found.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    return found


@pytest.mark.parametrize("order", [[0, 1, 2, 7], [1, 4, 7], [0, 3, 5]])
def test_a_reader_that_leaves_shards_out_goes_on_from_its_place(table, decoded, order):
    reader = table.open(["number"])
    found = [np.concatenate([b.column(0).to_numpy() for b in reader.read(table.shards[k])]) for k in order]
    assert sum(decoded) == min((order[-1] + 1) * 128, ROWS)
    for k, rows in zip(order, found, strict=True):
        assert (rows == np.arange(128 * k, min(128 * (k + 1), ROWS))).all()


def test_a_reader_that_goes_back_begins_again(table, decoded):
    reader = table.open(["number"])
    list(reader.read(table.shards[5]))
    next(reader.read(table.shards[6]))  # left in the middle
    [first, *_] = reader.read(table.shards[6])
    assert first.column(0)[0].as_py() == 6 * 128
    assert sum(decoded) == (6 * 128 + 64) + 7 * 128
