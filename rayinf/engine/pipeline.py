"""The steps that verbs are made of: fit curvature, gather queries, score every shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayinf.data.files import read_arrays, sound_part
from rayinf.data.run_folder import differences
from rayinf.data.scores import Scores
from rayinf.engine import curvature as curv
from rayinf.engine import stages
from rayinf.engine.run import SIGN, UNIT, Run
from rayinf.errors import InputError

# Two runs may share factors if they agree in these.
_SAME = ("model", "parameters", "loss", "transform", "curvature", "fisher", "features")


def fit_factors(run: Run) -> Any:
    """Curvature of the training rows: a handle of the factors, from this run's store, another run, or computed."""
    kind, runner, store = run.request.settings.curvature, run.runner, run.runner.store
    if kind == "identity":
        store("put", "factors", {})
    elif run.request.factors is not None:
        store("put", "factors", _borrow(run))
    if store("has", "factors"):
        return runner.publish("get", "factors")
    if kind in curv.DENSE:
        run.fold(stages.Curvature, {}, "train", "hessian")
        return _derive(run, "factors", curv.dense_basis, ["hessian"])
    if not store("has", "basis"):
        run.fold(stages.Covariance, {}, "train", "covariance")
    basis = _derive(run, "basis", curv.basis, ["covariance"], run.probe.blocks)
    if kind == "kfac":
        return _derive(run, "factors", curv.join_lambda, ["basis"])
    run.fold(stages.Lambda, basis, "train", "lambda")
    return _derive(run, "factors", curv.join_lambda, ["basis", "lambda"])


def _derive(run: Run, name: str, function: Any, inputs: list[str], *args: Any) -> Any:
    """Compute an artefact in the store, and let go of what it was made of."""
    with run.timed(name, 0):
        found = run.runner.publish("derive", name, function, inputs, *args)
        if not run.runner.store("has", name):  # an error in the store: let it be heard
            run.runner.store("derive", name, function, inputs, *args)
    if name == "factors":
        for done in ("covariance", "hessian", "lambda", "basis"):
            run.runner.store("drop", done)
    return found


def solve_queries(run: Run) -> Any:
    """Objectives over the validation rows, through the inverse curvature: a handle of `U/<block>`."""
    if not run.runner.store("has", "solved"):
        run.fold(stages.Queries, {}, "valid", "queries")
    settings = run.job.settings
    return _derive(
        run, "solved", curv.solve, ["queries", "factors"], run.solver, settings.targets, settings.halves
    )


def score(run: Run, stage: type[stages.Stage], arrays: Any, names: list[str]) -> list[pa.Table]:
    """Every shard of the training table through a scoring stage. With a folder, finished shards are kept.

    Returns:
        The shards' tables in order, or nothing where they were written to the folder.
    """
    shards = {s.index: s for s in run.job.tables["train"].shards}
    todo = shards
    if run.folder is not None:
        columns = ["row_id", *names]
        todo = {k: s for k, s in shards.items() if not sound_part(run.folder.part(k), s.rows, columns)}
    rows, left = run.scans["train"].rows, sum(s.rows for s in todo.values())
    found: dict[int, pa.Table] = {}
    with run.timed("scores", rows, rows - left) as advance:
        for key, table in run.runner.map(stage, arrays, todo, names=names):
            found[key] = table
            advance(shards[key].rows)
            run.log("shard", index=key)
    return [found[k] for k in sorted(found)] if run.folder is None else []


def finish(run: Run, tables: list[pa.Table], extra: dict[str, Any]) -> Scores:
    """Mark the run as finished, and open its scores."""
    run.check_unchanged()
    meta = {**metadata(run), **extra}
    if run.folder is None:
        return Scores(pa.concat_tables(tables), {**meta, "seconds": dict(run.seconds)})
    run.folder.finish(run.record(meta))
    run.log("finish", seconds={k: round(v, 4) for k, v in run.seconds.items()})
    return Scores.load(run.folder.path)


def describe(run: Run) -> dict[str, Any]:
    """What the curvature and the objectives say of themselves."""
    store, solver = run.runner.store, run.solver
    names = curv.column_names(run.job.settings.targets, halves=False)
    values = store("get", "solved")["values"].tolist()
    told = store("tell", curv.describe, ["factors"], solver)
    return {**told, "objective_values": dict(zip(names, values, strict=True))}


def metadata(run: Run) -> dict[str, Any]:
    """What a reader of the scores wants to know."""
    s = run.request.settings
    return {
        "sign": SIGN,
        "unit": UNIT,
        "classes": {str(k): v for k, v in enumerate(run.job.classes.labels)},
        "rows": {name: scan.rows for name, scan in run.scans.items()},
        "parameters": run.probe.parameters,
        "blocks": {b.name: list(b.shape) for b in run.probe.blocks},
        "curvature": s.curvature,
        "fisher": run.identity["fisher"],
        "damping": run.request.damping,
        "l2": run.identity["l2"],
        "seed": s.seed,
    }


def _borrow(run: Run) -> Any:
    """The factors of another run.

    Raises:
        InputError: no finished factors there, or a run of another model or curvature.
    """
    folder = Path(str(run.request.factors))
    file = folder / "run.json"
    if not file.exists():
        raise InputError(f"factors={str(folder)!r} is no run folder.", "pass the out=... of a finished run.")
    other = json.loads(file.read_text())["identity"]
    changed = differences({k: other.get(k) for k in _SAME}, {k: run.identity[k] for k in _SAME})
    if changed:
        raise InputError(
            f"The factors in {folder} belong to another fit: {'; '.join(changed)}.",
            "use the same model, parameters and curvature, or leave factors out.",
        )
    arrays = read_arrays(folder / "factors" / "factors.safetensors")
    if arrays is None:
        raise InputError(f"{folder}/factors has no sound factors.", "finish that run first, or leave factors out.")
    return arrays
