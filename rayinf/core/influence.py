"""Row gradients against query vectors: sums over validation rows, products with training rows, self products."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.core.blocks import Block, shown
from rayinf.core.capture import Capture
from rayinf.core.kfac import Sums
from rayinf.core.layer_inputs import SUM_TILES, LayerInputs, rotate, tiles
from rayinf.core.row_gradients import loose_row_gradients, row_gradient_slices
from rayinf.core.thin_queries import ThinQueries
from rayinf.errors import InputError

# Width of the products of rows with queries that are computed at a time: they stay in the cache. A few queries at a
# time are a third faster than ten at once.
_HALF_WIDTH = 512
Queries = dict[str, Tensor]
# Q_A and Q_G (None: as it is), and the inverse eigenvalues [r, o, i].
Eigenbasis = tuple[Tensor | None, Tensor | None, Tensor]


@dataclass(frozen=True)
class ForwardPass:
    """A batch after its forward pass: all that row gradients are computed from.

    Attributes:
        model: in eval mode.
        modules: its modules by name.
        blocks: what is valued.
        captured: of the forward pass.
        logits: `[B, C]`.
        x: the model's input.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    blocks: tuple[Block, ...]
    captured: Capture
    logits: Tensor
    x: Any

    def block_tiles(
        self, cotangent_bc: Tensor, last: bool = True, times: int = 1
    ) -> list[tuple[Block, Iterable[LayerInputs]]]:
        """Every block's row gradients of one cotangent, as tiles of positions.

        Of a loose block, the row gradient itself is the input, at a single position with output gradient 1.

        Args:
            cotangent_bc: gradient of the row function in the logits.
            last: release the graph.
            times: how much larger than `TILE_FLOATS` a tile may be.
        """
        gradients = self.captured.gradients(self.logits, cotangent_bc, last)
        loose = [b for b in self.blocks if b.kind == "loose"]
        whole = slice(0, len(self.logits))
        out: list[tuple[Block, Iterable[LayerInputs]]] = []
        dense = loose_row_gradients(self.model, loose, self.x, cotangent_bc)
        for block in self.blocks:
            if block.kind == "loose":
                a = dense[block.name]
                out.append((block, [LayerInputs(whole, a, a.new_ones(len(a), 1, 1, 1))]))
            elif block.name in gradients:
                module, inputs = self.modules[block.name], self.captured.inputs[block.name]
                out.append((block, _Lazy(block, module, inputs, gradients[block.name], times)))
            else:
                out.append((block, ()))
        return out


@dataclass(frozen=True)
class _Lazy:
    """Tiles that are computed again at every iteration, so that unfolded inputs are in memory for one layer only."""

    block: Block
    module: nn.Module
    inputs: Sequence[Tensor]
    gradients: Sequence[Tensor]
    times: int

    def __iter__(self) -> Iterator[LayerInputs]:
        return tiles(self.block, self.module, self.inputs, self.gradients, self.times)


