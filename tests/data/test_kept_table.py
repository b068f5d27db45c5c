"""Some rows of a table as a table: the same as a copy that was filtered, however it is cut and stored."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayinf.data.kept_table import KeptTable
from rayinf.data.tables import ParquetTable, Table, as_table

ROWS = 2500


def table(rows: int = ROWS) -> pa.Table:
    """Features of two axes, ids of text, labels."""
    x = np.arange(6 * rows, dtype=np.float32).reshape(rows, 2, 3)
    return pa.table(
        {
            "features": pa.FixedShapeTensorArray.from_numpy_ndarray(x),
            "label": np.arange(rows) % 3,
            "row_id": [f"r{k}" for k in range(rows)],
        }
    )


def masks() -> dict[str, np.ndarray]:
    """Which rows are kept."""
    rng = np.random.default_rng(0)
    gaps = rng.random(ROWS) < 0.5
    gaps[300:1300] = False  # shards that are left empty
    only = np.zeros(ROWS, bool)
    only[ROWS - 1] = True
    return {"some": rng.random(ROWS) < 0.5, "gaps": gaps, "all": np.ones(ROWS, bool), "only the last": only}


def forms(folder: Path) -> dict[str, Table]:
    """In memory, on disk in several row groups, and on disk in one that is cut into shards."""
    pq.write_table(table(), folder / "groups.parquet", row_group_size=400)
    pq.write_table(table(), folder / "one.parquet")
    cut = as_table(folder / "one.parquet", [], [], "train")
    assert isinstance(cut, ParquetTable)
    (whole,) = cut.shards
    parts = [
        replace(whole, index=k, start=s, rows=min(700, ROWS - s), offset=s) for k, s in enumerate(range(0, ROWS, 700))
    ]
    return {
        "memory": as_table(table(), [], [], "train"),
        "groups": as_table(folder / "groups.parquet", [], [], "train"),
        "cut": replace(cut, shards=tuple(parts), read_rows=64),
    }


def read(held: Table, columns: list[str]) -> pa.Table:
    reader = held.open(columns)
    return pa.Table.from_batches([b for s in held.shards for b in reader.read(s)])


@pytest.mark.parametrize("mask", masks())
def test_as_a_filtered_copy(tmp_path: Path, mask: str) -> None:
    keep, columns = masks()[mask], ["row_id", "features"]
    expected = table().select(columns).filter(pa.array(keep)).combine_chunks()
    for name, form in forms(tmp_path).items():
        kept = KeptTable(form, keep)
        assert as_table(kept, [], [], "train") is kept
        assert kept.num_rows == keep.sum() == sum(s.rows for s in kept.shards)
        assert [s.index for s in kept.shards] == list(range(len(kept.shards)))
        assert [s.start for s in kept.shards] == np.cumsum([0, *(s.rows for s in kept.shards)])[:-1].tolist()
        assert all(s.rows for s in kept.shards)
        assert read(kept, columns).combine_chunks().equals(expected), name
        assert read(pickle.loads(pickle.dumps(kept)), columns).combine_chunks().equals(expected), name


def test_a_part_of_a_shard(tmp_path: Path) -> None:
    """As the engine cuts shards when it looks at a table's first rows."""
    keep = masks()["some"]
    ids = [f"r{k}" for k in np.flatnonzero(keep)]
    for form in forms(tmp_path).values():
        kept = KeptTable(form, keep)
        last = kept.shards[-1]
        part = replace(last, start=last.start + 5, offset=last.offset + 5, rows=20)
        found = [i for b in kept.open(["row_id"]).read(part) for i in b.column("row_id").to_pylist()]
        assert found == ids[last.start + 5 : last.start + 25]


def test_stat_tells_rows_apart(tmp_path: Path) -> None:
    some, every = masks()["some"], masks()["all"]
    memory, disk, _ = forms(tmp_path).values()
    assert KeptTable(memory, some).stat == ""
    assert len({KeptTable(disk, some).stat, KeptTable(disk, every).stat, disk.stat}) == 3
    assert KeptTable(disk, some).stat == KeptTable(disk, some.copy()).stat
    assert KeptTable(disk, some).name == "train"
    assert KeptTable(disk, some).schema.names == ["features", "label", "row_id"]
