"""Influence vectors: what every training row is worth to each class, read batch by batch from scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.scores import HALVES, Scores, readable
from rayinf.errors import InputError

Array = np.ndarray[Any, Any]
_PREFIX = "category_"
# Columns of scores that are no class's.
_OTHERS = (
    "total",
    "fi",
    "fi_rank",
    "self_influence",
    "demographic_parity",
    "equal_opportunity",
    "robustness",
)


@dataclass(frozen=True)
class Vectors:
    """The columns of scores that stand for classes (A section 3.3): `P [n, K]`, streamed.

    Attributes:
        scores: where they come from.
        columns: their K names.
        labels: the label of each class; the column's own name where the scores do not tell.
    """

    scores: Scores
    columns: tuple[str, ...]
    labels: tuple[Any, ...]

    @classmethod
    def of(cls, scores: Scores) -> Vectors:
        """The `category_<label>` columns; where there are none, all that could be classes (slices, or your own).

        Raises:
            InputError: no such column.
        """
        if not isinstance(scores, Scores):
            raise InputError(f"scores is a {type(scores).__name__}.", "pass rayinf.Scores, or Scores.from_numpy(...).")
        named = [c for c in scores.columns if c.startswith(_PREFIX)]
        columns = named or [c for c in scores.columns if c not in _OTHERS]
        if not columns:
            raise InputError(
                f"The scores have no column for a class; they have {', '.join(map(repr, scores.columns))}.",
                'compute them with rayinf.influence(..., objective="category").',
            )
        known = {f"{_PREFIX}{label}": label for label in scores.metadata.get("classes", {}).values()}
        return cls(scores, tuple(columns), tuple(known.get(c, c) for c in columns))

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as text."""
        return tuple(str(label) for label in self.labels)

    def find(self, targets: Any) -> list[int]:
        """Positions among the columns of some classes, in rising order.

        Args:
            targets: labels, names of columns or, where labels are not known, positions; or one of these.

        Raises:
            InputError: one is no class, one stands twice, or there are none.
        """
        alone = isinstance(targets, str) or not isinstance(targets, Sequence | np.ndarray | set | frozenset)
        asked = [targets] if alone else list(targets)
        found = [self._find_one(t.item() if isinstance(t, np.generic) else t) for t in asked]
        if not found or len(set(found)) < len(found):
            raise InputError(f"targets={targets!r} names no class, or one twice.", f"name some of {self._shown()}.")
        return sorted(found)

    def batches(self, half: int | None = None, only: Sequence[int] | None = None) -> Iterator[Array]:
        """`P` in row order, as float64 `[B, K]`; of the first (0) or second (1) half of the validation rows, if asked.

        Args:
            half: of the validation rows.
            only: positions of the columns to read; None: all.

        Raises:
            InputError: a value that is not finite, or a damaged shard.
        """
        prefix = "" if half is None else HALVES[half]
        names = [prefix + c for c in (self.columns if only is None else [self.columns[k] for k in only])]
        start = 0
        for batch in self._read(names):
            values = np.stack([batch.column(n).to_numpy(zero_copy_only=False) for n in names], axis=1)
            values = values.astype(np.float64, copy=False)
            if not np.isfinite(values).all():
                row, k = np.argwhere(~np.isfinite(values))[0]
                raise InputError(
                    f"The score of row {start + row} in {names[k]!r} is {values[row, k]}.",
                    "compute the scores anew, or leave that row out.",
                )
            start += len(values)
            yield values

    def to_numpy(self, half: int | None = None) -> Array:
        """All of `P [n, K]`: `O(n)` memory."""
        return np.concatenate([np.empty((0, len(self.columns))), *self.batches(half)])

    @property
    def has_halves(self) -> bool:
        """Whether the scores have each half of the validation rows too."""
        return HALVES[0] + self.columns[0] in self.scores.source.schema.names

    def __len__(self) -> int:
        """Training rows."""
        return len(self.scores)

    def _read(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        source = self.scores.source
        if isinstance(source, pa.Table):
            yield from source.select(names).to_batches()
            return
        with readable(self.scores.path):
            yield from source.to_batches(columns=names, batch_readahead=1, fragment_readahead=1)

    def _find_one(self, target: Any) -> int:
        if target in self.columns:
            return self.columns.index(target)
        for held in (self.labels, self.names):
            if not isinstance(target, bool) and target in held:
                return held.index(target)
        tells = any(label != column for label, column in zip(self.labels, self.columns, strict=True))
        if not tells and isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(self.columns):
            return target
        raise InputError(f"targets: {target!r} is no class of the scores.", f"name some of {self._shown()}.")

    def _shown(self) -> str:
        more = ", ..." if len(self.labels) > 12 else ""
        return ", ".join(map(repr, self.labels[:12])) + more
