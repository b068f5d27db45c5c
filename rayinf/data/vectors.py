"""Influence vectors: the influence of every training row on each class, read batch by batch from scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayinf.data.scores import HALVES, LABEL_COLUMN, Scores
from rayinf.errors import InputError

Array = np.ndarray[Any, Any]
_PREFIX = "category_"
# Columns of scores that do not stand for a class.
_OTHERS = (
    "total",
    "fi",
    "fi_rank",
    "self_influence",
    "loss",
    "margin",
    "grad_norm",
    "random",
    "demographic_parity",
    "equal_opportunity",
    "robustness",
)


@dataclass(frozen=True)
class Vectors:
    """The columns of scores that stand for classes (Nahin 2025, section 3.3): `P [n, K]`, streamed.

    Rows that a run has left out (`on_error="skip"`) count as 0.

    Attributes:
        scores: where they come from.
        columns: their K names.
        labels: the label of each class; the column's name where the scores' metadata lack it.
    """

    scores: Scores
    columns: tuple[str, ...]
    labels: tuple[Any, ...]

    @classmethod
    def of(cls, scores: Scores, columns: str | Sequence[str] | None = None) -> Vectors:
        """The `category_<label>` columns; where there are none, all that could be classes (slices, or your own).

        Args:
            scores: any.
            columns: names of other columns to take instead, gaps and totals among them.

        Raises:
            InputError: no such column, or one twice.
        """
        if not isinstance(scores, Scores):
            raise InputError(f"scores is a {type(scores).__name__}.", "pass rayinf.Scores, or Scores.from_numpy(...).")
        named = [c for c in scores.value_columns if c.startswith(_PREFIX)]
        # A gap between groups may have any name; its details include its sign.
        gaps = _gaps(scores)
        chosen = named or [c for c in scores.value_columns if c not in _OTHERS and c not in gaps]
        if columns is not None:
            chosen = _named(scores, [columns] if isinstance(columns, str) else list(columns))
        if not chosen:
            raise InputError(
                f"The scores have no column for a class; they have {', '.join(map(repr, scores.columns))}.",
                'compute them with rayinf.influence(..., objective="category").',
            )
        known = {f"{_PREFIX}{label}": label for label in scores.metadata.get("classes", {}).values()}
        return cls(scores, tuple(chosen), tuple(known.get(c, c) for c in chosen))

    @property
    def gaps(self) -> dict[int, float]:
        """Positions of the columns that are gaps between groups, and how wide each is at the fit, in absolute value."""
        held = _gaps(self.scores)
        return {k: abs(held[c]) for k, c in enumerate(self.columns) if c in held}

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as text."""
        return tuple(str(label) for label in self.labels)

    def find(self, targets: Any) -> list[int]:
        """Positions among the columns of some classes, in rising order.

        Args:
            targets: labels, names of columns or, where labels are not known, positions; or one of these.

        Raises:
            InputError: a target that is not a class, a class twice, or none.
        """
        alone = isinstance(targets, str) or not isinstance(targets, Sequence | np.ndarray | set | frozenset)
        given = [targets] if alone else list(targets)
        found = [self._find_one(t.item() if isinstance(t, np.generic) else t) for t in given]
        if not found or len(set(found)) < len(found):
            raise InputError(f"targets={targets!r} names no class, or one twice.", f"name some of {self._shown()}.")
        return sorted(found)

    def batches(self, half: int | None = None, only: Sequence[int] | None = None) -> Iterator[Array]:
        """`P` in row order, as float64 `[B, K]`; or of the first (0) or second (1) half of the validation rows.

        Args:
            half: of the validation rows.
            only: positions of the columns to read; None: all.

        Raises:
            InputError: a value that is not finite, or a damaged shard.
        """
        prefix = "" if half is None else HALVES[half]
        names = [prefix + c for c in (self.columns if only is None else [self.columns[k] for k in only])]
        start = 0
        for batch in self.scores.batches(names):
            yield self._finite(batch, names, start)
            start += batch.num_rows

    def joint(self, codes: dict[Any, int] | None = None) -> Iterator[tuple[Array, ...]]:
        """All influence vectors of the rows from one reading: `P`, then that of each half, if there are halves.

        Args:
            codes: filled with a code for each label, in the order of their first rows; the last array of a batch is
                then the rows' codes `[B]`, -1 where the scores are without labels. None: without.

        Raises:
            InputError: as `batches`.
        """
        prefixes = ("", *HALVES) if self.has_halves else ("",)
        named = [[p + c for c in self.columns] for p in prefixes]
        label = [LABEL_COLUMN] if codes is not None and LABEL_COLUMN in self.scores.source.schema.names else []
        start = 0
        for batch in self.scores.batches([*(c for names in named for c in names), *label]):
            parts = tuple(self._finite(batch, names, start) for names in named)
            if codes is not None:
                parts += (_codes(batch.column(LABEL_COLUMN), codes) if label else np.full(batch.num_rows, -1),)
            start += batch.num_rows
            yield parts

    def both_halves(self) -> Iterator[Array]:
        """`[B, 2 K]` in row order: influence on the first half of the validation rows, then on the second.

        Raises:
            InputError: as `batches`.
        """
        names = [half + c for half in HALVES for c in self.columns]
        start = 0
        for batch in self.scores.batches(names):
            yield self._finite(batch, names, start)
            start += batch.num_rows

    def to_numpy(self, half: int | None = None) -> Array:
        """All of `P [n, K]`: `O(n)` memory."""
        out, start = np.empty((len(self), len(self.columns))), 0
        for batch in self.batches(half):
            out[start : start + len(batch)] = batch
            start += len(batch)
        return out

    def row_ids(self) -> Iterator[pa.Array]:
        """The rows' ids in row order, some thousand at a time."""
        for batch in self.scores.batches(["row_id"]):
            yield batch.column(0)

    @property
    def has_halves(self) -> bool:
        """Whether the scores have each half of the validation rows too."""
        return HALVES[0] + self.columns[0] in self.scores.source.schema.names

    def __len__(self) -> int:
        """Training rows."""
        return len(self.scores)

    def _finite(self, batch: pa.RecordBatch, names: Sequence[str], start: int) -> Array:
        """Some columns of a batch whose first row is `start`, as float64 `[B, columns]`.

        Raises:
            InputError: a value that is not finite.
        """
        values = np.empty((batch.num_rows, len(names)))
        for k, name in enumerate(names):
            column = batch.column(name)
            column = column.fill_null(0) if column.null_count and self._nulls_count else column
            values[:, k] = column.to_numpy(zero_copy_only=False)
        if not np.isfinite(values).all():
            row, k = np.argwhere(~np.isfinite(values))[0]
            raise InputError(
                f"The score of row {start + row} in {names[k]!r} is {values[row, k]}.",
                "compute the scores anew, or leave that row out.",
            )
        return values

    @property
    def _nulls_count(self) -> bool:
        """Whether rows without a value count as 0: nothing is known of those that a run has left out."""
        return self.scores.skipped_rows > 0

    def _find_one(self, target: Any) -> int:
        if target in self.columns:
            return self.columns.index(target)
        for held in (self.labels, self.names):
            if not isinstance(target, bool) and target in held:
                return held.index(target)
        labelled = any(label != column for label, column in zip(self.labels, self.columns, strict=True))
        if (
            not labelled
            and isinstance(target, int)
            and not isinstance(target, bool)
            and 0 <= target < len(self.columns)
        ):
            return target
        raise InputError(f"targets: {target!r} is not a class of the scores.", f"name some of {self._shown()}.")

    def _shown(self) -> str:
        more = ", ..." if len(self.labels) > 12 else ""
        return ", ".join(map(repr, self.labels[:12])) + more


