"""The steps that verbs are made of: fit curvature, gather queries, score every shard."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.core.objectives import Target
from rayinf.core.response import Damped
from rayinf.data.checked_folder import CheckedFolder, Entry
from rayinf.data.files import Arrays
from rayinf.data.run_folder import SCORES, TOP_ROWS, UNRANKED, owner_of, read_record
from rayinf.data.scores import Scores
from rayinf.data.shards import ByIndex, Shard
from rayinf.data.tables import files_of
from rayinf.engine import curvature as curv
from rayinf.engine import stages, training_time
from rayinf.engine.blank_parts import fill_gaps
from rayinf.engine.curvature_rows import describe_drawn
from rayinf.engine.decompositions import Decompose, by_size
from rayinf.engine.entry import DENSE, KRONECKER
from rayinf.engine.fit_quality import FitSums, fit_quality, of_shards, of_valid
from rayinf.engine.identity import describe_factors, provenance
from rayinf.engine.left_out import FitAgain
from rayinf.engine.memory import are_summed_at_once
from rayinf.engine.minimum import check_minimum
from rayinf.engine.run import Run
from rayinf.engine.solves import Solve, join_solved
from rayinf.engine.training_time import NORMS, VALID_NORMS
from rayinf.errors import InputError, RowsError
from rayinf.store.places import open_place

# The sums that the norms of gradients are made of.
_SQUARES = {NORMS: "squares", VALID_NORMS: "squares-valid"}
# What of the store stays when a run has finished: to be used by others, or to score shards that were taken away.
_LASTING = ("factors", NORMS, VALID_NORMS, "queries", "solved", "inverse", "measured")


def fit_factors(run: Run) -> Any:
    """Curvature of the training rows: a handle of the factors, from this run's store, another run, or computed.

    All its stages rest on the same rows: where one of them has left shards out, those before are done again.
    """
    while True:
        with suppress(FitAgain):
            return _fit(run)


def _fit(run: Run) -> Any:
    _measure_squares(run)
    kind, runner, store = run.spec.curvature, run.runner, run.runner.store
    if kind == "identity":
        store("put", "factors", {})
    elif run.spec.factors is not None:
        store("put", "factors", _borrow(run))
    if store("has", "factors"):
        return runner.publish("get", "factors")
    if kind == "exact" and not run.is_trial and not store("has", "hessian"):
        response = run.response
        if isinstance(response, Damped) and not (response.layer_mean or response.sample):
            # Among the rows that it looks at first may be some that the run goes on without: the Hessian then decides.
            with suppress(*((RowsError,) if run.spec.on_error == "skip" else ())):
                check_minimum(run, response.added)
    if kind in DENSE:
        run.fold(stages.Curvature, {}, "train", "hessian")
        return _derive(run, "factors", curv.dense_mean, [run.left_out.name("hessian")])
    with own_precision(run):
        return _fit_kronecker(run)


def _measure_squares(run: Run) -> None:
    """Squared gradients of the rows, where the inverse rests on them; those of borrowed factors are borrowed too."""
    stages_of = {NORMS: (training_time.Squares, "train"), VALID_NORMS: (training_time.ValidSquares, "valid")}
    needed = {
        NORMS: training_time.needs_squares(run.spec, run.probe),
        VALID_NORMS: training_time.needs_held_out(run.spec, run.probe),
    }
    sizes = {b.name: b.numel for b in run.probe.blocks}
    for name, (stage, table) in stages_of.items():
        if not needed[name] or run.runner.store("has", name):
            continue
        borrowed = _borrowed(run, NORMS) if name == NORMS and run.spec.factors is not None else None
        if borrowed is not None:
            run.runner.store("put", name, borrowed)
        else:
            run.fold(stage, {}, table, _SQUARES[name])
            _derive(run, name, training_time.summarise, [run.left_out.name(_SQUARES[name])], sizes)


def _fit_kronecker(run: Run) -> Any:
    kind, store, rows = run.spec.curvature, run.runner.store, run.scans["train"].rows
    if not store("has", run.left_out.name("basis")):
        run.fold(stages.Covariance, {}, "train", "covariance")
    basis = _decompose(run)
    if kind == "kfac":
        return _derive(run, "factors", curv.join_lambda, [run.left_out.name("basis")], rows)
    run.fold(stages.Lambda, basis, "train", "lambda")
    return _derive(run, "factors", curv.join_lambda, [run.left_out.name(n) for n in ("basis", "lambda")], rows)


def _decompose(run: Run) -> Any:
    """The eigenbases of all layers: each on a worker, those that take longest first."""
    blocks, runner, basis = by_size(run.probe.blocks), run.runner, run.left_out.name("basis")
    with run.timed("basis", 0):
        if not runner.store("has", basis):
            covariance = runner.publish("get", run.left_out.name("covariance"))
            names = [b.name for b in run.probe.blocks]
            for _ in runner.fill(Decompose, covariance, blocks, basis, names=names):
                pass
            del covariance
        found = runner.publish("join_parts", basis, sorted(blocks))
        runner.store("drop", run.left_out.name("covariance"))
        return found


@contextmanager
def own_precision(run: Run) -> Generator[None]:
    """Passes of the model in the precision that it came in, where the rest of the run is in float64.

    K-FAC's own approximation is far coarser, and its sums are added in float64 either way: the factors are those of
    any other run, at half the time.
    """
    job = run.runner.job
    if job.precision == "fp64":
        run.runner.job = replace(job, own_precision=True, key=job.key + "-own")
    try:
        yield
    finally:
        run.runner.job = job


def _derive(run: Run, name: str, function: Any, inputs: list[str], *args: Any) -> Any:
    """Compute an artefact in the store, and remove what it was made of."""
    with run.timed(name, 0):
        found = run.runner.publish("derive", name, function, inputs, *args)
        if not run.runner.store("has", name):  # an error in the store is raised by this call
            run.runner.store("derive", name, function, inputs, *args)
    done = {
        "factors": ("hessian", "lambda", "basis"),
        **{name: (f"{name}-sums",) for name in (NORMS, VALID_NORMS)},
    }
    for source in done.get(name, ()):
        run.runner.store("drop", run.left_out.name(source))
    return found


# For methods in files of their own.
derive = _derive


def solve_queries(run: Run) -> Any:
    """Objectives over the validation rows, through the inverse curvature: a handle of `U/<block>`."""
    return solve_columns(run, "queries", "solved", run.job.targets)


def solve_columns(run: Run, queries: str, solved: str, targets: tuple[Target, ...], tile: Arrays | None = None) -> Any:
    """The same of some columns, under other names.

    Args:
        run: open, with factors.
        queries: the name of their sums.
        solved: that of what is made of these.
        targets: the columns.
        tile: what `stages.Queries` takes of a tile of them.
    """
    if not run.runner.store("has", solved):
        # Large sums are added up in one chunk: each that waits to be merged would take as much memory again.
        most = 1 if are_summed_at_once(replace(run.job, targets=targets), run.probe) else None
        run.fold(stages.Queries, tile or {}, "valid", queries, most)
    if run.spec.curvature in KRONECKER:
        return _solve_layers(run, queries, solved, tile)
    source, tiled = _solve_source(run), tile is not None
    return _derive(run, solved, curv.solve, [queries, source], run.solver, targets, run.spec.halves, tiled)


def _solve_layers(run: Run, queries: str, solved: str, tile: Arrays | None) -> Any:
    """The queries of all layers through the inverse: each on a worker, those that take longest first."""
    blocks, runner = by_size(run.probe.blocks), run.runner
    with run.timed(solved, 0):
        if not runner.store("has", solved):
            arrays = [runner.publish("get", name) for name in (queries, "factors")]
            for _ in runner.fill(Solve, arrays, blocks, solved, solver=run.solver, tile=tile):
                pass
        return runner.publish("join_parts", solved, sorted(blocks), join_solved, run.solver, tile is not None)


def _solve_source(run: Run) -> str:
    """The artefact that solves start from: a dense curvature is decomposed once, as its inverse."""
    if run.spec.curvature not in DENSE:
        return "factors"
    inverse_arrays(run)
    return "inverse"


def inverse_arrays(run: Run) -> Any:
    """The inverse curvature: eigenvectors and inverse eigenvalues."""
    return _derive(run, "inverse", curv.inverse_payload, ["factors"], run.solver)


def measure_arrays(run: Run) -> Any:
    """What FI takes: the mean validation gradient through the inverse curvature, and that inverse."""
    solve_queries(run)
    inverse_arrays(run)
    return _derive(run, "measured", curv.join_payloads, ["solved", "inverse"])


def score(
    run: Run, stage: type[stages.Stage], arrays: Any, names: list[str], into: str = SCORES, **options: Any
) -> list[pa.Table]:
    """Every shard of the scored table through a scoring stage. With a folder, finished shards are kept.

    Args:
        run: open.
        stage: what gives a shard its values.
        arrays: what the stage needs.
        names: of its columns.
        into: the folder of the run's for the parts. A shard whose scores are complete is left out in any case.
        options: of the stage.

    Returns:
        The shards' tables in order, or nothing where they were written to the folder.
    """
    shards, out = ByIndex(run.job.tables[run.job.scored].shards), run.left_out.of_values
    left = (k for k, s in shards.items() if not (k in out or run.has_part(SCORES, s) or run.has_part(into, s)))
    todo = ByIndex(run.job.tables[run.job.scored].shards, np.fromiter(left, np.int64))
    failed = run.left_out.failures()
    given = {"failed": failed, "names": names, "into": run.place(into), **options}
    done = run.runner.map(stage, arrays, todo, **given) if todo else iter(())
    found = take_in(run, "scores", done, shards, todo)
    run.left_out.take(failed, SCORES, len(shards))
    fill_gaps(run, stage, found, into)
    return [found[k] for k in sorted(found)]


def collect(
    run: Run, name: str, done: Iterator[tuple[int, Any]], shards: Mapping[int, Shard], todo: Collection[int]
) -> list[pa.Table]:
    """Take in the parts of shards as they finish: list the files that were written, or hold the tables.

    Args:
        run: open.
        name: of the stage.
        done: a table, or the entry of a file, by shard.
        shards: all of them.
        todo: those that are to come; the others are there.

    Returns:
        The shards' tables in order, or nothing where they were written to the folder.
    """
    found = take_in(run, name, done, shards, todo)
    return [found[k] for k in sorted(found)]


def take_in(
    run: Run, name: str, done: Iterator[tuple[int, Any]], shards: Mapping[int, Shard], todo: Collection[int]
) -> dict[int, pa.Table]:
    """As `collect`, by shard."""
    rows, left = sum(s.rows for s in shards.values()), sum(shards[k].rows for k in todo)
    found: dict[int, pa.Table] = {}
    with run.timed(name, rows, rows - left) as advance:
        for key, part in done:
            if isinstance(part, Entry):
                assert run.folder is not None
                run.folder.files.add(part, soon=True)
                run.runner.count("rayinf_bytes", part.size, run.spec.verb, name)
            else:
                found[key] = part
            advance(shards[key].rows)
            run.log("shard", index=key)
    return found


def finish(run: Run, tables: list[pa.Table], extra: dict[str, Any]) -> Scores:
    """Mark the run as finished, and open its scores."""
    run.check_unchanged()
    run.left_out.warn()
    extra = {**extra, **fit_quality(run, _fit_of_scores(run, tables))}
    if run.folder is None:
        return Scores(pa.concat_tables(tables), {**metadata(run), **extra, "seconds": dict(run.seconds)})
    close_folder(run, {**metadata(run), **extra})  # not held here: it names every file of the table
    return Scores.load(run.folder.path)


def _fit_of_scores(run: Run, tables: list[pa.Table]) -> dict[str, FitSums | None]:
    """How well the model fits the rows that a run has passed over, by table."""
    place = run.place(SCORES)
    shards = run.job.tables[run.job.scored].shards
    schemas = (t.schema for t in tables) if place is None else (place.schema(s.index) for s in shards)
    found = {"train": of_shards(schemas) if run.job.scored == "train" else None}
    if run.runner.store("has", "solved"):
        found[run.spec.objective_rows] = run.runner.store("summarise", of_valid, ["solved"])
    return found


def values_metadata(run: Run) -> dict[str, Any]:
    """The metadata of a run whose result is about the objectives, not about every row."""
    run.check_unchanged()
    valid = run.runner.store("summarise", of_valid, ["solved"])
    return {**metadata(run), **describe(run), **fit_quality(run, {run.spec.objective_rows: valid})}


def close_folder(run: Run, meta: dict[str, Any]) -> None:
    """Mark the run as finished, with what its record says of it."""
    assert run.folder is not None
    run.runner.store("close", _LASTING)
    run.folder.clear(UNRANKED)
    run.folder.clear(TOP_ROWS)
    run.folder.finish(run.record(meta))
    run.log("finish", seconds={k: round(v, 4) for k, v in run.seconds.items()})


def describe(run: Run) -> dict[str, Any]:
    """A summary of the curvature, and the objectives' values at the fit."""
    store, solver = run.runner.store, run.solver
    names = curv.column_names(run.job.targets, halves=False)
    found = store("summarise", curv.details_by_column, ["solved"], names)
    values = {column: details.pop("value") for column, details in found.items()}
    beside = {column: details for column, details in found.items() if details}
    curvature = store("summarise", curv.describe, ["factors"], solver)
    return {**curvature, "objective_values": values, **({"objective_details": beside} if beside else {})}


