"""Removing many rows at once: Newton's step from the rows that stay, and what it does to the objectives.

The sum of the rows' own values is first order. The curvature changes with the rows that go; from those that stay,
`delta = (H - H_S / n + l2 + damping)^-1 (1/n) sum_S grad l_i`, H the mean curvature of all n rows and H_S the sum of
that of the rows S that go. What is left to minimise is `(1/n) sum_kept l_i + l2/2 ||theta||^2`: the ridge is a sum over
the fit, so that a refit to n' rows has `l2 n / n'` beside its own mean.

**The step's length.** K-FAC and EKFAC leave out what couples layers, and directions within a layer. Along the sum of
many gradients, which point the same way, that makes the curvature several times too small, and the step as many times
too long. One pass over the rows gives the curvature along the step as it is, `step' GGN step`: the direction is the
approximation's, the length is that of the GGN (`step_length`).

Pure functions over arrays, run in the store of factors, as those of `rayinf.engine.curvature`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rayinf.core import exact, inverse
from rayinf.core.blocks import shown
from rayinf.core.influence import Queries
from rayinf.core.objectives import Target, objective_details, query_vectors
from rayinf.core.response import Damped, Response, saturation
from rayinf.data.files import Arrays
from rayinf.engine import curvature as curv
from rayinf.engine.curvature import Solver
from rayinf.engine.entry import DENSE
from rayinf.engine.stages import read_bases
from rayinf.errors import InputError


def newton_step(gradient: Arrays, removed: Arrays, factors: Arrays, solver: Solver) -> Arrays:
    """The step of one set of rows: `delta/<block>` `[r, o, i]`, float64, and `model`, the curvature along it.

    That is `step' H step` with the curvature H that was solved with; of a dense one, whose length needs no correction,
    there is none.

    Args:
        gradient: `V/<block>` `[1, r, o, i]`, the sum of the gradients of the rows that go.
        removed: the same rows' sums: of "exact" and "ggn" `H`; of "ekfac" `L/<block>` in the basis of all rows; of
            "kfac" `A`, `G` and `N` of each block; of "identity" nothing.
        factors: of all rows.
        solver: what is solved.

    Raises:
        InputError: the curvature of the rows that stay is singular or negative where the gradient is not 0.
    """
    vectors = {b.name: torch.tensor(gradient[f"V/{b.name}"]) for b in solver.blocks}
    source = remaining(factors, removed, solver)
    model: Arrays = {}
    if solver.curvature == "identity":
        found = {name: v / solver.rows for name, v in vectors.items()}
        model = {"model": np.array(sum(float(v.square().sum()) for v in found.values()))}
    elif solver.curvature in DENSE:
        mean = torch.tensor(factors["mean"]).diagonal().mean()
        held = curv.inverse_payload(source, replace(solver, response=_fixed(solver, float(mean), len(factors["mean"]))))
        flat = inverse.join_blocks(vectors, solver.blocks)
        solved = inverse.solve_dense(flat, torch.tensor(held["dense"]), torch.tensor(held["null"]))
        found = inverse.split_blocks(solved, solver.blocks)
    else:
        found, along = _kronecker_step(vectors, factors, source, solver)
        model = {"model": np.array(along)}
    return {**{f"delta/{name}": v[0].numpy() for name, v in found.items()}, **model}


def _kronecker_step(vectors: Queries, factors: Arrays, source: Arrays, solver: Solver) -> tuple[Queries, float]:
    """The step through the eigenvalues of the rows that stay, in the eigenbasis of all rows; the curvature along it.

    Raises:
        InputError: a layer has no curvature on the rows that stay, and the gradient is not 0 there.
    """
    before = curv.eigenvalues({k: torch.tensor(v) for k, v in factors.items()}, solver)
    held = {k: torch.tensor(v) for k, v in source.items()}
    levels, bases, found, along = curv.eigenvalues(held, solver), read_bases(held), {}, 0.0
    for block in solver.blocks:
        name, v = block.name, vectors[block.name]
        if (name not in levels or not bool(levels[name].any())) and bool(v.any()):
            raise InputError(
                f"The curvature of {shown(name)} is 0 on the rows that stay, and those that go have a gradient there.",
                'remove fewer rows; or use curvature="identity", or leave the layer out of Task(parameters=[...]).',
            )
        if name not in levels:
            found[name] = torch.zeros_like(v)
            continue
        response = _fixed(solver, float(before[name].mean()), before[name].numel())
        inv = inverse.eigen_inverse(levels[name], solver.rows, solver.l2, response, name)
        found[name] = inverse.solve_eigen(block, v, bases[name], inv)
        rotated = inverse.into_basis(found[name][0], bases[name])
        along += float((levels[name] * rotated.square()).sum())
    return found, along


def step_length(step: Arrays, along: Arrays, removed: Arrays, factors: Arrays, k: int, solver: Solver) -> Arrays:
    """A step in the length that the curvature along it gives: `delta/<block>` times `length`.

    Of the damped inverse, the length that minimises a quadratic function whose curvature along the step is the GGN's
    on the rows that stay; of the unrolled one, that of a training of the same time. Where the approximation has that
    curvature, it is 1.

    Args:
        step: of `newton_step`.
        along: sums over all rows of the GGN along the steps of all sets, `along` `[sets]`.
        removed: the same sum over the rows of this set, `[1]`.
        factors: of all rows.
        k: which set.
        solver: what was solved.
    """
    before = curv.eigenvalues({i: torch.tensor(v) for i, v in factors.items()}, solver)
    response, model = solver.response, float(step["model"])
    true = max(float(along["along"][k] - removed["along"][0]), 0.0) / solver.rows
    shift = metric = 0.0
    for block in solver.blocks:
        size = float(np.square(step[f"delta/{block.name}"]).sum())
        if not isinstance(response, Damped):
            shift += size * response.shift(solver.l2, block.name)
            metric += size / response.time(block.name)
        elif block.name in before:
            fixed = _fixed(solver, float(before[block.name].mean()), block.numel)
            assert isinstance(fixed, Damped)
            shift += size * (solver.l2 + fixed.added)
        else:
            shift += size * solver.l2
    x, y = (response.held_out * v + shift for v in (model, true))
    if isinstance(response, Damped) or solver.curvature == "identity":
        length = x / y if y > 0 else 1.0
    else:
        phi = saturation(torch.tensor([x, y], dtype=torch.float64) / metric) if metric > 0 else torch.ones(2)
        length = float(phi[1] / phi[0])
    scaled = {name: v * length for name, v in step.items() if name.startswith("delta/")}
    return {**scaled, "length": np.array(length)}


def _fixed(solver: Solver, mean: float, parameters: int) -> Response:
    """The response with the damping that all rows give: it is a ridge, which does not go with the rows."""
    response = solver.response
    if not isinstance(response, Damped):
        return response
    return replace(response, added=response.damping(mean, parameters), layer_mean=0.0, sample=0.0)


def remaining(factors: Arrays, removed: Arrays, solver: Solver) -> Arrays:
    """Factors of the rows that stay, as a mean over *all* n rows, in the basis of all rows.

    K-FAC's are the diagonals of A and G of the rows that stay, in the eigenbasis of all rows.
    """
    if solver.curvature == "identity":
        return factors
    if solver.curvature in DENSE:
        gone = exact.mean_curvature(torch.tensor(removed["H"][0]), float(solver.rows)).numpy()
        return {**factors, "mean": factors["mean"] - gone}
    out = dict(factors)
    for block in solver.blocks:
        if solver.curvature == "ekfac" and f"L/{block.name}" in removed:
            # Sums of squares, of which those that go are a part: what is under 0 is rounding.
            out[f"L/{block.name}"] = np.maximum(factors[f"L/{block.name}"] - removed[f"L/{block.name}"], 0.0)
        elif solver.curvature == "kfac" and f"A/{block.name}" in removed:
            for side, key in (("A", "a"), ("G", "g")):
                gone_rd = _diagonal(removed[f"{side}/{block.name}"], factors.get(f"q_{key}/{block.name}"))
                out[f"l_{key}/{block.name}"] = np.maximum(factors[f"l_{key}/{block.name}"] - gone_rd, 0.0)
            out[f"positions/{block.name}"] = factors[f"positions/{block.name}"] - removed[f"N/{block.name}"]
    return out


def _diagonal(gram: np.ndarray, basis_rdd: np.ndarray | None) -> np.ndarray:
    """The diagonal `[r, d]` of a Gram matrix, whose lower triangle is given, in a basis; of embeddings it is all."""
    if basis_rdd is None:
        return gram
    lower, q = torch.tensor(gram).tril(), torch.tensor(basis_rdd)
    whole: Tensor = lower + lower.tril(-1).transpose(1, 2)
    return (q * (whole @ q)).sum(1).numpy()


def first_order(solved: Arrays, gradient: Arrays, solver: Solver) -> Arrays:
    """The sum `[Q]` of the values of the rows that go, by column, under `change`.

    Raises:
        InputError: a layer without curvature, where the rows have a gradient.
    """
    total = np.zeros(())
    for block in solver.blocks:
        v, u = gradient[f"V/{block.name}"], solved[f"U/{block.name}"]
        if f"flat/{block.name}" in solved and v.any():
            raise InputError(
                f"The curvature of {shown(block.name)} is 0, though the rows that go have gradients there.",
                'use curvature="identity", or leave the layer out of Task(parameters=[...]).',
            )
        total = total + u.reshape(len(u), -1).astype(np.float64) @ v.reshape(-1)
    return {"change": total * solved.get("scale", 1.0)}


def linear_change(queries: Arrays, step: Arrays, solver: Solver, targets: Sequence[Target]) -> Arrays:
    """The change `[Q]` of the linearised objectives along a step, under `change`."""
    vectors = query_vectors({k: torch.tensor(v) for k, v in queries.items()}, targets, solver.blocks, halves=False)
    total = sum(v.flatten(1) @ torch.tensor(step[f"delta/{name}"]).flatten() for name, v in vectors.items())
    assert isinstance(total, Tensor)
    return {"change": total.numpy()}


def join_steps(*steps: Arrays) -> Arrays:
    """The steps of several sets as one payload: `<set>/<block>`."""
    return {
        f"{k}/{name.removeprefix('delta/')}": v
        for k, step in enumerate(steps)
        for name, v in step.items()
        if name.startswith("delta/")
    }


def moved_values(sums: Arrays, sets: int, targets: Sequence[Target]) -> list[dict[str, dict[str, float]]]:
    """The objectives of every set at the moved parameters: column -> `value`, and what stands beside it."""
    held = [
        {k.removeprefix(f"{s}/"): torch.tensor(v) for k, v in sums.items() if k.startswith(f"{s}/")}
        for s in range(sets)
    ]
    return [objective_details(one, targets) for one in held]
