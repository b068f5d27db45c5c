"""Opening a run: every check before any work, the scan of the tables, the run's identity and its folder."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib import metadata
from types import TracebackType
from typing import Any

from rayinf.core.objectives import LABEL, Objective, make_targets
from rayinf.core.response import Response
from rayinf.data.batches import Columns, check_columns
from rayinf.data.changes import have_changed
from rayinf.data.known_scans import known
from rayinf.data.labels import Classes, check_known, make_classes
from rayinf.data.out_folder import check_out
from rayinf.data.pandas_index import id_column
from rayinf.data.part_files import PartPlace
from rayinf.data.run_folder import FINISHED, RunFolder, owner_of, part_name
from rayinf.data.scan import ScanMerge, TableScan, check_unique_ids
from rayinf.data.shards import ByIndex, Shard
from rayinf.data.tables import Table, as_table
from rayinf.engine import progress, stages
from rayinf.engine.curvature import Solver
from rayinf.engine.curvature_rows import are_signed, share_of
from rayinf.engine.entry import KRONECKER, require_one_model
from rayinf.engine.identity import check_factors, factors_run, identity
from rayinf.engine.job import Chunk, Job, chunks
from rayinf.engine.label_order import check_labels
from rayinf.engine.leaves import leaf_count, sums_sent
from rayinf.engine.left_out import LeftOut, fit_without, without
from rayinf.engine.machine import free_memory
from rayinf.engine.memory import check_fits, check_memory
from rayinf.engine.probe import Probe, probe
from rayinf.engine.runner import LocalRunner, Runner, make_runner
from rayinf.engine.spec import RunSpec
from rayinf.engine.training_time import NORMS, VALID_NORMS, Seen, needs_held_out, needs_squares, response_of, seen
from rayinf.errors import InputError, RunError
from rayinf.redaction import redact
from rayinf.store.places import open_place

# What the partial sums of one stage may take on disk fixes how many there are.
_PARTIAL_BYTES = 4 << 30
_FEWEST_CHUNKS, _MOST_CHUNKS = 8, 64
_PACKAGES = ("rayinf", "torch", "numpy", "pyarrow", "ray")


@dataclass
class Run:
    """An open run: everything is checked, nothing is computed. A context manager that stops the workers at its end."""

    spec: RunSpec
    job: Job
    probe: Probe
    scans: dict[str, TableScan]
    folder: RunFolder | None
    identity: dict[str, Any]
    finished: bool
    runner: Runner
    seconds: dict[str, float] = field(default_factory=dict)
    # Of a plan: on a few rows, which do not show whether the model is at a minimum.
    is_trial: bool = False

    def __enter__(self) -> Run:
        """Log the start."""
        if not self.finished:
            self.log("start", verb=self.spec.verb)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers, give the folder free; log what stopped the run, if something did."""
        try:
            if error is not None and not self.finished:
                self.log("stopped", error=redact(f"{kind.__name__ if kind else ''}: {error}"))
            self.runner.close()
        finally:
            if self.folder is not None:
                self.folder.release()

    def place(self, folder: str) -> PartPlace | None:
        """Where the parts of shards are written; None where the run has no folder."""
        return None if self.folder is None else PartPlace(self.folder.path, folder)

    def has_part(self, folder: str, shard: Shard) -> bool:
        """Whether a shard's part is there and whole."""
        return self.folder is not None and self.folder.files.is_sound(part_name(folder, shard.index), shard.rows)

    def log(self, event: str, **fields: Any) -> None:
        """A line in the folder's log, if there is a folder."""
        if self.folder is not None:
            self.folder.log(event, **fields)

    def fold(self, stage: type[stages.Summing], arrays: Any, table: str, name: str, most: int | None = None) -> None:
        """Sum a stage over a table into the store, under `name`; in at most so many chunks, if `most` is given."""
        summed = self.job.tables[table]
        items = self.leaves(summed) if most is None else chunks(summed.shards, most)
        failed = None
        if table == "train":
            items, failed = without(items, self.left_out.of_fit), self.left_out.failures()
        self.log("sums", name=name, chunks=len(items))
        rows = self.scans[table].rows
        fewest = sums_sent(rows * (self.job.fitted_share if stage.fits else 1.0), self.probe.work)
        with self.timed(name, rows) as advance:
            for key in self.runner.fold(stage, arrays, items, self.left_out.name(name), failed, fewest):
                advance(items[key].rows)
        if failed is not None and failed.found:
            fit_without(self, failed, name)

    @cached_property
    def left_out(self) -> LeftOut:
        """The shards that the run goes on without."""
        return LeftOut(self.folder, self.spec.on_error == "skip", self.spec.may_skip)

    def gather(
        self, name: str, stage: type[stages.Stage], arrays: Any, items: Mapping[int, Any], **options: Any
    ) -> list[Any]:
        """Results of a stage over items with `rows`, in the order of their keys."""
        found = {}
        with self.timed(name, sum(item.rows for item in items.values())) as advance:
            for key, part in self.runner.map(stage, arrays, items, **options):
                found[key] = part
                advance(items[key].rows)
        return [found[key] for key in sorted(found)]

    @contextmanager
    def timed(self, name: str, rows: int, done: int = 0) -> Generator[Callable[[int], None]]:
        """A context that shows progress, and counts the rows and seconds of a stage."""
        count = partial(self.runner.count, verb=self.spec.verb, stage=name)
        begin = time.perf_counter()
        with progress.bar(name, rows, done) as advance:

            def counted(rows: int) -> None:
                advance(rows)
                count("rayinf_rows", rows)
                count("rayinf_shards", 1)

            yield counted
        self.seconds[name] = time.perf_counter() - begin
        self.log("stage", name=name, rows=rows, seconds=round(self.seconds[name], 4))
        count("rayinf_stage_seconds", self.seconds[name])

    def leaves(self, table: Table) -> dict[int, Chunk]:
        """The chunks that a table is summed in: fixed by it and the model, so that workers never move a bit."""
        least = partial_sums(self.probe, self.spec.curvature)
        return chunks(table.shards, leaf_count(table.num_rows, self.probe.work, least))

    @cached_property
    def response(self) -> Response:
        """How far the fit moves along eigenvectors; where that rests on squared gradients, these are there."""
        found = Seen({})
        if needs_squares(self.spec, self.probe):
            valid = self.runner.store("get", VALID_NORMS) if needs_held_out(self.spec, self.probe) else None
            found = seen(self.runner.store("get", NORMS), valid)
        # The model was trained on the rows of borrowed factors, if there are any.
        other = factors_run(self.spec.factors)
        rows = self.scans["train"].rows if other is None else int(other["train"]["rows"])
        return response_of(self.spec, self.probe, rows, found)

    @cached_property
    def solver(self) -> Solver:
        """What solves need beside the factors."""
        return Solver(
            self.spec.curvature,
            self.probe.blocks,
            self.scans["train"].rows,
            float(self.spec.task.l2),
            self.response,
            self.probe.eps,
            self.probe.dtype,
        )

    def record(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of `run.json`."""
        return {
            "verb": self.spec.verb,
            "identity": self.identity,
            "versions": {**{p: _version(p) for p in _PACKAGES}, "python": platform.python_version()},
            "parts": len(self.job.tables[self.job.scored].shards) if self.spec.has_scores else None,
            "metadata": dict(metadata),
        }

    def check_unchanged(self) -> None:
        """Refuse to finish over a table that was rewritten meanwhile.

        Raises:
            RunError: a Parquet file changed since the run began.
        """
        for name, given in self.spec.tables.items():
            table = self.job.tables[name]
            if have_changed(table.stat, given, name):
                raise RunError(
                    f"{table.name} ({given}) changed while the run was going.",
                    "leave the table as it is during a run, and run again into a new folder.",
                )


def open_run(spec: RunSpec, **more: Any) -> Run:
    """Check everything, scan the tables, and claim the folder. Nothing is written before all checks have passed.

    Args:
        spec: of the run.
        more: further tables that are only checked and scanned, by name.

    Raises:
        InputError: anything wrong with the task, a table, an argument or the folder.
    """
    tables, columns = open_tables(spec, more)
    share = share_of(spec, tables["train"].num_rows)  # known before the scan, which draws the rows
    job = Job(spec.task, tables, columns, Classes(()), spec, fitted_share=share)
    probed = probe(job, spec.objectives)
    job = dataclasses.replace(job, state=probed.state)
    spec.check(tables, probed)
    check_memory(spec.curvature, probed.parameters, free_memory())
    folder = RunFolder(open_place(spec.out)) if spec.out is not None else None
    other = factors_run(spec.factors)
    runner = make_runner(job, spec.cluster)
    try:
        again = folder is not None and (folder.read() or {}).get("status") == FINISHED
        # The tables of a run that seems to be finished are scanned in this process: perhaps nothing else is to be done.
        if folder is not None:
            known.load(folder.path)
        scans = {name: _scan(LocalRunner(job) if again else runner, name, table) for name, table in tables.items()}
        job = _settle(job, spec, probed, scans)
        check_labels(job, probed, scans["train"].counts[spec.task.label])
        spec = spec.settle(job, scans)
        job = dataclasses.replace(job, random_signs=are_signed(scans["train"].rows * share))
        if spec.is_here:
            check_fits(job, probed, runner.workers, partial_sums(probed, spec.curvature))
        own = identity(spec, job, probed, scans, other)
        if other is not None:
            check_factors(other, own, spec.factors)
        run = Run(spec, job, probed, scans, folder, own, False, runner)
        if folder is not None:
            run.finished = folder.begin(run.record({}))
            if not run.finished:
                known.save(folder.path, tables.values())
        runner.job = job
        runner.open_store(folder.factors if folder else None, owner_of({"identity": own}))
        return run
    except BaseException:
        runner.close()
        if folder is not None:
            folder.release()
        raise


def partial_sums(probed: Probe, curvature: str) -> int:
    """How many chunks a table is summed in at least."""
    if curvature in KRONECKER:
        size = sum(
            8 * b.shape[0] * (b.shape[1] ** 2 + b.shape[2] ** 2 + b.shape[1] * b.shape[2]) for b in probed.blocks
        )
    else:
        size = 8 * probed.parameters**2
    return min(max(_PARTIAL_BYTES // max(size, 1), _FEWEST_CHUNKS), _MOST_CHUNKS)


def open_tables(spec: RunSpec, more: Mapping[str, Any]) -> tuple[dict[str, Table], dict[str, Columns]]:
    """The tables of a run and the columns that are read of each; nothing but footers is read.

    Raises:
        InputError: wrong arguments, no table, a missing column.
    """
    if spec.factors is not None and spec.curvature == "identity":
        raise InputError('curvature="identity" has no factors.', "leave factors out.")
    task = spec.task
    require_one_model(task, spec.verb)
    others = [task.label, *([task.group] if task.group else [])]
    given = {**spec.tables, **more}
    tables = {name: as_table(value, task.feature_columns, others, name) for name, value in given.items()}
    check_out(spec.out, tables)
    splits = tuple(dict.fromkeys(o.split for o in spec.objectives if o.split not in (None, LABEL)))
    columns, scored = {}, "pool" if "pool" in tables else "train"
    for name, table in tables.items():
        row_id = id_column(table.schema, task.row_id)
        if name not in spec.with_ids and task.row_id is None and row_id != "row_id":
            row_id = None  # an index matters only where rows are named by it
        columns[name] = Columns(
            tuple(task.feature_columns),
            isinstance(task.features, str),
            None if name == "pool" else task.label,
            row_id if name == scored or row_id is None else _if_there(row_id, table),
            tuple(s for s in splits if s is not None) if name == "valid" else (),
        )
        check_columns(table, columns[name])
    return tables, columns


def _if_there(name: str | None, table: Table) -> str | None:
    """Only the table that is scored must have the id column; others without one are counted."""
    return name if name in table.schema.names else None


def scan_table(runner: Runner, name: str, table: Table) -> TableScan:
    """Read every row of a table once, and refuse what no stage could work on.

    Raises:
        InputError: values that are not finite, features of different shapes, an id that stands twice.
    """
    shards = ByIndex(table.shards)
    merged = ScanMerge(table)
    with progress.bar(f"scan {name}", table.num_rows) as advance:
        for key, part in runner.map(stages.Scan, {}, shards, table=name):
            merged.add(part)
            advance(shards[key].rows)
    scan = merged.result()
    check_unique_ids(table, runner.job.columns[name].row_id, scan)
    return scan


def _scan(runner: Runner, name: str, table: Table) -> TableScan:
    """The scan of a table, from an earlier one if it has not changed since.

    Raises:
        InputError: as `scan_table`.
    """
    columns = runner.job.columns[name]
    scan = known.find(table, columns)
    if scan is None:
        scan = scan_table(runner, name, table)
        known.keep(table, columns, scan)
    return scan


def _settle(job: Job, spec: RunSpec, probed: Probe, scans: Mapping[str, TableScan]) -> Job:
    """Classes, groups and targets, now that the tables are known.

    Raises:
        InputError: labels without a logit, features of different shapes, a class or group without rows.
    """
    task = spec.task
    classes = make_classes(scans["train"].counts[task.label], probed.logits, task.classes)
    for name, scan in scans.items():
        if name != "pool":
            check_known(classes, scan.counts[task.label], job.tables[name].name)
    shapes = {name: (scan.shape, scan.dtype) for name, scan in scans.items()}
    if len({s for s, _ in shapes.values()}) > 1:
        raise InputError(
            f"{' and '.join(shapes)} have features of different shapes: {shapes}.", "prepare them in the same way."
        )
    levels: dict[str, tuple[Any, ...]] = {}
    for objective in spec.objectives:
        if objective.split == LABEL:
            _check_full(classes, scans["valid"].counts[task.label], objective)
            levels[LABEL] = classes.labels
        elif objective.split is not None:
            levels[objective.split] = tuple(scans["valid"].counts[objective.split])
            objective.settle(classes.labels).check(classes.labels, scans["valid"].joint[objective.split])
    targets = make_targets(spec.objectives, classes.labels, levels)
    names = [c for t in targets for c in t.columns]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"Two objectives give a column {twice[0]!r}.", "give one of them another name.")
    return dataclasses.replace(
        job, classes=classes, targets=targets, outputs=probed.outputs, levels=levels, key=job.key + "*"
    )


def _check_full(classes: Classes, counts: Mapping[Any, int], objective: Objective) -> None:
    empty = [v for v in classes.labels if not counts.get(v)]
    if empty:
        raise InputError(
            f"objective={objective.name!r}: the validation set has no row of class {', '.join(map(repr, empty))}.",
            'add validation rows of every class, or use objective="total".',
        )


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
