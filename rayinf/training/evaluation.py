"""How a model does on a table: loss and accuracy, and any objective, with attacks aimed at it or at another model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rayinf.core import objectives
from rayinf.core.gaps import Gap
from rayinf.core.kfac import Sums
from rayinf.core.objectives import LABEL, Objective, Target, make_targets
from rayinf.core.outputs import find_outputs
from rayinf.data.batches import Array, Batch, BatchReader
from rayinf.data.scan import TableScan
from rayinf.engine.job import Job
from rayinf.engine.stages import codes_of
from rayinf.engine.worker import Ready, Worker
from rayinf.task import Task
from rayinf.training.open_table import TABLE, open_table
from rayinf.training.shuffle import BUFFER_BYTES, BUFFER_ROWS, row_bytes
from rayinf.user_code import on_rows

# Rows that show what the model returns.
_FEW = 4


def measure_model(
    task: Task, table: Any, wanted: tuple[Objective, ...] = (), against: Task | None = None
) -> dict[str, Any]:
    """What `rayinf.evaluate` gives, of objectives that are parsed.

    Raises:
        InputError: a table that does not fit the task, a label that is not a class, or objectives that do not fit it.
    """
    return Measurement(task, table, wanted, against).of(task)


class Measurement:
    """Measures of one model after another on one table, which is opened and checked once.

    Args:
        task: whose models are measured; the first of them is tried on a few rows.
        table: of any form.
        wanted: objectives that are measured too.
        against: the task around the model that attacks are aimed at; None: the one that is measured.
        several: whether there are several models: rows that fit the buffer of `shuffle` are then read once.

    Raises:
        InputError: a table that does not fit the task, a label that is not a class, or objectives that do not fit it.
    """

    def __init__(
        self,
        task: Task,
        table: Any,
        wanted: tuple[Objective, ...] = (),
        against: Task | None = None,
        several: bool = False,
    ) -> None:
        self._wanted, self._against = wanted, against
        worker, self._scan = open_table(task, table, "test", wanted)
        self._targets, self._job = _with_groups(worker, self._scan, wanted)
        self._size = worker.rows_a_batch(1)
        small = several and self._scan.rows <= BUFFER_ROWS
        held = list(self._read()) if small and _bytes_of(worker, self._scan.rows) <= BUFFER_BYTES else None
        for batch in held or ():
            batch.x.setflags(write=False)  # a transform that works in place gets a copy
        self._held: list[Batch] | None = held

    def of(self, task: Task, losses: list[Array] | None = None) -> dict[str, Any]:
        """What `rayinf.evaluate` gives.

        Args:
            task: around the model.
            losses: filled with the losses of each batch's rows, in float64 where the loss takes that.

        Raises:
            InputError: objectives that take probabilities, and a model that gives none.
        """
        worker = self._worker(task)
        aimed = worker if self._against is None else Worker(_around(worker.job, self._against))
        sums: Sums = {}
        loss, classes = 0.0, worker.job.classes
        seen, right = (torch.zeros(len(classes.labels), dtype=torch.int64) for _ in range(2))
        with on_rows(lambda: worker.rows_at_work), torch.no_grad():
            for raw in self._read() if self._held is None else self._held:
                ready = worker.ready(TABLE, raw)
                logits = worker.predict(ready.x)
                loss += float(worker.row_loss(logits, ready.y).double().sum())
                if losses is not None:
                    losses.append(worker.exact_row_loss(logits, ready.y).double().cpu().numpy())
                y, hit = ready.y.cpu(), (logits.argmax(1) == ready.y).cpu()
                seen += torch.bincount(y, minlength=len(seen))
                right += torch.bincount(y[hit], minlength=len(seen))
                _add(sums, self._targets, (worker, aimed), ready, logits)
        shares = {
            f"accuracy_{name}": int(r) / int(s) if s else None
            for name, r, s in zip(classes.names, right, seen, strict=True)
        }
        values = {
            column if name == "value" else f"{column}_{name}": value
            for column, found in objectives.objective_details(sums, self._targets).items()
            for name, value in found.items()
        }
        rows = self._scan.rows
        return {"rows": rows, "loss": loss / rows, "accuracy": int(right.sum()) / rows, **shares, **values}

    def _read(self) -> Iterator[Batch]:
        reader = BatchReader(self._job.tables[TABLE], self._job.columns[TABLE])
        return (raw for shard in self._job.tables[TABLE].shards for raw in reader.read(shard, self._size))

    def _worker(self, task: Task) -> Worker:
        """A worker with a model, whose outputs are looked at where objectives are measured.

        Raises:
            InputError: objectives that take probabilities, and a model that gives none.
        """
        worker = Worker(_around(self._job, task))
        if not self._wanted:
            return worker
        ready = next(worker.read(TABLE, self._job.tables[TABLE].shards[0], _FEW))
        outputs = find_outputs(worker.model, ready.x, worker.job.task.loss)
        for objective in self._wanted:
            if isinstance(objective, Gap):  # of probabilities
                outputs.require_logits(f"Objective {objective.name!r}")
        return Worker(replace(worker.job, outputs=outputs))


def _around(job: Job, task: Task) -> Job:
    """The job of another model."""
    return replace(job, task=replace(job.task, model=task.model))


def _bytes_of(worker: Worker, rows: int) -> int:
    """What the features of a table take, by its first row."""
    first = next(worker.read_raw(TABLE, worker.job.tables[TABLE].shards[0], 1))
    return rows * row_bytes(first.x)


def _with_groups(worker: Worker, scan: TableScan, wanted: tuple[Objective, ...]) -> tuple[tuple[Target, ...], Job]:
    """The objectives with their groups, and the job that knows these.

    Raises:
        InputError: groups that an objective cannot be taken of.
    """
    labels = worker.job.classes.labels
    levels = {o.split: tuple(scan.counts[o.split]) for o in wanted if o.split not in (None, LABEL)}
    for objective in wanted:
        if objective.split in levels:
            objective.settle(labels).check(labels, scan.joint[str(objective.split)])
    held = {**{str(k): v for k, v in levels.items()}, LABEL: labels}
    return make_targets(wanted, labels, held), replace(worker.job, levels=held)


def _add(sums: Sums, targets: tuple[Target, ...], workers: tuple[Worker, Worker], ready: Ready, clean: Tensor) -> None:
    """Add a batch to the objectives' sums."""
    worker, aimed = workers
    codes = {t.objective.split: codes_of(worker.job.levels[s], ready, s) for t in targets if (s := t.objective.split)}
    held = {str(k): v for k, v in codes.items()}
    logits: dict[Any, Tensor] = {None: clean}
    for j, source in enumerate(objectives.sources(targets)):
        attack, function = source
        if attack not in logits:
            logits[attack] = worker.predict(aimed.attacked(attack, ready))
        shared = [t for t in targets if t.source == source]
        outputs = worker.job.outputs
        values = (worker.row_loss if function is None else outputs.rows(function))(logits[attack], ready.y)
        weights = objectives.weights(shared, held, None, ready.y)
        objectives.add_values(sums, j, shared, values, weights, (logits[attack], ready.y))
