"""From sums to factors to preconditioned queries: pure functions over arrays, run in the store of factors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core import exact, inverse, kfac
from rayinf.core.blocks import Block
from rayinf.core.objectives import Target, objective_details, query_vectors
from rayinf.core.response import Damped, Response
from rayinf.core.thin_queries import ThinQueries
from rayinf.data.files import Arrays
from rayinf.data.scores import HALVES
from rayinf.engine.curvature_rows import FIRST, check_drawn, scale_up
from rayinf.engine.entry import DENSE
from rayinf.engine.fit_quality import PREFIX
from rayinf.engine.scoring import THIN
from rayinf.engine.stages import read_bases
from rayinf.errors import InputError

# Eigenvectors and products differ in their last bits between thread counts, so their number is fixed by the size alone.
# Two threads that share a processor with other work wait for each other far longer than small work takes.
MOST_THREADS = 2
# Columns of random signs a row, by layer.
_SIGNS = "signs/"
# Of a tile of columns: whether a validation row has a gradient.
MOVED = "moved"
_LARGE_SIDE, LARGE_QUERIES = 1500, 2_000_000


@dataclass(frozen=True)
class Solver:
    """What a solve needs beside the factors."""

    curvature: str
    blocks: tuple[Block, ...]
    rows: int
    l2: float
    response: Response
    eps: float
    dtype: str


def basis(covariance: Arrays, blocks: Sequence[Block], device: torch.device | None = None) -> Arrays:
    """Eigenvectors and eigenvalues of all blocks, float64; blocks that no row reached get none.

    Args:
        covariance: sums A and G.
        blocks: to be decomposed.
        device: where they are; None: on the CPU.
    """
    check_drawn(float(covariance["rows"]))
    held = _tensors({k: v for k, v in covariance.items() if not k.startswith(FIRST)})
    out: Arrays = {k: v for k, v in covariance.items() if k == "rows" or k.startswith(FIRST)}
    out.update({k: v / covariance["rows"] for k, v in covariance.items() if k.startswith(_SIGNS)})
    for block in blocks:
        if f"A/{block.name}" not in held:
            continue
        own = {k: v.to(device) for k, v in held.items() if k == "rows" or k.partition("/")[2] == block.name}
        with fixed_threads(is_large(max(block.shape[1:]))):
            found = kfac.decompose(own, block)
        parts = {"q_g": found.q_g_roo, "l_g": found.l_g_ro, "q_a": found.q_a_rii, "l_a": found.l_a_ri}
        out.update({f"{k}/{block.name}": v.cpu().numpy() for k, v in parts.items() if v is not None})
        out[f"positions/{block.name}"] = np.array(found.positions)
    return out


def dense_mean(hessian: Arrays) -> Arrays:
    """The mean exact Hessian or GGN, float64."""
    mean = exact.mean_curvature(torch.from_numpy(hessian["H"][0]), float(hessian["rows"]))
    return {"mean": mean.numpy(), "rows": hessian["rows"]}


def solve(
    queries: Arrays, source: Arrays, solver: Solver, targets: Sequence[Target], halves: bool, tiled: bool = False
) -> Arrays:
    """Merged group sums through a dense inverse, or none -> `U/<block>` of every column (`column_names`).

    Beside them stands what `beside` gives. K-FAC and EKFAC are solved a layer at a time (`engine.solves`).

    Args:
        queries: merged sums of `stages.Queries`.
        source: as `precondition` takes it.
        solver: what is solved.
        targets: the objectives.
        halves: whether every column is also solved for each half.
        tiled: these are some of a run's columns, which may all be flat, as `MOVED` then says.

    Raises:
        InputError: a singular or negative curvature (see `rayinf.core.inverse`).
    """
    moved = []

    def vectors(block: Block) -> Tensor:
        found = block_vectors(queries, targets, block, halves)
        moved.append(bool(found.any()))
        return found

    solved = precondition(vectors, len(column_names(targets, halves)), source, solver)
    return {**solved, **beside(queries, targets), **moved_by(moved, queries, tiled)}


def block_vectors(queries: Arrays, targets: Sequence[Target], block: Block, halves: bool) -> Tensor:
    """Query vectors V `[Q, r, o, i]` of a block, from the merged sums."""
    own = {k: v for k, v in queries.items() if not k.startswith("V") or k.partition("/")[2] == block.name}
    return query_vectors(_tensors(own), targets, [block], halves)[block.name]


def beside(queries: Arrays, targets: Sequence[Target]) -> Arrays:
    """What stands beside solved queries, from the merged sums.

    That is the details of every objective (`core.objectives.objective_details`), `details/<name>` `[columns]`, NaN
    where it has none, and how well the model fits the validation rows.
    """
    details = objective_details(_tensors({k: v for k, v in queries.items() if not k.startswith("V")}), targets).values()
    names = dict.fromkeys(name for column in details for name in column)
    found = {f"details/{n}": np.array([column.get(n, np.nan) for column in details]) for n in names}
    return {**found, **{k: v for k, v in queries.items() if k.startswith(PREFIX)}}


def moved_by(moved: Sequence[bool], held: Arrays, tiled: bool) -> Arrays:
    """Whether a validation row has a gradient, for a tile of columns; of all columns one must have.

    Args:
        moved: of each block.
        held: what `beside` gives, or more.
        tiled: whether these are some of a run's columns.

    Raises:
        InputError: none has.
    """
    if tiled:
        return {MOVED: np.array(any(moved))}
    _check_moved(any(moved), held.get(f"{PREFIX}rows", 0))
    return {}


def summary_of_tile(solved: Arrays) -> Arrays:
    """What stays of a tile of columns once its rows are scored: all but the queries."""
    return {k: v for k, v in solved.items() if k == MOVED or k.startswith(("details/", PREFIX))}


def join_tiles(*tiles: Arrays) -> Arrays:
    """The summaries of all tiles, in order, as what `solve` gives beside the queries.

    Raises:
        InputError: no validation row has a gradient, in none of the tiles.
    """
    _check_moved(any(bool(t[MOVED]) for t in tiles), tiles[0].get(f"{PREFIX}rows", 0))
    counts = [len(t["details/value"]) for t in tiles]
    names = dict.fromkeys(k for t in tiles for k in t if k.startswith("details/"))
    beside = {
        k: np.concatenate([t.get(k, np.full(count, np.nan)) for t, count in zip(tiles, counts, strict=True)])
        for k in names
    }
    return {**beside, **{k: v for k, v in tiles[0].items() if k.startswith(PREFIX)}}


def _check_moved(moved: bool, rows: Any) -> None:
    """Refuse objectives of which no row has a gradient.

    Raises:
        InputError: none of them has.
    """
    if not moved:
        raise InputError(
            f"None of the {int(rows):,} validation rows has a gradient: the objective is flat at all of them, and "
            "every value would be 0.",
            "check the scale of the features and of the model's outputs: it is so sure of every row that its loss is 0 "
            "to the last digit.",
        )


def details_by_column(solved: Arrays, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """What every column's objective comes to at the fit: its value, and what belongs to it."""
    held = {k.removeprefix("details/"): v.tolist() for k, v in solved.items() if k.startswith("details/")}
    return {c: {name: v[k] for name, v in held.items() if v[k] == v[k]} for k, c in enumerate(columns)}


