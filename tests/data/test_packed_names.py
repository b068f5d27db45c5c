"""Against a dict, over random changes."""

import random
import sys

import pytest

from rayinf.data.packed_names import PackedNames, in_order

NAMES = [
    *[f"scores/part-{k:05d}.parquet" for k in (0, 1, 2, 7, 99_999, 100_000, 100_001)],
    *[f"unranked/part-{k:05d}.parquet" for k in range(4)],
    *["scores/part-7.parquet", "scores/part-000007.parquet", "scores/part-00007", "a.json", "7", "00007", "x/1/2.json"],
    f"scores/part-{10**12}.parquet",
    "scores/part-\u0664\u0664\u0664\u0664\u0664.parquet",
]


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_mapping(seed: int) -> None:
    rng = random.Random(seed)
    held, truth = PackedNames(3), {}
    for _ in range(300):
        name = rng.choice(NAMES)
        if rng.random() < 0.4:
            assert held.pop(name, b"no") == truth.pop(name, b"no")
        else:
            truth[name] = held[name] = rng.randbytes(3)
        assert len(held) == len(truth)
        assert (name in held) == (name in truth)
    assert dict(held) == truth
    for name in NAMES:
        assert held.get(name) == truth.get(name)
        if name not in truth:
            with pytest.raises(KeyError):
                del held[name]


def test_its_order_is_that_of_the_numbers() -> None:
    held, names = PackedNames(1), [f"scores/part-{k:05d}.parquet" for k in range(99_990, 100_010)]
    for name in reversed([*names, "scans.json", "z/manifest"]):
        held[name] = b"."
    assert list(held) == ["scans.json", *names, "z/manifest"] == sorted(held, key=in_order)


def test_a_numbered_name_takes_its_value_and_a_byte() -> None:
    held = PackedNames(50)
    for k in range(10_000):
        held[f"p-{k:05d}.x"] = bytes(50)
    assert sum(sys.getsizeof(a) for a in held._arrays.values()) < 60 * 10_000
