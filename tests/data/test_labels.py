"""Labels of any type, and which logit each of them names."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.samples import CLASSES, VALID, X, Y, close, model, naive, table, task

import rayinf
from rayinf.data import labels
from rayinf.data.labels import Classes, make_classes


def named(names: list[Any], kind: pa.DataType | None = None) -> tuple[pa.Array, pa.Array]:
    """Labels of train and valid when class k is called `names[k]`."""
    train, valid = (pa.array([names[k % len(names)] for k in y], kind) for y in (Y, VALID[1]))
    return train, valid


LABELS: dict[str, tuple[list[Any], pa.DataType | None]] = {
    "int8": ([0, 1, 2], pa.int8()),
    "uint8": ([0, 1, 2], pa.uint8()),
    "int64": ([0, 1, 2], pa.int64()),
    "uint64": ([0, 1, 2], pa.uint64()),
    "bool": ([False, True], pa.bool_()),
    "text": (["ant", "bee", "cat"], pa.string()),
    "text of several lengths": (["a", "ab", "b"], pa.large_string()),
    "floats": ([0.0, 1.0, 2.0], pa.float64()),
    "halves": ([0.0, 1.0, 2.0], pa.float16()),
    "-1 and 1": ([-1, 1], pa.int32()),
    "from 1": ([1, 2, 3], pa.int64()),
    "from 1, as floats": ([1.0, 2.0, 3.0], pa.float32()),
    "far apart": ([10, 20, 35], pa.int64()),
    "negative": ([-7, -6, -5], pa.int64()),
    "text numbers in the order of numbers": (["1", "9", "10"], pa.string()),
    "text numbers below 0": (["-1", "0", "10"], pa.string()),
    "text of decimals": (["0.5", "2.0", "10.0"], pa.string()),
}
SHOWN = {"bool": [0, 1], "floats": [0, 1, 2], "halves": [0, 1, 2], "from 1, as floats": [1, 2, 3]}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("parquet", [False, True])
def test_labels_of_any_type(name: str, parquet: bool, tmp_path: Path) -> None:
    names, kind = LABELS[name]
    train, valid = named(names, kind)
    check(train, valid, SHOWN.get(name, names), tmp_path if parquet else None)


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("names", [["ant", "bee", "cat"], [0, 1, 2], [5, 6, 7]])
def test_labels_in_a_dictionary(names: list[Any], parquet: bool, tmp_path: Path) -> None:
    """Its own order counts for nothing."""
    plain = [names[k] for k in Y], [names[k] for k in VALID[1]]
    train, valid = (
        pa.DictionaryArray.from_arrays(pa.array([order.index(v) for v in held], pa.int8()), order)
        for held, order in zip(plain, (names[::-1], [names[1], names[0], names[2]]), strict=True)
    )
    check(train, valid, names, tmp_path if parquet else None)


def check(train: pa.Array, valid: pa.Array, names: list[Any], folder: Path | None) -> None:
    """Scores, columns and the map of classes are those of labels 0, 1, ..."""
    tables: list[Any] = [table(X, train), table(VALID[0], valid)]
    if folder is not None:
        for k in (0, 1):
            pq.write_table(tables[k], folder / f"{k}.parquet")
            tables[k] = folder / f"{k}.parquet"
    of, k = model(len(names)), len(names)
    scores = rayinf.influence(task(model=of), *tables, objective="category", curvature="identity")
    assert scores.columns == [f"category_{n}" for n in names]
    for c in range(k):
        mine = VALID[1] % k == c
        assert close(scores.to_numpy()[:, c], naive(X, Y % k, (VALID[0][mine], VALID[1][mine] % k), of))
    assert scores.metadata["classes"] == {str(c): n for c, n in enumerate(names)}


@pytest.mark.parametrize("given", [["cat", "ant", "bee"], np.array(["cat", "ant", "bee"])])
def test_classes_that_the_task_names(given: Any) -> None:
    train, valid = named(["cat", "ant", "bee"])
    scores = rayinf.influence(
        task(classes=given), table(X, train), table(VALID[0], valid), objective="category", curvature="identity"
    )
    assert scores.columns == ["category_cat", "category_ant", "category_bee"]
    assert close(scores.to_numpy().sum(1), naive(X, Y, VALID))


def test_named_integers_survive_the_run_file(tmp_path: Path) -> None:
    train, valid = named([7, 3, 5])
    given = np.array([7, 3, 5])
    scores = rayinf.influence(
        task(classes=given), table(X, train), table(VALID[0], valid), curvature="identity", out=tmp_path / "run"
    )
    assert close(scores.to_numpy()[:, 0], naive(X, Y, VALID))
    assert json.loads((tmp_path / "run/run.json").read_text())["metadata"]["classes"] == {"0": 7, "1": 3, "2": 5}


def test_integer_labels_name_their_logit_where_one_is_missing() -> None:
    """Train has the labels 0 and 2 of three: 2 is the third logit, and not the second label."""
    held = Y != 1
    found = rayinf.influence(task(), (X[held], Y[held]), VALID, curvature="identity").to_numpy()[:, 0]
    assert close(found, naive(X[held], Y[held], VALID))


def test_which_labels_are_certain() -> None:
    assert make_classes({0: 3, 2: 1}, 3) == Classes((0, 1, 2))
    assert make_classes({1: 3, 2: 1}, 3) == Classes((0, 1, 2))
    assert make_classes({"b": 3, "a": 1}, 2) == Classes(("a", "b"))
    assert make_classes({1: 3, 3: 1, 2: 2}, 3) == Classes((1, 2, 3))
    # Three of four labels are logits, so that 9 looks like a slip.
    for counts, logits in (({0: 5, 1: 5, 2: 5, 9: 1}, 4), ({-1: 1, 0: 5, 1: 5, 2: 5}, 3), ({"a": 1, "b": 2}, 3)):
        with pytest.raises(rayinf.InputError, match="classes="):
            make_classes(counts, logits)


def test_codes_of_labels() -> None:
    raw = np.array(["cat", "ant", "ant", "bee"])
    assert Classes(("bee", "cat", "ant")).encode(raw).tolist() == [1, 2, 2, 0]
    assert Classes((30, -1, 7)).encode(np.array([7, 30, -1, 7])).tolist() == [2, 0, 1, 2]
    assert Classes(tuple(range(CLASSES))).encode(np.array([2, 0])).tolist() == [2, 0]


def test_the_best_assignment_is_that_of_all_orders() -> None:
    """Whether or not it can be read off the rows' largest counts; ties go to the order that was taken."""
    rng = np.random.default_rng(0)
    read_off = 0
    for _ in range(200):
        confusion = rng.integers(0, 9, (4, 4)) + rng.permutation(np.diag(rng.integers(0, 12, 4)))
        found = labels._best(confusion)
        right = {p: sum(confusion[k, p[k]] for k in range(4)) for p in itertools.permutations(range(4))}
        kept = max(sum(p[k] == k for k in range(4)) for p in right if right[p] == max(right.values()))
        assert right[tuple(found.tolist())] == max(right.values())
        assert (found == np.arange(4)).sum() == kept
        read_off += len(set(confusion.argmax(1))) == 4
    assert 20 < read_off < 180
