"""The steps of `pairs`: a pass over the training rows for each tile of validation rows, whose best pairs are kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rayinf.data.batches import BatchReader
from rayinf.data.pairs import Pairs, pair_table
from rayinf.data.run_folder import PAIRS, part_name
from rayinf.data.shards import ByIndex
from rayinf.engine import curvature as curv
from rayinf.engine import pair_stages
from rayinf.engine.entry import DENSE
from rayinf.engine.fit_quality import KEY, VALID_KEY, FitMerge, FitSums, fit_quality, of_shards, of_valid
from rayinf.engine.job import Chunk
from rayinf.engine.memory import tile_rows
from rayinf.engine.pipeline import close_folder, inverse_arrays, metadata
from rayinf.engine.run import Run
from rayinf.select.top_rows import TopRows


def pair_tiles(run: Run) -> list[pa.Table]:
    """Top pairs of every validation row, a tile of validation rows and a pass over the training rows at a time.

    Returns:
        The tiles' tables, or nothing where they were written to the folder.
    """
    while True:
        with suppress(_PairsAgain):
            return _pair_tiles(run)


class _PairsAgain(Exception):  # noqa: N818
    """A shard was left out of a later tile, and must be in no list of the earlier ones either."""


def _pair_tiles(run: Run) -> list[pa.Table]:
    found = []
    tiles = _tiles(run)
    rows = run.scans["train"].rows
    with run.timed("pairs", rows * len(tiles)) as advance:
        for k, tile in enumerate(tiles):
            name, listed = part_name(PAIRS, k), min(run.job.spec.top, rows - run.left_out.rows_without_value)
            if run.folder is not None and run.folder.files.is_sound(name, 2 * listed * tile.rows):
                advance(rows)
                continue
            queries, valid = _tile_queries(run, k, tile)
            best, train = _pairs_of_tile(run, queries, advance, first=k == 0)
            table = pair_table(_tile_ids(run, tile), best.helps, best.harms)
            table = table.replace_schema_metadata({KEY: train, VALID_KEY: valid})
            if run.folder is None:
                found.append(table)
            else:
                run.folder.files.put_table(name, table)
    return found


def _pairs_of_tile(run: Run, queries: Any, advance: Callable[[int], None], first: bool) -> tuple[TopRows, bytes]:
    """The best rows of a tile's queries, from one pass over the training rows, and how well the model fits these.

    Raises:
        _PairsAgain: shards were left out now, and earlier tiles rest on them.
    """
    shards, out = run.job.tables["train"].shards, run.left_out.of_values
    todo = ByIndex(shards, [k for k in range(len(shards)) if k not in out]) if out else ByIndex(shards)
    best: TopRows | None = None
    train, failed = FitMerge(), run.left_out.failures()
    for key, (top, fit) in run.runner.map(pair_stages.Pairs, queries, todo, failed=failed, names=[]):
        best = top if best is None else best.merge(top)
        train.add(key, fit)
        advance(shards[key].rows)
    if failed.found and not failed.ended and not first:
        if run.folder is not None:
            run.folder.clear(PAIRS)
        run.left_out.take(failed, PAIRS, len(shards))
        raise _PairsAgain
    run.left_out.take(failed, PAIRS, len(shards))
    for key in run.left_out.of_values:
        train.add(key, FitSums(len(run.job.classes.labels)).to_json())
    assert best is not None
    return best, train.to_json()


def _tiles(run: Run) -> list[Chunk]:
    """Validation rows in tiles whose gradients fit in memory (`tile_rows`)."""
    step = tile_rows(run.probe.parameters)
    return [
        Chunk((replace(s, start=s.start + at, offset=s.offset + at, rows=min(step, s.rows - at)),))
        for s in run.job.tables["valid"].shards
        for at in range(0, s.rows, step)
    ]


def _tile_queries(run: Run, k: int, tile: Chunk) -> tuple[Any, bytes]:
    """Preconditioned gradients of a tile's rows, and how well the model fits them. The tile before is dropped."""
    store = run.runner.store
    if k:
        store("drop", f"tile-{k - 1}")
    name, dense = f"rows-{k}", run.spec.curvature in DENSE
    inverse = inverse_arrays(run)
    stage, arrays = (pair_stages.RowQueries, {}) if dense else (pair_stages.SolvedRowQueries, inverse)
    for _ in run.runner.fold(stage, arrays, {0: tile}, name):
        pass
    solve, more = (curv.precondition_rows, [run.solver]) if dense else (curv.rows_with_basis, [])
    out = run.runner.publish("derive", f"tile-{k}", solve, [name, "inverse"], *more)
    store("has", f"tile-{k}")
    valid = store("summarise", of_valid, [name]).to_json()
    store("drop", name)
    return out, valid


def _tile_ids(run: Run, tile: Chunk) -> pa.Array:
    reader = BatchReader(run.job.tables["valid"], run.job.columns["valid"])
    return pa.concat_arrays([b.ids for s in tile.shards for b in reader.read(s, s.rows)])


def finish_pairs(run: Run, tables: list[pa.Table]) -> Pairs:
    """Mark the run as finished, and open its pairs."""
    run.check_unchanged()
    run.left_out.warn()
    place = run.place(PAIRS)
    schemas = [t.schema for t in tables] if place is None else [place.schema(k) for k in range(len(_tiles(run)))]
    known = {"train": of_shards(schemas[:1]), "valid": of_shards(schemas, VALID_KEY)}
    meta = {**metadata(run), **fit_quality(run, known)}
    if run.folder is None:
        return Pairs(pa.concat_tables([t.replace_schema_metadata(None) for t in tables]), meta)
    close_folder(run, meta)
    return Pairs.read(run.folder.path)
