"""Decompositions a layer at a time, on the workers: the eigenbasis of each layer is a part of one artefact."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rayinf.core.blocks import Block
from rayinf.data.files import Arrays
from rayinf.engine import curvature
from rayinf.engine.worker import Worker


class Decompose:
    """Block -> its eigenbasis. Arrays: the sums of all blocks; option: `names` of these.

    On a GPU where the model is on one, many times faster. On CPUs the number of threads follows from the block's size
    (`curvature.fixed_threads`): every worker gives the same bits.
    """

    def __init__(self, worker: Worker, arrays: Arrays, names: Sequence[str]) -> None:
        self._arrays, self._names = arrays, frozenset(names)
        self._device = worker.device if worker.device.type == "cuda" else None

    def __call__(self, item: Block) -> Arrays:
        """Eigenvectors and eigenvalues of one block."""
        others = self._names - {item.name}
        own = {k: v for k, v in self._arrays.items() if k.rpartition("/")[2] not in others}
        try:
            return curvature.basis(own, [item], self._device)
        except torch.OutOfMemoryError:  # the layer is too large for the GPU, and takes longer on the CPU
            return curvature.basis(own, [item])


def by_size(blocks: Sequence[Block]) -> dict[int, Block]:
    """The blocks under their place in the model, those whose decomposition takes longest first."""
    held = dict(enumerate(blocks))
    return {k: held[k] for k in sorted(held, key=lambda k: (-_flops(held[k]), k))}


def _flops(block: Block) -> int:
    r, o, i = block.shape
    return r * (o**3 + (0 if block.kind == "embedding" else i**3))
