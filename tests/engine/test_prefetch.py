"""A large row group that several workers share is decoded once; a reader that fails costs time and no result."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from engine import counted_reads
from engine import small_job as job

import rayinf
from rayinf.data import tables
from rayinf.data.batches import Columns
from rayinf.data.shards import Shard
from rayinf.engine import ray_prefetch, ray_reader, ray_runner
from rayinf.engine.job import Chunk
from rayinf.engine.ray_prefetch import Pass, Readers
from rayinf.engine.ray_reader import Prefetched, PrefetchedRows
from rayinf.engine.ray_spread import InTurn, Waiting

COLUMNS = Columns(("features",), True, "label", "row_id")
SHARDS = 10


@pytest.fixture
def cut(monkeypatch):
    """Shards of 64 rows, however large a row group is, and readers for any number of them."""
    monkeypatch.setattr(tables, "READ_ROWS", 64)
    monkeypatch.setattr(tables, "READS_PER_SHARD", 1)
    monkeypatch.setattr(ray_prefetch, "_FEWEST_SHARDS", 2)


@pytest.fixture
def fake(monkeypatch):
    """Readers that answer with the shard that they are asked for; one node, whose object store has 1 GB."""
    held = SimpleNamespace(store=1e9, started=0, read=[], sources=[])

    def remote(**options):
        def make():
            held.started += 1
            return SimpleNamespace(read=SimpleNamespace(remote=read))

        return lambda kind: SimpleNamespace(remote=make)

    def read(name, source, shard):
        held.read.append(shard.index)
        held.sources.append(name)
        return shard

    def nodes():
        return [{"Alive": True, "Resources": {"object_store_memory": held.store}}, {"Alive": False, "Resources": {}}]

    monkeypatch.setattr(ray_prefetch, "ray", SimpleNamespace(put=lambda held: held, remote=remote, nodes=nodes))
    return held


def table_of(tmp_path, rows, group_size):
    return tables.as_table(str(job.write(tmp_path / "train.parquet", rows, 1, group_size)), [], [], "train")


def prefetch_of(table, workers=4, items=None, readers=None):
    found = dict(enumerate(table.shards)) if items is None else items
    return (readers or Readers(100.0)).prefetch(Pass("train", table, COLUMNS, found, workers, 2))


def keys(prefetch):
    """All keys in the order in which one worker after the other takes them."""
    return [prefetch.waiting.take("who") for _ in range(prefetch.waiting.count)]


def test_shards_of_one_row_group_are_dealt_in_order_with_rows(cut, fake, tmp_path):
    prefetch = prefetch_of(table_of(tmp_path, 640, 640))
    assert keys(prefetch) == list(range(SHARDS))
    found = [prefetch.rows(k) for k in range(SHARDS)]
    assert fake.read == list(range(SHARDS))
    assert fake.started == 1
    assert [list(g.rows) for g in found] == [[k] for k in range(SHARDS)]
    assert {(g.table, g.seconds) for g in found} == {("train", 25.0)}
    assert len({g.name for g in found}) == 1
    assert prefetch.rows(3) is None  # sent again: it is read where it is needed
    assert prefetch.waiting.take("who") is None


def test_chunks_come_with_all_of_their_shards(cut, fake, tmp_path):
    table = table_of(tmp_path, 640, 640)
    prefetch = prefetch_of(table, items={k: Chunk(table.shards[3 * k : 3 * k + 3]) for k in range(4)})
    assert [list(prefetch.rows(k).rows) for k in keys(prefetch)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_two_row_groups_have_a_reader_each_and_are_dealt_in_turn(cut, fake, tmp_path):
    prefetch = prefetch_of(table_of(tmp_path, 640, 320))
    assert keys(prefetch) == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert fake.started == 2


def test_a_run_keeps_its_readers(cut, fake, tmp_path):
    readers, table = Readers(float("inf")), table_of(tmp_path, 640, 640)
    first, second = (prefetch_of(table, readers=readers) for _ in range(2))
    assert fake.started == 1
    one, two = first.rows(0), second.rows(0)
    assert one.name != two.name  # a worker that reads by itself does so for one pass
    assert one.seconds is two.seconds is None
    assert len(set(fake.sources)) == 1
    prefetch_of(table_of(tmp_path, 640, 640), readers=readers).rows(0)  # another table of that name
    assert fake.started == 1
    assert len(set(fake.sources)) == 2


@pytest.mark.parametrize("case", ["groups", "one worker", "in memory", "few shards", "small store", "many workers"])
def test_without_a_use_for_readers_workers_read(cut, fake, tmp_path, monkeypatch, case):
    table = table_of(tmp_path, 640, 128 if case == "groups" else 640)
    workers = {"one worker": 1, "many workers": 100_000}.get(case, 4)
    if case == "in memory":
        table = tables.MemoryTable(pq.read_table(tmp_path / "train.parquet"))
    if case == "few shards":
        monkeypatch.setattr(ray_prefetch, "_FEWEST_SHARDS", 11)
    if case == "small store":
        fake.store = 4 * 2 * 4 * 64 * table.row_bytes - 1
    prefetch = prefetch_of(table, workers)
    assert isinstance(prefetch.waiting, Waiting)
    assert all(prefetch.rows(k) is None for k in range(len(table.shards)))
    assert not fake.started


def test_a_store_that_just_holds_the_shards_is_used(cut, fake, tmp_path):
    table = table_of(tmp_path, 640, 640)
    fake.store = 4 * 2 * 4 * 64 * table.row_bytes
    assert isinstance(prefetch_of(table).waiting, InTurn)


def test_a_worker_whose_reader_fails_reads_by_itself_until_the_pass_ends(monkeypatch):
    asked = []

    def get(ref, timeout):
        asked.append((ref, timeout))
        if ref == "lost":
            raise ray.exceptions.GetTimeoutError("slow")
        return np.zeros(1)

    monkeypatch.setattr(ray_reader.ray, "get", get)
    prefetched, first = Prefetched(), Shard(1, 0, 5)
    assert prefetched("train", first) is None
    prefetched.take(PrefetchedRows("pass", "train", {1: "there", 2: "lost"}, 3.0))
    assert prefetched("train", first) is not None
    assert prefetched("valid", first) is None  # another table
    assert prefetched("train", Shard(7, 0, 5)) is None  # not among them
    assert prefetched("train", Shard(2, 0, 5)) is None
    assert prefetched("train", first) is None
    prefetched.take(PrefetchedRows("next pass", "train", {1: "there"}, 3.0))
    assert prefetched("train", first) is not None
    prefetched.take(None)
    assert prefetched("train", first) is None
    assert asked == [("there", 3.0), ("lost", 3.0), ("there", 3.0)]


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """A folder for the counts of all tests here: workers go from one run to the next."""
    return tmp_path_factory.mktemp("counts")


def runs(tmp_path, cluster, **options):
    """The scores of one process and of a cluster, each as a digest of its files."""
    train = job.write(tmp_path / "train.parquet", job.ROWS, 1, job.ROWS)
    valid = job.write(tmp_path / "valid.parquet", job.VALID, 2, 20)
    for name, where in (("alone", None), ("ray", cluster)):
        job.run(train, valid, tmp_path / name, where, curvature="ekfac", damping=0.1, **options)
        yield job.digest(tmp_path / name)


@pytest.mark.parametrize("drawn", [None, 300])
def test_four_workers_decode_a_row_group_once(ray_session, cut, monkeypatch, tmp_path, counts, drawn):
    """Scan, covariance, lambda and scores: as many passes over the rows, whichever of them are drawn."""
    monkeypatch.setattr(ray_runner, "WorkerActor", counted_reads.worker_of(counts))
    monkeypatch.setattr(ray_prefetch, "ReaderActor", counted_reads.reader_of(counts))
    before = {kind: counted_reads.decoded(counts, kind) for kind in ("worker", "reader")}
    alone, spread = runs(tmp_path, rayinf.Cluster(workers=4, cpus_per_worker=0.5), curvature_rows=drawn)
    assert spread == alone
    by_workers, by_reader = (counted_reads.decoded(counts, kind) - count for kind, count in before.items())
    assert by_reader >= 2 * job.ROWS
    assert by_workers >= job.VALID  # few rows, whatever the row groups
    assert by_reader + by_workers - 2 * job.VALID <= 1.3 * 4 * job.ROWS


@pytest.mark.parametrize("trouble", ["dies", "stands still"])
def test_a_reader_that_fails_changes_no_byte(ray_session, cut, monkeypatch, tmp_path, trouble):
    """It is started again a few times, or waited for once by each worker; then workers read."""
    monkeypatch.setattr(ray_prefetch, "ReaderActor", counted_reads.reader_of(tmp_path, trouble))
    alone, spread = runs(tmp_path, rayinf.Cluster(workers=2, patience=8 if trouble == "stands still" else 60))
    assert spread == alone
    # On a busy machine workers may have gone on before the reader has begun.
    assert trouble == "stands still" or (tmp_path / "trouble").exists()
