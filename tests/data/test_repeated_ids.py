"""Duplicate ids among more rows than are held at once: in two passes, with bounded memory, and never by chance."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayinf
from rayinf.data import repeated_ids as searching
from rayinf.data.batches import Array
from rayinf.data.repeated_ids import repeated_ids

N, AT_ONCE = 5000, 400


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files of 400 hashes, blocks of 3 arrays."""
    monkeypatch.setattr(searching, "_IDS_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(searching, "_ARRAYS_PER_BLOCK", 3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


class Ids:
    """Ids in arrays of 100, and how often they are read."""

    def __init__(self, ids: Array) -> None:
        self.ids, self.passes = ids, 0

    def __call__(self) -> Iterator[Array]:
        self.passes += 1
        yield from (self.ids[k : k + 100] for k in range(0, len(self.ids), 100))

    def search(self) -> list[Any]:
        return repeated_ids(self, len(self.ids))


def as_text(ids: Array) -> Array:
    return np.array([f"id {k}" for k in ids])


@pytest.mark.parametrize("kind", [np.asarray, np.uint64, as_text])
def test_two_passes_at_most(kind: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    unique = Ids(kind(rng.permutation(N)))
    assert unique.search() == []
    assert unique.passes == 1
    for _ in range(5):
        ids = rng.permutation(N)
        a, b = rng.choice(N, 2, replace=False)
        ids[a] = ids[b]
        some = Ids(kind(ids))
        assert some.search() == [kind(ids)[a].item()]
        assert some.passes == 2
    assert list(tmp_path.iterdir()) == []


def test_every_id_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a few files are told: they fit in memory."""
    monkeypatch.setattr(searching, "_ENOUGH", 100)
    ids = np.random.default_rng(1).permutation(np.repeat(np.arange(N // 5), 5))
    found = Ids(ids).search()
    assert 0 < len(found) < len(ids) // 2
    assert all((ids == v).sum() == 5 for v in set(found))
    assert [found.count(v) for v in set(found)] == [4] * len(set(found))


def test_equal_hashes_of_other_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compared themselves before they are told."""
    monkeypatch.setattr(searching, "hash_ids", lambda ids: ids.astype(np.uint64) // np.uint64(2))
    ids = Ids(np.random.default_rng(2).permutation(N))
    assert ids.search() == []
    assert ids.passes == 2
    assert Ids(np.r_[np.arange(N), N - 1]).search() == [N - 1]


def test_no_more_is_held_than_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr(np, "fromfile", lambda *a, read=np.fromfile: held.append(read(*a)) or held[-1])
    Ids(np.random.default_rng(3).permutation(N)).search()
    assert sum(map(len, held)) == N
    assert max(map(len, held)) < 2 * AT_ONCE
    monkeypatch.setattr(searching, "_MOST_FILES", 3)
    assert Ids(np.r_[np.arange(N), 7]).search() == [7]


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(rayinf.RayinfError, match=r"cannot write to .*No space left.*Fix: let TMPDIR .*40,000 bytes"):
        Ids(np.arange(N)[::-1]).search()
    assert list(tmp_path.iterdir()) == []
