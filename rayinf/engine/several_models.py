"""Values from several models: a pass over the rows with each, and one that joins what they gave."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.checked_folder import Entry
from rayinf.data.files import Arrays
from rayinf.data.part_files import PartPlace
from rayinf.data.run_folder import SCORES
from rayinf.data.scores import LABEL_COLUMN
from rayinf.data.shards import Shard
from rayinf.engine import curvature as curv
from rayinf.engine import pipeline, stages
from rayinf.engine.fit_quality import KEY, FitSums
from rayinf.engine.run import Run
from rayinf.engine.worker import Worker

# Artefacts that are dropped once a model's pass is done; those of the last one stay until the run is finished.
_OF_A_MODEL = ("queries", "solved", "gram", "lifted")
# A shard, and where the table of each model is.
Item = tuple[Shard, Sequence[pa.Table | PartPlace]]
# The values of the models `[K, B, columns]` -> those of all of them `[B, joined columns]`.
Join = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class JoinModels:
    """Shard -> its values by all models. Options: `join`, `names` of the joined columns, `into`."""

    def __init__(self, worker: Worker, arrays: Arrays, join: Join, names: list[str], into: PartPlace | None) -> None:
        self.join, self.names, self.into = join, names, into

    def __call__(self, item: Item) -> pa.Table | Entry:
        """The shard's table, or the entry of the file that it was written to."""
        shard, sources = item
        tables = [s.read(shard.index) if isinstance(s, PartPlace) else s for s in sources]
        kept = [n for n in ("row_id", LABEL_COLUMN) if n in tables[-1].schema.names]
        given = [n for n in tables[-1].schema.names if n not in kept]
        values = self.join(np.stack([[t[n].to_numpy() for n in given] for t in tables]).transpose(0, 2, 1))
        columns = {n: pa.array(np.ascontiguousarray(values[:, k])) for k, n in enumerate(self.names)}
        table = pa.table({**{n: tables[-1][n] for n in kept}, **columns})
        fit = FitSums.from_json(tables[-1].schema.metadata[KEY])
        fit.value = float(np.abs(values).max(initial=0.0))
        table = table.replace_schema_metadata({KEY: fit.to_json()})
        return table if self.into is None else self.into.write(shard.index, table)


def score_models(run: Run, one: Callable[[int, str], list[pa.Table]], join: Join, names: list[str]) -> list[pa.Table]:
    """Every shard by each model in turn, then joined. With a folder, shards that are finished are kept.

    Args:
        run: open; its spec has `states`, as that of `baseline`.
        one: called with a model's number and a folder of the run's for its parts, while the run's workers hold that
            model; gives the shards' tables, or nothing where they were written.
        join: picklable.
        names: of the joined columns.

    Returns:
        The shards' tables in order, or nothing where they were written to the folder.
    """
    count = max(1, len(run.job.spec.states))
    shards = run.job.tables["train"].shards
    found: list[list[pa.Table]] = []
    for k in range(count):
        done = all(run.has_part(SCORES, s) or run.has_part(_folder(k), s) for s in shards)
        # The last one is never passed over: what the run reports of its validation rows is made there.
        with _model(run, k):
            found.append([] if done and k < count - 1 else one(k, _folder(k)))
        if k < count - 1:
            for name in _OF_A_MODEL:
                run.runner.store("drop", f"{name}-{k}")
    places = [run.place(_folder(k)) for k in range(count)]
    items = {s.index: (s, [places[k] or found[k][i] for k in range(count)]) for i, s in enumerate(shards)}
    todo = {k: item for k, item in items.items() if not run.has_part(SCORES, item[0])}
    joined = run.runner.map(JoinModels, {}, todo, join=join, names=names, into=run.place(SCORES))
    tables = pipeline.collect(run, "join", joined, {k: s for k, (s, _) in items.items()}, todo)
    if run.folder is not None:
        for k in range(count):
            run.folder.clear(_folder(k))
    return tables


def solve(run: Run, k: int) -> str:
    """The gradients of all objectives at the model that the workers hold: the name of the artefact.

    They are divided by the number of training rows, as `curvature="identity"` has them.
    """
    name = "solved" if k == max(1, len(run.job.spec.states)) - 1 else f"solved-{k}"
    if not run.runner.store("has", name):
        run.fold(stages.Queries, {}, "valid", f"queries-{k}")
    pipeline.derive(run, name, curv.solve, [f"queries-{k}", "factors"], run.solver, run.job.targets, False)
    return name


@contextmanager
def _model(run: Run, k: int) -> Generator[None]:
    """The run's workers hold the k-th model for as long as the context lasts."""
    job = run.runner.job
    if len(run.job.spec.states):
        run.runner.job = replace(job, task=run.job.spec.states.task(job.task, k), key=f"{job.key}-model-{k}")
    try:
        yield
    finally:
        run.runner.job = job


def _folder(k: int) -> str:
    return f"model-{k}"
