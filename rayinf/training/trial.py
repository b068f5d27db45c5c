"""What verbs that train will take: seconds of a training and of a measurement, from trials on few rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.tables import Table
from rayinf.engine.cost import StageCost
from rayinf.engine.plan import Trial
from rayinf.pareto.halved_lp import HalvedLP
from rayinf.task import Fit, Task
from rayinf.training.evaluation import Measurement
from rayinf.training.retraining import Retraining
from rayinf.training.search import Search
from rayinf.training.shuffle import BUFFER_BYTES

# Rows of the trials, until one takes so long; and of the linear program's.
_ROWS, _SECONDS, _PROGRAM_ROWS = (64, 256, 1024), 2.0, 20_000
# Copies of the parameters in a training: the model, its gradients, two moments, and the model that is given back.
_COPIES = 5


@dataclass(frozen=True)
class TrainingCost:
    """Seconds of one training on all rows and of a pass over the rows that it is measured on; bytes of both."""

    training: float
    measuring: float
    memory: int


def training_cost(task: Task, train: Table, measured: Table) -> TrainingCost:
    """The cost of training a task's model anew, and of measuring it.

    Args:
        task: with its classes and its fit.
        train: opened.
        measured: opened.
    """
    once = replace(task, fit=replace(task.fit, epochs=1)) if isinstance(task.fit, Fit) else task
    epochs = task.fit.epochs if isinstance(task.fit, Fit) else 1

    def train_on(rows: int) -> Any:
        return Retraining(once, _first(train, task, rows)).train()

    def measure_on(rows: int) -> Any:
        return Measurement(task, _first(measured, task, rows)).of(task)

    seconds = [_each(of, table) for of, table in ((train_on, train), (measure_on, measured))]
    model = sum(p.numel() * p.element_size() for p in task.build().parameters())
    return TrainingCost(
        epochs * train.num_rows * seconds[0], measured.num_rows * seconds[1], _COPIES * model + 2 * BUFFER_BYTES
    )


def removal_costs(trial: Trial, before: Sequence[StageCost], test: Table, seeds: int) -> list[StageCost]:
    """What `removal_check` does beside the values by class: second order for every removal, and the trainings."""
    job, task = trial.job, replace(trial.job.task, classes=trial.job.classes.labels)
    fitting = [s for s in before if not s.name.startswith("scan ") and s.name not in ("start", "scores")]
    count = (2 * len(job.classes.labels) + 1) * (1 if task.fit is None else seeds)
    cost = training_cost(task, job.tables["train"], test)
    workers = min(trial.workers, count)
    return [
        StageCost("second order", sum(s.seconds for s in fitting), max(s.memory for s in fitting)),
        StageCost("trainings", count * (cost.training + cost.measuring) / workers, cost.memory, 0, workers),
    ]


def search_costs(trial: Trial, before: Sequence[StageCost], search: Search, fit: Any) -> list[StageCost]:
    """What `pareto_reweight` does beside the values by class: a linear program, an epoch and a pass a candidate."""
    job, classes = trial.job, len(trial.job.classes.labels)
    task = replace(job.task, classes=job.classes.labels, fit=fit)
    count = search.size * search.iterations + 2 * search.confirm + 3
    cost = training_cost(task, job.tables["train"], job.tables["valid"])
    rows = job.tables["train"].num_rows
    seconds = cost.training + cost.measuring + program_seconds(rows, classes, search)
    workers = min(trial.workers, count)
    return [StageCost("candidates", count * seconds / workers, cost.memory + 2 * 8 * rows * 2 * classes, 0, workers)]


def program_seconds(rows: int, classes: int, search: Search) -> float:
    """Seconds of one linear program over all rows, both halves of the validation rows in it."""
    few = min(rows, _PROGRAM_ROWS)
    vectors = np.random.default_rng(0).standard_normal((few, 2 * classes))
    program = HalvedLP(vectors, [0], search.demand, [str(k) for k in range(classes)])
    begin = time.perf_counter()
    # Weights near 1 meet such demands, whatever the vectors.
    program.solve(np.full(classes, 0.5), search.upper, None if search.radius is None else 0.5)
    return (time.perf_counter() - begin) * rows / few


def _each(work: Callable[[int], Any], table: Table) -> float:
    """Seconds a row, beyond the fixed cost of a call where two sizes show it."""
    points: list[tuple[int, float]] = []
    work(min(_ROWS[0], table.shards[0].rows))  # the first call loads code
    for rows in dict.fromkeys(min(n, table.shards[0].rows) for n in _ROWS):
        begin = time.perf_counter()
        work(rows)
        points.append((rows, time.perf_counter() - begin))
        if len(points) > 1 and points[-1][1] > _SECONDS:
            break
    (before, first), (after, last) = points[-2:] if len(points) > 1 else ((0, 0.0), points[0])
    return (last - first) / (after - before) if last > first else last / after


def _first(table: Table, task: Task, rows: int) -> pa.Table:
    """The first rows of a table, in memory."""
    group = [task.group] if task.group is not None and task.group in table.schema.names else []
    columns = list(dict.fromkeys([*task.feature_columns, task.label, *group]))
    return pa.Table.from_batches(table.open(columns).read(replace(table.shards[0], rows=rows)))
