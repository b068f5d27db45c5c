"""Which rows a removal check takes away, and what influence predicts of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from rayinf.data.batches import Array, values
from rayinf.data.labels import Classes
from rayinf.data.tables import Table
from rayinf.data.vectors import Vectors
from rayinf.errors import InputError
from rayinf.select.top_share import SIDES, Side, top_share

# A side, and the position of a class among the columns.
Removal = tuple[Side, int]


@dataclass(frozen=True)
class Removals:
    """The top rows of each class and side. A side on which a class has no row has no removal.

    Attributes:
        rows: training rows.
        bits: which rows go, a bit a row.
        counts: how many go.
        predicted: of each class, the sum of the values of the rows that go `[K]`: the change of the sum of its
            validation losses.
    """

    rows: int
    bits: Mapping[Removal, Array]
    counts: Mapping[Removal, int]
    predicted: Mapping[Removal, Array]

    @classmethod
    def of(cls, vectors: Vectors, share: float) -> Removals:
        """Of each class, the top `share` of the rows that help it, and of those that harm it.

        Args:
            vectors: the values.
            share: of the rows of each sign.

        Raises:
            InputError: a value that is not finite.

        Cost: a read of the column and a sort for each class, and one more pass over all values.
        """
        bits: dict[Removal, Array] = {}
        counts: dict[Removal, int] = {}
        for k in range(len(vectors.columns)):
            column = np.concatenate([p[:, 0] for p in vectors.batches(only=[k])])
            for side in SIDES:
                top = top_share(column, share, side)
                if top.any():
                    bits[side, k], counts[side, k] = np.packbits(top), int(top.sum())
        found = cls(len(vectors), bits, counts, {})
        predicted = {removal: np.zeros(len(vectors.columns)) for removal in bits}
        start = 0
        for p in vectors.batches():
            for removal in bits:
                predicted[removal] += p[found.gone(removal, start, len(p))].sum(0)
            start += len(p)
        return cls(len(vectors), bits, counts, predicted)

    def gone(self, removal: Removal, start: int = 0, rows: int | None = None) -> Array:
        """Whether each row goes `[n]`, or each of some consecutive ones."""
        stop = self.rows if rows is None else start + rows
        first = start // 8
        held = np.unpackbits(self.bits[removal][first : -(-stop // 8)])
        return held[start - 8 * first : stop - 8 * first].astype(bool)

    @property
    def digest(self) -> str:
        """A short name for which rows go."""
        parts = [f"{side}-{k}".encode() + held.tobytes() for (side, k), held in self.bits.items()]
        return sha256(b"".join(parts)).hexdigest()

    def check_left(self, table: Table, label: str, classes: Classes, names: tuple[Any, ...]) -> None:
        """Refuse a removal that takes every training row of a class. Only labels are read.

        Args:
            table: the training rows.
            label: its column of labels.
            classes: of the task.
            names: of the classes that have a column.

        Raises:
            InputError: which removal, and which class.
        """
        reader, had = table.open([label]), np.zeros(len(classes.labels), np.int64)
        left = {removal: had.copy() for removal in self.bits}
        for shard in table.shards:
            start = shard.start
            for record in reader.read(shard):
                codes = classes.encode(values(record.column(label), label, table.name, start))
                had += np.bincount(codes, minlength=len(had))
                for removal, counts in left.items():
                    counts += np.bincount(codes[~self.gone(removal, start, len(codes))], minlength=len(had))
                start += len(codes)
        for removal, counts in left.items():
            if (empty := np.flatnonzero((had > 0) & (counts == 0))).size:
                lost, (side, k) = int(empty[0]), removal
                raise InputError(
                    f"Removing the {self.counts[removal]:,} rows that are most {side} to class {names[k]!r} takes all "
                    f"{had[lost]:,} training rows of class {classes.labels[lost]!r}.",
                    "pass a smaller share.",
                )
