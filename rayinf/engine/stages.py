"""One class a stage: built once a worker from what the stage needs, called once a shard or chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rayinf.core import exact, fisher, kfac, objectives
from rayinf.core.blocks import Block
from rayinf.core.influence import ForwardPass, add_queries
from rayinf.core.kfac import Basis, Sums
from rayinf.core.layer_inputs import output_positions, tiles
from rayinf.core.objectives import LABEL, Target
from rayinf.data.batches import BatchReader
from rayinf.data.files import Arrays
from rayinf.data.scan import ShardScan, scan_shard
from rayinf.data.shards import Shard
from rayinf.engine.curvature_rows import FIRST, DrawnRows
from rayinf.engine.factors import tree_sum
from rayinf.engine.failed_shards import ShardError, tried
from rayinf.engine.fit_quality import add_valid
from rayinf.engine.job import Chunk, Job
from rayinf.engine.leaves import Group
from rayinf.engine.not_finite import not_finite
from rayinf.engine.worker import Ready, Worker
from rayinf.errors import RunError
from rayinf.user_code import on_rows

_SCAN_ROWS = 8192
# Queries are added in float64 up to so many bytes in all; larger ones in the model's precision.
_EXACT_QUERIES = 256 << 20


def group_sums(job: Job, targets: Sequence[Target] | None = None) -> int:
    """Sums of gradients over groups of validation rows, which queries of all targets (or of these) are made of."""
    return sum(t.width for t in (job.targets if targets is None else targets)) * (2 if job.spec.halves else 1)


def query_dtype(columns: int, parameters: int, own: torch.dtype) -> torch.dtype:
    """The precision that queries are added in.

    Args:
        columns: group sums of them.
        parameters: that are valued.
        own: of the model.
    """
    return torch.float64 if 8 * columns * parameters <= _EXACT_QUERIES else own


class Stage(Protocol):
    """What a runner maps: `stage(worker, arrays, **options)` once a worker, then called with each item."""

    def __init__(self, worker: Worker, arrays: Arrays, **options: Any) -> None: ...

    def __call__(self, item: Any) -> Any:
        """The result for an item."""
        ...


def perform(stage: Stage, item: Any) -> Any:
    """The stage's result for an item, tried again where its rows fail (`failed_shards`).

    Where the accelerator's memory runs out, the item is done again in half batches.

    Raises:
        RunError: the accelerator's memory does not hold a batch of one row.
        ShardError: shards of the item that fail every time.
        RowsError: rows that fail every time, where that is not the fault of single shards.
    """
    worker = getattr(stage, "worker", None)
    if worker is None:
        return stage(item)
    return tried(lambda part: _in_memory(stage, part, worker), item, lambda: worker.table_at_work)


def group_sum(stage: Stage, group: Group) -> Arrays:
    """The sum of the chunks of a group, with the additions of the tree of sums.

    Raises:
        ShardError: all shards that fail, of all chunks.
        RayinfError: as `perform`.
    """
    errors: list[ShardError] = []

    def each() -> Iterator[Arrays]:
        for chunk in group.chunks:
            try:
                yield perform(stage, chunk)
            except ShardError as error:
                errors.append(error)

    sums = tree_sum(each())
    if errors:
        found = ShardError.of(tuple(f for e in errors for f in e.failed))
        raise found from errors[0]
    return sums


def _in_memory(stage: Stage, item: Any, worker: Worker) -> Any:
    """The stage's result for an item, in batches that the accelerator's memory holds."""
    while True:
        try:
            with on_rows(lambda: worker.rows_at_work):
                found = stage(item)
            worker.note_halvings(type(stage).__name__)
            return found
        except torch.OutOfMemoryError as error:
            if not worker.halve_batches():
                raise RunError(
                    f"{type(stage).__name__} ran out of the accelerator's memory: {str(error).splitlines()[0]}",
                    "pass a smaller batch_size (with a new out folder), or fewer columns at a time.",
                ) from error


class Scan:
    """Shard -> what it holds; the worker keeps the rows that the curvature is fitted on. Option: `table`, its name."""

    def __init__(self, worker: Worker, arrays: Arrays, table: str) -> None:
        self._columns = worker.job.columns[table]
        self._reader = BatchReader(worker.job.tables[table], self._columns)
        self._drawn = DrawnRows.of(worker) if table == "train" and worker.job.fitted_share < 1 else None

    def __call__(self, item: Shard) -> ShardScan:
        """Look at one shard."""
        if self._drawn is None:
            return scan_shard(self._reader, item, self._columns, _SCAN_ROWS)
        halves = self._drawn.begin()
        found = scan_shard(self._reader, item, self._columns, _SCAN_ROWS, halves.add)
        if found.problem is None:  # else the table is refused; rows of mixed shapes cannot be joined
            self._drawn.keep(item, halves)
        return found


class Summing:
    """A stage that adds up its batches over a chunk of shards, in order."""

    table = "train"
    # Whether the sums are of the curvature that `curvature_rows` may draw rows for.
    fits = False

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        self.worker = worker
        self.prepare(arrays)

    def prepare(self, arrays: Arrays) -> None:
        """Bring what the stage needs to the device."""

    def columns(self) -> int:
        """Fisher columns that a batch holds at a time."""
        return 1

    def rows_at_once(self) -> int:
        """Rows of a batch."""
        return self.worker.rows_a_batch(self.columns())

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        raise NotImplementedError

    def __call__(self, item: Chunk) -> Arrays:
        """Sums of a chunk, float64."""
        sums: Sums = {}
        size = self.rows_at_once()
        if self.fits and self.worker.job.fitted_share < 1:
            self._add_drawn(sums, item.shards, size)
        else:
            for shard in item.shards:
                for ready in self.worker.read(self.table, shard, size):
                    self.batch(sums, ready)
        out = {k: v.cpu().numpy() for k, v in sums.items()}
        for value in out.values():
            if not np.isfinite(value.sum()):  # infinities of both signs give NaN, and nothing gives them back
                raise not_finite(self.worker, self.table, item.shards)
        return out

    def _add_drawn(self, sums: Sums, shards: Sequence[Shard], size: int) -> None:
        """Add the rows that the curvature is fitted on, half by half, with what the halves are compared by."""
        drawn = DrawnRows.of(self.worker)
        sums["rows"] = torch.zeros((), dtype=torch.float64)
        for second in (0, 1):
            for raw in drawn.half(self.worker, shards, second, size):
                self.batch(sums, self.worker.ready(self.table, raw))
            if not second:
                first = {f"{FIRST}{k}": v.clone() for k, v in self.compared(sums).items()}
        sums.update(first)

    def compared(self, sums: Sums) -> Sums:
        """The sums that two halves of drawn rows are compared by, with `rows`."""
        return {}


class Covariance(Summing):
    """Chunk -> sums A, G, N of every block, and rows."""

    fits = True

    def prepare(self, arrays: Arrays) -> None:
        """Find the layers with random signs, which takes a forward pass of its own."""
        self.signed = self.worker.signed

    def compared(self, sums: Sums) -> Sums:
        """Of K-FAC, the diagonals of A and G."""
        if self.worker.job.spec.curvature != "kfac":
            return {}
        grams = {k: v for k, v in sums.items() if k.startswith(("A/", "G/"))}
        diagonals = {k: v.diagonal(dim1=1, dim2=2) if v.ndim == 3 else v for k, v in grams.items()}
        return {"rows": sums["rows"], **diagonals}

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w = self.worker
        with w.forward_pass(ready.x) as forward_pass:
            columns, scale = w.layer_columns(ready, forward_pass.logits)
            with kfac.scaled(sums, scale, "G/") as part:
                kfac.add_covariance(
                    part, w.blocks, w.modules, forward_pass.captured, forward_pass.logits, columns, ready.mask
                )


class Lambda(Summing):
    """Chunk -> sums L of squared rotated row gradients (EKFAC). Arrays: the basis."""

    fits = True

    def compared(self, sums: Sums) -> Sums:
        """The squares."""
        return {k: v for k, v in sums.items() if k == "rows" or k.startswith("L/")}

    def prepare(self, arrays: Arrays) -> None:
        """Bring the basis to the device, in the model's precision."""
        self.bases = read_bases(self.worker.tensors(arrays, self.worker.dtype))
        self.signed = self.worker.signed

    def columns(self) -> int:
        """All Fisher columns of a layer are held at once, since inputs are rotated once for all of them."""
        return fisher.SIGN_DRAWS if self.signed else self.worker.fisher_width

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w = self.worker
        with w.forward_pass(ready.x) as forward_pass:
            columns, scale = w.layer_columns(ready, forward_pass.logits)
            groups = columns.groups(w.blocks)
            with kfac.scaled(sums, scale, "L") as part:
                for k, (some, columns_sbc) in enumerate(groups):
                    self._add_group(part, forward_pass, some, columns_sbc, k == len(groups) - 1)
        kfac.add(sums, "rows", torch.tensor(float(len(ready.y))))

    def _add_group(
        self, sums: Sums, forward_pass: ForwardPass, blocks: list[Block], columns_sbc: Tensor, final: bool
    ) -> None:
        """Add the blocks that are summed over the same columns; `final`: the graph is released."""
        names, last = {b.name for b in blocks}, len(columns_sbc) - 1
        found = [
            forward_pass.captured.gradients(forward_pass.logits, c, final and s == last, only=names)
            for s, c in enumerate(columns_sbc)
        ]
        for block in blocks:
            if block.name in found[0]:
                self._add(sums, block, forward_pass, [g[block.name] for g in found])

    def _add(self, sums: Sums, block: Block, forward_pass: ForwardPass, gradients: list[list[Tensor]]) -> None:
        """Add one block, of whose outputs there are gradients for every Fisher column."""
        w = self.worker
        g_sbrto = torch.stack([output_positions(block, g) for g in gradients])
        drawn = w.draws_labels and block.name not in self.signed
        for tile in tiles(block, w.modules[block.name], forward_pass.captured.inputs[block.name], gradients[0]):
            kfac.add_lambda(sums, block, self.bases[block.name], tile, g_sbrto[:, tile.rows], drawn)


