"""Row weights that lift some columns of scores and keep the others, by a linear program over influence vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.api.row_program import Program, Terms
from rayinf.api.row_weights import RowWeights
from rayinf.data.files import sweep, write_whole
from rayinf.data.scores import Scores
from rayinf.data.vectors import Vectors
from rayinf.engine.entry import check
from rayinf.errors import InputError
from rayinf.pareto.demands import Array, checked
from rayinf.pareto.lp import Solution
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
    columns: Any = None,
    cross_fit: bool | None = None,
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

    With `cross_fit` every demand holds on each half of the validation rows, `w'P_h^k >= floor_h^k` for h = 1, 2, with
    `S_h^k` and `b_h^k` of that half: weights that keep a class by the noise of its rows keep it on one half alone. And
    two more programs are solved, in which one half sets goal and demands: what the *other* half predicts for their
    weights is free of the noise that chose them. On pure noise `predicted_change` is large, and `crossed` is 0 in the
    mean.

    `columns` may be any, such as `["equal_opportunity", "total"]`: with a gap between groups as the target and the
    total loss kept (alpha=1) this is reweighing by influence for fairness at no cost in utility (Li and Liu 2022, with
    weights in [0, 1]; a radius such as 0.3 stays where the prediction holds). A gap's fall is linear until the gap is
    0, and rises beyond. So where the optimum would open it on the other side, all weights move back towards 1 in
    proportion, until the gap is predicted to be 0; no demand binds then.

    Args:
        scores: with a column a class, from `influence(..., objective="category")`, or with others that `columns` names.
        targets: labels or columns of the classes to lift; or one of these.
        alpha: how much each class keeps, see above: one number, one a class in the order of the columns, or a dict from
            label to number.
        upper: the largest weight, > 0, where there is no radius.
        radius: of the trust region `|w - 1| <= radius`, in (0, 1]. None: the box `0 <= w <= upper`.
        slack: "paper" (`alpha_k S_k`) or "scaled" (a share of `b_k`), see above.
        columns: names of the columns of the scores that take part, the targets among them: classes, slices, gaps, a
            total. None: the classes.
        cross_fit: whether the demands hold in both halves of the validation rows and the prediction is cross-fitted,
            see above: scores with `halves=True`, of columns that are sums over validation rows, which gaps are not.
            None: where the scores have halves and no column is a gap.
        stream: whether the rows are read anew at every pass instead of being held in memory. None: above a million
            rows.
        out: a Parquet file for `row_id` and `weight`; the weights are then never held in memory. None: they are.

    Returns:
        RowWeights: `.weights`, `.prices`, `.classes`, `.binding`, `.objective`, `.crossed`, `.to_pandas()`,
        `.to_text()`.

    Raises:
        InputError: a target that is not a class, an alpha, upper, radius or slack that makes no sense, a score that is
            not finite. InfeasibleError, a kind of it: no weights meet all demands; it names a smallest set of classes
            that conflict, and the largest alpha that all can have in common.
        RunError: HiGHS gave up, or `out` cannot be written.

    Cost: 5 to 15 passes over the rows and as many small linear programs; with ten classes 0.2 to 1 s for 200,000
    rows in memory, and about three times that with `cross_fit`. Memory: `O(n K)` held; streamed, `O(K)` times 20,000
    rows, and the weights unless there is `out`.
    """
    check(**locals())
    vectors = Vectors.of(scores, columns)
    found = vectors.find(targets)
    alphas = checked(_by_class(alpha, vectors), len(vectors.columns), upper, radius, slack)
    halved = _cross_fits(cross_fit, vectors)
    file = None if out is None else _file(out)
    if len(scores) == 0:
        raise InputError("The scores have no rows.", "pass the scores of at least one row.")
    held = not stream if stream is not None else len(scores) <= _IN_MEMORY
    terms = Terms(alphas, upper, radius, slack, tuple(found))
    program = Program.of(vectors, terms, held, halved)
    if file is None:
        solution = program.solve()
        return RowWeights.of(vectors, program, terms, solution)
    if isinstance(file, StorePath) or file.parent.is_dir():
        sweep(file.parent, file.name, elsewhere=False)
    solved: list[Solution] = []
    write_whole(file, lambda path: solved.append(_solve_into(path, program, vectors)))
    return RowWeights.of(vectors, program, terms, solved[0], file)


def _cross_fits(cross_fit: bool | None, vectors: Vectors) -> bool:
    """Whether both halves have demands.

    Raises:
        InputError: they are asked for, and the scores have none, or a gap is among the columns.
    """
    if cross_fit and not vectors.has_halves:
        raise InputError(
            "cross_fit=True: the scores have no halves of the validation rows.",
            "compute them with rayinf.influence(..., halves=True), or leave cross_fit out.",
        )
    if cross_fit and vectors.gaps:
        gaps = ", ".join(repr(vectors.columns[k]) for k in vectors.gaps)
        raise InputError(
            f"cross_fit=True: {gaps} is a gap between groups, which is not a sum over the halves.",
            "leave cross_fit out, and measure the gap of the retrained model on other rows.",
        )
    return vectors.has_halves and not vectors.gaps if cross_fit is None else cross_fit


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


def _solve_into(path: Path, program: Program, vectors: Vectors) -> Solution:
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
        found = program.solve(rows.add)
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
