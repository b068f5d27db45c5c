"""The best rows of many queries: as a sort of all values gives them, in whatever order shards come."""

from __future__ import annotations

import random

import numpy as np

from rayinf.select.top_rows import TopRows, merge_all


def test_the_order_of_merging_does_not_matter():
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, (5, 120)).astype(np.float32)  # many ties, and zeros of both signs
    values[0, ::7] *= -0.0
    ids = rng.permutation(120) + 1000
    parts = [TopRows.of(values[:, s : s + 12], ids[s : s + 12], s, 7) for s in range(0, 120, 12)]
    for seed in range(5):
        found = merge_all(random.Random(seed).sample(parts, len(parts)))
        for (best, where, names), sign in ((found.helps, -1), (found.harms, 1)):
            order = np.lexsort((np.broadcast_to(np.arange(120), values.shape), sign * values), axis=1)[:, :7]
            np.testing.assert_array_equal(where, order)
            np.testing.assert_array_equal(best, np.take_along_axis(values, order, 1))
            np.testing.assert_array_equal(names, ids[order])