class Curvature(Summing):
    """Chunk -> sums of the exact Hessian or the GGN, for few parameters."""

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        w = self.worker
        with w.forward_pass(ready.x) as forward_pass:
            hessian_is_fisher = w.job.spec.curvature == "exact" or w.job.spec.fisher == "true"
            if is_head(forward_pass) and w.loss == "cross_entropy" and hessian_is_fisher:
                a = head_inputs(forward_pass)
                exact.add_head_hessian(sums, a, forward_pass.logits.detach())
            elif w.job.spec.curvature == "ggn":
                columns, scale = w.fisher_columns(ready, forward_pass.logits)
                with kfac.scaled(sums, scale, "H") as part:
                    exact.add_ggn(part, forward_pass, columns)
            else:
                exact.add_hessian(sums, w.model, w.blocks, ready.x, ready.y, w.exact_row_loss)


class Queries(Summing):
    """Chunk of validation rows -> group sums of every objective, their counts, and their gradients.

    Objectives that share an attack share its forward pass, and of these those that share a function of rows its
    backward pass. Arrays: none, or of a tile of columns `tile` (`objectives.in_tile`), and `rest` of all tiles but the
    first: only rows that belong to the tile are then passed through the model, and how well it fits is not summed.
    """

    table = "valid"

    def prepare(self, arrays: Arrays) -> None:
        """Choose the columns, and the precision of their sums."""
        job, parameters = self.worker.job, sum(b.numel for b in self.worker.blocks)
        self.targets = objectives.in_tile(job.targets, arrays["tile"].tolist()) if "tile" in arrays else job.targets
        self.dtype = query_dtype(group_sums(job, self.targets), parameters, self.worker.dtype)
        self.rest = "rest" in arrays

    def batch(self, sums: Sums, ready: Ready) -> None:
        """Add one batch."""
        ready = self._of_tile(ready) if self.rest else ready
        sources = objectives.sources(self.targets)
        attacks = [a for k, (a, _) in enumerate(sources) if a not in [b for b, _ in sources[:k]]]
        for attack in attacks:
            with self.worker.forward_pass(self.worker.attacked(attack, ready)) as forward_pass:
                if attack is None and not self.rest:
                    losses, _ = fisher.loss_gradient(self.worker.loss, forward_pass.logits, ready.y)
                    add_valid(sums, forward_pass.logits.detach(), ready.y, losses)
                for j, source in enumerate(sources):
                    if source[0] == attack:
                        self._add(sums, ready, forward_pass, j, source)

    def _add(self, sums: Sums, ready: Ready, forward_pass: ForwardPass, j: int, source: objectives.Source) -> None:
        w, job = self.worker, self.worker.job
        shared = [t for t in self.targets if t.source == source]
        outputs = job.outputs
        values, gradient = fisher.loss_gradient(
            w.loss if source[1] is None else outputs.rows(source[1]), forward_pass.logits, ready.y
        )
        cotangent, scale = fisher.scale_together(gradient, w.dtype)
        weights = self._weights(shared, ready)
        objectives.add_values(sums, j, shared, values, weights, (forward_pass.logits.detach(), ready.y))
        with kfac.scaled(sums, scale, "V", power=1) as part:
            add_queries(part, forward_pass, cotangent, weights, f"V{j}", self.dtype)

    def _of_tile(self, ready: Ready) -> Ready:
        """The rows of a batch that enter a sum; where none does, one, so that every sum is there."""
        rows = self._weights(self.targets, ready).any(1).nonzero()[:, 0].cpu().numpy()
        if len(rows) == len(ready.y):
            return ready
        return self.worker.ready(self.table, ready.raw.take(rows if len(rows) else np.zeros(1, np.int64)))

    def _weights(self, targets: Sequence[Target], ready: Ready) -> Tensor:
        """Which rows enter which group sum, in the model's precision."""
        levels = self.worker.job.levels
        codes = {s: codes_of(levels[s], ready, s) for s in levels}
        return objectives.weights(targets, codes, self.worker.halves(ready), ready.y).to(self.worker.dtype)