def column_names(targets: Sequence[Target], halves: bool) -> list[str]:
    """Names of the columns that `solve` gives, in order."""
    names = [n for t in targets for n in t.columns]
    return names + [prefix + n for prefix in HALVES for n in names] if halves else names


def precondition(vectors: Callable[[Block], Tensor], columns: int, source: Arrays, solver: Solver) -> Arrays:
    """Query vectors V `[Q, r, o, i]` a block -> `U/<block>` in the model's precision, through a dense inverse or none.

    Args:
        vectors: V of a block.
        columns: Q.
        source: for a dense curvature its `inverse_payload`, else anything.
        solver: what is solved.
    """
    dtype = getattr(torch, solver.dtype)
    with fixed_threads(columns * sum(b.numel for b in solver.blocks) > LARGE_QUERIES):
        if solver.curvature in DENSE:
            held = _tensors(source)
            joined = inverse.join_blocks({b.name: vectors(b) for b in solver.blocks}, solver.blocks).double()
            found = inverse.split_blocks(inverse.solve_dense(joined, held["dense"], held["null"]), solver.blocks)
            solved = {name: inverse.narrowed(v, dtype) for name, v in found.items()}
        else:
            solved = {b.name: inverse.narrowed(vectors(b) / solver.rows, dtype) for b in solver.blocks}
        return in_range(solved, dtype)


