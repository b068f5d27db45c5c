"""The sets of training rows whose removal is predicted: parsed, checked, and part of the run's description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Self

import numpy as np

from rayinf.data.batches import Array, values
from rayinf.data.scan import TableScan
from rayinf.data.tables import Table
from rayinf.engine.job import Job
from rayinf.engine.spec import InfluenceSpec
from rayinf.errors import InputError
from rayinf.training.rows_to_keep import removed_mask

# The name of a set that is given without one.
ONE = "rows"


@dataclass(frozen=True)
class RemovedRows:
    """A set of rows that go: a bit a row.

    Attributes:
        name: of the set.
        count: how many go.
        total: rows of the table.
        bits: packed, `[ceil(total / 8)]`.
    """

    name: str
    count: int
    total: int
    bits: Array = field(repr=False)

    def to_mask(self) -> Array:
        """Whether each row goes, `[n]`."""
        return np.unpackbits(self.bits, count=self.total).astype(bool)

    @property
    def digest(self) -> str:
        """A short name for which rows go."""
        return sha256(self.bits.tobytes()).hexdigest()[:16]

    def gone(self, start: int, rows: int) -> Array:
        """Whether each of some consecutive rows goes."""
        first, stop = start // 8, start + rows
        held = np.unpackbits(self.bits[first : -(-stop // 8)])
        return held[start - 8 * first : stop - 8 * first].astype(bool)


@dataclass(frozen=True, kw_only=True)
class PredictRemovalSpec(InfluenceSpec):
    """Of `predict_removal`. `sets` are the rows, once the table is known."""

    verb = "predict_removal"
    unit = "the objective's own; changes are against the model as it is"
    has_scores = False
    tiles_columns = False

    removed: Any = field(metadata={"sent": False, "identity": False})
    sets: tuple[RemovedRows, ...] = field(default=(), init=False, metadata={"sent": False, "identity": False})

    def settle(self, job: Job, scans: Mapping[str, TableScan]) -> Self:
        """With the rows of every set.

        Raises:
            InputError: as `removed_mask`; no set, or one without a name; or a class of which no row would stay.
        """
        table, sets = job.tables["train"], []
        given = _by_name(self.removed)
        for name in given:  # a mask at a time
            shown = "rows" if name is ONE else f"rows[{name!r}]"
            mask = removed_mask(shown, given[name], table, self.task, scans["train"])
            sets.append(RemovedRows(str(name), int(mask.sum()), len(mask), np.packbits(mask)))
        _check_classes(sets, table, job)
        found = replace(self)
        found._set(sets=tuple(sets))
        return found

    def identity(self) -> dict[str, Any]:
        """With which rows go."""
        return {**super().identity(), "removed": {s.name: s.digest for s in self.sets}}


def _by_name(rows: Any) -> Mapping[str, Any]:
    """The sets by name.

    Raises:
        InputError: no set, or names that are not texts.
    """
    if not isinstance(rows, Mapping):
        return {ONE: rows}
    if not rows or not all(isinstance(name, str) and name for name in rows):
        raise InputError(
            f"rows holds {'no set' if not rows else 'sets under names that are not texts'}.",
            'pass a dict from names to rows, such as {"worst": selection}, or the rows alone.',
        )
    return rows


def _check_classes(sets: list[RemovedRows], table: Table, job: Job) -> None:
    """Refuse a set that takes all rows of a class. Only labels are read.

    Raises:
        InputError: which set, and which class.
    """
    label, classes = job.task.label, job.classes
    reader, had = table.open([label]), np.zeros(len(classes.labels), np.int64)
    left = [had.copy() for _ in sets]
    for shard in table.shards:
        start = shard.start
        for record in reader.read(shard):
            codes = classes.encode(values(record.column(label), label, table.name, start))
            had += np.bincount(codes, minlength=len(had))
            for one, counts in zip(sets, left, strict=True):
                counts += np.bincount(codes[~one.gone(start, len(codes))], minlength=len(had))
            start += len(codes)
    for one, counts in zip(sets, left, strict=True):
        if (empty := np.flatnonzero((had > 0) & (counts == 0))).size:
            lost = int(empty[0])
            raise InputError(
                f"Removing the {one.count:,} rows of {'rows' if one.name == ONE else repr(one.name)} takes all "
                f"{had[lost]:,} training rows of class {classes.labels[lost]!r}.",
                "leave some rows of every class.",
            )
