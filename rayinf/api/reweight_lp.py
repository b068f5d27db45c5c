"""Row weights that lift some classes and keep the others, by a linear program over influence vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.api.row_weights import RowWeights, Terms, short_names
from rayinf.data.files import sweep, write_whole
from rayinf.data.scores import Scores
from rayinf.data.vectors import Vectors
from rayinf.engine.entry import check
from rayinf.errors import InputError
from rayinf.pareto.demands import Array, checked
from rayinf.pareto.lp import ReweightLP, Solution
from rayinf.store.places import AnyPath, StorePath, open_place

# Above so many rows they are read anew at every pass.
_IN_MEMORY = 1_000_000
# Rows of a row group of the weights.
_GROUP = 1 << 16


def reweight_lp(
    scores: Scores,
    targets: Any,
    alpha: Any = 0.95,
    upper: float = 2.0,
    radius: float | None = None,
    slack: str = "paper",
    *,
    stream: bool | None = None,
    out: str | AnyPath | None = None,
) -> RowWeights:
    """Weights w of the training rows that are predicted to help the targets most, and to keep what all classes have.

    Nahin 2025, Algorithm 1, line 4: `max sum over targets of w'P^k`, subject to `w'P^k >= alpha_k S_k` for every class
    k (the targets too), with `S_k = sum_i P_i^k`. The paper leaves w unbounded above; here `0 <= w <= upper`, or with a
    radius `|w - 1| <= radius`. To first order, training with w instead of 1 lowers the summed validation loss of class
    k by `w'P^k - S_k`. The optimum lies at corners: nearly all weights are at a bound, where a first-order prediction
    means little unless the radius is small.

    What alpha means depends on the sign of S_k. Above 0: alpha is the share of S_k that the class keeps. Below 0:
    `alpha S_k` lies above S_k where alpha < 1, so that it *demands a gain* of `(1 - alpha) |S_k|`, and alpha > 1 allows
    a loss. Near 0, as at a converged fit: alpha hardly demands anything but "no loss". The result's notes name such
    classes. `slack="scaled"` is free of this: class k may lose `(1 - alpha_k) b_k`, with `b_k = sum_i |P_i^k|`, or with
    a radius `(1 - alpha_k) radius b_k`.

    Where all classes are targets, the objective is the sum of all classes: the total influence. The alphas still hold.

    Args:
        scores: with a column a class, from `influence(..., objective="category")`.
        targets: labels or columns of the classes to lift; or one of these.
        alpha: how much each class keeps, see above: one number, one a class in the order of the columns, or a dict from
            label to number.
        upper: the largest weight, > 0, where there is no radius.
        radius: of the trust region `|w - 1| <= radius`, in (0, 1]. None: the box `0 <= w <= upper`.
        slack: "paper" (`alpha_k S_k`) or "scaled" (a share of `b_k`), see above.
        stream: whether the rows are read anew at every pass instead of being held in memory. None: above a million
            rows.
        out: a Parquet file for `row_id` and `weight`; the weights are then never held in memory. None: they are.

    Returns:
        RowWeights: `.weights`, `.prices`, `.classes`, `.binding`, `.objective`, `.to_pandas()`, `.to_text()`.

    Raises:
        InputError: a target that is not a class, an alpha, upper, radius or slack that makes no sense, a score that is
            not finite. InfeasibleError, a kind of it: no weights meet all demands; it names a smallest set of classes
            that conflict, and the largest alpha that all can have in common.
        RunError: HiGHS gave up, or `out` cannot be written.

    Cost: 5 to 15 passes over the rows and as many small linear programs; with ten classes 0.2 to 1 s for 200,000
    rows in memory. Memory: `O(n K)` held; streamed, `O(K)` times 20,000 rows, and the weights unless there is `out`.
    """
    check(**locals())
    vectors = Vectors.of(scores)
    found = vectors.find(targets)
    alphas = checked(_by_class(alpha, vectors), len(vectors.columns), upper, radius, slack)
    file = None if out is None else _file(out)
    if len(scores) == 0:
        raise InputError("The scores have no rows.", "pass the scores of at least one row.")
    held = not stream if stream is not None else len(scores) <= _IN_MEMORY
    lp = ReweightLP(vectors.to_numpy() if held else vectors.batches, found, slack, short_names(vectors))
    terms = Terms(alphas, upper, radius, slack, tuple(found))
    if file is None:
        return RowWeights.of(vectors, lp.survey, terms, lp.solve(alphas, upper, radius))
    if isinstance(file, StorePath) or file.parent.is_dir():
        sweep(file.parent, file.name, elsewhere=False)
    solved: list[Solution] = []
    write_whole(file, lambda path: solved.append(_solve_into(path, lp, terms, vectors)))
    return RowWeights.of(vectors, lp.survey, terms, solved[0], file)


def _by_class(alpha: Any, vectors: Vectors) -> Any:
    """Alphas in the order of the classes.

    Raises:
        InputError: a dict that leaves classes out, or names another label.
    """
    if not isinstance(alpha, Mapping):
        return alpha
    placed = {vectors.find([label])[0]: value for label, value in alpha.items()}
    missing = [name for k, name in enumerate(vectors.names) if k not in placed]
    if missing or len(placed) < len(alpha):
        raise InputError(
            f"alpha names {len(placed)} of {len(vectors.names)} classes; {', '.join(missing[:12]) or 'none'} missing.",
            "give every class its alpha once, or pass one number for all.",
        )
    return [placed[k] for k in range(len(vectors.names))]


def _file(out: str | AnyPath) -> AnyPath:
    """The file to write.

    Raises:
        InputError: it is a folder.
    """
    file = open_place(out, "out")
    if isinstance(file, Path) and file.is_dir():
        raise InputError(f"out={str(out)!r} is a folder.", "name a file in it, such as weights.parquet.")
    return file


def _solve_into(path: Path, lp: ReweightLP, terms: Terms, vectors: Vectors) -> Solution:
    kind = pa.schema([("row_id", vectors.scores.source.schema.field("row_id").type), ("weight", pa.float64())])
    with pq.ParquetWriter(
        path,
        kind,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=["weight"],
        write_page_checksum=True,
    ) as writer:
        rows = _Rows(writer, kind, vectors.row_ids())
        found = lp.solve(terms.alpha, terms.upper, terms.radius, rows.add)
        rows.flush()
    return found


class _Rows:
    """Weights on their way into a file, joined with their ids."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, ids: Iterator[pa.Array]) -> None:
        self._writer, self._schema, self._ids = writer, schema, ids
        self._held: list[Array] = []
        self._count = 0
        self._next: list[pa.Array] = []

    def add(self, weights: Array) -> None:
        """The next rows' weights."""
        self._held.append(weights)
        self._count += len(weights)
        if self._count >= _GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a row group."""
        while sum(map(len, self._next)) < self._count:
            self._next.append(next(self._ids))
        ids = pa.chunked_array(self._next, self._schema.field("row_id").type)
        if self._count:
            columns = [ids.slice(0, self._count), pa.array(np.concatenate(self._held))]
            self._writer.write_table(pa.table(columns, schema=self._schema))
        self._next = ids.slice(self._count).chunks
        self._held, self._count = [], 0
