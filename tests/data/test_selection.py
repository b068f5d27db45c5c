"""Selections: what is kept and removed, in which order."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayinf.data.selection import Selection

VALUES = np.array([0.3, -1.0, 2.0, 0.5])
ORDER = np.array([2, 3, 0, 1])
KEPT = np.array([True, False, True, False])


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (np.array([10, 11, 12, 13]), [10, 11, 12, 13]),
        (pa.array(["a", "b", "c", "d"]), ["a", "b", "c", "d"]),
        (pa.chunked_array([["a"], ["b", "c", "d"]]), ["a", "b", "c", "d"]),
        (pa.array(["a", "b", "c", "d"], pa.large_string()), ["a", "b", "c", "d"]),
    ],
)
def test_orders(ids: Any, names: list[Any]) -> None:
    held = Selection.of(ids, VALUES, ORDER, KEPT, {"by": "v"})
    assert held.row_ids.tolist() == [names[2], names[0]]
    assert held.kept.tolist() == [names[0], names[2]]
    assert held.removed.tolist() == [names[1], names[3]]
    assert held.mask.tolist() == KEPT.tolist()
    assert len(held) == 2
    assert held.metadata == {"by": "v"}
    assert held.before is None
    assert held.after is None
    frame = held.to_pandas()
    assert frame.columns.tolist() == ["row_id", "value", "kept"]
    assert frame["row_id"].tolist() == [names[k] for k in ORDER]
    assert frame["value"].tolist() == VALUES[ORDER].tolist()
    assert frame["kept"].tolist() == KEPT[ORDER].tolist()
    assert held.table.schema.names == ["row_id", "value", "kept"]
    assert held.row_ids.dtype.kind == held.kept.dtype.kind == held.removed.dtype.kind == ("i" if ids[0] == 10 else "U")


@pytest.mark.parametrize("kept", [True, False])
def test_all_or_none(kept: bool) -> None:
    held = Selection.of(np.arange(4), VALUES, ORDER, np.full(4, kept))
    assert len(held) == len(held.row_ids) == len(held.kept) == 4 * kept
    assert len(held.removed) == 4 * (not kept)
    assert held.mask.tolist() == [kept] * 4


def test_a_row_without_a_value() -> None:
    held = Selection.of(np.arange(4), np.array([1.0, np.nan, 2.0, 3.0]), ORDER, KEPT)
    assert held.table["value"].null_count == 1
    assert np.isnan(held.to_pandas()["value"][3])


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Selection.of(np.arange(4), VALUES, ORDER, KEPT).before = {}  # type: ignore[misc]
