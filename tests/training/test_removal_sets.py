"""Which rows a check removes and what is predicted of it, however scores and labels are cut into pieces."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayinf
from rayinf.data.labels import Classes
from rayinf.data.tables import as_table
from rayinf.data.vectors import Vectors
from rayinf.training.removal_sets import Removals

ROWS, SHARE = 500, 0.2
LABELS = np.random.default_rng(1).integers(0, 2, ROWS)
VALUES = np.random.default_rng(0).normal(size=(ROWS, 2)) + 0.3 * LABELS[:, None]


def vectors(pieces: int) -> Vectors:
    """Scores in so many pieces, of sizes that no byte ends with."""
    scores = rayinf.Scores.from_numpy(VALUES, ["category_a", "category_b"])
    cuts = np.linspace(0, ROWS, pieces + 1).astype(int)
    parts = [scores.table.slice(a, b - a) for a, b in pairwise(cuts)]
    return Vectors.of(rayinf.Scores(pa.concat_tables(parts)))


@pytest.mark.parametrize("pieces", [1, 7, 60])
def test_rows_and_predictions(pieces: int) -> None:
    found = Removals.of(vectors(pieces), SHARE)
    assert set(found.bits) == {(side, k) for side in ("helpful", "harmful") for k in (0, 1)}
    for (side, k), predicted in found.predicted.items():
        column = VALUES[:, k] if side == "harmful" else -VALUES[:, k]
        count = int(SHARE * (column < 0).sum())
        gone = column < np.sort(column)[count]
        assert gone.sum() == count == found.counts[side, k]
        assert found.gone((side, k)).tolist() == gone.tolist()
        for start, rows in ((0, 5), (3, 30), (16, 8), (497, 3), (41, 1)):
            assert found.gone((side, k), start, rows).tolist() == gone[start : start + rows].tolist()
        assert np.allclose(predicted, VALUES[gone].sum(0))


def test_digest_tells_rows_apart() -> None:
    assert Removals.of(vectors(1), SHARE).digest == Removals.of(vectors(9), SHARE).digest
    assert Removals.of(vectors(1), SHARE).digest != Removals.of(vectors(1), SHARE + 0.01).digest


def test_classes_are_counted_over_row_groups(tmp_path: Path) -> None:
    """A class whose rows all go, but for one in the middle of the table; then that one too."""
    top = Removals.of(vectors(1), SHARE).gone(("helpful", 1))
    for spared in (True, False):
        rare = top.copy()
        if spared:
            rare[np.flatnonzero(~top)[100]] = True
        pq.write_table(pa.table({"label": np.where(rare, "rare", "usual")}), tmp_path / "t.parquet", row_group_size=33)
        table, classes = as_table(tmp_path / "t.parquet", [], [], "train"), Classes(("rare", "usual"))
        if spared:
            Removals.of(vectors(1), SHARE).check_left(table, "label", classes, ("a", "b"))
            continue
        with pytest.raises(
            rayinf.InputError, match=f"most helpful to class 'b' takes all {top.sum()} training rows of"
        ):
            Removals.of(vectors(1), SHARE).check_left(table, "label", classes, ("a", "b"))
