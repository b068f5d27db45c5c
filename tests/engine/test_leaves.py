"""Leaves of sums and groups of them: fixed by the table and the model, and the same bits whoever adds what."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rayinf.data.shards import Shard
from rayinf.engine.factors import FactorStore, tree_sum
from rayinf.engine.fit_quality import FitMerge, FitSums
from rayinf.engine.job import chunks
from rayinf.engine.leaves import groups, leaf_count, sums_sent


def sums(key):
    """Numbers of very different sizes: any other order of additions gives other bits. Some keys lack a name."""
    rng = np.random.default_rng(key)
    held = {"a": rng.normal(size=5) * 10.0 ** rng.integers(-8, 8, 5), "rows": np.array(1.0)}
    return held if key % 3 else {**held, "b": rng.normal(size=2)}


def leaves(count):
    return chunks([Shard(k, 10 * k, 10) for k in range(count)], count)


@pytest.mark.parametrize("count", [1, 3, 64, 129, 300, 1000])
def test_who_sends_which_groups_never_moves_a_bit(count, tmp_path):
    """Workers of several numbers, any order, and a run that goes on with another number of workers."""
    one = FactorStore(None)
    for k in range(count):
        one.add("s", count, k, sums(k))
    truth = one.get("s")
    assert float(truth["rows"]) == count
    for workers, folder in ((1, None), (2, tmp_path / "two"), (9, None), (40, None)):
        store, rng = FactorStore(folder, "run"), random.Random(workers)
        todo = list(groups(leaves(count), store.pending("s", count), workers).values())
        for group in rng.sample(todo, len(todo) // 2):
            for _ in range(rng.choice((1, 2))):  # an add that is repeated
                store.add("s", count, group.index, tree_sum(map(sums, group.keys)), group.level)
        left = store.pending("s", count)
        assert sorted(k for g in groups(leaves(count), left, 3 * workers).values() for k in g.keys) == left
        for group in groups(leaves(count), left, 3 * workers).values():
            store.add("s", count, group.index, tree_sum(map(sums, group.keys)), group.level)
        found = store.get("s")
        assert sorted(found) == sorted(truth) and store._names() == ["s"]
        assert all(np.array_equal(found[k], truth[k]) for k in truth)


def test_a_left_to_right_sum_has_other_bits():
    """What the tests above would not see otherwise."""
    plain = sum((sums(k)["a"] for k in range(1, 300)), sums(0)["a"])
    assert not np.array_equal(plain, tree_sum(map(sums, range(300)))["a"])


def test_a_group_over_leaves_that_are_there_takes_their_place():
    count, store, one = 300, FactorStore(None), FactorStore(None)
    for k in (5, 7, 8):
        store.add("s", count, k, sums(k))
    store.add("s", count, 0, tree_sum(map(sums, range(64))), 6)
    assert store._names() == ["partial/s/6-0"]
    for k in range(count):
        one.add("s", count, k, sums(k))
    for k in store.pending("s", count):
        store.add("s", count, k, sums(k))
    assert np.array_equal(store.get("s")["a"], one.get("s")["a"])


def test_groups_are_few_and_cover_what_is_left():
    many = leaves(5000)
    for workers, most in ((1, 128), (16, 256)):
        found = groups(many, range(5000), workers)
        assert most // 2 <= len(found) <= most
        assert [k for g in found.values() for k in g.keys] == list(range(5000))
        assert sum(g.rows for g in found.values()) == 50_000
    assert all(g.level == 0 for g in groups(leaves(100), range(100), 1).values())
    assert len(groups(leaves(64), range(64), 1, 0)) == 8 and len(groups(leaves(64), range(64), 3, 0)) == 32


def test_the_number_of_leaves_follows_the_work():
    assert leaf_count(50_000, 1_000, 64) == 64  # little work: as many as before
    assert leaf_count(1_281_167, 4_000_000_000, 8) > 4000  # a ResNet-50 on ImageNet: no cap
    assert leaf_count(2_000_000, 4_000_000_000, 8) > leaf_count(1_000_000, 4_000_000_000, 8)
    assert leaf_count(10_000_000_000, 100, 64) > 500  # rows cost something even where the model costs nothing


def test_little_work_is_sent_in_few_sums():
    assert sums_sent(100_000, 4_000) < 1  # a small network, fitted on drawn rows
    assert sums_sent(10_000_000, 4_000) < 64 == sums_sent(100_000, 4_000_000_000)
    assert 0 < sums_sent(20_000, 4_000_000) < 64


def test_a_store_that_is_closed_takes_in_nothing(tmp_path):
    """The second call of an item may end after the run."""
    store = FactorStore(tmp_path, "run")
    store.put("factors", sums(0))
    store.close(["factors"])
    store.add("covariance", 3, 1, sums(1))
    assert store._names() == ["factors"]


def test_fits_that_come_in_any_order_are_merged_in_one():
    held = []
    for k in range(40):
        fit = FitSums(3)
        fit.rows, fit.loss = 1, float(np.random.default_rng(k).normal() * 10.0 ** (k % 9))
        held.append(fit.to_json())
    found = set()
    for seed in range(4):
        merged = FitMerge()
        for k in random.Random(seed).sample(range(40), 40):
            merged.add(k, held[k])
        found.add(merged.to_json())
    assert len(found) == 1
    assert FitSums.from_json(found.pop()).rows == 40
