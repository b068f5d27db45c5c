"""`baseline` by methods that train the task's model many times: checked as any run, with its trainings on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array, BatchReader
from rayinf.data.extent import EXTENT
from rayinf.data.out_folder import check_out
from rayinf.data.run_folder import SCORES, RunFolder, part_name
from rayinf.data.scores import LABEL_COLUMN, Scores
from rayinf.data.tables import READ_ROWS, Table
from rayinf.engine import curvature as curv
from rayinf.engine import pipeline
from rayinf.engine.baseline_spec import BaselineSpec
from rayinf.engine.job import Job
from rayinf.engine.run import Run, open_run
from rayinf.errors import InputError
from rayinf.training.checked_inputs import absolute, fit_identity
from rayinf.training.data_shapley import BLOCK, data_shapley
from rayinf.training.leave_one_out import leave_one_out
from rayinf.training.open_table import check_unchanged
from rayinf.training.retraining import check_trainable
from rayinf.training.rows_to_keep import kept_mask
from rayinf.training.set_worth import SetCosts, check_sums
from rayinf.training.steps import Steps, recall, run_folder


@dataclass(frozen=True)
class _Checked:
    """A spec whose tables and model have been looked at.

    Attributes:
        job: with the task's classes, and the tables.
        positions: of the rows to value.
        costs: of sets of rows.
        record: of the run, before its metadata.
        metadata: of the scores, before what the trainings add.
    """

    job: Job
    positions: Array
    costs: SetCosts
    record: dict[str, Any]
    metadata: dict[str, Any]


def value_by_retraining(spec: BaselineSpec) -> Scores:
    """The values of `method="loo"` and `"data_shapley"`.

    Raises:
        InputError: before any work: wrong input, a task that cannot be trained, or more trainings than are allowed.
        RunError: training diverged, or a table changed on the way.
    """
    check_trainable(spec.task)
    if spec.utility == "accuracy":
        check_sums(spec.objectives, spec.name)
    recall(spec.out)
    with open_run(replace(spec, out=None, cluster=None)) as opened:
        checked = _check(spec, opened)
    with run_folder(spec.out, checked.record, checked.job.tables.values()) as (run, finished):
        if finished and spec.out is not None:
            return Scores.load(spec.out)
        steps = Steps(lambda: run.files)
        if spec.name == "loo":
            seeds = range(spec.seed, spec.seed + run.extent["seeds"])
            values, more = leave_one_out(checked.costs, checked.positions, seeds, steps, spec.cluster)
        else:
            stop = (spec.truncation, spec.tolerance, run.extent["retrainings"])
            values, more = data_shapley(checked.costs, spec.seed, stop, steps, spec.cluster)
        for name, given in spec.tables.items():
            check_unchanged(checked.job.tables[name], given, name)
        metadata = {**checked.metadata, **more}
        if spec.out is None:
            return Scores(pa.concat_tables(list(_tables(checked, values))), metadata)
        _write(run, checked, values, metadata)
    return Scores.load(spec.out)


def _check(spec: BaselineSpec, run: Run) -> _Checked:
    job, rows = replace(run.job, task=replace(spec.task, classes=run.job.classes.labels)), run.scans["train"].rows
    check_out(spec.out, job.tables)
    kept = kept_mask(spec.only, job.tables["train"], spec.task, run.scans["train"])
    positions = np.flatnonzero(kept)
    _check_count(spec, rows, len(positions))
    names = curv.column_names(job.targets, halves=False)
    tables = {name: absolute(given) for name, given in spec.tables.items()}
    costs = SetCosts(
        job.task, tables["train"], tables["valid"], spec.objectives, names, spec.utility == "accuracy", rows
    )
    chosen = {} if spec.only is None else {"only": [len(positions), _digest(kept)]}
    identity = {**run.identity, **fit_identity(spec.task), **chosen}
    extent = {"seeds": _seeds(spec)} if spec.name == "loo" else {"retrainings": spec.retrainings}
    record = {**run.record({}), "identity": identity, EXTENT: extent}
    return _Checked(job, positions, costs, record, pipeline.metadata(run))


def _digest(kept: Array) -> str:
    return sha256(np.packbits(kept).tobytes()).hexdigest()[:16]


def _seeds(spec: BaselineSpec) -> int:
    """One where training goes to convergence, whatever the seed."""
    return 1 if spec.task.fit is None else spec.seeds


def _check_count(spec: BaselineSpec, rows: int, valued: int) -> None:
    """Refuse more trainings than are allowed, with their number.

    Raises:
        InputError: how many there would be.
    """
    if spec.name == "loo":
        count = (valued + 1) * _seeds(spec)
        fix = f"pass only=[...], the ids of fewer rows, or retrainings={count} to have them all."
        what = f"method='loo' of {valued:,} rows takes {count:,} trainings"
    else:
        count = BLOCK * rows
        fix = f"pass retrainings={count} or more (20 times that, as a rule), or a table of fewer rows."
        what = f"method='data_shapley' of {rows:,} rows takes up to {count:,} trainings for its first {BLOCK} orders"
    if count > spec.retrainings:
        raise InputError(f"{what}, and retrainings={spec.retrainings:,} are allowed.", fix)


def _write(run: RunFolder, checked: _Checked, values: Array, metadata: dict[str, Any]) -> None:
    """The scores as any run has them, and the record of a finished one."""
    for k, table in enumerate(_tables(checked, values)):
        run.files.put_table(part_name(SCORES, k), table)
    run.finish({**checked.record, "metadata": metadata})
    run.log("finish")


def _tables(checked: _Checked, values: Array) -> Iterator[pa.Table]:
    """`row_id`, the label and the values of every shard; null for rows that were not valued."""
    table: Table = checked.job.tables["train"]
    reader = BatchReader(table, checked.job.columns["train"])
    for shard in table.shards:
        batches = list(reader.read(shard, READ_ROWS))
        first, last = np.searchsorted(checked.positions, [shard.start, shard.start + shard.rows])
        held = np.full((shard.rows, values.shape[1]), np.nan)
        at = checked.positions[first:last] - shard.start
        held[at] = values[first:last]
        missing = np.ones(shard.rows, bool)
        missing[at] = False
        found = {n: pa.array(held[:, k], mask=missing) for k, n in enumerate(checked.costs.columns)}
        ids = pa.chunked_array([b.ids for b in batches]).combine_chunks()
        labels = pa.array(np.concatenate([b.labels for b in batches]))
        yield pa.table({"row_id": ids, LABEL_COLUMN: labels, **found})
