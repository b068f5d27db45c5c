"""The rows that K-FAC and EKFAC are fitted on, where a table has more of them than `curvature_rows`.

A row is drawn by its contents and the seed: whatever the order of the rows and however the table is cut, the same rows
are drawn, and equal rows go in or out together. The draw comes in two halves, whose curvatures are compared: how far
they differ says how well the sample determines the curvature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rayinf.data.batches import Batch, Columns, fast_keys, join_batches, uniforms
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine.entry import KRONECKER
from rayinf.engine.job import Job
from rayinf.engine.spec import RunSpec
from rayinf.engine.worker import Worker
from rayinf.errors import InputError

# Rows that are looked at together to draw from them.
_READ_ROWS = 65_536
# Drawn rows are kept for the next pass in so many bytes a worker; beyond, their shards are read again.
_KEPT_BYTES = 256 << 20
# What a batch takes beside its values.
_BATCH_BYTES = 1024
# Apart from the draws of labels, halves, signs and subsamples.
_SEED = 32
# Sums over the first half of the drawn rows stand under names that begin so.
FIRST = "first/"
_SCALED = ("rows", "positions/", "l_a/", "l_g/", "L/", "L_even/")
# The error of random signs falls with the root of the rows; of fewer than these, all columns cost little.
SIGNED_ROWS = 1000


def share_of(spec: RunSpec, rows: int) -> float:
    """The share of a table's rows that is drawn; 1 where all rows are used.

    How many are drawn is a matter of chance. The share is four standard deviations under `curvature_rows`, so that
    there are not more, unless many rows are equal.
    """
    most = spec.curvature_rows
    if most is None or rows <= most or spec.curvature not in KRONECKER or spec.factors is not None:
        return 1.0
    return most / rows * (1 - min(0.5, 4 / most**0.5))


def are_signed(rows: float) -> bool:
    """Whether layers with many positions take random signs in a fit on so many rows (`core.fisher.SIGN_DRAWS`)."""
    return rows >= SIGNED_ROWS


@dataclass(frozen=True)
class Draw:
    """Which rows of a run's training table are drawn.

    Attributes:
        table: its `scan_key`.
        share: of all rows.
        seed: of the run.
        columns: that are read of a row.
    """

    table: str
    share: float
    seed: int
    columns: Columns

    @classmethod
    def of(cls, job: Job) -> Draw:
        """That of a job."""
        return cls(job.tables["train"].scan_key, job.fitted_share, job.spec.seed, job.columns["train"])


class Halves:
    """The drawn rows of a shard, by half.

    Args:
        draw: says which.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._found: tuple[list[Batch], list[Batch]] = [], []

    def add(self, raw: Batch) -> None:
        """Draw from the next rows of the shard."""
        draws = uniforms(fast_keys(raw.x, raw.labels), self._draw.seed + _SEED, 1)[:, 0]
        for second, half in enumerate(self._found):
            low, high = self._draw.share * second / 2, self._draw.share * (second + 1) / 2
            rows = np.flatnonzero((draws >= low) & (draws < high))
            if len(rows):
                half.append(raw.take(rows))

    def result(self) -> tuple[Batch | None, ...]:
        """The rows of each half, in order; None where there are none."""
        return tuple(join_batches(half) if half else None for half in self._found)


class DrawnRows:
    """The drawn rows of the shards that a process has read, when it scanned the table or in a stage before.

    A table that is known is not scanned again (`data.known_scans`): its drawn rows stay for the runs that follow in the
    process, until another table is drawn from.

    Args:
        draw: says which; a run has one, and one training table, whatever the jobs that it is made of.
    """

    _last: ClassVar[DrawnRows | None] = None

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._held: dict[int, tuple[Batch | None, ...]] = {}
        self._bytes = 0

    @staticmethod
    def of(worker: Worker) -> DrawnRows:
        """Those of a worker, which it keeps between stages, and hands on to the worker of the next job."""
        draw, last = Draw.of(worker.job), DrawnRows._last
        if worker.drawn is None or worker.drawn._draw != draw:
            worker.drawn = last if last is not None and last._draw == draw else DrawnRows(draw)
        DrawnRows._last = worker.drawn if draw.table else None
        return worker.drawn

    def begin(self) -> Halves:
        """Of a shard that is going to be read."""
        return Halves(self._draw)

    def keep(self, shard: Shard, halves: Halves) -> tuple[Batch | None, ...]:
        """The rows of a shard that was read, which are kept as far as there is room."""
        found = halves.result()
        size = sum(_bytes_of(half) for half in found if half is not None)
        if self._bytes + size <= _KEPT_BYTES and shard.index not in self._held:
            self._held[shard.index] = found
            self._bytes += size
        return found

    def half(self, worker: Worker, shards: Sequence[Shard], second: int, size: int) -> Iterator[Batch]:
        """The rows of some shards that are in one half of the draw, in order, `size` at a time.

        Args:
            worker: reads the shards whose drawn rows are not kept.
            shards: of a chunk.
            second: 0 for the first half of the draw, 1 for the second.
            size: rows of a batch; the last one has what is left.
        """
        waiting: list[Batch] = []
        for shard in shards:
            half = (self._held.get(shard.index) or self._read(worker, shard))[second]
            if half is not None:
                waiting.append(half)
            if sum(map(len, waiting)) >= size:
                *whole, rest = _cut(join_batches(waiting), size)
                yield from whole
                waiting = [rest]
        if waiting:
            yield from _cut(join_batches(waiting), size)

    def _read(self, worker: Worker, shard: Shard) -> tuple[Batch | None, ...]:
        halves = self.begin()
        for raw in worker.read_raw("train", shard, _READ_ROWS):
            halves.add(raw)
        return self.keep(shard, halves)