def is_head(forward_pass: ForwardPass) -> bool:
    """Whether what is valued is one linear layer whose output is the logits."""
    edges = [e for found in forward_pass.captured.edges.values() for e in found]
    one = len(forward_pass.blocks) == 1 and forward_pass.blocks[0].kind == "linear" and len(edges) == 1
    return one and edges[0].node is forward_pass.logits.grad_fn


def head_inputs(forward_pass: ForwardPass) -> Tensor:
    """Inputs `[B, i]` of a linear head, with the column of ones."""
    block = forward_pass.blocks[0]
    shape = forward_pass.captured.shapes[block.name]
    zeros = [torch.zeros(s, dtype=forward_pass.logits.dtype, device=forward_pass.logits.device) for s in shape]
    parts = tiles(block, forward_pass.modules[block.name], forward_pass.captured.inputs[block.name], zeros)
    return torch.cat([p.a_brti[:, 0, 0] for p in parts])


def codes_of(levels: tuple[Any, ...], ready: Ready, split: str) -> Tensor:
    """The group of each row, `[B]`: its place among the sorted levels."""
    if split == LABEL:
        return ready.y
    found = np.searchsorted(np.asarray(levels), ready.raw.extra[split])
    return torch.from_numpy(found).to(ready.y.device)


def read_bases(held: dict[str, Tensor]) -> dict[str, Basis]:
    """Bases by block from a payload or file of arrays."""
    names = [k.removeprefix("q_g/") for k in held if k.startswith("q_g/")]
    return {
        n: Basis(
            held.get(f"q_a/{n}"), held[f"q_g/{n}"], held[f"l_a/{n}"], held[f"l_g/{n}"], float(held[f"positions/{n}"])
        )
        for n in names
    }
