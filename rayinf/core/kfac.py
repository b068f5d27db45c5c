"""K-FAC and EKFAC (George et al. 2018; Grosse et al. 2023, Eq. 16-20): sums over rows, basis, eigenvalues.

All sums are plain sums over rows, kept in float64 under string keys, so that shards merge by adding:
`A/<block>`, `G/<block>` (lower triangles), `N/<block>` (positions), `L/<block>` (squared rotated gradients), `rows`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayinf.core.blocks import Block
from rayinf.core.capture import Capture
from rayinf.core.fisher import Columns
from rayinf.core.layer_inputs import SUM_TILES, LayerInputs, output_positions, rotate, tiles, words
from rayinf.core.row_gradients import row_gradient_slices

Sums = dict[str, Tensor]

# Width of the stripes in which a Gram matrix's lower triangle is added: half of the full product's flops.
_STRIPE = 256
# Compute capabilities of the cards for data centres: P100, V100, A100, H100 and H200, B200.
_FAST_DOUBLES = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))


@dataclass(frozen=True)
class Basis:
    """Eigenvectors (columns) and eigenvalues of a block's sums; `q_a` is None where A is diagonal (embeddings)."""

    q_a_rii: Tensor | None
    q_g_roo: Tensor
    l_a_ri: Tensor
    l_g_ro: Tensor
    positions: float


def add(sums: Sums, key: str, value: Tensor) -> None:
    """Add in float64 under a key that need not exist yet."""
    if key in sums:
        sums[key] += value
    else:
        sums[key] = value.to(torch.float64, copy=True)


@contextmanager
def scaled(sums: Sums, scale: float, prefix: str, power: int = 2) -> Generator[Sums]:
    """Sums to add a batch to; those under the prefix are multiplied by `scale ** power` on leaving."""
    if scale == 1:
        yield sums
        return
    part: Sums = {}
    yield part
    for key, value in part.items():
        add(sums, key, value * scale**power if key.startswith(prefix) else value)


def fast_doubles(device: torch.device) -> bool:
    """Whether a device multiplies in float64 at half its speed in float32, not at a 32nd or 64th."""
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) in _FAST_DOUBLES)


def add_gram(sums: Sums, key: str, x_rni: Tensor, rough: bool = False) -> None:
    """Add the lower triangle of `x' x` of each group, multiplied and added in float64.

    Float32 products leave the eigenvectors of small eigenvalues undetermined: scores then depend on the batch size, by
    about 1e-4. On devices that are slow in float64 they are taken all the same, and added in float64.

    Args:
        sums: where to add.
        key: under which.
        x_rni: x.
        rough: multiply in the precision of x, at half the time: where other errors are far larger.
    """
    r, _, i = x_rni.shape
    rough = rough or not fast_doubles(x_rni.device)
    x = x_rni if rough else x_rni.to(torch.float64)
    if key not in sums:
        sums[key] = torch.zeros(r, i, i, dtype=torch.float64, device=x.device)
    total = sums[key]
    for group in range(r):
        for start in range(0, i, _STRIPE):
            stop = min(start + _STRIPE, i)
            left, right = x[group, :, start:stop].T, x[group, :, :stop]
            if rough:
                total[group, start:stop, :stop] += left @ right
            else:
                total[group, start:stop, :stop].addmm_(left, right)


def add_covariance(
    sums: Sums,
    blocks: Sequence[Block],
    modules: Mapping[str, nn.Module],
    captured: Capture,
    logits: Tensor,
    columns: Columns,
    mask_bt: Tensor | None = None,
) -> None:
    """Add a batch to A and G ("expand": every position is a sample; each row enters A once, not once for every label).

    Cost a row: `T i^2 / 2 + S T o^2 / 2` multiply-adds a layer, and S backward passes without weights; in float64 where
    the columns are exact. Of layers with columns of random signs, `signs/<block>` counts these.
    """
    rows = float(len(logits))
    add(sums, "rows", torch.tensor(rows))
    groups = columns.groups(blocks)
    for k, (some, columns_sbc) in enumerate(groups):
        names, final = {b.name for b in some}, k == len(groups) - 1
        for s, column_bc in enumerate(columns_sbc):
            last = final and s == len(columns_sbc) - 1
            gradients = captured.gradients(logits, column_bc, last, only=names)
            for block in some:
                if block.name not in gradients:
                    continue
                module, inputs, rough = modules[block.name], captured.inputs[block.name], block.name in columns.signed
                g_brto = output_positions(block, gradients[block.name])
                keep = _kept(mask_bt, words(module, inputs), g_brto.shape[2])
                add_gram(sums, f"G/{block.name}", _flatten(g_brto, keep), rough)
                if rough:
                    add(sums, f"signs/{block.name}", torch.tensor(rows))
                if s > 0:
                    continue
                for tile in tiles(block, module, inputs, gradients[block.name], SUM_TILES):
                    _add_inputs(sums, block, tile, None if keep is None else keep[tile.rows], rough)