def _cut(batch: Batch, size: int) -> list[Batch]:
    """A batch in pieces of `size` rows; the last one has what is left."""
    if len(batch) <= size:
        return [batch]
    return [batch.take(np.arange(k, min(k + size, len(batch)))) for k in range(0, len(batch), size)]


def _bytes_of(batch: Batch) -> int:
    """About what a batch takes."""
    arrays = [batch.x, batch.labels, *batch.extra.values()]
    texts = sum(len(v) if isinstance(v, str | bytes) else 64 for a in arrays if a.dtype == object for v in a.flat)
    return _BATCH_BYTES + sum(int(a.nbytes) for a in arrays) + int(batch.ids.nbytes) + texts


def check_drawn(rows: float) -> None:
    """Refuse to fit a curvature on no row.

    Raises:
        InputError: none was drawn.
    """
    if not rows:
        raise InputError(
            "curvature_rows: none of the training rows was drawn to fit the curvature on, since rows that are equal "
            "are drawn together.",
            "pass curvature_rows=None, to fit it on all rows, or another seed.",
        )


def scale_up(factors: Arrays, rows: int) -> Arrays:
    """Sums over the drawn rows as estimates of those over all rows; as they are where all rows were used.

    Args:
        factors: of the drawn rows.
        rows: n.
    """
    drawn = float(factors["rows"])
    if drawn == rows:
        return factors
    scaled = {k: v * (rows / drawn) if k.startswith(_SCALED) else v for k, v in factors.items()}
    return {**scaled, "rows": np.array(float(rows)), "drawn": np.array(drawn)}


def describe_drawn(factors: Arrays) -> dict[str, Any]:
    """The drawn rows, for the metadata; nothing where all rows were used.

    `halves_differ` holds, for each layer, `|d1 - d2| / |d|` (Euclidean norms): d1 and d2 are the mean squared gradients
    of the rows of each half, d of both. For EKFAC they are the eigenvalues in the common eigenbasis; for K-FAC the
    products of the diagonals of G and A in the layer's own parameters. The error of d by drawing is about half of it.
    """
    if "drawn" not in factors:
        return {}
    drawn, first = float(factors["drawn"]), float(factors.get(f"{FIRST}rows", np.zeros(())))
    found: dict[str, Any] = {"rows": int(drawn), "of": int(factors["rows"])}
    if 0 < first < drawn:
        found["rows_of_halves"] = [int(first), int(drawn - first)]
        found["halves_differ"] = {name: _difference(*parts) for name, parts in _levels(factors, drawn, first).items()}
    return {"curvature_sample": found}


def _levels(factors: Arrays, drawn: float, first: float) -> dict[str, tuple[Any, Any]]:
    """Mean squared gradients of the rows of the first half and of the second, by layer."""
    back = drawn / float(factors["rows"])
    out: dict[str, tuple[Any, Any]] = {}
    for key in (k for k in factors if k.startswith(f"{FIRST}L/")):
        name = key.removeprefix(f"{FIRST}L/")
        out[name] = factors[key] / first, (factors[f"L/{name}"] * back - factors[key]) / (drawn - first)
    for key in (k for k in factors if k.startswith(f"{FIRST}G/")):
        name = key.removeprefix(f"{FIRST}G/")
        sides = []
        for side in ("g", "a"):
            one = factors[f"{FIRST}{side.upper()}/{name}"]
            values, q = factors[f"l_{side}/{name}"] * back, factors.get(f"q_{side}/{name}")
            both = values if q is None else np.einsum("rde,re->rd", q * q, values)
            sides.append((one / first, (both - one) / (drawn - first)))
        (g1, g2), (a1, a2) = sides
        out[name] = g1[:, :, None] * a1[:, None], g2[:, :, None] * a2[:, None]
    return out


def _difference(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> float:
    mean = float(np.linalg.norm((one + two) / 2))
    return float(np.linalg.norm(one - two)) / mean if mean else 0.0
