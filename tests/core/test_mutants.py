"""Mutant controls: errors that peers have shipped, put in on purpose. test_curvature must see each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from core.cases import FIRST, Method, error, layer_influence, layer_truth, least_spearman
from torch import Tensor

from rayinf.core import fisher, inverse, kfac, layer_inputs
from rayinf.core import influence as products
from rayinf.core.kfac import Basis
from rayinf.engine import curvature, probe
from rayinf.errors import InputError

Patch = pytest.MonkeyPatch

# What test_curvature allows, and what a mutant must exceed.
ALLOWED, SEEN = 1e-6, 1e-2


def transpose(basis: Basis) -> Basis:
    q_a = None if basis.q_a_rii is None else basis.q_a_rii.mT.contiguous()
    return dataclasses.replace(basis, q_a_rii=q_a, q_g_roo=basis.q_g_roo.mT.contiguous())


def through_basis(change: Callable[[Basis], Basis]) -> Callable[[Patch], None]:
    """A mutant of every basis that is computed."""

    def mutate(patch: Patch) -> None:
        right = kfac.decompose
        patch.setattr(kfac, "decompose", lambda sums, block: change(right(sums, block)))

    return mutate


def transposed_solve(patch: Patch) -> None:
    right = inverse.solve_eigen
    patch.setattr(inverse, "solve_eigen", lambda block, v, basis, *rest: right(block, v, transpose(basis), *rest))


def transposed_lambda(patch: Patch) -> None:
    right = kfac.add_lambda
    patch.setattr(kfac, "add_lambda", lambda sums, block, basis, *rest: right(sums, block, transpose(basis), *rest))


def swapped(basis: Basis) -> Basis:
    return Basis(basis.q_g_roo, basis.q_a_rii, basis.l_g_ro, basis.l_a_ri, basis.positions)


def without_bias(patch: Patch) -> None:
    """The column of ones is 0: the bias has no gradient."""

    def dropped(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def inputs(*args: Any) -> Tensor:
            a = right(*args).clone()
            a[..., -1] = 0
            return a

        return inputs

    for kind, right in list(layer_inputs._INPUTS.items()):
        patch.setitem(layer_inputs._INPUTS, kind, dropped(right))


def averaged(module: Any) -> Callable[[Patch], None]:
    """Row gradients as means over positions, in the scores or in Lambda."""

    def mutate(patch: Patch) -> None:
        right = module.row_gradient_slices

        def slices(a: Tensor, g: Tensor, *rest: Any, **more: Any) -> Iterator[tuple[slice, Tensor]]:
            return ((where, gradient / a.shape[2]) for where, gradient in right(a, g, *rest, **more))

        patch.setattr(module, "row_gradient_slices", slices)

    return mutate


def lambda_as_a_sum(patch: Patch) -> None:
    right = curvature.eigenvalues
    patch.setattr(
        curvature,
        "eigenvalues",
        lambda held, solver: {k: v * float(held["rows"]) for k, v in right(held, solver).items()},
    )


def positions_counted_twice(patch: Patch) -> None:
    right = kfac.kfac_lambda
    patch.setattr(kfac, "kfac_lambda", lambda basis, rows: right(basis, rows) * rows / basis.positions)


def one_label_of_the_expectation(patch: Patch) -> None:
    right = fisher.columns
    patch.setattr(fisher, "columns", lambda *args: right(*args)[:1])


def unweighted_labels(patch: Patch) -> None:
    """All labels alike: the expectation without the probabilities."""

    def columns(logits: Tensor, *rest: Any) -> Tensor:
        k = logits.shape[1]
        eye = torch.eye(k, dtype=logits.dtype)
        return (logits.detach().softmax(1)[None] - eye[:, None]) / k**0.5

    patch.setattr(fisher, "columns", columns)


BOTH: tuple[Method, ...] = ("ekfac", "kfac")
EKFAC, KFAC = BOTH[:1], BOTH[1:]
SHARED = ("conv2d", "conv1d", "tokens", "called twice")
ALONE = ("linear", "linear of two classes", "mlp")
MUTANTS: dict[str, tuple[Callable[[Patch], None], tuple[str, ...], tuple[Method, ...]]] = {
    "Q transposed": (through_basis(transpose), (*ALONE, *SHARED, "embedding"), BOTH),
    "Q transposed in the solve": (transposed_solve, ("mlp", "conv2d", "embedding"), BOTH),
    "Q transposed in Lambda": (transposed_lambda, ("linear", "mlp", "tokens", "conv2d"), EKFAC),
    "A and G swapped": (through_basis(swapped), ("square",), BOTH),
    "scores averaged over positions": (averaged(products), (*SHARED, "embedding"), BOTH),
    "Lambda averaged over positions": (averaged(kfac), (*SHARED, "embedding"), EKFAC),
    "Lambda a sum over rows": (lambda_as_a_sum, ("linear", "conv2d"), BOTH),
    "K-FAC divided by positions twice": (positions_counted_twice, SHARED, KFAC),
    "one label of the expectation": (one_label_of_the_expectation, ("linear", "conv2d"), BOTH),
    "labels without their probabilities": (unweighted_labels, ("linear", "tokens"), BOTH),
}
RUNS = [(what, name, method) for what, (_, names, methods) in MUTANTS.items() for name in names for method in methods]


def score(name: str, method: Method) -> float:
    """The error of test_curvature, of the first layer of a case."""
    return error(*layer_influence(name, FIRST[name], method))


@pytest.mark.parametrize(("what", "name", "method"), RUNS)
def test_a_mutant_is_seen(what: str, name: str, method: Method, monkeypatch: Patch) -> None:
    layer_truth(name, FIRST[name])
    MUTANTS[what][0](monkeypatch)
    found = score(name, method)
    print(f"\n{what}, {name}, {method}: error {found:.2g}, allowed {ALLOWED:.0e}")
    assert found > SEEN


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", [*ALONE, *SHARED])
def test_a_dropped_bias_is_refused_and_would_be_seen(name: str, method: Method, monkeypatch: Patch) -> None:
    layer_truth(name, FIRST[name])
    without_bias(monkeypatch)
    with pytest.raises(InputError, match="and true gradient differ"):
        score(name, method)
    monkeypatch.setattr(probe, "_check_gradients", lambda *args: 0)
    found = score(name, method)
    print(f"\nno bias, {name}, {method}: error {found:.2g}, allowed {ALLOWED:.0e}")
    assert found > SEEN


@pytest.mark.parametrize("name", [*ALONE, *SHARED, "square", "embedding"])
def test_doing_nothing_is_far_from_the_truth(name: str) -> None:
    """Where the identity ranks like the truth, a test by ranks sees nothing (a peer's passes at 0.98 with 0.989)."""
    layer = FIRST[name]
    found, truth = layer_influence(name, layer, "ekfac")
    ours, nothing = least_spearman(found, truth), least_spearman(layer_truth(name, layer).identity(), truth)
    print(f"\n{name}: rank correlation {ours:.6f}, the identity's {nothing:.3f}")
    assert ours > 0.9999  # some rows of words are alike, and rounding orders them
    assert nothing < 0.9
