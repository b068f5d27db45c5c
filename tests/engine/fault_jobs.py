"""A tiny job for every verb that writes, on one set of tables; and what of its folder must not depend on any fault."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from engine import small_job

import rayinf
from rayinf.data.files import is_temporary
from rayinf.data.lease import LEASE
from rayinf.store.places import relative

ROWS, VALID, GROUP = 64, 24, 16
# Files with times in them, or checksums of such.
_TIMED = ("log.jsonl", "scans.json")


@dataclass(frozen=True)
class Tables:
    """Parquet files of a few row groups."""

    train: Path
    valid: Path
    many: Path


def make_tables(folder: Path) -> Tables:
    """Training rows in 4 row groups, validation rows in 2, and training rows in 6: an uneven tree of sums."""
    return Tables(
        small_job.write(folder / "train.parquet", ROWS, 1, GROUP),
        small_job.write(folder / "valid.parquet", VALID, 2, VALID // 2),
        small_job.write(folder / "many.parquet", ROWS, 1, 11),
    )


def task(**more: Any) -> rayinf.Task:
    """A small network that can be trained."""
    fit = rayinf.Fit("sgd", lr=0.05, epochs=1, batch_size=16)
    return rayinf.Task(small_job.model(), fit=fit, **more)


def by_class(tables: Tables) -> rayinf.Scores:
    """Influence vectors."""
    return rayinf.influence(task(), tables.train, tables.valid, "category", halves=True)


def influence(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.influence(task(), tables.many, tables.valid, ["total", "category"], halves=True, out=out, **more)


def influence_exact(tables: Tables, out: Path, **more: Any) -> None:
    head = rayinf.logistic_regression(tables.train, l2=0.1)
    rayinf.influence(head, tables.train, tables.valid, "total", curvature="exact", out=out, **more)


def self_influence(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.self_influence(task(), tables.train, curvature="kfac", out=out, **more)


def pairs(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.pairs(task(), tables.train, tables.valid, top=3, out=out, **more)


def baseline(tables: Tables, out: Path, **more: Any) -> None:
    """TRAK: two models, parts of each, then the joined ones."""
    models = [small_job.model().state_dict(), {k: v * 0.5 for k, v in small_job.model().state_dict().items()}]
    rayinf.baseline(task(), tables.train, tables.valid, "trak", dim=8, checkpoints=models, out=out, **more)


def baseline_loo(tables: Tables, out: Path, **more: Any) -> None:
    ids = small_job.arrays(ROWS, 1)[2][:2].tolist()
    rayinf.baseline(task(), tables.train, tables.valid, "loo", only=ids, out=out, **more)


def predict_removal(tables: Tables, out: Path, **more: Any) -> None:
    ids = small_job.arrays(ROWS, 1)[2]
    sets = {"first": ids[:9], "others": ids[20:26]}
    rayinf.predict_removal(task(), tables.train, tables.valid, sets, "category", out=out, **more)


def influence_ensemble(tables: Tables, out: Path, **more: Any) -> None:
    states = [{k: v * scale for k, v in small_job.model().state_dict().items()} for scale in (1.0, 0.5)]
    rayinf.influence(task(ensemble=states), tables.train, tables.valid, out=out, **more)


def measure(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.influence_measure(task(), tables.train, tables.valid, out=out, **more)


def measure_forest(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.influence_measure(task(), tables.train, tables.valid, subsample=0.5, out=out, **more)


def acquire(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.acquire(task(), tables.valid, tables.train, n=5, out=out, **more)


def acquire_isal(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.acquire(task(), tables.valid, tables.train, n=5, strategy="isal", out=out, **more)


def active_learning(tables: Tables, out: Path, rounds: int = 2, strategy: Any = "entropy", **more: Any) -> None:
    x, y, ids, _ = small_job.arrays(ROWS, 1)
    known = dict(zip(ids.tolist(), y.tolist(), strict=True))
    rayinf.active_learning(
        task(), tables.valid, tables.train, lambda asked: [known[i] for i in asked.tolist()], (x, y), rounds, 4,
        strategy, out=out, **more,
    )  # fmt: skip


def active_learning_grown(tables: Tables, out: Path, **more: Any) -> None:
    """A finished run that goes on to another round and another strategy."""
    active_learning(tables, out, 1, **more)
    active_learning(tables, out, 2, ["entropy", "random"], **more)


def removal_check(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.removal_check(task(), tables.train, tables.valid, tables.valid, by_class(tables), seeds=1, out=out, **more)


def lds(tables: Tables, out: Path, **more: Any) -> None:
    """A finished run that goes on to a gap that no earlier call measured."""
    gap = rayinf.demographic_parity(favourable=1, group="group")
    for name, objective in (("total", "total"), ("demographic_parity", gap)):
        values = np.random.default_rng(0).normal(size=ROWS)
        scores = rayinf.Scores.from_numpy(values, [name], small_job.arrays(ROWS, 1)[2])
        rayinf.lds(task(), tables.train, tables.valid, scores, 3, objective=objective, out=out, **more)


def pareto_reweight(tables: Tables, out: Path, **more: Any) -> None:
    search = rayinf.Search(elites=1, mutated_elites=1, randoms=1, crossover_children=0, iterations=2, lr=0.01)
    rayinf.pareto_reweight(task(), tables.train, tables.valid, by_class(tables), [0], search=search, out=out, **more)


def trim_rounds(tables: Tables, out: Path, **more: Any) -> None:
    rayinf.trim_rounds(
        task(), tables.train, tables.valid, rounds=2, curvature="ggn", damping=0.1, seed=1, out=out, **more
    )


def reweight_lp(tables: Tables, out: Path, **more: Any) -> None:
    values = np.random.default_rng(0).normal(0.1, 1, (3000, 3))  # of some pages, so that a small disk is full
    scores = rayinf.Scores.from_numpy(values, ["category_0", "category_1", "category_2"])
    rayinf.reweight_lp(scores, [0], alpha=0.5, slack="scaled", out=out / "weights.parquet")


def trim_stream(tables: Tables, out: Path, **more: Any) -> None:
    x, y, _, _ = small_job.arrays(ROWS, 1)
    batches = [(x[:32], y[:32]), (x[32:], y[32:])]
    for _ in rayinf.trim_stream(task(), batches, tables.valid, 3, curvature="ggn", damping=0.1, out=out, **more):
        pass


VERBS: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (
        influence,
        influence_exact,
        self_influence,
        pairs,
        baseline,
        baseline_loo,
        predict_removal,
        influence_ensemble,
        measure,
        measure_forest,
        acquire,
        acquire_isal,
        active_learning,
        active_learning_grown,
        removal_check,
        lds,
        pareto_reweight,
        reweight_lp,
        trim_rounds,
        trim_stream,
    )
}


def run(verb: str, tables: Tables, out: Path, cluster: rayinf.Cluster | None = None) -> None:
    """Run a verb; what it prints is thrown away."""
    more = {} if cluster is None else {"cluster": cluster}
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VERBS[verb](tables, out, **more)


def digest(out: Path) -> dict[str, str]:
    """Every file of a finished run that carries no time, and its SHA-256."""
    found = {}
    timed = any(p.parent != out for p in out.rglob("round-0.json")) or (out / "trainings").is_dir()
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = relative(path, out)
        if path.name in _TIMED or "log.jsonl.parts/" in name or (timed and path.name in ("manifest.jsonl", "run.json")):
            continue
        held = path.read_bytes()
        if path.suffix == ".json" and (path.parent.name == "trainings" or path.name.startswith(("round-", "picked-"))):
            held = json.dumps({k: v for k, v in json.loads(held).items() if "seconds" not in k}).encode()
        found[name] = hashlib.sha256(held).hexdigest()
    return found


def leftovers(out: Path) -> list[str]:
    """What a finished run should not leave: temporaries, a lease, arrays of earlier stages."""
    return [
        relative(p, out)
        for p in out.rglob("*")
        if is_temporary(p.name) or p.name == LEASE or "/partial/" in str(p) or p.parent.name in ("unranked", "top-rows")
    ]
