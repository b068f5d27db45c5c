"""What a run will take, before it is run: seconds and bytes of every stage, from the verb's own stages on few rows."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayinf.core.blocks import Block
from rayinf.core.objectives import LABEL, Objective, make_targets
from rayinf.data.batches import BatchReader
from rayinf.data.files import Arrays
from rayinf.data.labels import Classes
from rayinf.data.shards import Shards
from rayinf.data.tables import Table
from rayinf.engine.acquisition import TILE_BYTES
from rayinf.engine.column_tiles import column_tiles, expected_ranks
from rayinf.engine.cost import Cost, StageCost
from rayinf.engine.curvature import LARGE_QUERIES, column_names
from rayinf.engine.curvature_rows import are_signed, share_of
from rayinf.engine.entry import DENSE, KRONECKER
from rayinf.engine.job import Job
from rayinf.engine.machine import free_memory, misfit
from rayinf.engine.measure_spec import SampledSpec
from rayinf.engine.memory import check_fits, check_memory, fewest, kronecker_bytes, query_bytes, tile_rows
from rayinf.engine.probe import Probe, probe
from rayinf.engine.rates import Rates
from rayinf.engine.room import workers_now
from rayinf.engine.run import Run, open_tables, partial_sums, scan_table
from rayinf.engine.scoring import THIN
from rayinf.engine.spec import PairsSpec, RunSpec
from rayinf.engine.training_time import NORMS, VALID_NORMS
from rayinf.engine.trial_runner import TrialRunner
from rayinf.engine.worker import BATCH_FLOATS, Worker
from rayinf.select.forest import MOST_ROWS, RankForest

# Trials grow from so many rows, until all stages together take this long, or to so many rows.
_FEWEST, _SECONDS, _MOST = 8, 2.0, 4096
_RAY_START_SECONDS = 8.0


def make_plan(
    spec: RunSpec,
    compute: Callable[[Run], Any],
    more: Callable[[Trial, Sequence[StageCost]], list[StageCost]] | None = None,
) -> Cost:
    """Run the verb's own stages on the first rows, and scale up to all rows and workers.

    Args:
        spec: of the run.
        compute: the stages of the verb, given an open run.
        more: what the verb does beside them: given the trial and the costs of these stages, the costs of the others.

    Raises:
        InputError: what opening a run would refuse without reading the whole tables.
    """
    trial = Trial(spec)
    points = list(trial.points(compute))
    before, after = points[-2:] if len(points) > 1 else points * 2
    found = [StageCost("start", _RAY_START_SECONDS, 0)] if spec.cluster else []
    for name, seconds in after.seconds.items():
        rows, longer = after.rows[name] - before.rows[name], seconds - before.seconds[name]
        # Beyond the fixed cost of a call, where two sizes show it.
        each = longer / rows if rows > 0 and longer > 0 else seconds / after.rows[name]
        found += trial.costs(name, each * trial.rows_of(name), after)
    if isinstance(spec, SampledSpec) and spec.subsample < 1:
        found.append(trial.forest())
    found += more(trial, tuple(found)) if more is not None else []
    free = shutil.disk_usage(_existing(spec.out)).free if isinstance(spec.out, Path) else None
    local = spec.cluster is not None and spec.cluster.address is None
    why = misfit(spec.cluster, trial.model_bytes) if spec.cluster and local else None
    return Cost(tuple(found), trial.workers, free_memory(), free, why)


class Trial:
    """The first rows of a run's tables, and the sizes that follow from the model."""

    def __init__(self, spec: RunSpec) -> None:
        tables, columns = open_tables(spec, {})
        job = Job(spec.task, tables, columns, Classes(()), spec)
        probed = probe(job, spec.objectives)
        spec.check(tables, probed)
        check_memory(spec.curvature, probed.parameters, free_memory())
        self.chunks = partial_sums(probed, spec.curvature)
        sizes = [p.numel() * p.element_size() for p in probed.model.parameters()]
        self.model_bytes = sum(sizes)
        self.workers = workers_now(spec.cluster, self.model_bytes)
        if spec.is_here:
            check_fits(job, probed, self.workers, self.chunks)  # without columns, of which a few can stand for all
        self.spec, self.probed = spec, probed
        self.rows = {name: table.num_rows for name, table in tables.items()}
        self.item = torch.finfo(getattr(torch, probed.dtype)).bits // 8
        rows = self.rows["train"]
        job = replace(_settle(job, spec, probed), random_signs=are_signed(rows * share_of(spec, rows)))
        self._query_bytes = query_bytes(job, probed, 1, self.chunks).size if "valid" in tables else 0
        kronecker = spec.curvature in KRONECKER
        self._held = kronecker_bytes(job, probed, self.workers, self.chunks) if kronecker else {}
        self.columns = max(len(column_names(job.targets, spec.halves)), 1)
        self._passes_of_columns = len(column_tiles(job, probed))
        self._ranks = expected_ranks(job, probed, Worker(job).shared) if "valid" in tables else {}
        self._together = -(-self.columns // self._passes_of_columns)
        self.tried = min(fewest(self.columns, sum(map(self._floats, probed.blocks))), self._together)
        if self.tried < self.columns:
            # A row enters the sums of its own groups alone, so that many columns cost little more than one.
            job = replace(job, targets=make_targets((Objective("total"),), job.classes.labels, {}))
        self.job = job
        self._factors: Arrays = {}  # of a tile of labelled rows
        self._rates = Rates()
        self._batch = _batch_bytes(job)
        self._model = 2 * self.item * sum(p.numel() for p in probed.model.parameters())

    def points(self, compute: Callable[[Run], Any]) -> Iterator[TrialRunner]:
        """Measurements on ever more rows, until they take about a second."""
        gpus = self.spec.cluster is not None and self.spec.cluster.gpus_per_worker
        rows, most = _FEWEST, min(max(t.shards[0].rows for t in self.job.tables.values()), _MOST)
        while True:
            tables = {name: _first(table, rows) for name, table in self.job.tables.items()}
            if self._is_paired:  # one tile of labelled rows, as in a run
                tables["train"] = _first(self.job.tables["train"], min(rows, self._labeled))
            if isinstance(self.spec, PairsSpec):  # a whole tile of validation rows, as in a run
                tables["valid"] = _first(self.job.tables["valid"], self._tile)
            job = replace(self.job, tables=tables, key=f"plan-{rows}")
            runner = TrialRunner(job, "cuda" if gpus else None, self._derived)
            run = Run(self.spec, job, self.probed, {}, None, {}, False, runner, is_trial=True)
            for name, table in tables.items():
                with run.timed(f"scan {name}", rows) as advance:
                    run.scans[name] = scan_table(runner, name, table)
                    advance(run.scans[name].rows)
            compute(run)
            yield runner
            if rows >= most or (rows > 4 * _FEWEST and sum(run.seconds.values()) > _SECONDS):
                return
            rows = min(4 * rows, most)

    def rows_of(self, name: str) -> int:
        """Rows of the whole table that a stage passes over."""
        tables = {"queries": "valid", "squares-valid": "valid", "scores": self.job.scored}
        rows = self.rows[name.removeprefix("scan ") if name.startswith("scan ") else tables.get(name, "train")]
        return round(rows * share_of(self.spec, rows)) if name in ("covariance", "lambda", "squares") else rows

    def costs(self, name: str, seconds: float, tried: TrialRunner) -> list[StageCost]:
        """A stage over all rows, and the decomposition of its sums.

        Args:
            name: of the stage.
            seconds: over all rows, of one worker.
            tried: what was measured.
        """
        size = tried.bytes[name]
        given, sums = 2 * size[0], size[1]  # as it comes, and on the device
        disk = (2 * self.chunks if name in ("covariance", "lambda", "hessian") else 0) * sums
        if name in ("covariance", "lambda"):
            given, sums = 0, self._held[name] // self.workers
        if name == "queries":
            sums, disk = self._query_bytes, 3 * 8 * self.probed.parameters * self._together
            seconds *= self._passes_of_columns
        if name == "scores":
            disk = self.rows[self.job.scored] * (16 + self.item * self.columns)
            # What a run repeats and a trial does not: tiles of labelled rows, or columns.
            seconds *= self._passes * (self._tiles if self._is_paired else self.columns / self.tried)
            given = given * self._together // self.tried
        if name == "pairs":
            seconds, given = self._pairs(seconds, tried.tile_seconds), given + self._tile_bytes
        found = [self._stage(name, seconds / self.workers, given + sums + self._batch, disk)]
        return [replace(found[0], processes=self.workers), *self._derivations(name, size[1])]

    def _pairs(self, seconds: float, tile_seconds: float) -> float:
        """Seconds of `pairs` in one worker: for each tile of validation rows its gradients, their solve and a pass."""
        tiles = sum(-(-shard.rows // self._tile) for shard in self.job.tables["valid"].shards)
        large = self.probed.parameters * self._tile > LARGE_QUERIES
        solved = self._rates.products(self._tile * self._column_products, large) + self._rates.copies(self._tile_bytes)
        return tiles * (seconds + tile_seconds + solved * self.workers)  # the store solves alone

    @property
    def _tile(self) -> int:
        """Validation rows that `pairs` takes at a time."""
        return min(tile_rows(self.probed.parameters), self.job.tables["valid"].shards[0].rows)

    @property
    def _tile_bytes(self) -> int:
        """Gradients of a tile of validation rows, and what is made of them."""
        return (24 + 2 * self.item) * self.probed.parameters * self._tile

    def _derivations(self, name: str, sums: int) -> list[StageCost]:
        """What the store makes of a stage's sums.

        Args:
            name: of the stage.
            sums: their bytes.
        """
        rates, blocks, found = self._rates, self.probed.blocks, []
        if name == "hessian":
            found.append(self._stage("factors", rates.eigh(self.probed.parameters), 4 * sums, 2 * sums))
        if name == "covariance":
            sides = [b.shape[1:2] if b.kind == "embedding" else b.shape[1:] for b in blocks]
            seconds = self._shared([sum(map(rates.eigh, of_block)) for of_block in sides]) + self._writing(sums)
            found.append(self._stage("basis", seconds, self._held["basis"], sums))
        if name == ("lambda" if self.spec.curvature == "ekfac" else "covariance") and self._held:
            size = self._held["factors"]
            found.append(self._stage("factors", self._writing(size), size, size))
        if name == "queries":
            found.append(self._solved())
        return found

    def _solved(self) -> StageCost:
        """The queries through the inverse curvature: into the eigenbasis and out of it, a column at a time."""
        p, columns = self.probed.parameters, self.columns
        size = self.item * sum(map(self._floats, self.probed.blocks)) * columns
        memory, rates = self._held.get("solved", self._query_bytes), self._rates
        if self.spec.curvature in KRONECKER:
            sizes = [(columns * self._block_products(b), columns * b.numel > LARGE_QUERIES) for b in self.probed.blocks]
            seconds = self._shared([rates.products(products, large) for products, large in sizes])
        else:
            seconds = rates.products(columns * self._column_products, p * columns > LARGE_QUERIES)
        return self._stage("solved", seconds + rates.copies(memory) + self._writing(size), memory, size)

    def _shared(self, seconds: Sequence[float]) -> float:
        """Seconds in which the workers do each layer's part, of which none is divided."""
        return max(sum(seconds) / self.workers, *seconds)

    @property
    def _column_products(self) -> int:
        """Multiply-adds of one column's solve."""
        if self.spec.curvature in KRONECKER:
            return sum(map(self._block_products, self.probed.blocks))
        return self.probed.parameters**2 if self.spec.curvature in DENSE else 0

    def _block_products(self, block: Block) -> int:
        """The same of a layer: queries are rotated whole, or their thin matrices are found and rotated."""
        _, o, i = block.shape
        if (rank := self._ranks.get(block.name)) is not None:
            return rank * (o * o + i * i + 8 * o * i)
        return 2 * block.numel * (o + (i if block.kind != "embedding" else 0))

    def _floats(self, block: Block) -> int:
        """Numbers in a layer's part of a solved query."""
        return self._ranks[block.name] * sum(block.shape[1:]) if block.name in self._ranks else block.numel

    def _writing(self, size: int) -> float:
        """Seconds in which the store keeps an artefact."""
        return self._rates.files(size) if self.spec.out is not None else self._rates.copies(size)

    def forest(self) -> StageCost:
        """The forest's fit, and its ranks of the scored table."""
        assert isinstance(self.spec, SampledSpec)
        table = self.job.tables[self.job.scored]
        raw = next(BatchReader(table, self.job.columns[self.job.scored]).read(table.shards[0], _MOST))
        x = raw.x.reshape(len(raw), -1)
        begin = time.perf_counter()
        forest = RankForest.fit(x, np.random.default_rng(0).random(len(x)), None, 0, torch.get_num_threads())
        fitted = time.perf_counter()
        forest.predict(x, None)
        rows = self.rows[self.job.scored]
        learned = min(rows * self.spec.subsample, MOST_ROWS)
        seconds = (fitted - begin) * learned / len(x) + (time.perf_counter() - fitted) * rows / len(x) / self.workers
        return self._stage("forest", seconds, int(learned) * x.shape[1] * 16, 8 * rows)

    def _stage(self, name: str, seconds: float, memory: int, disk: int) -> StageCost:
        return StageCost(name, seconds, self._model + memory, disk if self.spec.out is not None else 0)

    def _derived(self, name: str, last: Any) -> Arrays:
        """An artefact of the right shape; of factors of labelled rows, those of one row for each of a tile."""
        solved = {key: value for b in self.probed.blocks for key, value in self._queries(b).items()}
        if name.startswith("pair-factors"):
            if not self._factors:
                self._factors = {"R": np.repeat(last["R"][:1], self._labeled, axis=0), **self._inverse}
            return self._factors
        if name.startswith("tile-"):
            return {f"U/{b.name}": np.ones((self._tile, *b.shape), np.float32) for b in self.probed.blocks}
        if name == "measured":
            return {**solved, **self._inverse}
        if name in (NORMS, VALID_NORMS):
            return {key: np.ones(()) for key in ("norm", *(f"root/{b.name}" for b in self.probed.blocks))}
        return {"basis": self._basis, "solved": solved, "inverse": self._inverse}.get(name, {})

    def _queries(self, block: Block) -> Arrays:
        """A layer's solved queries, of the right shape."""
        if (rank := self._ranks.get(block.name)) is None:
            return {f"U/{block.name}": np.ones((self.tried, *block.shape), np.float32)}
        shapes = zip(THIN, block.shape[1:], strict=True)
        return {f"{side}{block.name}": np.ones((self.tried, rank, width), np.float32) for side, width in shapes}

    @property
    def _is_paired(self) -> bool:
        """Whether the rows of a pool are scored against every labelled row."""
        return getattr(self.spec, "strategy", None) == "fi"

    @property
    def _labeled(self) -> int:
        """Labelled rows of a tile, whose factors a worker holds."""
        width = 8 * min(self.probed.logits - 1, self.probed.perturbed) * self.probed.parameters
        return min(self.rows["train"], max(1, TILE_BYTES // width))

    @property
    def _passes(self) -> float:
        """Of a subsample, all that is measured over what a trial measures: that drawn by chance."""
        spec = self.spec
        return spec.subsample / spec.first_share(self.rows[self.job.scored]) if isinstance(spec, SampledSpec) else 1.0

    @property
    def _tiles(self) -> int:
        return -(-self.rows["train"] // self._labeled)

    @cached_property
    def _inverse(self) -> Arrays:
        """An inverse curvature of the right shape."""
        if self.spec.curvature in DENSE:
            return {"dense": np.eye(self.probed.parameters)}
        ones = {f"D/{b.name}": np.ones(b.shape) for b in self.probed.blocks}
        bases = {k: v for k, v in self._basis.items() if k.startswith("q_")}
        return ones if self.spec.curvature == "identity" else {**ones, **bases}

    @cached_property
    def _basis(self) -> Arrays:
        out: Arrays = {}
        for b in self.probed.blocks:
            r, o, i = b.shape
            out[f"q_g/{b.name}"], out[f"l_g/{b.name}"] = np.tile(np.eye(o), (r, 1, 1)), np.ones((r, o))
            out[f"l_a/{b.name}"], out[f"positions/{b.name}"] = np.ones((r, i)), np.array(1.0)
            if b.kind != "embedding":
                out[f"q_a/{b.name}"] = np.tile(np.eye(i), (r, 1, 1))
        return out


def _first(table: Table, rows: int) -> Table:
    """The table with the first rows of its first shard alone."""
    few: Any = copy.copy(table)
    shard = table.shards[0]
    if few.scan_key:
        object.__setattr__(few, "scan_key", "")  # of these rows, it is not the table's
    object.__setattr__(few, "shards", Shards([replace(shard, rows=min(rows, shard.rows))], [shard.file]))
    found: Table = few
    return found


def _settle(job: Job, spec: RunSpec, probed: Probe) -> Job:
    """The job with classes and groups as the first rows show them: only a scan would know them all."""
    task, logits = spec.task, probed.logits
    batches = {
        name: next(BatchReader(table, job.columns[name]).read(table.shards[0], _MOST))
        for name, table in job.tables.items()
    }
    seen = sorted({v for name, b in batches.items() if name != "pool" for v in b.labels.tolist()})
    if task.classes is not None:
        labels = tuple(task.classes)
    elif all(isinstance(v, int) and 0 <= v < logits for v in seen):
        labels = tuple(range(logits))
    else:
        rest = [f"~{k}" if isinstance(seen[0], str) else seen[-1] + k for k in range(1, logits + 1)]
        labels = tuple([*seen, *rest][:logits])
    levels: dict[str, tuple[Any, ...]] = {}
    for objective in spec.objectives:
        if objective.split is not None:
            column = labels if objective.split == LABEL else np.unique(batches["valid"].extra[objective.split]).tolist()
            levels[objective.split] = tuple(column)
    targets = make_targets(spec.objectives, labels, levels)
    return replace(job, classes=Classes(labels), targets=targets, outputs=probed.outputs, levels=levels)


def _batch_bytes(job: Job) -> int:
    """What the largest batch takes: less than a full one where the tables are small."""
    worker = Worker(job)
    rows = min(worker.rows_a_batch(1), max(table.shards[0].rows for table in job.tables.values()))
    inputs, outputs = worker.activations
    return int(4 * min(BATCH_FLOATS, rows * (inputs + (len(job.classes.labels) + 3) * outputs)))


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path
