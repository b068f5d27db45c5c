"""Columns in tiles: what their queries take at once is bounded, in passes over the rows for each tile.

The model and the columns alone fix the tiles, never the machine or the workers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from rayinf.core.thin_queries import most_rank
from rayinf.engine.job import Job
from rayinf.engine.probe import Probe

# Bytes of a tile's group sums and queries. Of large models a tile has at least so many columns, up to more bytes: each
# tile costs a pass of the model over all rows, beside which few columns are cheap.
TILE_BYTES, LEAST_COLUMNS, MOST_BYTES = 2 << 30, 16, 8 << 30
# What a validation row of its group adds to the rank of a solved query: 3 to 7, measured at 0.1 times the layer's mean.
_RANKS_A_ROW = 6

# For every target of a job, the first of its groups and the one after the last.
Tile = tuple[tuple[int, int], ...]


def column_tiles(job: Job, probed: Probe) -> list[Tile]:
    """The tiles of a run's columns (`objectives.in_tile`), in their order; one where the verb takes all at once.

    A target whose groups are not columns of their own, such as a gap, is in one tile.

    Args:
        job: settled.
        probed: the model's shapes.
    """
    room = columns_at_once(job, probed)
    if not job.spec.tiles_columns or sum(t.width for t in job.targets) <= room:
        return [tuple((0, t.width) for t in job.targets)]
    tiles: list[list[tuple[int, int]]] = []
    left = 0
    for k, target in enumerate(job.targets):
        start = 0
        while start < target.width:
            if not left or (left < target.width and not target.divides):
                tiles.append([(0, 0)] * len(job.targets))
                left = room
            stop = min(start + left, target.width) if target.divides else target.width
            tiles[-1][k] = (start, stop)
            left, start = max(0, left - (stop - start)), stop
    return [tuple(tile) for tile in tiles]


def tile_names(tiles: Sequence[Tile]) -> list[str]:
    """A name for each tile, by the places of its groups among all groups: other tiles would have other names."""
    names, at = [], 0
    for tile in tiles:
        count = sum(stop - start for start, stop in tile)
        names.append(f"{at}-{at + count}")
        at += count
    return names


def columns_at_once(job: Job, probed: Probe) -> int:
    """How many group sums, with the columns of each, a tile holds."""
    each = _bytes_each(job, probed)
    return max(TILE_BYTES // each, min(LEAST_COLUMNS, MOST_BYTES // each), 1)


def expected_ranks(job: Job, probed: Probe, shared: Collection[str]) -> dict[str, int]:
    """For plans: of the layers whose queries will be thin where columns are in tiles, their rank if it is as usual.

    Args:
        job: settled.
        probed: the model's shapes.
        shared: layers whose weights several positions share.
    """
    if job.spec.curvature != "kfac" or probed.dtype != "float32" or len(column_tiles(job, probed)) == 1:
        return {}
    columns = sum(t.width for t in job.targets)
    rank = _RANKS_A_ROW * -(-job.tables["valid"].num_rows // columns)
    blocks = (b for b in probed.blocks if b.kind == "linear" and b.shape[0] == 1 and b.name not in shared)
    return {b.name: rank for b in blocks if rank <= most_rank(*b.shape[1:])}


def _bytes_each(job: Job, probed: Probe) -> int:
    """Bytes that a group adds to what a solve holds, as `memory` counts them."""
    item = torch.finfo(getattr(torch, probed.dtype)).bits // 8
    sums, columns = (2, 3) if job.spec.halves else (1, 1)
    copied = columns * (2 if job.spec.curvature == "identity" else 1)
    if job.spec.halves or len(job.targets) > 1:
        copied += sums
    return item * ((sums + columns) * probed.parameters + copied * max(b.numel for b in probed.blocks))
