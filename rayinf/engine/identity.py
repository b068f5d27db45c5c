"""What makes two runs the same, what scores are of, and what lets one run use another's factors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rayinf.data.differences import FUNCTIONS, SHARDS, differences, table_differences
from rayinf.data.run_folder import read_record
from rayinf.data.scan import FEATURES, LABEL, TableScan
from rayinf.engine.digest import digest
from rayinf.engine.job import Job
from rayinf.engine.probe import Probe
from rayinf.engine.spec import RunSpec
from rayinf.errors import InputError
from rayinf.redaction import redact
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Task

# Two runs may share factors if they agree in these.
_SAME = ("model", "frozen", "parameters", "loss", "transform", "mask", "version", "curvature", "fisher", "features")
FUNCTIONS_OF_TASK = ("loss", "transform", "mask")
# Verbs whose values are of rows that the curvature is summed over.
_OF_THE_FIT = ("self_influence", "influence_measure", "predict_removal")


def identity(
    spec: RunSpec, job: Job, probed: Probe, scans: Mapping[str, TableScan], factors: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What makes two runs the same. The cluster and the folder have no part in it.

    Functions, objectives and the model are known by the digest of their content (`engine.digest`), tables by that of
    their columns.

    Args:
        spec: of the run.
        job: settled.
        probed: the model on a few rows.
        scans: of the tables.
        factors: the identity of the run whose factors are used, or None.

    Raises:
        InputError: code that cannot be digested, without `Task(version=...)`.
    """
    task = job.task
    return {
        **spec.identity(),
        **({} if job.fitted_share == 1 else {"curvature_rows": spec.curvature_rows}),
        "factors": None if factors is None else hashlib.sha256(json.dumps(factors).encode()).hexdigest(),
        "model": probed.fingerprint,
        "frozen": probed.frozen,
        **functions(task),
        "version": task.version,
        "features": task.features if isinstance(task.features, str) else list(task.features),
        "label": task.label,
        "row_id": job.columns["train"].row_id,
        "parameters": task.parameters if isinstance(task.parameters, str) else list(task.parameters),
        "l2": float(task.l2),
        "classes": [str(v) for v in job.classes.labels],
        **{name: {**scan.content, SHARDS: scan.layout} for name, scan in scans.items()},
        "objective": [c for t in job.targets for c in t.columns],
        FUNCTIONS: {
            ", ".join(t.columns): digest(t.objective, f"Objective {t.objective.name!r}", task.version)
            for t in job.targets
        },
    }


def functions(task: Task) -> dict[str, str | None]:
    """What the task's functions are: the name of a loss that has one, and digests.

    Raises:
        InputError: one of them cannot be digested, and the task has no version.
    """
    given = {name: getattr(task, name) for name in FUNCTIONS_OF_TASK}
    return {
        name: value if value is None or isinstance(value, str) else digest(value, f"Task({name}=...)", task.version)
        for name, value in given.items()
    }


def provenance(own: Mapping[str, Any], probed: Probe) -> dict[str, Any]:
    """What the scores of a run are of: the model, its loss and transform, and the content of the tables."""
    tables = {name: _content(held) for name, held in own.items() if isinstance(held, dict) and SHARDS in held}
    held = {k: own[k] for k in ("model", *FUNCTIONS_OF_TASK)}
    return {**held, "architecture": probed.architecture, **tables}


def factors_run(factors: str | AnyPath | None) -> dict[str, Any] | None:
    """The identity of the run whose factors are to be used again.

    Raises:
        InputError: there is no run.
    """
    if factors is None:
        return None
    record = read_record(open_place(factors, "factors"))
    if record is None:
        raise InputError(f"factors={str(factors)!r} is not a run folder.", "pass the out=... of a finished run.")
    held = record["identity"]
    if not isinstance(held.get("train"), dict):
        raise InputError(
            f"factors={str(factors)!r} is not a run over training rows of this version of rayinf.",
            "pass the out=... of a finished run, or leave factors out.",
        )
    found: dict[str, Any] = held
    return found


def check_factors(other: Mapping[str, Any], own: Mapping[str, Any], factors: str | AnyPath | None) -> None:
    """Refuse factors of another fit; and of other rows, where the verb needs those of the fit.

    A curvature over other rows of the same model is one more estimate of the same mean, and is used with the new
    table's n (`factors_from` in the metadata names its folder and rows). A row's influence on itself, and FI, are of
    rows that the fit rests on: their own curvature is in the inverse, which bounds what they can be. With the curvature
    of other rows they would be another quantity under the same name.

    Raises:
        InputError: what differs.
    """
    changed = differences({k: other.get(k) for k in _SAME}, {k: own[k] for k in _SAME})
    if changed:
        raise InputError(
            f"The factors in {factors} belong to another fit: {'; '.join(changed)}.",
            "use the same model, parameters and curvature, or leave factors out.",
        )
    rows = _other_rows(other, own)
    if rows is not None and own["verb"] in _OF_THE_FIT:
        raise InputError(
            f"The factors in {factors} were summed over other rows: {rows}. {own['verb']} is of the rows that the "
            "curvature is summed over.",
            "leave factors out, so that the curvature of this table is computed.",
        )


def describe_factors(factors: str | AnyPath | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """Borrowed factors, for the metadata: whose they are, over how many rows, and whether of the same table."""
    other = factors_run(factors)
    if other is None:
        return {}
    same = _other_rows(other, own) is None
    held = {"folder": redact(str(factors)), "rows": other["train"]["rows"], "same_table": same}
    return {"factors_from": {**held, "n": own["train"]["rows"]}}


def _other_rows(other: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """How the training table of another run differs from this one's, however they are cut; None where it does not."""
    old, new = ({k: run["train"].get(k) for k in ("rows", FEATURES, LABEL)} for run in (other, own))
    return table_differences("train", old, new)


def _content(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != SHARDS}
