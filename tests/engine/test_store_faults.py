"""Every verb into a store ends at the bytes of a local run, also where a change to the store fails: a seeded sample."""

import random
import uuid
from functools import cache

import pytest
from engine import fault_jobs as jobs
from engine import faults

from rayinf.data import store_lease
from rayinf.store.places import open_place

# Faults of each verb, in each kind of store.
SAMPLE = 1
# One verb of each form of folder beside that of shards: rounds, a search, a stream.
ON_S3 = ("active_learning", "pareto_reweight", "trim_stream")
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return jobs.make_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, monkeypatch):
    """A folder in a store: one without conditional puts, and one with."""
    monkeypatch.setattr(store_lease, "SETTLE_SECONDS", 0.05)
    name = uuid.uuid4().hex
    if request.param == "memory":
        return open_place(f"memory://faults/{name}")
    return open_place(f"s3://bucket/{name}{request.getfixturevalue('s3').options}")


@pytest.fixture(scope="module")
def local(tables, tmp_path_factory):
    """What a verb gives in a local folder: run once for both kinds of stores."""
    folder = tmp_path_factory.mktemp("local")
    return cache(lambda verb: faults.calm(verb, tables, folder).digest)


def test_a_run_with_a_sample_of_faults(tables, place, local):
    """The main verb, in both kinds of stores."""
    check("influence", tables, place, local)


OTHERS = [("memory", v) for v in jobs.VERBS if v != "influence"] + [("s3", v) for v in ON_S3]


@pytest.mark.chaos
@pytest.mark.parametrize(("place", "verb"), OTHERS, indirect=["place"])
def test_a_sample_of_faults(verb, tables, place, local):
    check(verb, tables, place, local)


def check(verb, tables, place, local):
    there = faults.calm(verb, tables, place)
    assert there.digest == without_places(local(verb), there.digest)
    every = faults.faults(there.changes, 1.0, 0)
    found = [faults.trial(verb, tables, place, fault, there) for fault in random.Random(verb).sample(every, SAMPLE)]
    assert [f for f in found if f["wrong"]] == []


def without_places(local, there):
    """The digests of a local run; of records that name places, those of the run in the store."""
    names = ("run.json", "manifest.jsonl")
    return {k: there.get(k) if k.rpartition("/")[2] in names else v for k, v in local.items()}