def metadata(run: Run) -> dict[str, Any]:
    """What the scores are of, and how they were computed."""
    spec, halved = run.spec, run.runner.store("halvings")
    return {
        "sign": spec.sign,
        "signed": spec.signed,
        "unit": spec.unit,
        "classes": {str(k): v for k, v in enumerate(run.job.classes.labels)},
        "rows": {name: scan.rows for name, scan in run.scans.items()},
        "files": files_of(run.job.tables["train"]),
        "parameters": run.probe.parameters,
        "blocks": {b.name: list(b.shape) for b in run.probe.blocks},
        "curvature": spec.curvature,
        "fisher": run.identity["fisher"],
        "damping": spec.damping,
        **training_time.describe(run.response, spec),
        "l2": run.identity["l2"],
        **(run.runner.store("summarise", describe_drawn, ["factors"]) if run.job.fitted_share < 1 else {}),
        **({"smaller_batches": halved} if halved else {}),
        **describe_factors(spec.factors, run.identity),
        "of": provenance(run.identity, run.probe),
        "seed": spec.seed,
        **spec.own_arguments(),
        **run.left_out.metadata(),
    }


def _borrow(run: Run) -> Arrays:
    """The factors of another run, which opening this one has compared with its own.

    Raises:
        InputError: no sound factors there.
    """
    assert run.spec.factors is not None
    arrays = _borrowed(run, "factors")
    if arrays is None:
        raise InputError(
            f"{open_place(run.spec.factors, 'factors')}/factors has no sound factors.",
            "run that run's own command again, which makes them, or leave factors out.",
        )
    return arrays


def _borrowed(run: Run, name: str) -> Arrays | None:
    """An artefact of the run whose factors are used, if it is there and whole."""
    assert run.spec.factors is not None
    folder = open_place(run.spec.factors, "factors")
    record = read_record(folder)
    return CheckedFolder(folder / "factors", owner_of(record)).arrays(f"{name}.safetensors") if record else None
