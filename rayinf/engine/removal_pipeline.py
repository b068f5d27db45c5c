"""The steps of `predict_removal`: sums over the rows that go, Newton's step, the objectives at moved parameters."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayinf.data.batches import Array
from rayinf.data.kept_table import KeptTable
from rayinf.data.tables import Table
from rayinf.engine import curvature as curv
from rayinf.engine import pipeline, removal, removal_stages, stages
from rayinf.engine.entry import DENSE
from rayinf.engine.run import Run

Details = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Predicted:
    """What a set of rows is predicted to do, a number for each column of the objectives.

    Attributes:
        first: the sum of the rows' values `[Q]`.
        linear: the change of the linearised objectives along Newton's step `[Q]`.
        moved: column -> the objective at the moved parameters (`value`), and what stands beside it.
        length: of the step, in units of that of K-FAC or EKFAC.
    """

    first: Array
    linear: Array
    moved: Details
    length: float


def predict(run: Run, masks: Sequence[Callable[[], Array]]) -> tuple[Details, list[Predicted]]:
    """The objectives now, and what each set of rows is predicted to do to them.

    Args:
        run: open.
        masks: for each set, a function that gives which rows go `[n]`; called once at a time.

    Returns:
        Column -> `value` and what stands beside it, at the fit; and a prediction a set.
    """
    factors = pipeline.fit_factors(run)
    pipeline.solve_queries(run)
    store, count = run.runner.store, len(masks)
    for k, mask in enumerate(masks):
        # A run that was stopped while it cleared up has some of its arrays.
        if not (store("has", f"step-{k}") and store("has", f"gradient-{k}")):
            with _only(run, k, mask()) as table:
                _step(run, k, table, factors)
    steps = [f"step-{k}" for k in range(count)]
    if run.spec.curvature not in DENSE:
        steps = _lengths(run, masks)
    if not store("has", "moved"):
        payload = run.runner.publish("derive", "moves", removal.join_steps, steps)
        store("has", "moves")  # an error in the store is raised by this call
        items = run.leaves(run.job.tables["valid"])
        with run.timed("moved", run.scans["valid"].rows) as advance:
            for key in run.runner.fold(removal_stages.MovedValues, payload, items, "moved"):
                advance(items[key].rows)
    names = curv.column_names(run.job.targets, halves=False)
    moved = store("summarise", removal.moved_values, ["moved"], count, run.job.targets)
    found = []
    for k in range(count):
        change = store("derive", f"first-{k}", removal.first_order, ["solved", f"gradient-{k}"], run.solver)["change"]
        linear = store("summarise", removal.linear_change, ["queries", steps[k]], run.solver, run.job.targets)
        length = float(store("get", steps[k]).get("length", 1.0))
        found.append(Predicted(np.asarray(change), np.asarray(linear["change"]), moved[k], length))
    return store("summarise", curv.details_by_column, ["solved"], names), found


@contextmanager
def _only(run: Run, k: int, mask: Array) -> Generator[Table]:
    """The runner on the rows of a set alone, in place of the training table."""
    job = run.runner.job
    table = KeptTable(job.tables["train"], mask)
    run.runner.job = replace(job, tables={**job.tables, "train": table}, fitted_share=1.0, key=f"{job.key}-{k}")
    try:
        yield table
    finally:
        run.runner.job = job


def _lengths(run: Run, masks: Sequence[Callable[[], Array]]) -> list[str]:
    """The artefacts of the steps in their right length: a pass over all rows, and one over those of each set."""
    store, names = run.runner.store, [f"scaled-{k}" for k in range(len(masks))]
    if all(store("has", name) for name in names):
        return names
    payload = run.runner.publish("derive", "steps", removal.join_steps, [f"step-{k}" for k in range(len(masks))])
    store("has", "steps")
    run.fold(removal_stages.Along, payload, "train", "along")
    for k, mask in enumerate(masks):
        if store("has", names[k]):
            continue
        own = run.runner.publish("derive", f"own-{k}", removal.join_steps, [f"step-{k}"])
        with _only(run, k, mask()) as table:
            _fold(run, removal_stages.Along, own, table, f"along-{k}")
        inputs = [f"step-{k}", "along", f"along-{k}", "factors"]
        store("derive", names[k], removal.step_length, inputs, k, run.solver)
    return names


def _fold(run: Run, stage: type[stages.Stage], arrays: Any, table: Table, name: str) -> None:
    """Sum a stage over the rows of a set."""
    items = run.leaves(table)
    with run.timed(name, table.num_rows) as advance:
        for key in run.runner.fold(stage, arrays, items, name):
            advance(items[key].rows)


def _step(run: Run, k: int, table: Table, factors: Any) -> None:
    """Newton's step of a set, from two passes over its rows."""
    kind, gradient, removed = run.spec.curvature, f"gradient-{k}", f"removed-{k}"
    passes: list[tuple[str, type[stages.Stage], Any]] = [(gradient, removal_stages.Gradient, {})]
    if kind in DENSE:
        passes.append((removed, stages.Curvature, {}))
    elif kind == "kfac":
        passes.append((removed, stages.Covariance, {}))
    elif kind == "ekfac":
        passes.append((removed, stages.Lambda, factors))
    else:
        run.runner.store("put", removed, {})
    for name, stage, arrays in passes:
        with pipeline.own_precision(run) if name == removed and kind not in DENSE else nullcontext():
            _fold(run, stage, arrays, table, name)
    with run.timed(f"step-{k}", 0):
        run.runner.store("derive", f"step-{k}", removal.newton_step, [gradient, removed, "factors"], run.solver)
    run.runner.store("drop", removed)
