"""Influence vectors read from scores: columns, classes, batches, halves, labels; and `from_numpy` with halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from run_folders import write_run

from rayinf import InputError, Scores
from rayinf.data.vectors import Vectors

P = np.arange(20.0).reshape(5, 4) - 8
COLUMNS = ["total", "category_b", "category_a", "category_7"]
HALVES = (P / 4, 3 * P / 4)


def run(folder: Path, table: pa.Table, cuts: list[int], metadata: dict[str, Any] | None = None) -> Scores:
    """A finished run with these scores, in shards."""
    parts = [table.slice(start, stop - start) for start, stop in zip(cuts, [*cuts[1:], len(table)], strict=True)]
    return Scores.load(write_run(folder, parts, metadata or {}))


def labelled() -> Scores:
    held = Scores.from_numpy(P, COLUMNS, labels=["b", "a", "7", "b", "a"], halves=HALVES)
    classes = {"0": "b", "1": "a", "2": 7}
    return Scores(held.source, {"classes": classes})


def test_the_classes_columns_are_found_and_no_others() -> None:
    vectors = Vectors.of(labelled())
    assert vectors.columns == ("category_b", "category_a", "category_7")
    assert vectors.labels == ("b", "a", 7) and vectors.names == ("b", "a", "7")
    assert len(vectors) == 5
    np.testing.assert_array_equal(vectors.to_numpy(), P[:, 1:])


def test_columns_of_any_name_are_classes_where_none_is_named_so() -> None:
    scores = Scores.from_numpy(P, ["slice_age_1", "mine", "fi", "total"])
    vectors = Vectors.of(scores)
    assert vectors.columns == vectors.labels == ("slice_age_1", "mine")
    with pytest.raises(InputError, match="no column for a class; they have 'fi', 'robustness'"):
        Vectors.of(Scores.from_numpy(P[:, :2], ["fi", "robustness"]))
    with pytest.raises(InputError, match="scores is a DataFrame"):
        Vectors.of(scores.to_pandas())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["a"], [1]),
        ("a", [1]),
        (7, [2]),
        ("7", [2]),
        ([7, "category_b"], [0, 2]),
        (np.array(["a", "b"]), [0, 1]),
        ({"a", "b"}, [0, 1]),
        (("7", "b"), [0, 2]),
    ],
)
def test_targets_are_found(targets: Any, found: list[int]) -> None:
    assert Vectors.of(labelled()).find(targets) == found


def test_positions_count_where_labels_are_not_known() -> None:
    unknown = Vectors.of(Scores.from_numpy(P[:, :2], ["x", "y"]))
    assert unknown.find([1]) == unknown.find(np.array([1])) == [1]
    for bad in (2, -1, True, 0.5, "z"):
        with pytest.raises(InputError, match="is not a class of the scores"):
            unknown.find(bad)
    # Where they are, a number is a label.
    with pytest.raises(InputError, match=r"0 is not a class of the scores.*'b', 'a', 7"):
        Vectors.of(labelled()).find([0])


@pytest.mark.parametrize("bad", [[], ["a", "category_a"], [7, "7"]])
def test_no_target_or_one_twice_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="names no class, or one twice"):
        Vectors.of(labelled()).find(bad)


@pytest.mark.parametrize("cuts", [[0], [0, 1, 3], [0, 2]])
def test_batches_are_the_rows_in_order_from_memory_and_from_shards(tmp_path: Path, cuts: list[int]) -> None:
    memory = labelled()
    for scores in (memory, run(tmp_path, memory.source, cuts, dict(memory.metadata))):
        vectors = Vectors.of(scores)
        assert vectors.labels == ("b", "a", 7)
        batches = list(vectors.batches())
        assert all(b.dtype == np.float64 and b.flags.c_contiguous for b in batches)
        np.testing.assert_array_equal(np.concatenate(batches), P[:, 1:])
        np.testing.assert_array_equal(np.concatenate(list(vectors.batches(only=[2, 0]))), P[:, [3, 1]])
        assert vectors.has_halves
        for k in range(2):
            np.testing.assert_array_equal(vectors.to_numpy(k), HALVES[k][:, 1:])
        codes: dict[Any, int] = {}
        parts = [np.concatenate(p) for p in zip(*vectors.joint(codes), strict=True)]
        for got, want in zip(parts, (P, *HALVES), strict=False):
            np.testing.assert_array_equal(got, want[:, 1:])
        assert codes == {"b": 0, "a": 1, "7": 2}
        np.testing.assert_array_equal(parts[3], [0, 1, 2, 0, 1])
        assert all(len(batch) == 3 for batch in vectors.joint())


def test_without_halves_or_labels() -> None:
    vectors = Vectors.of(Scores.from_numpy(np.float32(P), COLUMNS))
    assert not vectors.has_halves
    codes: dict[Any, int] = {}
    (batch,) = vectors.joint(codes)
    assert not codes and len(batch) == 2 and (batch[1] == -1).all()
    assert batch[0].dtype == np.float64
    empty = Vectors.of(Scores.from_numpy(P[:0], COLUMNS))
    assert len(empty) == 0 and empty.to_numpy().shape == (0, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, bad: float | None) -> None:
    table = pa.table({"row_id": [0, 1, 2], "category_a": [1.0, 2.0, 3.0], "category_b": [1.0, 2.0, bad]})
    shown = "nan" if bad is None else str(bad)
    for scores in (Scores(table), run(tmp_path, table, [0, 2])):
        for read in (Vectors.of(scores).batches, Vectors.of(scores).joint):
            with pytest.raises(InputError, match=f"row 2 in 'category_b' is {shown}"):
                list(read())


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    scores = run(tmp_path, labelled().source, [0, 2])
    (tmp_path / "scores" / "part-00001.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(InputError, match="damaged or gone"):
        list(Vectors.of(scores).batches())


# --- Scores.from_numpy with halves


def test_halves_are_the_scores_own() -> None:
    scores = Scores.from_numpy(P, COLUMNS, row_ids=list("vwxyz"), halves=HALVES)
    assert scores.columns == COLUMNS
    np.testing.assert_array_equal(scores.to_numpy(), P)
    assert scores.halves is not None
    for half, want in zip(scores.halves, HALVES, strict=True):
        np.testing.assert_array_equal(half.to_numpy(), want)
        assert half.columns == COLUMNS and half.table["row_id"].to_pylist() == list("vwxyz")


@pytest.mark.parametrize(
    ("halves", "message"),
    [
        ((P,), "1 halves for values"),
        ((P, P, P), "3 halves for values"),
        ((P, P[:4]), "2 halves for values"),
        ((P, P[:, :3]), r"halves\[1\] are \(5, 3\)"),
        ((P, np.where(P == 2, np.nan, P)), r"halves\[1\]\[2, 2\] is nan"),
    ],
)
def test_halves_that_do_not_fit_are_refused(halves: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scores.from_numpy(P, COLUMNS, halves=halves)
