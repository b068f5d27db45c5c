"""The training rows that help and harm each validation row most: a table, in memory or as Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.data.part_files import PartFiles
from rayinf.data.run_folder import read_record
from rayinf.store.places import AnyPath

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["valid_row_id", "effect", "rank", "row_id", "value"]


@dataclass(frozen=True)
class Pairs:
    """The strongest pairs of validation and training rows.

    Attributes:
        table: `valid_row_id`, `effect` ("helps" or "harms"), `rank` (from 0, the strongest), `row_id` of the
            training row, `value`: the predicted rise of this validation row's loss when that row is removed.
        metadata: as of `Scores`.
        path: the run's folder, if it has one.
    """

    table: pa.Table = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: AnyPath | None = None

    @classmethod
    def read(cls, folder: AnyPath) -> Pairs:
        """The pairs of a finished run."""
        record = read_record(folder) or {}
        return cls(PartFiles(folder, "pairs").to_table(COLUMNS), record.get("metadata", {}), folder)

    def to_pandas(self) -> pd.DataFrame:
        """A frame of the pairs."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame


def pair_table(valid_ids: pa.Array, helps: tuple[Any, Any, Any], harms: tuple[Any, Any, Any]) -> pa.Table:
    """Pairs of a tile of validation rows, as `Pairs.table` has them.

    Args:
        valid_ids: `[m]`.
        helps: values, positions and ids `[m, k]`, strongest first.
        harms: the same.
    """
    tables = []
    for effect, (values, _, ids) in (("helps", helps), ("harms", harms)):
        m, k = values.shape
        tables.append(
            pa.table(
                {
                    "valid_row_id": valid_ids.take(pa.array(np.repeat(np.arange(m), k))),
                    "effect": pa.array([effect] * (m * k)),
                    "rank": pa.array(np.tile(np.arange(k), m)),
                    "row_id": pa.array(ids.reshape(-1)),
                    "value": pa.array(np.ascontiguousarray(values).reshape(-1)),
                }
            )
        )
    return pa.concat_tables(tables)
