"""What makes two runs the same, and what lets one use another's factors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from rayinf.core.objectives import Objective
from rayinf.data.run_folder import differences, read_record
from rayinf.data.scan import TableScan
from rayinf.engine.curvature import KRONECKER
from rayinf.engine.job import Job
from rayinf.errors import InputError

# Two runs may share factors if they agree in these.
_SAME = ("model", "parameters", "loss", "transform", "curvature", "fisher", "features")


def identity(job: Job, model: str, scans: Mapping[str, TableScan], given: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same. The cluster and the folder have no part in it.

    Args:
        job: settled.
        model: the model's fingerprint.
        scans: of the tables.
        given: the verb, the damping and the fingerprint of other factors, as they were asked for.
    """
    task, s = job.task, job.settings
    return {
        **given,
        "model": model,
        "loss": task.loss if isinstance(task.loss, str) else _name(task.loss),
        "features": task.features if isinstance(task.features, str) else list(task.features),
        "label": task.label,
        "row_id": job.columns["train"].row_id,
        "transform": _name(task.transform),
        "mask": _name(task.mask),
        "parameters": task.parameters if isinstance(task.parameters, str) else list(task.parameters),
        "l2": float(task.l2),
        "classes": [str(v) for v in job.classes.labels],
        **{name: scan.fingerprint for name, scan in scans.items()},
        "objective": [[*t.columns, *_objective(t.objective)] for t in s.targets],
        "curvature": s.curvature,
        "fisher": s.fisher if s.curvature in KRONECKER or s.curvature == "ggn" else None,
        "halves": s.halves,
        "seed": s.seed,
        "batch_size": s.batch_size,
        "precision": s.precision,
        "top": s.top,
        "rank": s.rank,
        "subsample": s.subsample,
        "strategy": s.strategy,
        "aggregate": s.aggregate,
        "samples": s.samples,
        "wish": s.wish,
    }


def factors_run(factors: str | Path | None) -> dict[str, Any] | None:
    """The identity of the run whose factors are to be used again.

    Raises:
        InputError: there is no run.
    """
    if factors is None:
        return None
    record = read_record(Path(factors).expanduser())
    if record is None:
        raise InputError(f"factors={str(factors)!r} is not a run folder.", "pass the out=... of a finished run.")
    held: dict[str, Any] = record["identity"]
    return held


def fingerprint(run: Mapping[str, Any] | None) -> str | None:
    """A short name for another run."""
    return None if run is None else hashlib.sha256(json.dumps(run).encode()).hexdigest()


def check_factors(other: Mapping[str, Any], own: Mapping[str, Any], factors: str | Path | None) -> None:
    """Refuse factors of another fit.

    Raises:
        InputError: what differs.
    """
    changed = differences({k: other.get(k) for k in _SAME}, {k: own[k] for k in _SAME})
    if changed:
        raise InputError(
            f"The factors in {factors} belong to another fit: {'; '.join(changed)}.",
            "use the same model, parameters and curvature, or leave factors out.",
        )


def _objective(objective: Objective) -> list[str | None]:
    """What an objective is made of; what only some have is left out of the others."""
    parts = [_name(objective.where), _name(objective.attack)]
    return [_name(objective.rows), _name(objective.combine), *(parts if any(parts) else [])]


def _name(function: Any) -> str | None:
    """A function's name and a digest of its code, so that an edited one is another one."""
    if function is None:
        return None
    if is_dataclass(function):  # one with its own numbers, such as an attack's budget
        return repr(function)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name if code is None else f"{name}:{hashlib.sha256(_code(code)).hexdigest()[:12]}"


def _code(code: CodeType) -> bytes:
    inner = [_code(c) if isinstance(c, CodeType) else repr(c).encode() for c in code.co_consts]
    return b"".join([code.co_code, *inner, *(n.encode() for n in code.co_names)])