def add_queries(
    sums: Sums,
    forward_pass: ForwardPass,
    cotangent_bc: Tensor,
    weights_bq: Tensor,
    prefix: str,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Add a batch to the queries `V_q = sum_b w_bq (row gradient of b)`, `[Q, r, o, i]` under `<prefix>/<block>`.

    Rows of weight 0 are skipped, so that K categories cost as much as one total. Multiplied in the model's
    precision. The batch's graph is kept, for further functions of its rows.

    Args:
        sums: where to add.
        forward_pass: the batch.
        cotangent_bc: gradient of the row function in the logits.
        weights_bq: `[B, Q]`.
        prefix: of the keys.
        dtype: that the queries are added in.
    """
    count = weights_bq.shape[1]
    for block, parts in forward_pass.block_tiles(cotangent_bc, last=False, times=SUM_TILES):
        key = f"{prefix}/{block.name}"
        if key not in sums:
            sums[key] = torch.zeros(count, *block.shape, dtype=dtype, device=cotangent_bc.device)
        for tile in parts:
            for q in range(count):
                w = weights_bq[tile.rows, q]
                rows = w.nonzero()[:, 0]
                if not len(rows):
                    continue
                a = tile.a_brti[rows].transpose(0, 1).flatten(1, 2)
                g = (tile.g_brto[rows] * w[rows][:, None, None, None]).transpose(0, 1).flatten(1, 2)
                value = torch.bmm(g.transpose(1, 2), a).to(sums[key].dtype)
                tile.add_to(sums[key][q], value)


def row_products(
    forward_pass: ForwardPass,
    cotangent_bc: Tensor,
    queries: Mapping[str, Tensor | ThinQueries],
    flat: Collection[str] = frozenset(),
    last: bool = True,
    eigenbases: Mapping[str, Eigenbasis] | None = None,
) -> Tensor:
    """Products of every row gradient with every query, `[B, Q]`: `sum_blocks <row gradient, U_q>`.

    Args:
        forward_pass: the batch.
        cotangent_bc: gradient of the loss in the logits.
        queries: per block.
        flat: blocks whose curvature is 0: no row may have a gradient there.
        last: release the graph.
        eigenbases: of the blocks whose queries are in their eigenbasis.

    Raises:
        InputError: one has.

    Cost a row: `Q o i` multiply-adds a layer, and `T o i` more where there are T > 1 positions; of thin queries of
    rank k, `Q k (o + i)`.
    """
    first = next(iter(queries.values()))
    out = torch.zeros(len(cotangent_bc), len(first), dtype=first.dtype, device=first.device)
    for block, parts in forward_pass.block_tiles(cotangent_bc, last):
        u, eigenbasis = queries[block.name], (eigenbases or {}).get(block.name)
        for tile in parts:
            if block.name in flat:
                check_flat(block, tile)
                continue
            a, g = in_eigenbasis(tile, eigenbasis)
            out[tile.rows] += tile_products(LayerInputs(tile.rows, a, g, tile.columns), u)
    return out


def tile_products(tile: LayerInputs, u_qroi: Tensor | ThinQueries) -> Tensor:
    """Products `[b, Q]` of a tile's row gradients with a block's queries `[Q, r, o, i]`."""
    if isinstance(u_qroi, ThinQueries):
        return u_qroi.products(tile)
    return (_products_one if tile.one else _products_many)(tile, tile.narrow(u_qroi))


def _products_one(tile: LayerInputs, u_qroi: Tensor) -> Tensor:
    """`g' U a` without a row gradient; the longer side is contracted first, into a product that fits the cache."""
    q, r, o, i = u_qroi.shape
    a_bri, g_bro = tile.a_brti[:, :, 0], tile.g_brto[:, :, 0]
    total = a_bri.new_zeros(len(a_bri), q)
    step = max(1, _HALF_WIDTH // min(o, i))
    for group in range(r):
        a, g = a_bri[:, group], g_bro[:, group]
        for start in range(0, q, step):
            u = u_qroi[start : start + step, group]
            if i >= o:
                half = torch.nn.functional.linear(a, u.reshape(-1, i)).view(-1, len(u), o)
                total[:, start : start + step] += half.mul_(g[:, None]).sum(2)
            else:
                half = torch.matmul(g, u.permute(1, 0, 2).reshape(o, -1)).view(-1, len(u), i)
                total[:, start : start + step] += half.mul_(a[:, None]).sum(2)
    return total


def _products_many(tile: LayerInputs, u_qroi: Tensor) -> Tensor:
    """The row gradient is computed once, in slices, for its products with all queries: these add little cost."""
    total = tile.a_brti.new_zeros(len(tile.a_brti), len(u_qroi))
    for where, gradient in row_gradient_slices(tile.a_brti, tile.g_brto):
        # Few queries on the left: three times as fast as the other way round.
        total += torch.mm(u_qroi[:, :, where].flatten(1), gradient.flatten(1).T).T
    return total


def dense_rows(
    forward_pass: ForwardPass,
    cotangent_bc: Tensor,
    last: bool = True,
    eigenbases: Mapping[str, Eigenbasis] | None = None,
) -> Tensor:
    """Row gradients `[B, p]` over all blocks in order. For small p or few rows: a batch is held whole.

    Args:
        forward_pass: the batch.
        cotangent_bc: gradient of the row function in the logits.
        last: release the graph.
        eigenbases: per block, to return the gradients in; blocks without one are then zero.
    """
    found = block_rows(forward_pass, cotangent_bc, last, eigenbases)
    return torch.cat([rows.flatten(1) for _, rows in found], dim=1)


def block_rows(
    forward_pass: ForwardPass,
    cotangent_bc: Tensor,
    last: bool = True,
    eigenbases: Mapping[str, Eigenbasis] | None = None,
) -> Iterator[tuple[Block, Tensor]]:
    """The same a block at a time, `[B, r, o, i]`."""
    for block, block_parts in forward_pass.block_tiles(cotangent_bc, last):
        rows = cotangent_bc.new_zeros(len(cotangent_bc), *block.shape)
        eigenbasis = None if eigenbases is None else eigenbases.get(block.name)
        for tile in () if eigenbases is not None and eigenbasis is None else block_parts:
            a, g = in_eigenbasis(tile, eigenbasis)
            tile.add_to(rows[tile.rows], torch.matmul(g.transpose(2, 3), a))
        yield block, rows


def in_eigenbasis(tile: LayerInputs, eigenbasis: Eigenbasis | None) -> tuple[Tensor, Tensor]:
    """A tile's inputs and output gradients in a block's eigenbasis."""
    q_a, q_g, _ = eigenbasis or (None, None, None)
    return rotate(tile.a_brti, q_a), rotate(tile.g_brto, q_g)


def check_flat(block: Block, tile: LayerInputs) -> None:
    """Refuse a layer whose curvature is 0 though a row has a gradient there: all values would be 0.

    Raises:
        InputError: the layer.
    """
    if tile.one:
        moved = bool((tile.g_brto.any(3) & tile.a_brti.any(3)).any())
    else:
        moved = any(bool(g.any()) for _, g in row_gradient_slices(tile.a_brti, tile.g_brto))
    if moved:
        raise InputError(
            f"The curvature of {shown(block.name)} is 0, though rows have gradients there that are not: the loss has "
            "no curvature in the model's outputs, or the network is so sure of every row that it vanishes.",
            'return logits and use loss="cross_entropy" (not log-probabilities or probabilities of your own); or use '
            'fisher="empirical", curvature="identity", or leave the layer out of Task(parameters=[...]).',
        )


def self_products(
    forward_pass: ForwardPass,
    cotangent_bc: Tensor,
    eigenbases: Mapping[str, Eigenbasis],
    flat: Collection[str] = frozenset(),
) -> Tensor:
    """`l' H^-1 l` of every row gradient l, `[B]`, in the eigenbasis.

    Args:
        forward_pass: the batch.
        cotangent_bc: gradient of the loss in the logits.
        eigenbases: per block.
        flat: blocks whose curvature is 0: no row may have a gradient there.

    Raises:
        InputError: one has.
    """
    out = cotangent_bc.new_zeros(len(cotangent_bc))
    for block, parts in forward_pass.block_tiles(cotangent_bc):
        if block.name not in eigenbases:  # never called, so without factors
            continue
        inverse = eigenbases[block.name][2]
        for tile in parts:
            if block.name in flat:
                check_flat(block, tile)
                continue
            a, g = in_eigenbasis(tile, eigenbases[block.name])
            d = tile.narrow(inverse)
            if tile.one:
                half = torch.matmul(g[:, :, 0].square().transpose(0, 1), d)
                out[tile.rows] += (half * a[:, :, 0].square().transpose(0, 1)).sum((0, 2))
            else:
                for where, gradient in row_gradient_slices(a, g):
                    out[tile.rows] += (gradient.square() * d[:, where]).sum((1, 2, 3))
    return out
