"""Keys and uniforms that depend on a row alone, and columns as NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data.samples import VALID, X, Y, as_text, close, naive, task

import rayinf
from rayinf.data.batches import features, row_keys, uniforms, values

FEATURES: dict[str, Any] = {
    "float32": X,
    "float64": X.astype(np.float64),
    "images": X.reshape(-1, 1, 4, 4),
    "bytes": np.ascontiguousarray(X).view(np.uint8),
    "three bytes": np.ascontiguousarray(X).view(np.uint8)[:, :3],
    "flags": X > 0,
    "scalars": X[:, 0],
    "text": np.array(as_text(X), dtype=object),
    "lists of text": np.array([row.split() for row in as_text(X)], dtype=object),
}
LABELS = {"integers": Y, "text": np.array(["ant", "bee", "a longer name"])[Y]}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", FEATURES)
def test_row_keys_depend_on_the_row_alone(kind: str, labels: str) -> None:
    x, y = FEATURES[kind], LABELS[labels]
    keys = row_keys(x, y)
    assert keys.dtype == np.uint64
    order = np.random.default_rng(2).permutation(len(x))
    np.testing.assert_array_equal(row_keys(x[order], y[order]), keys[order])
    for size in (1, 7, 64):
        parts = [row_keys(x[k : k + size], y[k : k + size]) for k in range(0, len(x), size)]
        np.testing.assert_array_equal(np.concatenate(parts), keys)
    np.testing.assert_array_equal(row_keys(np.repeat(x, 2, axis=0)[::2], y), keys)


def test_row_keys_tell_rows_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (1 << 14, 16)).astype(np.float32)
    distinct, first = np.unique(x, axis=0, return_index=True)
    assert len(np.unique(row_keys(x, np.zeros(len(x), int)))) == len(distinct) > 10_000
    x = x[first]
    assert not np.isin(row_keys(x, np.ones(len(x), int)), row_keys(x, np.zeros(len(x), int))).any()
    # Columns are ordered: the same numbers in another order are another row.
    assert not (row_keys(x, x[:, 0].astype(int)) == row_keys(x[:, ::-1], x[:, 0].astype(int)))[
        x[:, 0] != x[:, 15]
    ].any()
    texts = np.array([["a", "b"], ["b", "a"], ["ab", ""], ["", "ab"]], dtype=object)
    assert len(set(row_keys(texts, np.zeros(4, int)).tolist())) == 4


def test_keys_and_uniforms_are_the_same_in_every_process() -> None:
    """Pinned: another value would give other halves and other drawn labels to the runs of today."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert row_keys(x, np.array([0, 1])).tolist() == [5027401179399317791, 3302677303335451927]
    assert row_keys(np.array(["one", "two"], dtype=object), np.array(["a", "b"])).tolist() == [
        7028982404547580268,
        7166816950905802811,
    ]
    found = uniforms(np.array([0, 2**64 - 1], np.uint64), 3, 2)
    np.testing.assert_array_equal(
        found, [[0.8708589009424075, 0.568536757000755], [0.21514486799600951, 0.7955607642215596]]
    )


def test_uniforms_are_uniform() -> None:
    keys = row_keys(np.arange(20_000)[:, None], np.zeros(20_000, int))
    u = uniforms(keys, 0, 8)
    assert u.shape == (20_000, 8)
    assert u.min() >= 0
    assert u.max() < 1
    # Each draw and all of them fill ten bins evenly: 2,000 a bin, with a standard deviation of 42.
    for column in (*u.T, uniforms(keys, 1, 1)[:, 0], uniforms(np.arange(20_000, dtype=np.uint64), 0, 1)[:, 0]):
        assert np.abs(np.histogram(column, 10, (0, 1))[0] - 2000).max() < 5 * 42
    together = np.c_[u, uniforms(keys, 1, 8), uniforms(keys, -1, 8)]
    off = np.abs(np.corrcoef(together.T) - np.eye(24))
    assert off.max() < 5 / 20_000**0.5
    assert uniforms(np.array([2**64 - 1, 0], np.uint64), 2**40 + 1, 3).max() < 1