def add_lambda(
    sums: Sums,
    block: Block,
    basis: Basis,
    tile: LayerInputs,
    g_sbrto: Tensor,
    halves: bool = False,
) -> None:
    """Add a tile to `L = sum over rows and columns of (Q_G' (row gradient) Q_A)^2`.

    One position: the square has rank one, so columns are added first and one product does the rest.
    Many: the row gradient is the sum over positions, formed a column, from factors rotated where that is cheaper
    (inputs if `T <= S o`, gradients if `T <= i`). Multiplied in the model's precision, added in float64.

    Args:
        sums: where to add, under `L/<block>`.
        block: the layer.
        basis: of the block.
        tile: rows of the layer; its `a_brti` is used.
        g_sbrto: output gradients of every Fisher column, for the tile's rows.
        halves: also add even columns alone under `L_even/<block>`, to estimate the error of drawn labels.
    """
    a = tile.a_brti
    if tile.one:
        a2_rbi = (a[:, :, 0].transpose(0, 1) if basis.q_a_rii is None else _rotate_one(a, basis.q_a_rii)).square()
        g2_srbo = torch.matmul(g_sbrto[:, :, :, 0].transpose(1, 2), basis.q_g_roo).square()
        _add_columns(sums, block, tile, torch.bmm(g2_srbo.sum(0).transpose(1, 2), a2_rbi))
        if halves:
            even = torch.bmm(g2_srbo[::2].sum(0).transpose(1, 2), a2_rbi)
            _add_columns(sums, block, tile, even, "L_even")
        return
    t, (_, o, i) = a.shape[2], block.shape
    rotate_a = basis.q_a_rii is not None and t <= len(g_sbrto) * o
    rotate_g = t <= i
    if rotate_a:
        a = rotate(a, basis.q_a_rii)
    total = a.new_zeros(block.shape[0], o, a.shape[3])
    even_total = total.clone()
    for s, g_brto in enumerate(g_sbrto):
        g = rotate(g_brto, basis.q_g_roo) if rotate_g else g_brto
        for where, gradient in row_gradient_slices(a, g, whole=not rotate_g):
            if not rotate_g:
                gradient = torch.matmul(basis.q_g_roo.transpose(1, 2), gradient)
            if not rotate_a and basis.q_a_rii is not None:
                gradient = torch.matmul(gradient, basis.q_a_rii)
            squares = gradient.square().sum(0)
            total[:, where] += squares
            if halves and s % 2 == 0:
                even_total[:, where] += squares
    _add_columns(sums, block, tile, total)
    if halves:
        _add_columns(sums, block, tile, even_total, "L_even")


def decompose(sums: Mapping[str, Tensor], block: Block) -> Basis:
    """Eigenvectors and eigenvalues of a block's A and G, in float64.

    Cost: `9 (i^3 + o^3)` flops a group. Negative eigenvalues are rounding and become 0.
    """
    a, g = sums[f"A/{block.name}"], sums[f"G/{block.name}"]
    l_g, q_g = torch.linalg.eigh(g)
    if block.kind == "embedding":
        l_a, q_a = a, None
    else:
        l_a, q_a = torch.linalg.eigh(a)
    positions = float(sums[f"N/{block.name}"])
    return Basis(q_a, q_g, l_a.clamp(min=0), l_g.clamp(min=0), positions)


def kfac_lambda(basis: Basis, rows: float) -> Tensor:
    """K-FAC's eigenvalues of the mean curvature, `[r, o, i]`: `lG lA / (n N)`, N positions in all, `N = n T`."""
    return basis.l_g_ro[:, :, None] * basis.l_a_ri[:, None, :] / (rows * max(basis.positions, 1.0))


def _kept(mask_bt: Tensor | None, words_bt: Tensor | None, positions: int) -> Tensor | None:
    """Positions that enter the factors: those of the mask, in layers that have as many positions as it has."""
    mask = mask_bt if mask_bt is not None and mask_bt.shape[1] == positions else None
    if words_bt is None or mask is None:
        return words_bt if mask is None else mask
    return mask & words_bt


def _flatten(x_brtd: Tensor, keep_bt: Tensor | None) -> Tensor:
    """`[r, N, d]`: rows and positions as samples, masked ones left out."""
    x = x_brtd.permute(1, 0, 2, 3)
    return x.reshape(x.shape[0], -1, x.shape[3]) if keep_bt is None else x[:, keep_bt]


def _add_inputs(sums: Sums, block: Block, tile: LayerInputs, keep: Tensor | None, rough: bool) -> None:
    a_rni = _flatten(tile.a_brti, keep)
    if block.kind == "embedding":
        counts = a_rni.sum(1, dtype=torch.float64)
        full = torch.zeros(1, block.shape[2], dtype=torch.float64, device=counts.device)
        full[:, tile.columns] = counts
        add(sums, f"A/{block.name}", full)
        add(sums, f"N/{block.name}", counts.sum())
        return
    add_gram(sums, f"A/{block.name}", a_rni, rough)
    add(sums, f"N/{block.name}", torch.tensor(float(a_rni.shape[1])))


def _rotate_one(a_brti: Tensor, q_rii: Tensor) -> Tensor:
    """Inputs of a single position in the eigenbasis, `[r, b, i]`."""
    return torch.bmm(a_brti[:, :, 0].transpose(0, 1), q_rii)


def _add_columns(sums: Sums, block: Block, tile: LayerInputs, value_roi: Tensor, prefix: str = "L") -> None:
    key = f"{prefix}/{block.name}"
    if key not in sums:
        sums[key] = torch.zeros(block.shape, dtype=torch.float64, device=value_roi.device)
    tile.add_to(sums[key], value_roi.to(torch.float64))
