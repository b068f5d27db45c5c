"""Random subsets: their size, that they follow the row and not its place, and that they are independent."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Columns
from rayinf.data.labels import Classes
from rayinf.data.tables import as_table
from rayinf.training.subsets import Subsets, read_keys

ROWS = 600
X = np.random.default_rng(0).normal(size=ROWS).astype(np.float32)
Y = np.arange(ROWS) % 3


def draw(order: np.ndarray, seed: int = 0, share: float = 0.5, x: np.ndarray = X) -> Subsets:
    table = as_table(pa.table({"x": x[order], "label": Y[order]}), [], [], "train")
    keys, codes = read_keys(table, Columns(("x",), True, "label", None), Classes((0, 1, 2)))
    assert codes.tolist() == Y[order].tolist()
    return Subsets(keys, round(share * len(order)), seed)


def test_sizes_and_chunks() -> None:
    for share in (0.1, 0.5, 1 - 1 / ROWS):
        held = draw(np.arange(ROWS), share=share)
        kept = np.stack([held.keep(j) for j in range(5)], axis=1)
        assert (kept.sum(0) == round(share * ROWS)).all()
        most = held.thresholds(5)
        parts = [held.left_out(most, start, min(70, ROWS - start)) for start in range(0, ROWS, 70)]
        assert (np.concatenate(parts) == ~kept).all()


def test_a_row_keeps_its_part_wherever_it_stands() -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    for j in range(4):
        assert (draw(np.arange(ROWS)).keep(j)[order] == draw(order).keep(j)).all()


def test_equal_rows_are_drawn_one_by_one() -> None:
    """All rows of a class are equal: about half of them are kept, as many in any order."""
    same = np.zeros(ROWS, np.float32)
    order = np.random.default_rng(2).permutation(ROWS)
    for j in range(4):
        kept, moved = draw(np.arange(ROWS), x=same).keep(j), draw(order, x=same).keep(j)
        counts = np.bincount(Y[kept], minlength=3)
        assert (np.abs(counts - ROWS / 6) < 40).all()
        assert np.bincount(Y[order][moved], minlength=3).tolist() == counts.tolist()


def test_independence() -> None:
    """Pairs of subsets, and pairs of seeds, share about a half of their rows."""
    masks = [draw(np.arange(ROWS), seed).keep(j) for seed in (0, 1, 2**40) for j in range(4)]
    shared = [(a & b).sum() / (ROWS / 2) for k, a in enumerate(masks) for b in masks[:k]]
    assert abs(np.mean(shared) - 0.5) < 0.02
    assert max(abs(v - 0.5) for v in shared) < 0.1
