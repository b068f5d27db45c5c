"""The values of all columns: together, or a tile of columns and a pass over the rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.core.objectives import in_tile
from rayinf.engine import curvature as curv
from rayinf.engine import joined_passes, pipeline, stages
from rayinf.engine.column_tiles import Tile, column_tiles, tile_names
from rayinf.engine.run import Run


def score_columns(run: Run, stage: type[stages.Stage]) -> list[pa.Table]:
    """Every shard of the training table through a scoring stage that takes solved queries.

    Where the queries of all columns take much memory (`column_tiles`), those of a tile are summed, solved and used in
    a pass over the rows, and dropped; its values of every shard are kept until the last tile is done, and joined then.
    A run that was stopped goes on in the tile, and at the shard, where it was.

    Args:
        run: open, with factors.
        stage: what gives a shard its values.

    Returns:
        The shards' tables in order, or nothing where they were written to the folder.
    """
    tiles, names = column_tiles(run.job, run.probe), curv.column_names(run.job.targets, run.spec.halves)
    if len(tiles) == 1:
        return pipeline.score(run, stage, pipeline.solve_queries(run), names)
    named = dict(zip(tile_names(tiles), tiles, strict=True))
    found = [_score_tile(run, stage, name, tile) for name, tile in named.items()]
    pipeline.derive(run, "solved", curv.join_tiles, [f"summary-{name}" for name in named])
    return joined_passes.join_passes(run, found, [_folder(name) for name in named], join_columns, names)


def join_columns(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """The columns of all tiles."""
    return {name: column for table in tables for name, column in joined_passes.values_of(table).items()}


def _score_tile(run: Run, stage: type[stages.Stage], name: str, tile: Tile) -> list[pa.Table]:
    """The values of a tile's columns: the shards' tables, or nothing where they were written."""
    store, targets = run.runner.store, in_tile(run.job.targets, tile)
    if joined_passes.is_done(run, _folder(name)) and (store("has", f"summary-{name}") or store("has", "solved")):
        return []
    queries, solved = f"queries-{name}", f"solved-{name}"
    columns = {"tile": np.array(tile), **({"rest": np.array(True)} if not name.startswith("0-") else {})}
    handle = pipeline.solve_columns(run, queries, solved, targets, columns)
    pipeline.derive(run, f"summary-{name}", curv.summary_of_tile, [solved])
    store("drop", queries)
    names = curv.column_names(targets, run.spec.halves)
    found = pipeline.score(run, stage, handle, names, _folder(name))
    store("drop", solved)
    return found


def _folder(name: str) -> str:
    return f"columns-{name}"
