"""The rows of largest and of smallest value for each of many queries, merged shard by shard: never all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TopRows:
    """For each query, at most `top` rows that help most and that harm most.

    Ties go to the earlier row, so that merging is free of order.

    Attributes:
        helps: values `[Q, k]` in falling order, with the rows' positions and ids in the same shape.
        harms: the same in rising order.
    """

    top: int
    helps: tuple[Array, Array, Array]
    harms: tuple[Array, Array, Array]

    @classmethod
    def of(cls, values_qb: Array, ids: Array, start: int, top: int) -> TopRows:
        """Candidates of one batch.

        Args:
            values_qb: `[Q, B]`.
            ids: `[B]`, of the rows.
            start: position of the first row in the table.
            top: rows to keep.
        """
        where = np.broadcast_to(np.arange(start, start + len(ids)), values_qb.shape)
        names = np.broadcast_to(ids, values_qb.shape)
        held = (values_qb, where, names)
        return cls(top, _best(held, top, 1.0), _best(held, top, -1.0))

    def merge(self, other: TopRows) -> TopRows:
        """The best of both."""
        helps = _best(_join(self.helps, other.helps), self.top, 1.0)
        return TopRows(self.top, helps, _best(_join(self.harms, other.harms), self.top, -1.0))


def merge_all(parts: Sequence[TopRows]) -> TopRows:
    """The best of all parts; there is at least one."""
    best = parts[0]
    for part in parts[1:]:
        best = best.merge(part)
    return best


def _join(a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    values, where, ids = (np.concatenate([x, y], axis=1) for x, y in zip(a, b, strict=True))
    return values, where, ids


def _best(held: tuple[Array, Array, Array], top: int, sign: float) -> tuple[Array, Array, Array]:
    order = np.lexsort((held[1], -sign * held[0]), axis=1)[:, :top]
    best, places, ids = (np.take_along_axis(x, order, 1) for x in held)
    return best, places, ids
