"""The rule of each kind of layer: its inputs and output gradients as rows x groups x positions.

Whatever the layer, `a_brti` and `g_brto` are such that the gradient of row b is `sum_t g_t a_t'` in each group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayinf.core.blocks import Block

# Floats of one tile's unfolded inputs (16 MB in float32): a batch of images is never unfolded whole, and row gradients
# are formed from inputs that are still in the processor's last cache. With a quarter of it, one thread is as fast, and
# two are half as fast.
TILE_FLOATS = 4_000_000
# Sums over rows (Gram matrices, queries) take tiles this much larger: each reads and writes the whole sum.
SUM_TILES = 2


@dataclass(frozen=True)
class LayerInputs:
    """A tile of rows of one layer.

    Attributes:
        rows: the rows of the batch that the tile holds.
        a_brti: inputs, with a last column of ones where the layer has a bias.
        g_brto: gradients in the outputs.
        columns: for an embedding, which of the `i` columns the compacted last axis of `a` stands for.
    """

    rows: slice
    a_brti: Tensor
    g_brto: Tensor
    columns: Tensor | None = None

    @property
    def one(self) -> bool:
        """Whether there is one position, so that the row gradient has rank one."""
        return self.a_brti.shape[2] == 1

    def narrow(self, u: Tensor) -> Tensor:
        """The tile's columns of a matrix over all `i` columns."""
        return u if self.columns is None else u[..., self.columns]

    def add_to(self, out: Tensor, value: Tensor) -> None:
        """Add a matrix over the tile's columns to one over all `i` columns, their last axis."""
        if self.columns is None:
            out += value
        else:
            out.index_add_(out.ndim - 1, self.columns, value)


def tiles(
    block: Block, module: nn.Module, inputs: Sequence[Tensor], gradients: Sequence[Tensor], times: int = 1
) -> Iterator[LayerInputs]:
    """The batch in tiles of rows whose unfolded inputs fit in `times TILE_FLOATS`; further calls append positions."""
    batch = gradients[0].shape[0]
    step = max(1, min(batch, _rows_per_tile(block, gradients, times * TILE_FLOATS)))
    for start in range(0, batch, step):
        rows = slice(start, min(start + step, batch))
        if block.kind == "embedding":
            yield _embedding(block, rows, [x[rows] for x in inputs], [g[rows] for g in gradients], module)
            continue
        parts = [_INPUTS[block.kind](block, module, x[rows]) for x in inputs]
        g_brto = output_positions(block, [g[rows] for g in gradients])
        a = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        yield LayerInputs(rows, a.to(g_brto.dtype), g_brto)


def rotate(x_brtd: Tensor, q_rdd: Tensor | None) -> Tensor:
    """Positions in another basis (None: unchanged): one product a group over all rows, not one a row."""
    if q_rdd is None:
        return x_brtd
    b, r, t, _ = x_brtd.shape
    if r == 1:
        return (x_brtd.reshape(b * t, -1) @ q_rdd[0]).view(b, 1, t, -1)
    return torch.bmm(x_brtd.transpose(0, 1).flatten(1, 2), q_rdd).view(r, b, t, -1).transpose(0, 1)


def output_positions(block: Block, gradients: Sequence[Tensor]) -> Tensor:
    """Output gradients of all calls as `[B, r, T, o]`."""
    parts = [_outputs(block, g) for g in gradients]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def words(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor | None:
    """Where the tokens of an embedding are not padding, `[B, T]`; None without padding, or of another layer."""
    if not isinstance(module, nn.Embedding) or module.padding_idx is None:
        return None
    return torch.cat([x.reshape(x.shape[0], -1) for x in inputs], dim=1) != module.padding_idx


def count_positions(block: Block, gradient: Tensor) -> int:
    """Positions a row of one call, from the shape of its output `[B, ...]`."""
    per_row = gradient[0].numel() if gradient.shape[0] else 0
    return per_row // (block.shape[0] * block.shape[1])


def _rows_per_tile(block: Block, gradients: Sequence[Tensor], floats: int) -> int:
    positions = max(1, sum(count_positions(block, g) for g in gradients))
    if block.kind == "embedding":  # one-hot over at most rows x positions different tokens
        return int(floats**0.5) // positions
    return floats // (positions * block.shape[0] * block.shape[2])


def _linear_inputs(block: Block, module: nn.Module, x: Tensor) -> Tensor:
    a = x.reshape(x.shape[0], 1, -1, x.shape[-1])
    return functional.pad(a, (0, 1), value=1.0) if block.has_bias else a


def _conv_inputs(block: Block, module: Any, x: Tensor) -> Tensor:
    """Patches `[B, r, T, i]`, in the order of the weight's own axes (channel, then kernel)."""
    r = block.shape[0]
    flat = isinstance(module, nn.Conv1d)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        pad = module._reversed_padding_repeated_twice
        x = functional.pad(x, pad, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = (0, *module.padding) if flat else module.padding
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if flat:
        x, kernel, stride, dilation = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):
        patches = x.flatten(2)
    else:
        patches = functional.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    a = patches.reshape(patches.shape[0], r, -1, patches.shape[-1])
    if block.has_bias:
        a = torch.cat([a, a.new_ones(*a.shape[:2], 1, a.shape[3])], dim=2)
    return a.transpose(2, 3)


_INPUTS = {"linear": _linear_inputs, "conv": _conv_inputs}


def _outputs(block: Block, g: Tensor) -> Tensor:
    r, o, _ = block.shape
    if block.kind == "conv":
        return g.reshape(g.shape[0], r, o, -1).transpose(2, 3)
    return g.reshape(g.shape[0], 1, -1, o)


def _embedding(
    block: Block, rows: slice, inputs: Sequence[Tensor], gradients: Sequence[Tensor], module: Any
) -> LayerInputs:
    """One-hot inputs over the tokens that occur in the tile: never over the whole vocabulary."""
    ids = torch.cat([x.reshape(x.shape[0], -1) for x in inputs], dim=1)
    g = output_positions(block, gradients)
    columns, where = torch.unique(ids, return_inverse=True)
    a = functional.one_hot(where, len(columns)).to(g.dtype)
    kept = words(module, inputs)
    if kept is not None:
        a = a * kept[..., None]
    return LayerInputs(rows, a[:, None], g, columns)