@dataclass(frozen=True)
class InfluenceRows:
    """Influence vectors in a given order of the classes, of both halves of the validation rows where there are halves.

    Picklable; called, it reads the rows anew, batch by batch.

    Attributes:
        vectors: where they come from.
        order: for each column, the position of its class in `vectors`.
    """

    vectors: Vectors
    order: tuple[int, ...]

    @property
    def columns(self) -> list[int]:
        """Positions in what is read: K, or 2 K of both halves."""
        halves = range(2 if self.vectors.has_halves else 1)
        return [h * len(self.order) + k for h in halves for k in self.order]

    def __call__(self) -> Iterator[Array]:
        """Batches `[B, K]` or `[B, 2 K]` in row order.

        Raises:
            InputError: as `Vectors.batches`.
        """
        columns = self.columns
        for batch in self.vectors.both_halves() if self.vectors.has_halves else self.vectors.batches():
            yield np.ascontiguousarray(batch[:, columns])

    def held(self) -> Array:
        """All rows in memory."""
        out, start = np.empty((len(self.vectors), len(self.columns))), 0
        for batch in self():
            out[start : start + len(batch)] = batch
            start += len(batch)
        return out

    @property
    def total(self) -> Array:
        """The sum of all rows, `[K]` or `[2 K]`."""
        total = np.zeros(len(self.columns))
        for batch in self():
            total += batch.sum(0)
        return total


def _gaps(scores: Scores) -> dict[str, float]:
    """Columns that are gaps between groups, with the gap: they may have any name, but their details have its sign."""
    known = scores.metadata.get("objective_details", {})
    return {c: float(details["signed"]) for c, details in known.items() if "signed" in details}


def _named(scores: Scores, columns: list[str]) -> list[str]:
    """The columns of these names.

    Raises:
        InputError: a name that the scores do not have, one twice, or none.
    """
    unknown = [c for c in columns if c not in scores.columns]
    if unknown:
        raise InputError(
            f"columns name {', '.join(map(repr, unknown))}; the scores have {', '.join(map(repr, scores.columns))}.",
            "name some of these.",
        )
    if not columns or len(set(columns)) < len(columns):
        raise InputError(f"columns={list(columns)!r} name none, or one twice.", "name each column once.")
    return columns


def _codes(column: pa.Array, known: dict[Any, int]) -> Array:
    """Codes of labels, numbered in the order of their first rows."""
    encoded = pc.dictionary_encode(column)
    held = [known.setdefault(v, len(known)) for v in encoded.dictionary.to_pylist()]
    return np.asarray(held, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