def in_range(solved: Mapping[str, Tensor | ThinQueries], dtype: torch.dtype) -> Arrays:
    """Solved queries in the model's precision, under their keys; with `scale` `[Q]` where they do not fit into it.

    Args:
        solved: by block, as `inverse.narrowed` gives them.
        dtype: the precision.
    """
    scale: Arrays = {}
    if dtype is torch.float32 and inverse.out_of_range(solved):
        exact = {k: (v.dense() if isinstance(v, ThinQueries) else v).double() for k, v in solved.items()}
        solved, scale_q = inverse.scale_queries(exact)
        scale = {} if bool((scale_q == 1).all()) else {"scale": scale_q.numpy()}
    queries = {key: v for name, found in solved.items() for key, v in parts_of(name, found)}
    return {**{k: v.to(dtype).numpy() for k, v in queries.items()}, **scale}


def parts_of(name: str, found: Tensor | ThinQueries) -> list[tuple[str, Tensor]]:
    """The arrays of a block's queries, under their keys."""
    if isinstance(found, ThinQueries):
        return [(f"{THIN[0]}{name}", found.left_qko), (f"{THIN[1]}{name}", found.right_qki)]
    return [(f"U/{name}", found)]


def check_curved(flat: Sequence[str], layers: int, rows: int) -> None:
    """Refuse a curvature that is 0.

    Args:
        flat: layers without curvature.
        layers: all that rows have reached.
        rows: n.

    Raises:
        InputError: all of them are flat.
    """
    if layers and len(flat) == layers:
        raise InputError(
            f"The curvature of every layer is 0: on all {rows:,} training rows the Fisher vanishes, because the "
            "loss has no curvature in the model's outputs or the network is sure of every row to the last digit.",
            'return logits and use loss="cross_entropy"; check the scale of the features and of the model\'s outputs; '
            'or use curvature="identity".',
        )


def precondition_rows(queries: Arrays, source: Arrays, solver: Solver) -> Arrays:
    """Gradients of single rows, `V/<block>`, -> `U/<block>`."""
    rows = len(queries[f"V/{solver.blocks[0].name}"])
    return precondition(lambda block: torch.tensor(queries[f"V/{block.name}"]), rows, source, solver)


def rows_with_basis(queries: Arrays, source: Arrays) -> Arrays:
    """Solved gradients of single rows, with the eigenvectors of the layers that are in their eigenbasis."""
    names = [k.removeprefix("eigen/") for k in queries if k.startswith("eigen/")]
    keys = [key for n in names for key in (f"q_a/{n}", f"q_g/{n}") if key in source]
    held = {k: v for k, v in queries.items() if not k.startswith(PREFIX)}
    return {**held, **{k: source[k] for k in keys}}


def join_payloads(*parts: Arrays) -> Arrays:
    """Several payloads as one."""
    return {k: v for part in parts for k, v in part.items()}


def inverse_payload(factors: Arrays, solver: Solver) -> Arrays:
    """The inverse curvature: bases with inverse eigenvalues `D/<block>`, or a dense matrix and its null space."""
    held = _tensors(factors)
    if solver.curvature in DENSE:
        with fixed_threads(is_large(len(held["mean"]))):
            dense, null = _dense_inverse(held["mean"], solver)
        return {"dense": dense.numpy(), "null": null.numpy()}
    if solver.curvature == "identity":
        return {f"D/{b.name}": np.full(b.shape, 1.0 / solver.rows) for b in solver.blocks}
    out: Arrays = {}
    levels = eigenvalues(held, solver)
    check_curved([name for name, level in levels.items() if not bool(level.any())], len(levels), solver.rows)
    for name, level in levels.items():
        out[f"D/{name}"] = inverse.eigen_inverse(level, solver.rows, solver.l2, solver.response, name).numpy()
        for side in ("q_a", "q_g"):
            if f"{side}/{name}" in factors:
                out[f"{side}/{name}"] = factors[f"{side}/{name}"]
    return out


