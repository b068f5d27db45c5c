"""The value of every row of a pool for labelling: one stage a strategy, and the choice of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayinf.data import overlap
from rayinf.data.files import Arrays
from rayinf.data.run_folder import SCORES
from rayinf.data.scores import Scores
from rayinf.data.selection import Selection
from rayinf.data.shards import Shard
from rayinf.data.tables import as_table
from rayinf.engine import curvature as curv
from rayinf.engine import joint, pipeline, rank_forest
from rayinf.engine.acquisition_stages import PoolScore, Uncertain
from rayinf.engine.entry import BY_EMBEDDING, BY_INFLUENCE, BY_MEASURE, DENSE
from rayinf.engine.job import Chunk
from rayinf.engine.joint import free_rows
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.measure_stages import PairFactors, PairValues
from rayinf.engine.run import Run
from rayinf.engine.tree_strategy import value_by_tree
from rayinf.errors import InputError
from rayinf.select.aggregate import parse

# R of the labelled rows that a worker holds, and values of pairs that the driver holds.
TILE_BYTES = 512 << 20


def select(spec: AcquireSpec, scores: Scores) -> Selection:
    """The picks among scored rows of a pool: the largest values first, ties to the earlier row.

    Raises:
        InputError: fewer rows are left than are wanted.
    """
    table = scores.table
    column = "fi_rank" if "fi_rank" in scores.columns else scores.columns[0]
    values = table[column].to_numpy()
    order = np.argsort(-values, kind="stable")
    free = free_rows(spec, table["row_id"])
    picked = np.asarray(scores.metadata["picked"]) if spec.is_joint else order[free[order]][: spec.n]
    if len(picked) < spec.n:
        raise InputError(
            f"n={spec.n:,} rows are wanted, and the pool has {int(free.sum()):,} that may be picked.",
            "pass a smaller n, or a larger pool.",
        )
    kept = np.zeros(len(values), bool)
    kept[picked] = True
    order = np.concatenate([picked, order[~kept[order]]])
    return Selection.of(table["row_id"], values, order, kept, scores.metadata)


def labelled_already(spec: AcquireSpec) -> np.ndarray[Any, Any]:
    """Ids of the pool's rows that are labelled already, of tables of any form, with a warning that names some.

    Raises:
        InputError: tables that cannot be read, or ids of different kinds.
    """
    task = spec.task
    others = [task.label, *([task.group] if task.group else [])]
    first, rest = (as_table(spec.tables[name], task.feature_columns, others, name) for name in ("train", "pool"))
    found = overlap.labelled_already(first, rest, task.row_id)
    overlap.warn_left_out(found, rest.num_rows)
    return found


def value_pool(run: Run) -> list[pa.Table]:
    """A value for every row of the pool, the larger the sooner it is to be labelled; with a folder, written there.

    Returns:
        The shards' tables, or nothing where they were written.
    """
    strategy = run.job.spec.strategy
    if strategy == "fi":
        pipeline.fit_factors(run)
        return value_pairs(run)
    if strategy in BY_MEASURE or strategy in BY_EMBEDDING:
        return joint.value_rows(run)
    if strategy == "tree":
        pipeline.fit_factors(run)
        return value_by_tree(run)
    if strategy in BY_INFLUENCE:
        pipeline.fit_factors(run)
        return pipeline.score(run, PoolScore, pipeline.solve_queries(run), [strategy])
    return pipeline.score(run, Uncertain, {}, [strategy])


def value_pairs(run: Run, top: Arrays | None = None) -> list[pa.Table]:
    """FI of every pool row against every labelled one, aggregated: tiled over both sides, pairs never kept.

    With `top` (see `rank_forest`), of the rows that a forest puts on top.

    All of R fits in a tile, as a rule: then the pool is passed over once. Else a tile of R is made at a time, and the
    pool is taken in pieces whose pairs with all labelled rows fit in memory.
    """
    inverse, into = pipeline.inverse_arrays(run), rank_forest.measured_into(run, top)
    tiles = _tiles(run)
    # A dense inverse is applied on the side with fewer vectors.
    vectors = run.scans["train"].rows * min(len(run.job.classes.labels) - 1, run.probe.perturbed)
    solve = run.spec.curvature not in DENSE or vectors <= run.scans["pool"].rows
    if len(tiles) == 1:
        arrays = _factors(run, tiles[0], inverse, solve, top)
        return pipeline.score(run, PairValues, arrays, ["fi"], into, whole=True, solve=solve)
    found: list[pa.Table] = []
    for piece in _pieces(run):
        if not all(run.has_part(SCORES, s) or run.has_part(into, s) for s in piece):
            factors = ((tile, _factors(run, tile, inverse, solve, top)) for tile in tiles)
            found += _piece_values(run, piece, factors, into, solve)
    return found


def _piece_values(
    run: Run, piece: list[Shard], factors: Iterable[tuple[Chunk, Any]], into: str, solve: bool
) -> list[pa.Table]:
    """The aggregated values of some shards of the pool, over all tiles of labelled rows, each made when it is used."""
    shards = {s.index: s for s in piece}
    held: dict[int, list[Any]] = {k: [] for k in shards}
    ids: dict[int, pa.Array] = {}
    with run.timed(f"pairs-{piece[0].index}", sum(s.rows for s in piece) * len(_tiles(run))) as advance:
        for tile, arrays in factors:
            names = [f"fi_{k}" for k in range(tile.rows)]
            for key, table in run.runner.map(PairValues, arrays, shards, names=names, whole=False, solve=solve):
                ids[key] = table["row_id"]
                held[key].append(np.stack([table[n].to_numpy() for n in names], axis=1).astype(np.float32))
                advance(shards[key].rows)
    out = []
    for key in sorted(shards):
        values = np.concatenate(held[key], axis=1)
        known = ~np.isnan(values[:, 0])
        aggregate = parse(str(run.job.spec.aggregate), values.shape[1])
        fi = np.full(len(values), np.nan)
        fi[known] = aggregate.apply(values[known], torch.get_num_threads())
        table = pa.table({"row_id": ids[key], "fi": pa.array(fi, mask=~known)})
        place = run.place(into)
        if place is None or run.folder is None:
            out.append(table)
        else:
            run.folder.files.add(place.write(key, table))
    return out


def _factors(run: Run, tile: Chunk, inverse: Any, solve: bool, top: Arrays | None) -> Any:
    """R of a tile of labelled rows beside the inverse, as a payload; its parts are made on all workers.

    Where there is one tile, that of the rows drawn by chance is used again for the rows on top.
    """
    name, join = f"pair-factors-{tile.shards[0].start}", curv.join_payloads
    if top is not None:
        run.runner.store("drop", "pair-factors-top")
        if tile.rows == run.scans["train"].rows and run.runner.store("has", name):
            return run.runner.publish("derive", "pair-factors-top", join, [name], top)
    parts = {k: Chunk((s,)) for k, s in enumerate(tile.shards)}
    rows = [found["R"] for found in run.gather("pair factors", PairFactors, inverse, parts, solve=solve)]
    whole = {"R": np.concatenate(rows) if len(rows) > 1 else rows[0], **(top or {})}
    name = name if top is None else "pair-factors-top"
    run.runner.store("drop", name)
    return run.runner.publish("derive", name, join, ["inverse"], whole)


def _tiles(run: Run) -> list[Chunk]:
    """Labelled rows in tiles whose R fits in `TILE_BYTES`."""
    size = 8 * min(len(run.job.classes.labels) - 1, run.probe.perturbed) * run.probe.parameters
    step = max(1, TILE_BYTES // size)
    tiles: list[list[Shard]] = [[]]
    for shard in run.job.tables["train"].shards:
        for at in range(0, shard.rows, step):
            part = dataclasses.replace(
                shard, start=shard.start + at, offset=shard.offset + at, rows=min(step, shard.rows - at)
            )
            if sum(s.rows for s in tiles[-1]) + part.rows > step:
                tiles.append([])
            tiles[-1].append(part)
    return [Chunk(tuple(t)) for t in tiles if t]


def _pieces(run: Run) -> list[list[Shard]]:
    """Consecutive shards of the pool whose pairs with all labelled rows fit in `TILE_BYTES`, a shard at least."""
    labeled = run.scans["train"].rows
    pieces: list[list[Shard]] = [[]]
    for shard in run.job.tables["pool"].shards:
        rows = sum(s.rows for s in pieces[-1]) + shard.rows
        if pieces[-1] and 4 * labeled * rows > TILE_BYTES:
            pieces.append([])
        pieces[-1].append(shard)
    return pieces
