"""Against a list, and what a name takes."""

from __future__ import annotations

import pickle
import random
import sys

import pytest

from rayinf.data import names as module
from rayinf.data.names import Names, common_start


def some(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    letters = "ab/.-0\u00e9\u4e2d\U0001f600"
    return [f"/data/t{''.join(rng.choices(letters, k=rng.randrange(6)))}" for _ in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_they_are_a_list(count: int) -> None:
    truth = some(count, count)
    for held in (Names(truth, "/data/t"), Names(iter(truth)), pickle.loads(pickle.dumps(Names(truth, "/data/")))):
        assert len(held) == count
        assert list(held) == truth == held
        assert [held[k] for k in range(-count, count)] == truth + truth
        assert held[1:40:3] == truth[1:40:3]
        assert held != [*truth, "more"]
        assert "elsewhere" not in held
        assert all(name in held for name in truth)
        with pytest.raises(IndexError):
            held[count]


def test_a_name_with_another_start_is_refused() -> None:
    with pytest.raises(ValueError, match="'/other/a' does not begin with '/data/'"):
        Names(["/data/a", "/other/a"], "/data/")


@pytest.mark.parametrize("count", [0, 1, 8, 9, 100])
def test_they_are_sorted_in_runs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RUN", 8)
    truth = some(count, count)
    held = Names.sorted(iter(truth))
    assert held == sorted(truth)
    assert held.start == common_start(truth)


@pytest.mark.parametrize(
    ("names", "start"),
    [([], ""), (["/a/b"], "/a/b"), (["/a/b", "/a/bc", "/a/c"], "/a/"), (["x", "y"], ""), (["b", "ab", "b"], "")],
)
def test_what_all_begin_with(names: list[str], start: str) -> None:
    assert common_start(names) == start


def test_a_name_takes_its_own_letters_and_a_number() -> None:
    held = Names.sorted(f"/a/long/path/of/a/folder/{k:06d}.parquet" for k in range(20_000))
    assert sys.getsizeof(held._text) + sys.getsizeof(held._ends) < 30 * 20_000
