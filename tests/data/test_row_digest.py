"""Digests of columns: any value and any order matters, how the rows are cut does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayinf.data.row_digest import ColumnDigest

RNG = np.random.default_rng(0)
COLUMNS: dict[str, Any] = {
    "floats": RNG.normal(size=(50, 7)).astype(np.float32),
    "doubles": RNG.normal(size=(50, 3)),
    "images": RNG.integers(0, 255, (50, 3, 5, 5)).astype(np.uint8),
    "labels": RNG.integers(0, 3, 50),
    "one byte": RNG.integers(0, 2, (50, 1)).astype(np.uint8),
    "texts": np.array([f"t{k % 7}" for k in range(50)]),
    "objects": np.array([f"t{k}" if k % 2 else b"\x00\xff" for k in range(50)], dtype=object),
    "halves": RNG.normal(size=(50, 3)).astype(np.float16),
    "booleans": RNG.random((50, 5)) < 0.5,
}


def digest(x: np.ndarray, cuts: tuple[int, ...] = (), order: int = 1) -> str:
    """Of pieces, each a sum of its own, merged in any order."""
    whole = ColumnDigest()
    for start, stop in list(zip((0, *cuts), (*cuts, len(x)), strict=True))[::order]:
        part = ColumnDigest()
        part.add(x[start:stop], start)
        whole.merge(part.hex())
    return whole.hex()


@pytest.mark.parametrize("name", COLUMNS)
def test_how_rows_are_cut_does_not_matter(name: str) -> None:
    x = COLUMNS[name]
    assert digest(x) == digest(x, (1, 20, 49)) == digest(x, (7, 8), -1) == ColumnDigest(digest(x)).hex()


@pytest.mark.parametrize("name", COLUMNS)
def test_every_change_matters(name: str) -> None:
    x = COLUMNS[name]
    swapped, twice, less = x.copy(), np.concatenate([x, x[-1:]]), x[:-1]
    a, b = next((a, b) for a in range(50) for b in range(a) if np.any(x[a] != x[b]))
    swapped[[a, b]] = x[[b, a]]
    found = [digest(v) for v in (x, swapped, twice, less, x[::-1].copy(), np.roll(x, 1, 0))]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["floats", "doubles", "labels", "images", "halves"])
def test_every_single_bit_and_pairs_of_signs(name: str) -> None:
    x = COLUMNS[name]
    found = {digest(x)}
    raw = np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8)
    count = 1
    for byte in range(raw.shape[1]):
        for bit in range(8):
            changed = raw.copy()
            changed[11, byte] ^= 1 << bit
            found.add(digest(changed.view(x.dtype)))
            count += 1
    for first in range(0, raw.shape[1], 4):  # the highest bits of two values: sums of words would cancel
        for second in range(first + 4, raw.shape[1], 4):
            changed = raw.copy()
            changed[3, [first + 3 if first + 3 < raw.shape[1] else first, min(second + 3, raw.shape[1] - 1)]] ^= 128
            found.add(digest(changed.view(x.dtype)))
            count += 1
    assert len(found) == count


def test_labels_that_are_exchanged_between_rows() -> None:
    """Every permutation of some labels that moves one."""
    y = np.arange(6)
    seen = {digest(y)}
    for k in range(200):
        seen.add(digest(np.random.default_rng(k).permutation(y)))
    distinct = {tuple(np.random.default_rng(k).permutation(y)) for k in range(200)} | {tuple(y)}
    assert len(seen) == len(distinct)


def test_where_a_text_ends() -> None:
    assert len({digest(np.array([list(p)])) for p in (("a", "bc"), ("ab", "c"), ("abc", ""))}) == 3
