"""Lengths of row gradients, and the cosines between them and query vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from rayinf.core.influence import ForwardPass, Queries, tile_products
from rayinf.core.layer_inputs import LayerInputs
from rayinf.core.row_gradients import row_gradient_slices


def row_norms(forward_pass: ForwardPass, cotangent_bc: Tensor) -> Tensor:
    """The Euclidean norm of every row gradient over all blocks, `[B]`, float64.

    Args:
        forward_pass: the batch.
        cotangent_bc: gradient of the loss in the logits.

    Cost a row: `o + i` multiply-adds a layer, and `T o i` where there are T > 1 positions.
    """
    total = cotangent_bc.new_zeros(len(cotangent_bc), dtype=torch.float64)
    for _, parts in forward_pass.block_tiles(cotangent_bc):
        for tile in parts:
            total[tile.rows] += _squares(tile)
    return total.sqrt()


def row_cosines(forward_pass: ForwardPass, cotangent_bc: Tensor, queries: Queries) -> Tensor:
    """The cosine of every row gradient with every query, `[B, Q]`, float64; 0 where one of them is 0.

    Args:
        forward_pass: the batch.
        cotangent_bc: gradient of the loss in the logits.
        queries: `[Q, r, o, i]` a block.

    Cost a row: as the products with the queries, and as `row_norms`.
    """
    length_q = sum(u.double().square().sum((1, 2, 3)) for u in queries.values())
    assert isinstance(length_q, Tensor)
    square = cotangent_bc.new_zeros(len(cotangent_bc), dtype=torch.float64)
    products = square.new_zeros(len(cotangent_bc), len(length_q))
    for block, parts in forward_pass.block_tiles(cotangent_bc):
        for tile in parts:
            square[tile.rows] += _squares(tile)
            products[tile.rows] += tile_products(tile, queries[block.name])
    lengths = (square[:, None] * length_q).sqrt()
    return torch.where(lengths > 0, products / torch.where(lengths > 0, lengths, 1.0), 0.0)


def _squares(tile: LayerInputs) -> Tensor:
    """The squared norm of each row's gradient in a block, `[b]`, float64."""
    if tile.one:  # of rank one in each group
        a, g = (x[:, :, 0].double().square().sum(2) for x in (tile.a_brti, tile.g_brto))
        return (a * g).sum(1)
    total = tile.a_brti.new_zeros(len(tile.a_brti), dtype=torch.float64)
    for _, gradient in row_gradient_slices(tile.a_brti, tile.g_brto):
        total += gradient.square().sum((1, 2, 3), dtype=torch.float64)
    return total
