"""Queries through the inverse of K-FAC and EKFAC a layer at a time, on the workers: each is a part of one artefact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core import inverse
from rayinf.core.blocks import Block
from rayinf.core.kfac import Basis
from rayinf.core.objectives import in_tile
from rayinf.core.thin_queries import ThinQueries, most_rank
from rayinf.data.files import Arrays
from rayinf.engine import curvature as curv
from rayinf.engine.curvature import Solver
from rayinf.engine.scoring import THIN
from rayinf.engine.stages import read_bases
from rayinf.engine.worker import Worker

# Of one layer: whether a validation row has a gradient in it; whether its curvature is 0; whether it has any.
_MOVED, _FLAT, _REACHED = "moved/", "flat/", "reached/"


class Solve:
    """Block -> its queries through the inverse curvature, with what `join_solved` takes.

    On a GPU where the model is on one, many times faster. On CPUs the number of threads follows from the size alone:
    every worker gives the same bits. Arrays: two sets, merged sums of `stages.Queries` and the factors. Options:
    `solver`; `tile`, what that stage was given of a tile of columns, whose queries may be thin, or None.
    """

    def __init__(self, worker: Worker, arrays: Sequence[Arrays], solver: Solver, tile: Arrays | None) -> None:
        self._queries, self._factors = arrays
        targets, self._halves = worker.job.targets, worker.job.spec.halves
        self._solver, self._thin = solver, tile is not None and solver.dtype == "float32"
        self._targets = targets if tile is None else in_tile(targets, tile["tile"].tolist())
        self._columns = len(curv.column_names(self._targets, self._halves))
        self._device = worker.device if worker.device.type == "cuda" else None
        self._beside = curv.beside(self._queries, self._targets)

    def __call__(self, item: Block) -> Arrays:
        """The block's part.

        Raises:
            InputError: a query has weight where the curvature is singular.
        """
        try:
            found = self._part(item, self._device)
        except torch.OutOfMemoryError:  # the layer is too large for the GPU, and takes longer on the CPU
            found = self._part(item, None)
        return {**found, **self._beside}

    def _part(self, block: Block, device: torch.device | None) -> Arrays:
        with curv.fixed_threads(self._columns * block.numel > curv.LARGE_QUERIES):
            v = curv.block_vectors(self._queries, self._targets, block, self._halves).to(device)
            basis, level = self._curvature(block, device)
            curved = level is not None and bool(level.any())
            if basis is None or level is None or not curved:
                solved: Tensor | ThinQueries = torch.zeros(v.shape, dtype=getattr(torch, self._solver.dtype))
            else:
                solved = self._solved(block, v, basis, level)
            marks = {_MOVED: bool(v.any()), _FLAT: level is not None and not curved, _REACHED: level is not None}
        queries = {key: part.cpu().numpy() for key, part in curv.parts_of(block.name, solved)}
        return {**queries, **{f"{k}{block.name}": np.array(mark) for k, mark in marks.items()}}

    def _curvature(self, block: Block, device: torch.device | None) -> tuple[Basis | None, Tensor | None]:
        """The block's eigenvectors and eigenvalues; none where no row has reached it."""
        own = {k: v for k, v in self._factors.items() if k == "rows" or k.partition("/")[2] == block.name}
        held = {k: torch.tensor(v).to(device) for k, v in own.items()}
        return read_bases(held).get(block.name), curv.eigenvalues(held, self._solver).get(block.name)

    def _solved(self, block: Block, v_qroi: Tensor, basis: Basis, level_roi: Tensor) -> Tensor | ThinQueries:
        """Solved queries in the model's precision, or in float64 where they do not fit into it."""
        solver, dtype = self._solver, getattr(torch, self._solver.dtype)
        inv = inverse.eigen_inverse(level_roi, solver.rows, solver.l2, solver.response, block.name)
        one = self._thin and block.shape[0] == 1 and block.kind == "linear"
        # K-FAC's inverse is smooth where layers have one position, and adds little to a query's rank.
        if one and solver.curvature == "kfac" and basis.positions <= float(self._factors["rows"]):
            thin = inverse.solve_thin(block, v_qroi, basis, inv, dtype)
            if thin is not None and inverse.fits(thin):
                return thin
        rank = most_rank(*block.shape[1:]) if one else 0
        found = inverse.solve_eigen(block, v_qroi, basis, inv, dtype, rank)
        if dtype is torch.float32 and not inverse.fits(found):
            return inverse.solve_eigen(block, v_qroi, basis, inv, torch.float64)
        return found


def join_solved(*args: Any) -> Arrays:
    """The parts of all blocks as what `curvature.solve` gives; of a tile of columns, queries may be thin.

    Args:
        args: the parts in the order of the blocks; the solver; whether these are some of a run's columns.

    Raises:
        InputError: no validation row has a gradient, or no layer has curvature.
    """
    *parts, solver, tiled = args
    held = {k: v for part in parts for k, v in part.items()}
    marks = {m: [b.name for b in solver.blocks if held.pop(m + b.name)] for m in (_MOVED, _FLAT, _REACHED)}
    curv.check_curved(marks[_FLAT], len(marks[_REACHED]), solver.rows)
    queries = {b.name: _queries_of(b.name, held) for b in solver.blocks}
    beside = {k: v for k, v in held.items() if not k.startswith(("U/", *THIN))}
    return {
        **curv.in_range(queries, getattr(torch, solver.dtype)),
        **{f"{_FLAT}{name}": np.ones(1) for name in marks[_FLAT]},
        **beside,
        **curv.moved_by([bool(marks[_MOVED])], beside, tiled),
    }


def _queries_of(name: str, held: Arrays) -> Tensor | ThinQueries:
    """A block's queries from their arrays, without a copy."""
    if f"U/{name}" in held:
        return torch.from_numpy(held[f"U/{name}"])
    return ThinQueries(*(torch.from_numpy(held[f"{side}{name}"]) for side in THIN))
