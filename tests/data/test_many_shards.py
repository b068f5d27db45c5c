"""What a shard takes in memory, of training tables of very many small ones.

Python's own memory is counted by tracemalloc and Arrow's by its pool, so that the numbers are the same in every run.
The resident memory of whole runs: `tests/benchmarks/shards.py`.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayinf.data import repeated_ids
from rayinf.data import scan as scanning
from rayinf.data.checked_folder import MANIFEST, CheckedFolder
from rayinf.data.files import files_below, sealed, unsealed, write_json
from rayinf.data.part_files import PartFiles, PartPlace
from rayinf.data.scan import TableScan, check_unique_ids
from rayinf.data.tables import as_table

FEW, MANY = 200, 800
MESSAGE = "{:.0f} bytes a shard"


@pytest.fixture
def traced() -> Iterator[Callable[[Callable[[], object]], int]]:
    """The most that a call holds at a time, in bytes of Python's memory."""

    def peak(call: Callable[[], object]) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start(1)
    try:
        yield peak
    finally:
        tracemalloc.stop()


def folder_of(count: int, table: pa.Table | pd.DataFrame, folder: Path) -> Path:
    """A folder of files that are all the same one."""
    where = folder / f"train-{count}"
    where.mkdir()
    if isinstance(table, pa.Table):
        pq.write_table(table, folder / "one")
    else:
        table.to_parquet(folder / "one")
    for k in range(count):
        os.link(folder / "one", where / f"{k:07d}.parquet")
    return where


@pytest.mark.parametrize(("index", "most"), [(False, 100), (True, 160)])
def test_a_table_of_many_files(index: bool, most: float, tmp_path: Path, traced: Any) -> None:
    """Also of frames whose index counts, in every file from another number than 0."""
    held: Any = pa.table({"x": np.zeros(1), "y": np.zeros(1, np.int64)})
    held = pd.DataFrame({"x": [0.0]}, index=pd.RangeIndex(7, 8)) if index else held
    few, many = (folder_of(count, held, tmp_path) for count in (FEW, MANY))
    as_table(str(few), [], [], "train")
    peaks = [traced(lambda where=where: as_table(str(where), [], [], "train")) for where in (few, many)]
    slope = (peaks[1] - peaks[0]) / (MANY - FEW)
    assert slope < most, MESSAGE.format(slope)
    assert len(as_table(str(many), [], [], "train").shards) == MANY


def test_the_search_for_an_id_twice_keeps_no_file_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2000
    held = pa.table({"id": np.arange(count)[::-1], "x": np.zeros(count)})
    pq.write_table(held, tmp_path / "t.parquet", row_group_size=1)
    found, seen = as_table(tmp_path / "t.parquet", [], [], "train"), []
    monkeypatch.setattr(repeated_ids, "_ARRAYS_PER_BLOCK", 16)
    monkeypatch.setattr(
        scanning, "read_ids", lambda *a, read=scanning.read_ids: seen.append(pa.total_allocated_bytes()) or read(*a)
    )
    check_unique_ids(found, "id", TableScan(count, "", {}, (), "", False, {}))
    assert len(seen) == count
    # A whole column of ids at most, over what one reader needs.
    assert max(seen) - seen[0] < 16 * count, MESSAGE.format((max(seen) - seen[0]) / count)


def odd() -> dict[Any, Any]:
    """What JSON changes, among what it keeps."""
    return {
        "tuple": (1, (2.5, "three")),
        "keys": {2: "a", 10: "b", None: "c", True: "d", 0.5: "e", "f": "g"},
        "others": [Path("/a"), np.float64(0.1), float("inf"), None, False, "\udcff \u00e9", []],
        7: {},
    }


def test_a_sealed_record_is_what_its_json_gives(tmp_path: Path) -> None:
    plain = json.loads(json.dumps(odd(), default=str))
    assert unsealed(sealed(odd())) == plain == unsealed(json.loads(json.dumps(sealed(odd()))))
    write_json(tmp_path / "a.json", sealed(odd()))
    assert unsealed(json.loads((tmp_path / "a.json").read_text())) == plain


def test_a_record_of_many_files_is_sealed_without_its_text(traced: Any) -> None:
    """The list of its names is copied (8 bytes each), and nothing else of it."""
    names = [f"/data/of/a/folder/{k:06d}.parquet" for k in range(20_000)]
    sealed({})
    peak = traced(lambda: sealed({"metadata": {"files": names}}))
    assert peak < 16 * len(names), MESSAGE.format(peak / len(names))


def test_the_manifests_of_a_folder_of_many_files(tmp_path: Path, traced: Any) -> None:
    """No entry of a folder is held; manifests lie at any depth."""
    manifests = [tmp_path / name / MANIFEST for name in ("", "factors", "scores/deeper")]
    for file in manifests:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for k in range(5000):
        (tmp_path / "scores" / f"part-{k:05d}.parquet").touch()
    assert files_below(tmp_path, MANIFEST) == sorted(manifests)
    peak = traced(lambda: files_below(tmp_path, MANIFEST))
    assert peak < 8 * 5000, MESSAGE.format(peak / 5000)


def test_many_parts_are_read_into_few_pieces(tmp_path: Path) -> None:
    place, held = PartPlace(tmp_path, "scores"), CheckedFolder(tmp_path, "owner")
    count = 300
    for k in range(count):
        held.add(place.write(k, pa.table({"row_id": [k], "total": [k / 7]})))
    held.close()
    found = PartFiles(tmp_path, "scores").to_table(["total", "row_id"])
    assert found["row_id"].to_pylist() == list(range(count))
    assert found["total"].to_pylist() == [k / 7 for k in range(count)]
    assert found["total"].num_chunks <= 6
    assert (tmp_path / MANIFEST).exists()


def test_files_whose_index_counts_keep_their_own_ids(tmp_path: Path) -> None:
    """Also with files without a row among them, in an order that is not that of the ids."""
    cuts, ids = [(40, 47, 1), (0, 0, 1), (9, -1, -2), (0, 0, 1), (100, 130, 10)], []
    for k, cut in enumerate(cuts):
        index = pd.RangeIndex(*cut, name="ids")
        pd.DataFrame({"x": np.zeros(len(index))}, index=index).to_parquet(tmp_path / f"{k}.parquet")
        ids += list(index)
    found = as_table(tmp_path, [], [], "train")
    reader = found.open(["ids"])
    read = [v for s in reversed(found.shards) for b in reader.read(s) for v in reversed(b.column(0).to_pylist())]
    assert read[::-1] == ids
