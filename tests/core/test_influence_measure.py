"""The influence measure FI against the naive Algorithms 1 and 2 in float64, and its errors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import oracles
import oracles_measure as om
import pytest
import torch
from core.cases import LOW
from core.measure_cases import ALLOWED, CASES, SOME, Case, head, network, relative, safe_damping
from torch import Tensor, nn

import rayinf

# --- Algorithms 1 and 2


@pytest.mark.parametrize("name", CASES)
def test_every_row_on_the_validation_loss(name: str) -> None:
    case = CASES[name]()
    error = relative(case.util(), case.truth())
    print(f"\n{name}: error {error:.1e} of {ALLOWED:.0e}")
    assert error < ALLOWED


@pytest.mark.parametrize("name", CASES)
def test_all_pairs(name: str) -> None:
    """By quantiles that are each the mean of two neighbours among the sorted pairs of a pool row."""
    case = CASES[name]()
    pairs = case.pairs()
    n = pairs.shape[1]
    rules = [f"quantile:{min((k + 0.5) / (n - 1), 1.0)}" for k in range(0, n, 2)]
    error = max(relative(case.active(aggregate=rule), om.aggregated(pairs, rule)) for rule in rules)
    print(f"\n{name}: error {error:.1e} of {ALLOWED:.0e} over {pairs.numel()} pairs")
    assert error < ALLOWED
    assert float((pairs.amax(1) / pairs.amin(1)).min()) > 3


@pytest.mark.parametrize("n", [40, 31, 5])
@pytest.mark.parametrize("name", SOME)
def test_aggregates(name: str, n: int) -> None:
    """Over numbers of labelled rows that ten does and does not divide."""
    case = CASES[name]()
    fewer = dataclasses.replace(case, train=(case.train[0][:n], case.train[1][:n]))
    damping = safe_damping(fewer)
    pairs = fewer.pairs(fewer.curvature(damping))
    for aggregate in ("trimmed_mean", "mean", "median", "quantile:0.9", "quantile:0.37"):
        found = fewer.active(aggregate=aggregate, damping=damping)
        assert relative(found, om.aggregated(pairs, aggregate)) < ALLOWED


@pytest.mark.parametrize("name", CASES)
def test_one_labelled_row(name: str) -> None:
    """FI(z', z_i) itself."""
    case = CASES[name]()
    for i in (0, 20):
        train = case.train[0][i : i + 1], case.train[1][i : i + 1]
        one = dataclasses.replace(case, train=train)
        damping = safe_damping(one)
        truth = one.pairs(one.curvature(damping))[:, 0]
        assert relative(one.active(aggregate="mean", damping=damping), truth) < ALLOWED


def test_the_best_are_picked() -> None:
    case = head(3, 6)
    truth = om.aggregated(case.pairs()).numpy()
    order = list((-truth).argsort())
    garbage = torch.full_like(case.valid[1], 7)
    for pool in (case.valid[0].numpy(), (case.valid[0],), (case.valid[0], garbage)):
        picked = rayinf.acquire(case.task, case.train, pool, 4, strategy="fi", curvature="exact")
        assert list(picked.row_ids) == order[:4]
        assert list(picked.kept) == sorted(order[:4])
        assert set(picked.removed) == set(order[4:])
        frame = picked.to_pandas()
        assert list(frame["row_id"]) == order
        assert list(frame["kept"]) == [True] * 4 + [False] * 5


@pytest.mark.parametrize("name", SOME)
def test_a_model_in_float32(name: str) -> None:
    """Its weights are what they are; all that follows is float64."""
    case = CASES[name]()
    x, valid_x = (table[0].float() for table in (case.train, case.valid))
    model = copy.deepcopy(case.model).float()
    small = Case(model, (x, case.train[1]), (valid_x, case.valid[1]), case.l2)
    wide = Case(copy.deepcopy(model).double(), (x.double(), case.train[1]), (valid_x.double(), case.valid[1]), case.l2)
    assert relative(small.util(), wide.truth()) < ALLOWED
    assert relative(small.active(), om.aggregated(wide.pairs())) < ALLOWED


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_does_not_matter(name: str, batch_size: int) -> None:
    case = CASES[name]()
    assert relative(case.util(batch_size=batch_size), case.util()) < 1e-9
    assert relative(case.active(batch_size=batch_size), case.active()) < ALLOWED


# --- EKFAC and K-FAC


def factored(case: Case, method: str, damping: float | None) -> Tensor:
    """The matrix that the factors of all layers stand for, damped."""
    blocks = {}
    for name, module in case.model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        arguments = (case.model, om.cross_entropy, *case.train, name)
        basis = oracles.eigenbasis(oracles.factors(*arguments))
        values = oracles.textbook_lambda(*arguments) if method == "ekfac" else oracles.kfac_lambda(*arguments)
        shift = case.l2 + (0.1 * float(values.mean()) if damping is None else damping)
        blocks[name] = oracles.recomposed_block(basis, values + shift)
    return om.curvature_of_layers(case.model, blocks)


@pytest.mark.parametrize("damping", [None, LOW])
@pytest.mark.parametrize("method", ["ekfac", "kfac"])
@pytest.mark.parametrize("name", SOME)
def test_factored_curvature(name: str, method: str, damping: float | None) -> None:
    case = CASES[name]() if damping is None else CASES[name.replace("l2 0.01", "l2 0.0")]()
    H = factored(case, method, damping)
    truth = case.truth(H)
    error = relative(case.util(method, damping=damping), truth)
    print(f"\n{name}, {method}: error {error:.1e}; the exact curvature's {relative(case.truth(), truth):.2f}")
    assert error < ALLOWED
    assert relative(case.active(method, damping=damping), om.aggregated(case.pairs(H))) < ALLOWED
    assert relative(case.truth(), truth) > 0.05


# --- KFSVD


@pytest.mark.parametrize("name", CASES)
def test_svd_of_full_rank_is_exact(name: str) -> None:
    case = CASES[name]()
    d = case.train[0].shape[1]
    assert relative(case.util(rank=d), case.util()) < 1e-5
    assert relative(case.active(rank=d), case.active()) < 1e-5


@pytest.mark.parametrize(("name", "ranks"), [(SOME[0], (1, 2)), (SOME[1], (1, 3))])
def test_truncated_svd(name: str, ranks: Sequence[int]) -> None:
    """A head's M has d - 2K equal singular values at least: beyond the leading ones its subspace is arbitrary."""
    case = CASES[name]()
    rows = list(om.rows_of(case.subject, case.train))
    for rank in ranks:
        scores = rayinf.influence_measure(case.task, case.train, case.valid, curvature="exact", rank=rank)
        error = relative(torch.from_numpy(scores.to_numpy()[:, 0]), case.truth(rank=rank))
        shares = [float(om.truncated(row.M, rank).norm() / row.M.norm()) for row in rows]
        print(f"\n{name}, rank {rank}: error {error:.1e}, captured {sum(shares) / len(shares):.3f}")
        assert error < 1e-5
        assert scores.metadata["captured_share"] == pytest.approx(sum(shares) / len(shares), rel=1e-6)
    assert relative(case.active(rank=ranks[0]), om.aggregated(case.pairs(rank=ranks[0]))) < 1e-5


@pytest.mark.parametrize("make", [head, network])
def test_the_error_of_the_svd_falls_with_its_rank(make: Callable[[int, int], Case]) -> None:
    """16 features, so that the subspace is iterated for. From one rank to the next it may rise, on single rows too."""
    case = make(3, 16)
    truth = case.util()
    errors = [float(((case.util(rank=k) - truth).abs() / truth).mean()) for k in (1, 2, 8, 12, 16)]
    print("\nmean relative error", " ".join(f"{e:.1e}" for e in errors))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


# --- Wrong input


def refused(match: str, call: Callable[[], object]) -> None:
    with pytest.raises(rayinf.RayinfError, match=match) as caught:
        call()
    assert "Fix:" in str(caught.value)


def test_one_class() -> None:
    """A model of one logit has probabilities of 1 alone."""
    case = head(2, 6)
    single = Case(nn.Linear(6, 1).double(), *[(x, 0 * y) for x, y in (case.train, case.valid)], 0.01)
    refused("1 logit|one logit|one class|1 class|binary", single.util)
    refused("1 logit|one logit|one class|1 class|binary", single.active)


@pytest.mark.parametrize("rank", [7, 0, -1, 2.5, True])
def test_a_rank_that_there_is_not(rank: Any) -> None:
    refused("rank", lambda: head(3, 6).util(rank=rank))
    refused("rank", lambda: head(3, 6).active(rank=rank))


@pytest.mark.parametrize("aggregate", ["max", "quantile:1.5", "quantile:", "quantile:nan", True])
def test_an_unknown_aggregate(aggregate: Any) -> None:
    refused("aggregate", lambda: head(3, 6).active(aggregate=aggregate))


def test_more_rows_than_the_pool_has() -> None:
    case = head(3, 6)
    refused("10 .*9", lambda: rayinf.acquire(case.task, case.train, (case.valid[0],), 10, curvature="exact"))


def test_no_labelled_rows() -> None:
    case = head(3, 6)
    none = case.train[0][:0], case.train[1][:0]
    refused("train|labeled", lambda: rayinf.acquire(case.task, none, (case.valid[0],), 3, curvature="exact"))
    refused("train", lambda: rayinf.influence_measure(case.task, none, case.valid, curvature="exact"))
