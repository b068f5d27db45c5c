"""How a model does on a table: loss and accuracy, and any objective, with attacks aimed at it or at another model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rayinf.core import objectives
from rayinf.core.gaps import Gap
from rayinf.core.kfac import Sums
from rayinf.core.objectives import LABEL, Objective, Target, make_targets
from rayinf.core.outputs import find_outputs
from rayinf.data.scan import TableScan
from rayinf.engine.stages import codes_of
from rayinf.engine.worker import Ready, Worker
from rayinf.task import Task
from rayinf.training.open_table import TABLE, open_table
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
    worker, scan = open_table(task, table, "test", wanted)
    targets, worker = _with_groups(worker, scan, wanted)
    aimed = worker
    if against is not None:
        aimed = Worker(replace(worker.job, task=replace(worker.job.task, model=against.model)))
    sums: Sums = {}
    loss, classes = 0.0, worker.job.classes
    seen, right = (torch.zeros(len(classes.labels), dtype=torch.int64) for _ in range(2))
    size = worker.rows_a_batch(1)
    with on_rows(lambda: worker.rows_at_work), torch.no_grad():
        for shard in worker.job.tables[TABLE].shards:
            for ready in worker.read(TABLE, shard, size):
                logits = worker.predict(ready.x)
                loss += float(worker.row_loss(logits, ready.y).double().sum())
                y, hit = ready.y.cpu(), (logits.argmax(1) == ready.y).cpu()
                seen += torch.bincount(y, minlength=len(seen))
                right += torch.bincount(y[hit], minlength=len(seen))
                _add(sums, targets, (worker, aimed), ready, logits)
    shares = {
        f"accuracy_{name}": int(r) / int(s) if s else None
        for name, r, s in zip(classes.names, right, seen, strict=True)
    }
    values = {
        column if name == "value" else f"{column}_{name}": value
        for column, found in objectives.objective_details(sums, targets).items()
        for name, value in found.items()
    }
    return {"rows": scan.rows, "loss": loss / scan.rows, "accuracy": int(right.sum()) / scan.rows, **shares, **values}


def _with_groups(worker: Worker, scan: TableScan, wanted: tuple[Objective, ...]) -> tuple[tuple[Target, ...], Worker]:
    """The objectives with their groups, and the worker that knows these.

    Raises:
        InputError: groups that an objective cannot be taken of.
    """
    labels = worker.job.classes.labels
    levels = {o.split: tuple(scan.counts[o.split]) for o in wanted if o.split not in (None, LABEL)}
    for objective in wanted:
        if objective.split in levels:
            objective.settle(labels).check(labels, scan.joint[str(objective.split)])
    held = {**{str(k): v for k, v in levels.items()}, LABEL: labels}
    job = replace(worker.job, levels=held)
    if wanted:  # probabilities, for gaps between groups
        ready = next(worker.read(TABLE, job.tables[TABLE].shards[0], _FEW))
        outputs = find_outputs(worker.model, ready.x, job.task.loss)
        for objective in wanted:
            if isinstance(objective, Gap):
                outputs.require_logits(f"Objective {objective.name!r}")
        job = replace(job, outputs=outputs)
    return make_targets(wanted, labels, held), Worker(job)


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