def test_halves_depend_neither_on_batches_nor_on_the_order() -> None:
    order = np.random.default_rng(4).permutation(len(VALID[0]))
    arguments: dict[str, Any] = {"curvature": "identity", "halves": True, "objective": ["total", "category"]}
    base = rayinf.influence(task(), (X, Y), VALID, batch_size=7, **arguments).halves
    moved = rayinf.influence(task(), (X, Y), (VALID[0][order], VALID[1][order]), batch_size=30, **arguments).halves
    other = rayinf.influence(task(), (X, Y), VALID, seed=1, **arguments).halves
    assert base is not None
    assert moved is not None
    assert other is not None
    for k in (0, 1):
        assert close(moved[k].to_numpy(), base[k].to_numpy())
        assert not close(other[k].to_numpy(), base[k].to_numpy())


def test_the_first_half_is_that_of_the_lower_uniforms() -> None:
    x, y = VALID
    first = uniforms(row_keys(x, y), 0 + 1, 1)[:, 0] < 0.5
    assert 0 < first.sum() < len(y)
    halves = rayinf.influence(task(), (X, Y), VALID, curvature="identity", halves=True).halves
    assert halves is not None
    for half, mine in zip(halves, (first, ~first), strict=True):
        assert close(half.to_numpy()[:, 0], naive(X, Y, (x[mine], y[mine])))


# --- Columns


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3, 1], pa.int8()),
        pa.array([3, 1], pa.uint64()),
        pa.array([3.0, 1.0], pa.float32()),
        pa.array([3, 1]).dictionary_encode(),
    ],
)
def test_labels_are_int64(column: pa.Array) -> None:
    found = values(column, "label", "train", 0)
    assert found.dtype == np.int64
    assert found.tolist() == [3, 1]


@pytest.mark.parametrize("column", [["b", "a"], pa.array(["b", "a"], pa.large_string()), pa.array(["b", "a"])])
def test_text_stays_text(column: Any) -> None:
    assert values(pa.array(column), "label", "train", 0).tolist() == ["b", "a"]
    assert values(pa.array(column).dictionary_encode(), "label", "train", 0).tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0, 1.5]), "'c' holds 1.5 in row 101"),
        (pa.array([0, float("nan")]), "'c' holds nan in row 101"),
        (pa.array([0, float("inf")]), "'c' holds inf in row 101"),
        (pa.array([0, None]), "'c' is null in row 101"),
        (pa.array(["a", None]), "'c' is null in row 101"),
        (pa.array([None, None]), "'c' is null in row 100"),
        (pa.array([[1], [2]]), "'c' is of type list"),
        (pa.array([1, 2], pa.date32()), "'c' is of type date32"),
    ],
)
def test_what_is_no_label(column: pa.Array, message: str) -> None:
    with pytest.raises(rayinf.InputError, match=message):
        values(column, "c", "train", 100)


LISTS = pa.array([[1.0, 2.0], [3.0, None]])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, None]), "'c' is null in row 101"),
        (pa.array([[1.0], None]), "'c' is null in row 101"),
        (LISTS, r"'c'\[1\] is null in row 101"),
        (LISTS.cast(pa.list_(pa.float64(), 2)), r"'c'\[1\] is null in row 101"),
        (pa.array([[[1.0, 2.0]], [[3.0, None]]]), r"'c'\[1\] is null in row 101"),
        (pa.array([[[1.0], [2.0]], [[3.0], None]]), r"'c'\[1\] is null in row 101"),
        (
            pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.float64(), [2]), LISTS.cast(pa.list_(pa.float64(), 2))
            ),
            r"'c'\[1\] is null in row 101",
        ),
        (pa.array([[1.0, 2.0], [3.0]]), "lists of different lengths: 2 in row 100, 1 in row 101"),
        (pa.array([[[1.0], [2.0]], [[3.0], [4.0, 5.0]]]), "different lengths: 1 in row 100, 2 in row 101"),
        (pa.array([[], [1.0]]), "different lengths: 0 in row 100, 1 in row 101"),
        (pa.array([{"a": 1}, {"a": 2}]), "of type struct<a: int64>, which holds no features"),
        (pa.array([1, 2], pa.timestamp("s")), "which holds no features"),
        (pa.array([1, 2], pa.decimal128(5)), "which holds no features"),
        (pa.array([[1], [2]], pa.list_(pa.decimal128(5))), "which holds no features"),
    ],
)
def test_what_is_no_feature(column: pa.Array, message: str) -> None:
    with pytest.raises(rayinf.InputError, match=message):
        features(column, "c", "train", 100)
