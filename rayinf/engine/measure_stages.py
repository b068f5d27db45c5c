"""The stages of the influence measure FI: of every row on the validation loss, and of every pair for acquisition."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayinf.core import influence_measure, linear_head
from rayinf.core.fisher import logit_error, loss_gradient
from rayinf.core.influence import dense_rows
from rayinf.core.lowrank import OVERSAMPLE, project, right_subspace
from rayinf.core.mixed_derivatives import Inverse, MixedRows, RecordedRows
from rayinf.core.perturbation import perturbed_size
from rayinf.data.batches import Batch, row_keys, uniforms
from rayinf.data.files import Arrays
from rayinf.data.part_files import PartPlace
from rayinf.data.run_folder import SCORES
from rayinf.data.scores import LABEL_COLUMN
from rayinf.data.shards import Shard
from rayinf.engine.fit_quality import KEY, FitSums
from rayinf.engine.job import Chunk
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.run import Run
from rayinf.engine.scoring import Scoring, check_finite
from rayinf.engine.subsample import SUMMARY, Subsample
from rayinf.engine.worker import BATCH_FLOATS, MOST_ROWS, Ready, Worker
from rayinf.select.aggregate import parse

# What is counted of the rows of a part.
_NO_ROWS = {"one_hot": 0, "rows": 0, "share": 0.0, "least_share": 1.0}
# Arrays beside the inverse curvature.
_APART = ("R", "forest", "limit")
# Rows that are read at a time where only some of them are scored.
_READ_ROWS = 8192
# Numbers of one tile of pairs: products, squares and the aggregate's selection stay in the processor's last cache.
_PAIR_FLOATS = 1_000_000
# Pairs are kept in float32, with half the bytes to select among, where that has room for them.
_LEAST, _MOST = 1e-25, 1e35


class Differentiator:
    """A worker's rows with their mixed derivatives, and the inverse curvature that they go through."""

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        self.worker, self.perturb = worker, worker.job.spec.perturb
        scaled = {k: self.scaled(v) if k == "dense" or k.startswith("D/") else v for k, v in arrays.items()}
        held = worker.tensors(
            {k: v for k, v in scaled.items() if k not in _APART and not k.startswith("U/")}, torch.float64
        )
        names = [k.removeprefix("D/") for k in held if k.startswith("D/")]
        eigenbases = {n: (held.get(f"q_a/{n}"), held.get(f"q_g/{n}"), held[f"D/{n}"]) for n in names}
        self.inverse = Inverse(held.get("dense"), eigenbases)
        self.flat = [n for n in names if not bool(held[f"D/{n}"].any())]
        self.is_head: bool | None = None

    def scaled(self, solved: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What holds one inverse `(n Hbar)^-1`, for the step that is asked for: "mean" 1/n, "sum" 1 (see the spec)."""
        job = self.worker.job
        return solved * job.tables["train"].num_rows if job.spec.scale == "sum" else solved

    def head_rows(self, ready: Ready, labels: Tensor | None) -> linear_head.HeadRows:
        """The rows of a batch in closed forms, with these labels or (None) the likeliest."""
        w = self.worker
        return linear_head.HeadRows(w.model, w.blocks[0], ready.x, labels, w.loss, self.perturb)

    def rows(self, ready: Ready) -> MixedRows:
        """The rows of a batch: closed forms where what is perturbed goes into a linear head."""
        w = self.worker
        if self.is_head is None:
            self.is_head = linear_head.is_plain_head(w.model, w.blocks, ready.x, self.perturb)
        if not self.is_head:
            forward_pass = RecordedRows(w.model, w.blocks, ready.x, ready.y, w.loss, self.perturb)
            forward_pass.check_flat(self.flat)
            return forward_pass
        return self.head_rows(ready, ready.y)

    @property
    def is_contrasted(self) -> bool:
        """Whether row gradients are a head's, taken less its first class: those of cross-entropy add up to 0."""
        return bool(self.is_head) and self.worker.loss == "cross_entropy"

    def derivatives(self, ready: Ready) -> tuple[MixedRows, Tensor, Tensor | None, Tensor]:
        """The rows, their total logit derivatives `[B, K - 1, d]`, and with a rank: V `[B, d, k]` and its share."""
        rows = self.rows(ready)
        direct, moved = rows.jacobians(self.inverse)
        basis, share = self._basis(rows, ready, direct.shape[2])
        moved = moved if basis is None else project(moved, basis)
        return rows, direct - moved, basis, share

    def _basis(self, rows: MixedRows, ready: Ready, d: int) -> tuple[Tensor | None, Tensor]:
        """The subspace of the leading right singular vectors of every row's M (KFSVD)."""
        rank = self.worker.job.spec.rank
        if rank is None or rank >= d:
            return None, torch.ones(len(ready.y))
        width = min(rank + OVERSAMPLE, d)
        if width == d:
            start = torch.eye(d, dtype=torch.float64).expand(len(ready.y), d, d)
        else:
            start = torch.from_numpy(_normals(ready.raw, self.worker.job.spec.seed, d * width))
            start = start.view(-1, d, width)
        return right_subspace(rows.gram, start.to(rows.logits.device), rank)

    def pair_factors(self, ready: Ready, solve: bool) -> Tensor:
        """`R_i` of every row `[B, r, p]`, so that `FI(z', z_i) = |R_i grad l(z')|^2`; see `PairFactors`."""
        rows, total, basis, _ = self.derivatives(ready)
        f_bdk = influence_measure.inverse_factor(rows.logits.detach(), total)
        if basis is not None:
            f_bdk = basis @ (basis.transpose(1, 2) @ f_bdk)
        inverse = self.inverse if solve else None
        if isinstance(rows, linear_head.HeadRows) and self.is_contrasted:
            return rows.contrasted_columns(f_bdk, inverse)
        return rows.columns(f_bdk, inverse)

    def factor_sizes(self, r_bkp: Tensor) -> Tensor:
        """The Frobenius norms `[B]` of what `pair_factors` gave, through the inverse, in all parameters.

        Of a head, columns come less class 0: R has no mean over the classes, so that the others tell those of class 0.
        """
        square_b = r_bkp.square().sum((1, 2))
        if self.is_contrasted:
            k = len(self.worker.job.classes.labels)
            square_b = square_b - r_bkp.unflatten(2, (k - 1, -1)).sum(2).square().sum((1, 2)) / k
        return square_b.clamp(min=0).sqrt()

    def likeliest_gradients(self, ready: Ready, solve: bool) -> Tensor:
        """Row gradients `[B, p]` of the likeliest label, in the coordinates of `pair_factors`."""
        w, inverse = self.worker, self.inverse
        if self.is_head is None:
            self.is_head = linear_head.is_plain_head(w.model, w.blocks, ready.x, self.perturb)
        if self.is_contrasted:
            rows = self.head_rows(ready, None)
            g_bp = rows.contrasted_gradients()
            if solve or inverse.dense_pp is None:
                return g_bp
            return g_bp @ linear_head.contrasted(inverse, len(w.job.classes.labels), w.blocks[0].shape[2])
        with w.forward_pass(ready.x) as forward_pass:
            logits = forward_pass.logits.detach()
            cotangent = logit_error(w.loss, logits, logits.argmax(1)).detach()
            in_eigenbasis = not self.is_head and inverse.dense_pp is None
            rows_bp = dense_rows(forward_pass, cotangent, eigenbases=inverse.eigenbases if in_eigenbasis else None)
            return rows_bp if solve or inverse.dense_pp is None else rows_bp @ inverse.dense_pp

    def rows_a_batch(self) -> int:
        """Rows whose graph, row gradients and directions fit in half of `BATCH_FLOATS`."""
        given = self.worker.job.spec.batch_size
        return self.worker.fewer(int(given) if given is not None else self._rows_that_fit)

    @cached_property
    def _rows_that_fit(self) -> int:
        w, spec = self.worker, self.worker.job.spec
        ready = next(w.read("train", w.job.tables["train"].shards[0], 1))
        d = perturbed_size(w.model, ready.x, self.perturb)
        k, p = len(w.job.classes.labels), sum(b.numel for b in w.blocks)
        inputs, outputs = w.activations
        if self.is_head is None:
            self.is_head = linear_head.is_plain_head(w.model, w.blocks, ready.x, self.perturb)
        if self.is_head:
            floats = (k * p if self.inverse.dense_pp is not None else 4 * p) + 4 * k * d
        else:
            floats = 16 * (inputs + outputs) + 3 * k * d
            # Row gradients are formed where a layer has many positions, or all at once.
            floats += 3 * w.largest_shared
            floats += p * (3 if self.inverse.dense_pp is not None or spec.rank or isinstance(spec, AcquireSpec) else 0)
        floats += 4 * d * (spec.rank or 0)
        return int(min(max(BATCH_FLOATS // 2 // floats, 1), MOST_ROWS))


class Measure(Scoring):
    """Shard -> FI_util of its rows (Yu 2025, Eq. 3.1), null where a row is not in the subsample.

    Arrays: `U/<block>`, the mean validation gradient through the inverse curvature, and that inverse.
    """

    def prepare(self, arrays: Arrays) -> None:
        """Bring the query and the inverse to the device."""
        self.source = Differentiator(self.worker, arrays)
        held = {k.removeprefix("U/"): self.source.scaled(v) for k, v in arrays.items() if k.startswith("U/")}
        self.query = self.worker.tensors(held, torch.float64)
        self.subsample = Subsample(self.worker, arrays)

    @staticmethod
    def counts_of_none(classes: int) -> dict[bytes, bytes]:
        """The metadata of a part without values: sums over no rows."""
        return {SUMMARY: json.dumps(_NO_ROWS).encode(), KEY: FitSums(classes).to_json()}

    def table(self, shard: Shard) -> pa.Table:
        """`row_id`, the label and `fi`; counts over its rows are its metadata."""
        w = self.worker
        size = self.source.rows_a_batch()
        self.fit = FitSums(len(w.job.classes.labels))
        counts: dict[str, Any] = dict(_NO_ROWS)
        ids, labels, parts = [], [], []
        for raw in w.read_raw(w.job.scored, shard, max(size, int(size / self.subsample.share))):
            chosen = self.subsample.rows(raw)
            values = np.full(len(raw), np.nan)
            for start in range(0, len(chosen), size):
                rows = chosen[start : start + size]
                values[rows] = self._values(w.ready(w.job.scored, raw.take(rows)), counts)
            ids.append(raw.ids)
            labels.append(raw.labels)
            parts.append(values)
        held = np.concatenate(parts)
        columns = {
            "row_id": pa.chunked_array(ids).combine_chunks(),
            LABEL_COLUMN: pa.array(np.concatenate(labels)),
            "fi": pa.array(held, mask=np.isnan(held)),
        }
        self.fit.value = float(np.nanmax(np.abs(held), initial=0.0))
        summaries = {SUMMARY: json.dumps(counts).encode(), KEY: self.fit.to_json()}
        return pa.table(columns).replace_schema_metadata(summaries)

    def _values(self, ready: Ready, counts: dict[str, Any]) -> np.ndarray[Any, Any]:
        rows, total, basis, share = self.source.derivatives(ready)
        logits = rows.logits.detach()
        self.fit.add(logits, ready.y, *loss_gradient(self.worker.loss, logits, ready.y))
        slope = rows.slopes(self.query)
        if basis is not None:
            slope = project(slope[:, None], basis)[:, 0]
        values, one_hot = influence_measure.measure(logits, total, slope)
        counts["one_hot"] += int(one_hot.sum())
        counts["rows"] += len(values)
        counts["share"] += float(share.sum())
        counts["least_share"] = min(counts["least_share"], float(share.min()))
        out: np.ndarray[Any, Any] = values.cpu().numpy()
        check_finite(out[:, None], ready.raw, self.worker.job.tables[self.worker.job.scored].name)
        return out


class PairFactors:
    """Chunk of labelled rows -> `R` `[rows, r, p]`, `R_i = ((n Hbar)^-1 M_i F_i)'`: `FI(z', z_i) = |R_i grad l(z')|^2`.

    In the eigenbasis where the inverse has one and the model is not a plain head; of a head, less class 0. Option
    `solve`: False leaves a dense `(n Hbar)^-1` to the rows of the pool, which are fewer.
    """

    def __init__(self, worker: Worker, arrays: Arrays, solve: bool) -> None:
        self.worker, self.solve = worker, solve
        self.source = Differentiator(worker, arrays)

    def __call__(self, item: Chunk) -> Arrays:
        """The factors of a tile of labelled rows."""
        size, parts = self.source.rows_a_batch(), []
        for shard in item.shards:
            read = self.worker.read("train", shard, size)
            parts += [self.source.pair_factors(ready, self.solve).cpu().numpy() for ready in read]
        return {"R": np.concatenate(parts) if len(parts) > 1 else parts[0]}


class PairValues(Scoring):
    """Shard of a pool -> FI of its rows against the labelled rows of a tile, or their aggregate (Yu 2025, Eq. 4.1).

    z' takes its likeliest label. Arrays: `R` and the inverse. Options: `whole`, R holds all labelled rows; `solve`, as
    R was made.
    """

    def __init__(
        self,
        worker: Worker,
        arrays: Arrays,
        names: list[str],
        whole: bool,
        solve: bool,
        into: PartPlace | None = None,
    ) -> None:
        self.whole, self.solve = whole, solve
        super().__init__(worker, arrays, names, into)

    def prepare(self, arrays: Arrays) -> None:
        """R as one matrix; for the plain mean, the `p x p` matrix that does it all where that is smaller."""
        self.source = Differentiator(self.worker, arrays)
        self.subsample = Subsample(self.worker, arrays)
        self.aggregate = parse(str(self.worker.job.spec.aggregate), len(arrays["R"]))
        r_nkp = torch.tensor(arrays["R"]).to(self.worker.device)
        self.labeled, self.directions = r_nkp.shape[:2]
        self.r_qp = r_nkp.flatten(0, 1)
        self.mean_pp = None
        if self.whole and self.aggregate.name == "mean" and self.r_qp.shape[1] < len(self.r_qp):
            self.mean_pp = self.r_qp.T @ self.r_qp / self.labeled

    def table(self, shard: Shard) -> pa.Table:
        """`row_id` and the aggregate `fi`, or `fi_<k>` for the k-th labelled row; null outside the subsample."""
        w = self.worker
        ids, parts = [], []
        for raw in w.read_raw("pool", shard, _READ_ROWS):
            chosen = self.subsample.rows(raw)
            values = np.full((len(raw), len(self.names)), np.nan, np.float64 if self.whole else np.float32)
            for rows in np.split(chosen, range(self._rows(), len(chosen), self._rows())):
                if len(rows):
                    ready = w.ready("pool", raw.take(rows))
                    values[rows] = found = self._values(self.source.likeliest_gradients(ready, self.solve))
                    check_finite(found, ready.raw, w.job.tables["pool"].name)
            ids.append(raw.ids)
            parts.append(values)
        held = np.concatenate(parts)
        columns = {n: pa.array(held[:, k], mask=np.isnan(held[:, k])) for k, n in enumerate(self.names)}
        return pa.table({"row_id": pa.chunked_array(ids).combine_chunks(), **columns})

    def _rows(self) -> int:
        """Pool rows whose gradients fit in an eighth of `BATCH_FLOATS`."""
        if self.worker.job.spec.batch_size is not None:
            return int(self.worker.job.spec.batch_size)
        inputs, outputs = self.worker.activations
        return int(min(max(BATCH_FLOATS // 8 // (self.r_qp.shape[1] + 4 * (inputs + outputs)), 1), _READ_ROWS))

    def _values(self, g_bp: Tensor) -> np.ndarray[Any, Any]:
        if self.mean_pp is not None:
            return ((g_bp @ self.mean_pp) * g_bp).sum(1, keepdim=True).cpu().numpy()
        step = max(1, _PAIR_FLOATS // len(self.r_qp))
        parts = []
        for g in g_bp.split(step):
            v_bnk = (g @ self.r_qp.T).view(len(g), self.labeled, self.directions)
            squares = v_bnk.square_()[..., 0] if self.directions == 1 else v_bnk.square_().sum(2)
            fits = _LEAST < float(squares.max()) < _MOST
            held = (squares.to(torch.float32) if fits else squares).cpu().numpy()
            parts.append(self.aggregate.apply(held, torch.get_num_threads())[:, None] if self.whole else held)
        return np.concatenate(parts)


def _normals(raw: Batch, seed: int, count: int) -> np.ndarray[Any, Any]:
    """Standard normals `[B, count]` that depend on a row's contents and the seed alone (Box and Muller)."""
    u = uniforms(row_keys(raw.x, raw.labels), seed + 3, count + count % 2)
    half = u.shape[1] // 2
    radius, angle = np.sqrt(-2 * np.log1p(-u[:, :half])), 2 * np.pi * u[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


def summarise(run: Run, tables: list[pa.Table]) -> dict[str, Any]:
    """What is known of all rows together, from the summaries of the shards: of the tables, or of the folder's files."""
    place = run.place(SCORES)
    schemas = (
        (t.schema for t in tables)
        if place is None
        else (place.schema(s.index) for s in run.job.tables[run.job.scored].shards)
    )
    rows, one_hot, share, least = 0, 0, 0.0, 1.0
    for schema in schemas:
        part = json.loads(schema.metadata[SUMMARY])
        rows, one_hot, share = rows + part["rows"], one_hot + part["one_hot"], share + part["share"]
        least = min(least, part["least_share"])
    out: dict[str, Any] = {"rows_measured": rows, "one_hot_rows": one_hot}
    if run.job.spec.rank is not None:
        out |= {"captured_share": share / max(rows, 1), "least_captured_share": least}
    return out
