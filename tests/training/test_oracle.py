"""Oracles: every form gives the same labels, and wrong answers are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

import rayinf
from rayinf.training.oracle import LabelFolder, Pool, Query, make_oracle

TASK = rayinf.Task(nn.Linear(2, 3), classes=(0, 1, 2))
IDS = np.array([40, 10, 30])  # positions 3, 0, 2 of a pool of 5 with the ids 10, 20, ...
POSITIONS = np.array([3, 0, 2])
TRUTH = np.array([0, 2, 1, 1, 2])
WANTED = [1, 0, 1]
X = np.zeros((5, 2), np.float32)


def query(ids: Any = IDS) -> Query:
    return Query("fi", 1, 2, pa.table({"row_id": ids, "position": POSITIONS, "value": [3.0, 2.0, 1.0]}))


def ask(given: Any, ids: Any = IDS, row_id: str | None = "row_id", task: rayinf.Task = TASK) -> Any:
    return make_oracle(given, Pool(task, 5, row_id))(query(ids))


def by_id() -> pa.Table:
    order = [4, 2, 0, 1, 3]
    return pa.table({"row_id": np.arange(10, 60, 10)[order], "label": TRUTH[order]})


class TestForms:
    @pytest.mark.parametrize(
        "answer",
        [
            np.array,
            lambda v: list(map(int, v)),
            lambda v: pa.array(v),
            lambda v: np.array(v, dtype=np.float32),
            lambda v: np.array(v, dtype=np.uint8),
            lambda v: dict(zip(reversed(IDS.tolist()), reversed(v), strict=True)),
            lambda v: pd.Series(v, index=IDS).sample(frac=1, random_state=0),
            lambda v: pd.Series(v, index=IDS).astype("category"),
        ],
    )
    def test_functions(self, answer: Any) -> None:
        given = []

        def oracle(ids: np.ndarray) -> Any:
            given.append(ids)
            return answer(WANTED)

        found = ask(oracle)
        assert found.tolist() == WANTED
        assert found.dtype == np.int64
        assert isinstance(given[0], np.ndarray) and given[0].tolist() == IDS.tolist()

    def test_tables_by_id(self, tmp_path: Path) -> None:
        table = by_id()
        pq.write_table(table, tmp_path / "labels.parquet", row_group_size=2)
        for given in (table, table.to_pandas(), tmp_path / "labels.parquet", str(tmp_path), tmp_path.as_uri()):
            assert ask(given).tolist() == WANTED

    def test_tables_by_position(self) -> None:
        for given in ((X, TRUTH), pd.DataFrame({"label": TRUTH}), pa.table({"label": TRUTH, "other": TRUTH})):
            assert ask(given).tolist() == WANTED
            assert ask(given, POSITIONS, None).tolist() == WANTED

    def test_ids_of_another_width(self) -> None:
        table = by_id()
        assert ask(table.set_column(0, "row_id", table["row_id"].cast(pa.int32()))).tolist() == WANTED

    def test_text(self) -> None:
        task = rayinf.Task(nn.Linear(2, 3), classes=("a", "b", "c"))
        labels = pa.array(["a", "c", "b", "b", "c"]).dictionary_encode()
        table = pa.table({"row_id": [f"r{k}" for k in range(5)], "label": labels})
        assert ask(table, ["r3", "r0", "r2"], task=task).tolist() == ["b", "a", "b"]

    def test_another_label_column(self) -> None:
        task = rayinf.Task(nn.Linear(2, 3), label="kind", classes=(0, 1, 2))
        assert ask(by_id().rename_columns(["row_id", "kind"]), task=task).tolist() == WANTED
        with pytest.raises(rayinf.InputError, match="oracle has no column 'kind'"):
            ask(by_id(), task=task)

    def test_labels_of_rows_that_are_not_asked_for_may_be_missing(self) -> None:
        labels = pa.array([2, None, 1, None, 1])
        assert ask(pa.table({"row_id": [40, 20, 30, 50, 10], "label": labels}), IDS[[0, 2, 1]]).tolist() == [2, 1, 1]


class TestFolder:
    def test_asks_and_waits(self, tmp_path: Path) -> None:
        assert ask(LabelFolder(tmp_path / "new")) == tmp_path / "new" / "labels-fi-1-round-2.parquet"
        asked = pq.read_table(tmp_path / "new" / "ask-fi-1-round-2.parquet")
        assert asked.to_pydict() == {"row_id": [40, 10, 30], "rank": [1, 2, 3], "value": [3.0, 2.0, 1.0]}

    def test_a_directory_stays_one_with_its_answers_in_it(self, tmp_path: Path) -> None:
        assert isinstance(ask(str(tmp_path)), Path)
        (tmp_path / "notes.txt").write_text("")
        table = pa.table({"row_id": [30, 40, 10], "label": [1, 1, 0]})
        pq.write_table(table, tmp_path / "labels-fi-1-round-2.parquet")
        assert ask(tmp_path).tolist() == WANTED

    def test_a_directory_of_other_tables_is_a_table(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        pq.write_table(by_id(), tmp_path / "deep" / "part-0.parquet")
        assert ask(tmp_path).tolist() == WANTED
        assert not list(tmp_path.glob("ask-*"))

    def test_of_another_run(self, tmp_path: Path) -> None:
        ask(LabelFolder(tmp_path))
        with pytest.raises(rayinf.InputError, match="asks for other rows"):
            ask(LabelFolder(tmp_path), IDS[::-1])

    def test_files_that_are_no_answers(self, tmp_path: Path) -> None:
        file = ask(LabelFolder(tmp_path))
        file.write_bytes(b"half a fi")
        with pytest.raises(rayinf.InputError, match="cannot be read as Parquet"):
            ask(LabelFolder(tmp_path))
        pq.write_table(pa.table({"row_id": IDS, "class": WANTED}), file)
        with pytest.raises(rayinf.InputError, match="has no column 'label'; it has row_id, class"):
            ask(LabelFolder(tmp_path))


class TestWrongAnswers:
    @pytest.mark.parametrize(
        ("ids", "labels", "said"),
        [
            ([40, 10, 30, 20], [1, 0, 1, 2], "gives labels for unknown row ids in round 2 of fi, seed 1: 20"),
            ([40, 10, 30, 40], [1, 0, 1, 1], "gives labels twice in round 2 of fi, seed 1: 40"),
            ([40, 30], [1, 1], "gives no label in round 2 of fi, seed 1: 10"),
            ([40, 10, 30], [1, 0, 3], "not classes of the task (0, 1, 2) in round 2 of fi, seed 1: 3 of row 30"),
            ([40, 10, 30], ["a", "b", "c"], "'a' of row 40"),
            ([40, 10, 30], [1, None, 1], "gives null as the label in round 2 of fi, seed 1: 10"),
            ([40, 10, 30], [1.0, 0.0, 1.5], "must be integers or text"),
        ],
    )
    def test_in_every_form(self, tmp_path: Path, ids: list[int], labels: list[Any], said: str) -> None:
        refused = []
        if len(set(ids)) == len(ids):
            refused.append(lambda _: dict(zip(ids, labels, strict=True)))
        refused.append(lambda _: pd.Series(labels, index=ids))
        if 20 not in ids:  # a table may well have more rows
            refused.append(pa.table({"row_id": ids, "label": labels}))
        pq.write_table(pa.table({"row_id": ids, "label": labels}), tmp_path / "labels-fi-1-round-2.parquet")
        refused.append(LabelFolder(tmp_path))
        for given in refused:
            with pytest.raises(rayinf.InputError) as error:
                ask(given)
            assert said in str(error.value)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            ([1, 0], "2 labels for 3 rows"),
            (np.zeros((3, 1), int), "holds no labels"),
            (1, "holds no labels"),
            (None, "holds no labels"),
            (["a", 1, object()], "holds no labels"),
            ([1.0, float("nan"), 1.0], "null"),
        ],
    )
    def test_of_functions(self, answer: Any, said: str) -> None:
        with pytest.raises(rayinf.InputError, match=said):
            ask(lambda _: answer)

    def test_ids_of_another_kind(self) -> None:
        with pytest.raises(rayinf.InputError, match="row ids of type string, and the pool of type int64"):
            ask(pa.table({"row_id": list("abcde"), "label": TRUTH}))
