"""Whatever change to files fails, in any verb: the same call then ends at the same bytes.

A seeded sample; `python tests/engine/faults.py STATE` tries all of them.
"""

import random

import numpy as np
import pytest
from engine import fault_jobs as jobs
from engine import faults
from engine.faulty_disk import KINDS, FaultyDisk, Killed

import rayinf
from rayinf.data import disk
from rayinf.engine.factors import FactorStore

# Faults of each verb.
SAMPLE = 4


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return jobs.make_tables(tmp_path_factory.mktemp("tables"))


@pytest.mark.chaos
@pytest.mark.parametrize("verb", jobs.VERBS)
def test_a_sample_of_faults(verb, tables, tmp_path):
    truth = faults.calm(verb, tables, tmp_path)
    every = faults.faults(truth.changes, 1.0, 0)
    tried = random.Random(verb).sample(every, min(SAMPLE, len(every)))
    found = [faults.trial(verb, tables, tmp_path, fault, truth) for fault in tried]
    assert [f for f in found if f["wrong"]] == []
    assert any(f["first"] in ("killed", "one line") for f in found)  # the faults did strike


def sums(key):
    return {"a": np.random.default_rng(key).normal(size=7)}


@pytest.mark.parametrize("count", [1, 2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_an_add_that_is_interrupted_at_every_change(count, tmp_path, monkeypatch):
    """Putting a leaf, merging, dropping what was merged: any of them; the next `pending` or `add` goes on."""
    calm = FactorStore(None)
    for k in range(count):
        calm.add("s", count, k, sums(k))
    order = random.Random(count).sample(range(count), count)
    for kind in KINDS:
        at = 0
        while True:
            store = FactorStore(tmp_path / f"{kind}-{at}", "run")
            faulty = FaultyDisk(at, kind)
            monkeypatch.setattr(disk, "used", faulty)
            for k in order:
                try:
                    store.add("s", count, k, sums(k))
                except (Killed, rayinf.RunError):
                    break
            monkeypatch.undo()
            if not faulty.struck:
                break
            store = FactorStore(tmp_path / f"{kind}-{at}", "run")
            for k in store.pending("s", count):
                store.add("s", count, k, sums(k))
            assert store.pending("s", count) == []
            np.testing.assert_array_equal(store.get("s")["a"], calm.get("s")["a"])
            assert store._names() == ["s"]
            at += 1
        assert at >= 3 * count


def test_a_store_of_another_run_is_not_used(tmp_path):
    FactorStore(tmp_path / "f", "one").put("factors", sums(0))
    other = FactorStore(tmp_path / "f", "two")
    assert not other.has("factors")
    other.put("factors", sums(1))
    np.testing.assert_array_equal(FactorStore(tmp_path / "f", "two").get("factors")["a"], sums(1)["a"])


def test_a_damaged_artefact_is_made_again(tmp_path):
    made = []

    def double(held):
        made.append(1)
        return {"a": 2 * held["a"]}

    for _ in range(2):
        store = FactorStore(tmp_path / "f", "run")
        store.put("x", sums(0))
        store.derive("y", double, ["x"])
    assert len(made) == 1
    file = tmp_path / "f" / "y.safetensors"
    held = bytearray(file.read_bytes())
    held[-3] ^= 1
    file.write_bytes(held)
    store = FactorStore(tmp_path / "f", "run")
    np.testing.assert_array_equal(store.derive("y", double, ["x"])["a"], 2 * sums(0)["a"])
    assert len(made) == 2


def test_memory_and_disk_give_the_same_bits(tables, tmp_path):
    """Every verb's values in memory and with `out`."""
    out = tmp_path / "run"
    for objective in ("total", ["total", "category"]):
        held = rayinf.influence(jobs.task(), tables.many, tables.valid, objective, halves=True)
        kept = rayinf.influence(
            jobs.task(), tables.many, tables.valid, objective, halves=True, out=out / str(len(objective))
        )
        np.testing.assert_array_equal(held.to_numpy(), kept.to_numpy())
    pairs = [rayinf.pairs(jobs.task(), tables.train, tables.valid, top=3, out=o).table for o in (None, out / "pairs")]
    assert pairs[0].equals(pairs[1])
    for more in ({}, {"subsample": 0.5}):
        fi = [
            rayinf.influence_measure(jobs.task(), tables.train, tables.valid, out=o, **more).to_numpy()
            for o in (None, out / f"fi{len(more)}")
        ]
        np.testing.assert_array_equal(*fi)
