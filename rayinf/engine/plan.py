"""What a run will take, before it is run: seconds and bytes of every stage, from a short probe of the real thing."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayinf.core.objectives import LABEL, Objective, make_targets
from rayinf.data.batches import BatchReader
from rayinf.data.files import Arrays
from rayinf.data.labels import Classes
from rayinf.data.shards import Shard
from rayinf.engine import stages
from rayinf.engine.acquisition import BY_INFLUENCE, TILE_BYTES, PoolScore, Uncertain
from rayinf.engine.curvature import DENSE, KRONECKER, column_names
from rayinf.engine.job import Chunk, Job
from rayinf.engine.machine import misfit
from rayinf.engine.measure_stages import Measure, PairFactors, PairValues
from rayinf.engine.memory import available, check_fits, check_memory, fewest, query_bytes
from rayinf.engine.probe import probe
from rayinf.engine.run import Request, open_tables, partial_sums
from rayinf.engine.tree_strategy import LabeledValues
from rayinf.engine.worker import BATCH_FLOATS, Worker
from rayinf.select.forest import MOST_ROWS, RankForest

# Each stage is tried for about this long.
_PROBE_SECONDS = 1.0
_MOST_PROBED = 4096
# Processes that import torch and Ray, before any data.
_PROCESS_BYTES = 700 << 20
_RAY_START_SECONDS = 8.0


@dataclass(frozen=True)
class StageCost:
    """One stage: seconds on all workers together, bytes of memory a worker (or the store), bytes written."""

    name: str
    seconds: float
    memory: int
    disk: int = 0


@dataclass(frozen=True)
class Cost:
    """A plan.

    Attributes:
        stages: in the order of the run.
        workers: processes that share the rows.
        free_memory: of this machine, now.
        free_disk: where `out` would lie, or None without one.
        misfit: why this machine cannot hold the workers of a Ray that is started on it; None where it can.
    """

    stages: tuple[StageCost, ...]
    workers: int
    free_memory: int
    free_disk: int | None
    misfit: str | None = None

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(s.seconds for s in self.stages)

    @property
    def memory(self) -> int:
        """Peak bytes of all processes together."""
        return self.workers * (max(s.memory for s in self.stages) + _PROCESS_BYTES)

    @property
    def disk(self) -> int:
        """Bytes written, partial sums included."""
        return sum(s.disk for s in self.stages)

    @property
    def fits(self) -> bool:
        """Whether this machine has the memory, the disk and the processors."""
        enough = self.memory <= self.free_memory and (self.free_disk is None or self.disk <= self.free_disk)
        return enough and self.misfit is None

    def to_text(self) -> str:
        """A table for people, with what is free beside what is needed."""
        lines = [f"{'stage':<16}{'time':>12}{'memory/worker':>16}{'disk':>12}"]
        for s in self.stages:
            disk = _bytes(s.disk) if s.disk else "-"
            lines.append(f"{s.name:<16}{_time(s.seconds):>12}{_bytes(s.memory):>16}{disk:>12}")
        lines.append(f"{'total':<16}{_time(self.seconds):>12}{_bytes(self.memory):>16}{_bytes(self.disk):>12}")
        lines.append(
            f"memory: {_bytes(self.memory)} for {self.workers} process(es), {_bytes(self.free_memory)} free here"
        )
        if self.free_disk is not None:
            lines.append(f"disk: {_bytes(self.disk)}, {_bytes(self.free_disk)} free")
        if self.misfit is not None:
            lines.append(f"{self.misfit}.")
        if not self.fits:
            lines.append(
                "DOES NOT FIT. Fix: value fewer parameters (Task(parameters=...)), ask for fewer columns, take fewer "
                "workers on a machine, or a larger machine or disk."
            )
        return "\n".join(lines)


def make_plan(request: Request) -> Cost:
    """Try every stage on a few rows, and scale up.

    Raises:
        InputError: what opening a run would refuse without reading the whole tables.
    """
    trial = _Trial(request)
    curvature = request.settings.curvature
    found = [StageCost("start", _RAY_START_SECONDS, 0)] if request.cluster else []
    found += [trial.scan(name) for name in trial.rows]
    if curvature in KRONECKER:
        found += trial.kronecker(ekfac=curvature == "ekfac")
    elif curvature in DENSE:
        found += trial.dense()
    if "valid" in trial.rows:
        found.append(trial.queries())
    found += trial.pairs() if request.settings.strategy == "fi" else [trial.scores()]
    if request.settings.strategy == "tree":
        found.append(trial.labelled())
    if request.settings.subsample < 1:
        found.append(trial.forest())
    free = shutil.disk_usage(_existing(request.out)).free if isinstance(request.out, Path) else None
    local = request.cluster is not None and request.cluster.address is None
    why = misfit(request.cluster, trial.model_bytes) if request.cluster and local else None
    return Cost(tuple(found), trial.workers, available(), free, why)


class _Trial:
    """The job on its first rows, and the sizes that follow from the model."""

    def __init__(self, request: Request) -> None:
        tables, columns = open_tables(request)
        job = Job(request.task, tables, columns, Classes(()), request.settings)
        probed = probe(job, request.objectives)
        check_memory(request.settings.curvature, probed.parameters, available())
        merged = partial_sums(probed, request.settings.curvature)
        check_fits(job, probed, request.cluster, merged)  # without columns, of which a few can stand for all
        self.rows = {name: table.num_rows for name, table in tables.items()}
        self.blocks, self.parameters = probed.blocks, probed.parameters
        self.item = torch.finfo(getattr(torch, probed.dtype)).bits // 8
        self.job = _first_rows(job, request, probed.logits)
        self.job = dataclasses.replace(
            self.job, settings=dataclasses.replace(self.job.settings, outputs=probed.outputs)
        )
        self.columns = len(column_names(self.job.settings.targets, request.settings.halves))
        self.worker = Worker(self.job, "cuda" if request.cluster and request.cluster.gpus_per_worker else None)
        self.workers = request.cluster.workers if request.cluster else 1
        self.chunks = min(merged, len(tables["train"].shards))
        self.tried = fewest(max(self.columns, 1), self.parameters)
        self._queries = query_bytes(self.job, probed, 1, merged).size if "valid" in tables else 0
        self.directions = min(probed.logits - 1, probed.perturbed)
        self._kept = request.out is not None
        self.model_bytes = sum(p.numel() * p.element_size() for p in self.worker.model.parameters())
        self._model = 2 * self.item * sum(p.numel() for p in self.worker.model.parameters())

    def cost(self, name: str, make: Callable[[Worker], Any], table: str, memory: int, disk: int) -> StageCost:
        """A stage over a table, from its rate on the first rows."""
        seconds = self.rows[table] / self._rate(make(self.worker), table) / self.workers
        return self._stage(name, seconds, memory + 4 * BATCH_FLOATS, disk)

    def kronecker(self, ekfac: bool) -> list[StageCost]:
        """Covariance, basis and Lambda."""
        grams = sum(
            8 * r * (o * o + (i if b.kind == "embedding" else i * i)) for b in self.blocks for r, o, i in [b.shape]
        )
        written = 2 * self.chunks * grams
        found = [self.cost("covariance", lambda w: stages.Covariance(w, {}), "train", grams, written)]
        sides = [x for b in self.blocks for x in b.shape[1:] if not (b.kind == "embedding" and x == b.shape[2])]
        found.append(self._stage("basis", sum(map(_eigh_seconds, sides)), 3 * grams, grams))
        if ekfac:
            part, basis = 8 * self.parameters, self._basis()
            disk = (2 * self.chunks + 1) * part
            found.append(self.cost("lambda", lambda w: stages.Lambda(w, basis), "train", grams + part, disk))
        return found

    def dense(self) -> list[StageCost]:
        """Exact Hessian or GGN, and its eigenvectors."""
        size = 8 * self.parameters**2
        found = [self.cost("hessian", lambda w: stages.Curvature(w, {}), "train", size, 2 * self.chunks * size)]
        return [*found, self._stage("factors", _eigh_seconds(self.parameters), 4 * size, 2 * size)]

    def scan(self, name: str) -> StageCost:
        """The one look at a table before any work."""
        return self.cost(f"scan {name}", lambda w: _Scan(w, name), name, 0, 0)

    def queries(self) -> StageCost:
        """The objectives' gradients, summed; where there are too many columns to be tried, that of one stands for all.

        A row enters the sums of its own groups alone, so that many columns cost little more than one.
        """
        worker, settings = self.worker, self.job.settings
        if self.tried < self.columns:
            total = make_targets((Objective("total"),), self.job.classes.labels, {})
            worker = Worker(dataclasses.replace(self.job, settings=dataclasses.replace(settings, targets=total)))
        written = 3 * 8 * self.parameters * self.columns
        return self.cost("queries", lambda w: stages.Queries(worker, {}), "valid", self._queries, written)

    def scores(self) -> StageCost:
        """What gives the rows of the scored table their values."""
        settings, scored = self.job.settings, self.job.scored
        names, ones = self._names, self._ones
        make: Callable[[Worker], Any] = lambda w: stages.Score(w, ones, names=names)  # noqa: E731
        if settings.mixed:
            make = lambda w: Measure(w, {**ones, **self._inverse()}, names=["fi"])  # noqa: E731
        elif settings.strategy in BY_INFLUENCE:
            make = lambda w: PoolScore(w, ones, names=names)  # noqa: E731
        elif settings.strategy is not None:
            make = lambda w: Uncertain(w, {}, names=names)  # noqa: E731
        memory = self._solved_bytes + (self._inverse_bytes() if settings.mixed else 0)
        columns = max(self.columns, 1)
        found = self.cost("scores", make, scored, memory, self.rows[scored] * (16 + self.item * columns))
        return dataclasses.replace(found, seconds=found.seconds * columns / len(names))

    def labelled(self) -> StageCost:
        """What gives the labelled rows the values that a tree learns from."""
        ones = self._ones
        make: Callable[[Worker], Any] = lambda w: LabeledValues(w, ones, share=1.0)  # noqa: E731
        return self.cost("labelled values", make, "train", self._solved_bytes, 0)

    @property
    def _names(self) -> list[str]:
        return [str(k) for k in range(self.tried)]

    @property
    def _solved_bytes(self) -> int:
        """Of all queries, as they come and as a worker holds them."""
        return 2 * self.item * max(self.columns, 1) * self.parameters

    @property
    def _ones(self) -> Arrays:
        """Queries of the right shape, whatever they are."""
        return {f"U/{b.name}": np.ones((len(self._names), *b.shape), np.float32) for b in self.blocks}

    def pairs(self) -> list[StageCost]:
        """FI of every pool row on every labelled one: the labelled rows' factors, then products, tile by tile."""
        inverse, width = self._inverse(), 8 * self.directions * self.parameters
        labeled = min(self.rows["train"], max(1, TILE_BYTES // width))
        tiles = -(-self.rows["train"] // labeled)
        first = dataclasses.replace(self.job.tables["train"].shards[0], rows=1)
        one = PairFactors(self.worker, inverse, solve=True)(Chunk((first,)))["R"]
        factors = {"R": np.repeat(one, labeled, axis=0), **inverse}
        memory = self._inverse_bytes() + 3 * labeled * width
        rows = self.cost("factors of rows", lambda w: PairFactors(w, inverse, solve=True), "train", memory, 0)
        products = self.cost(
            "pairs",
            lambda w: PairValues(w, factors, names=["fi"], whole=True, solve=True),
            "pool",
            memory,
            16 * self.rows["pool"],
        )
        return [rows, dataclasses.replace(products, seconds=products.seconds * tiles)]

    def forest(self) -> StageCost:
        """The forest's fit, and its ranks of the scored table."""
        reader = BatchReader(self.job.tables[self.job.scored], self.job.columns[self.job.scored])
        raw = next(reader.read(self.job.tables[self.job.scored].shards[0], _MOST_PROBED))
        x = raw.x.reshape(len(raw), -1)
        begin = time.perf_counter()
        forest = RankForest.fit(x, np.random.default_rng(0).random(len(x)), None, 0, torch.get_num_threads())
        fitted = time.perf_counter()
        forest.predict(x, None)
        rows = self.rows[self.job.scored]
        learned = min(rows * self.job.settings.subsample, MOST_ROWS)
        seconds = (fitted - begin) * learned / len(x) + (time.perf_counter() - fitted) * rows / len(x) / self.workers
        return self._stage("forest", seconds, int(learned) * x.shape[1] * 16, 8 * rows)

    def _inverse(self) -> Arrays:
        """An inverse curvature of the right shape."""
        if self.job.settings.curvature in DENSE:
            return {"dense": np.eye(self.parameters)}
        ones = {f"D/{b.name}": np.ones(b.shape) for b in self.blocks}
        basis = {k: v for k, v in self._basis().items() if k.startswith("q_")}
        return ones if self.job.settings.curvature == "identity" else {**ones, **basis}

    def _inverse_bytes(self) -> int:
        return sum(v.nbytes for v in self._inverse().values())

    def _basis(self) -> Arrays:
        out: Arrays = {}
        for b in self.blocks:
            r, o, i = b.shape
            out[f"q_g/{b.name}"], out[f"l_g/{b.name}"] = np.tile(np.eye(o), (r, 1, 1)), np.ones((r, o))
            out[f"l_a/{b.name}"], out[f"positions/{b.name}"] = np.ones((r, i)), np.array(1.0)
            if b.kind != "embedding":
                out[f"q_a/{b.name}"] = np.tile(np.eye(i), (r, 1, 1))
        return out

    def _stage(self, name: str, seconds: float, memory: int, disk: int) -> StageCost:
        return StageCost(name, seconds, self._model + memory, disk if self._kept else 0)

    def _rate(self, stage: Any, table: str) -> float:
        """Rows a second beyond the fixed cost of a call: from two sizes, the larger about a second long."""
        shard = self.job.tables[table].shards[0]
        rows, points = min(8, shard.rows), list[tuple[int, float]]()
        while True:
            item: Any = Shard(0, shard.start, rows, shard.file, shard.group, shard.offset)
            begin = time.perf_counter()
            stages.perform(stage, Chunk((item,)) if isinstance(stage, stages.Summing | PairFactors) else item)
            points.append((rows, time.perf_counter() - begin))
            if rows in (shard.rows, _MOST_PROBED) or (len(points) > 2 and points[-1][1] > _PROBE_SECONDS):
                break
            rows = min(rows * 4, shard.rows, _MOST_PROBED)
        (few, short), (many, long) = points[-2:] if len(points) > 1 else (points[0], points[0])
        return (many - few) / (long - short) if long > short and many > few else many / max(long, 1e-9)


class _Scan:
    """The scan of a table as a trial runs it."""

    def __init__(self, worker: Worker, table: str) -> None:
        self._stage = stages.Scan(worker, {}, table=table)

    def __call__(self, item: Shard) -> Any:
        return self._stage(item)


def _first_rows(job: Job, request: Request, logits: int) -> Job:
    """The job with classes and groups as the first rows show them: only a scan would know them all."""
    task = request.task
    batches = {
        name: next(BatchReader(table, job.columns[name]).read(table.shards[0], _MOST_PROBED))
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
    for objective in request.objectives:
        if objective.split is not None:
            column = labels if objective.split == LABEL else np.unique(batches["valid"].extra[objective.split]).tolist()
            levels[objective.split] = tuple(column)
    targets = make_targets(request.objectives, labels, levels)
    settings = dataclasses.replace(request.settings, targets=targets)
    return dataclasses.replace(job, classes=Classes(labels), settings=settings, levels=levels, key="plan")


def _eigh_seconds(size: int) -> float:
    """Seconds of a symmetric eigendecomposition, from one that is small enough to try."""
    tried = min(size, 512)
    matrix = torch.randn(tried, tried, dtype=torch.float64)
    begin = time.perf_counter()
    torch.linalg.eigh(matrix + matrix.T)
    return float((time.perf_counter() - begin) * (size / tried) ** 3)


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.0f} {unit}" if unit in ("B", "KiB") else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
