"""A selection: rows in order of value, and which of them are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.data.scores import to_numpy

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ["row_id", "value", "kept"]
_POSITION = "position"


@dataclass(frozen=True)
class Selection:
    """Rows that a rule has kept. Of `acquire`, the kept rows are those that were picked.

    Attributes:
        source: `row_id`, `value`, `kept` and the row's `position` in its table, sorted best first.
        metadata: the rule and its numbers.
        before: the evaluation of a model trained on all rows, where one was trained.
        after: the evaluation of a model trained on the kept rows.
        predicted: what the removal of the other rows is predicted to do, where that was asked for: a line an
            objective, as in `RemovalPrediction.table`.
    """

    source: pa.Table = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    predicted: pa.Table | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        ids: Any,
        values: np.ndarray[Any, Any],
        order: np.ndarray[Any, Any],
        kept: np.ndarray[Any, Any],
        metadata: Mapping[str, Any] | None = None,
    ) -> Selection:
        """A selection among the rows of a table.

        Args:
            ids: `[n]`, in table order: integers or text, as Arrow or NumPy has them.
            values: `[n]`, in table order; NaN where a row has none.
            order: `[n]`, positions in the table, best first.
            kept: `[n]`, in table order: whether a row is kept.
            metadata: the rule and its numbers.
        """
        held = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else pa.array(ids)
        columns = {
            "row_id": held.take(pa.array(order)),
            "value": pa.array(values[order], from_pandas=True),
            "kept": pa.array(kept[order]),
            _POSITION: pa.array(order),
        }
        return cls(pa.table(columns), dict(metadata or {}))

    @property
    def table(self) -> pa.Table:
        """`row_id`, `value` and `kept` of every row, best first."""
        return self.source.select(_SHOWN)

    @property
    def row_ids(self) -> np.ndarray[Any, Any]:
        """Ids of the kept rows, best first."""
        return to_numpy(self._kept()["row_id"])

    @property
    def kept(self) -> np.ndarray[Any, Any]:
        """Ids of the kept rows, in table order."""
        return to_numpy(self._kept().sort_by(_POSITION)["row_id"])

    @property
    def removed(self) -> np.ndarray[Any, Any]:
        """Ids of the other rows, worst first."""
        others = np.flatnonzero(~to_numpy(self.source["kept"]))[::-1]
        return to_numpy(self.source["row_id"].take(pa.array(others)))

    @property
    def mask(self) -> np.ndarray[Any, Any]:
        """Whether each row is kept, `[n]`, in table order."""
        mask = np.zeros(self.source.num_rows, bool)
        mask[to_numpy(self._kept()[_POSITION])] = True
        return mask

    def to_pandas(self) -> pd.DataFrame:
        """A frame with `row_id`, `value` and `kept`, best first."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def __len__(self) -> int:
        """Kept rows."""
        return int(to_numpy(self.source["kept"]).sum())

    def _kept(self) -> pa.Table:
        return self.source.filter(self.source["kept"])