def _dense_inverse(mean_pp: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    """A dense curvature's inverse, and its null space."""
    response, p, mean = solver.response, len(mean_pp), float(mean_pp.diagonal().mean())
    mean_pp, rows = response.held_out * mean_pp, solver.rows / response.held_out**0.5
    if isinstance(response, Damped):
        return inverse.dense_inverse(mean_pp, rows, solver.l2 + response.damping(mean, p), solver.eps)

    def of_parameters(value: Callable[[str], float]) -> Tensor:
        return torch.cat([mean_pp.new_full((b.numel,), value(b.name)) for b in solver.blocks])

    shift_p = of_parameters(lambda name: response.shift(solver.l2, name))
    unrolled = inverse.dense_unrolled(mean_pp, rows, shift_p, of_parameters(response.time))
    return unrolled, mean_pp.new_zeros(p, 0)


def eigenvalues(held: dict[str, Tensor], solver: Solver) -> dict[str, Tensor]:
    """Lambda `[r, o, i]` of the mean curvature, a block."""
    rows = float(held["rows"])
    if solver.curvature == "kfac":
        return {n: kfac.kfac_lambda(b, rows) for n, b in read_bases(held).items()}
    return {k.removeprefix("L/"): v / rows for k, v in held.items() if k.startswith("L/")}


def join_lambda(bases: Arrays, *parts: Any) -> Arrays:
    """Basis and Lambda as one artefact, over all n rows: neither is valid with another's.

    Args:
        bases: of all blocks.
        parts: the sums of Lambda, for EKFAC; and n.
    """
    *lambdas, rows = parts
    held = {k: v for found in lambdas for k, v in found.items() if k.startswith(("L", FIRST))}
    return scale_up({**bases, **held}, rows)


def describe(factors: Arrays, solver: Solver) -> dict[str, Any]:
    """A summary of the curvature: size and damping (or training time) a layer, layers that contribute nothing."""
    if solver.curvature == "identity":
        return {}
    # EKFAC's eigenvectors, most of its factors, are not copied.
    held = _tensors({k: v for k, v in factors.items() if solver.curvature == "kfac" or not k.startswith("q_")})
    if solver.curvature in DENSE:
        return dict(zip(("least_eigenvalue", "largest_eigenvalue"), inverse.extremes(held["mean"]), strict=True))
    levels, response = eigenvalues(held, solver), solver.response
    layers = {}
    for name, level in levels.items():
        mean = float(level.mean())
        used = (
            {"damping": response.damping(mean, level.numel())}
            if isinstance(response, Damped)
            else {"training_time": response.time(name)}
        )
        layers[name] = {"mean_eigenvalue": mean, "largest_eigenvalue": float(level.max()), **used}
    without = [b.name for b in solver.blocks if b.name not in levels or not bool(levels[b.name].any())]
    out: dict[str, Any] = {"layers": layers, "contributes_nothing": without}
    signs = {k.removeprefix(_SIGNS): round(float(v)) for k, v in held.items() if k.startswith(_SIGNS)}
    if signs:
        out["random_signs"] = signs
    evens = {k.removeprefix("L_even/"): v for k, v in held.items() if k.startswith("L_even/")}
    if evens:
        from scipy.stats import spearmanr  # slow to import, and rarely needed

        # Even draws against odd ones: how far the drawn labels determine the eigenvalues.
        out["drawn_labels_agreement"] = {
            n: float(spearmanr(v.flatten().numpy(), (held[f"L/{n}"] - v).flatten().numpy()).statistic)
            for n, v in evens.items()
        }
    return out


def is_large(side: int) -> bool:
    """Whether a decomposition gets several threads."""
    return side > _LARGE_SIDE


@contextmanager
def fixed_threads(large: bool) -> Generator[None]:
    """A context in which torch has so many threads as the size of the work says, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(MOST_THREADS if large else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    # Copied by torch: its alignment is always the same, and so then is every bit of a product.
    return {k: torch.tensor(v) for k, v in arrays.items()}
