"""The ids that scores carry: positions, or the user's own column of integers or text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.samples import VALID, X, Y, close, naive, table, task

import rayinf

SHUFFLED = np.random.default_rng(5).permutation(len(X))
IDS: dict[str, pa.Array] = {
    "integers": pa.array(SHUFFLED * 1000 - 7),
    "int32": pa.array(SHUFFLED.astype(np.int32)),
    "large": pa.array(SHUFFLED.astype(np.uint64) + np.uint64(2**63)),
    "text": pa.array([f"row {k}" for k in SHUFFLED]),
    "text in order": pa.array([f"row {k:03}" for k in range(len(X))]),
    "dictionary": pa.array([f"row {k}" for k in SHUFFLED]).dictionary_encode(),
}


def scored(of: rayinf.Task, train: Any, out: Path | None = None) -> pa.Table:
    return rayinf.influence(of, train, VALID, curvature="identity", out=out).table


def test_positions(tmp_path: Path) -> None:
    pq.write_table(table(X, Y), tmp_path / "t.parquet", row_group_size=20)
    for train in ((X, Y), table(X, Y), tmp_path / "t.parquet"):
        found = scored(task(), train)
        assert found.schema.field("row_id").type == pa.int64()
        assert found["row_id"].to_pylist() == list(range(len(X)))


def test_positions_in_a_slice_start_at_zero() -> None:
    assert scored(task(), table(X, Y).slice(40))["row_id"].to_pylist() == list(range(50))


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("form", ["memory", "slice", "parquet", "folder of a run"])
def test_a_column_of_the_user(name: str, form: str, tmp_path: Path) -> None:
    t: Any = table(X, Y, "fixed lists", key=IDS[name])
    expected = t["key"].to_pylist()
    if form == "slice":
        t = pa.concat_tables([t, t]).combine_chunks().slice(len(X))
    if form in ("parquet", "folder of a run"):
        pq.write_table(t, tmp_path / "t.parquet", row_group_size=20)
        t = tmp_path / "t.parquet"
    found = scored(task(row_id="key"), t, tmp_path / "run" if form == "folder of a run" else None)
    assert found.schema.names == ["row_id", "total"]
    assert found["row_id"].to_pylist() == expected
    assert close(found["total"].to_numpy(), naive(X, Y, VALID))


def test_a_column_called_row_id_is_taken_unasked() -> None:
    found = scored(task(), table(X, Y, row_id=SHUFFLED + 500))
    assert found["row_id"].to_pylist() == (SHUFFLED + 500).tolist()


def test_another_column_may_be_asked_for() -> None:
    found = scored(task(row_id="key"), table(X, Y, row_id=SHUFFLED, key=SHUFFLED + 500))
    assert found["row_id"].to_pylist() == (SHUFFLED + 500).tolist()


def test_only_train_needs_the_ids() -> None:
    """Ids of the validation rows are checked where there are any, and do not enter the scores."""
    valid = table(*VALID, key=[f"v{k}" for k in range(len(VALID[0]))])
    for v in (VALID, valid):
        found = rayinf.influence(task(row_id="key"), table(X, Y, key=SHUFFLED), v, curvature="identity").table
        assert found["row_id"].to_pylist() == SHUFFLED.tolist()
