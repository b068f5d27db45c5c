"""The influence measure FI against the naive Algorithms 1 and 2 in float64, its invariances, and what must not pass."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import oracles
import oracles_measure as om
import pytest
import torch
from core.cases import LOW, Table, drawn_labels, fit_to_optimum
from oracles_measure import Row, Subject
from torch import Tensor, nn

import rayinf

ALLOWED = 1e-6
# What every mutant must exceed at half of the rows.
SEEN = 1e-2
HEADS = [(2, 6, 0.01), (2, 6, 0.0), (3, 6, 0.01), (3, 6, 0.0), (5, 6, 0.01), (5, 6, 0.0), (5, 2, 0.01), (5, 3, 0.0)]
NETWORKS = [(2, 4, 0.01), (3, 4, 0.01), (5, 4, 0.01), (5, 2, 0.01)]


@dataclass(frozen=True, eq=False)
class Case:
    """A model at its minimum, and its rows."""

    model: nn.Module
    train: Table
    valid: Table
    l2: float
    names: Sequence[str] | None = None
    parameters: str | Sequence[str] = "all"

    @property
    def subject(self) -> Subject:
        return Subject(self.model, self.names)

    @property
    def task(self) -> rayinf.Task:
        return rayinf.Task(self.model, l2=self.l2, parameters=self.parameters)

    def curvature(self, damping: float = 0.0) -> Tensor:
        return om.mean_curvature(self.subject, self.train, self.l2, damping)

    def util(self, curvature: str = "exact", **how: Any) -> Tensor:
        """What the package gives, `[n]`."""
        scores = rayinf.influence_measure(self.task, self.train, self.valid, curvature=curvature, **how)
        assert scores.columns == ["fi"]
        return torch.from_numpy(scores.to_numpy()[:, 0])

    def active(self, curvature: str = "exact", **how: Any) -> Tensor:
        """What the package gives for the validation rows as a pool, `[m]` in their order."""
        picked = rayinf.acquire(self.task, self.train, (self.valid[0],), 3, curvature=curvature, **how)
        return torch.from_numpy(picked.to_pandas().sort_values("row_id")["value"].to_numpy())

    def truth(self, H: Tensor | None = None, rank: int | None = None) -> Tensor:
        H = self.curvature() if H is None else H
        return om.fi_util_naive(self.subject, self.train, self.valid, H, rank)

    def pairs(self, H: Tensor | None = None, rank: int | None = None) -> Tensor:
        H = self.curvature() if H is None else H
        return om.fi_pairs_naive(self.subject, self.train, self.valid[0], H, rank)


def made(model: nn.Module, classes: int, d: int, l2: float) -> Case:
    """41 rows that it was fitted to, and 9 others."""
    x = oracles.correlated_inputs(50, d, seed=5)
    # A third of the labels are noise: fits without a ridge have their minimum, and no row is sure.
    y = torch.where(torch.rand(50) < 0.33, torch.randint(classes, (50,)), drawn_labels(x, classes))
    fitted = fit_to_optimum(model, x[:41], y[:41], l2)
    return Case(fitted, (x[:41], y[:41]), (x[41:], y[41:]), l2)


@lru_cache
def head(classes: int, d: int, l2: float = 0.01) -> Case:
    torch.manual_seed(1)
    return made(nn.Linear(d, classes), classes, d, l2)


@lru_cache
def network(classes: int, d: int, l2: float = 0.01) -> Case:
    torch.manual_seed(1)
    return made(nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, classes)), classes, d, l2)


def only(case: Case, layer: str) -> Case:
    """One layer of a network is valued; the features of the network are perturbed."""
    names = [f"{layer}.weight", f"{layer}.bias"]
    return Case(case.model, case.train, case.valid, case.l2, names, "last" if layer == "2" else [layer])


CASES: dict[str, Callable[[], Case]] = {
    **{f"head of {k} classes, {d} features, l2 {l2}": lambda a=(k, d, l2): head(*a) for k, d, l2 in HEADS},
    **{f"network of {k} classes, {d} features": lambda a=(k, d, l2): network(*a) for k, d, l2 in NETWORKS},
    "last layer of a network": lambda: only(network(3, 4), "2"),
    "first layer of a network": lambda: only(network(3, 4), "0"),
}
SOME = ("head of 3 classes, 6 features, l2 0.01", "network of 3 classes, 4 features")


def relative(found: Tensor, truth: Tensor) -> float:
    """The largest relative error of all values."""
    return float(((found - truth).abs() / truth).max())


# --- Algorithms 1 and 2


@pytest.mark.parametrize("name", CASES)
def test_every_row_on_the_validation_loss(name: str) -> None:
    case = CASES[name]()
    error = relative(case.util(), case.truth())
    print(f"\n{name}: error {error:.1e} of {ALLOWED:.0e}")
    assert error < ALLOWED


@pytest.mark.parametrize("name", CASES)
def test_all_pairs(name: str) -> None:
    """The quantiles k / (n - 1) are the sorted pairs themselves."""
    case = CASES[name]()
    truth = case.pairs().sort(dim=1).values
    n = truth.shape[1]
    found = torch.stack([case.active(aggregate=f"quantile:{k / (n - 1)}") for k in range(n)], 1)
    error = relative(found, truth)
    print(f"\n{name}: error {error:.1e} of {ALLOWED:.0e} over {truth.numel()} pairs")
    assert error < ALLOWED
    # Else one order of the rows would do for another.
    assert float((truth[:, -1] / truth[:, 0]).min()) > 3


@pytest.mark.parametrize("aggregate", ["trimmed_mean", "mean", "median", "quantile:0.9", "quantile:0.37"])
@pytest.mark.parametrize("name", SOME)
def test_aggregates(name: str, aggregate: str) -> None:
    """Over numbers of labelled rows that a tenth does and does not divide."""
    case = CASES[name]()
    for n in (41, 40, 31, 5):
        fewer = Case(case.model, (case.train[0][:n], case.train[1][:n]), case.valid, case.l2)
        H = fewer.curvature(damping=0.5)  # the fit is no minimum on fewer rows
        truth = om.aggregated(fewer.pairs(H), aggregate)
        assert relative(fewer.active(aggregate=aggregate, damping=0.5), truth) < ALLOWED


@pytest.mark.parametrize("name", CASES)
def test_one_labelled_row(name: str) -> None:
    """FI(z', z_i) itself."""
    case = CASES[name]()
    for i in (0, 20):
        train = case.train[0][i : i + 1], case.train[1][i : i + 1]
        one = dataclasses.replace(case, train=train)
        damping = 0.5 - min(0.0, float(torch.linalg.eigvalsh(one.curvature()).min()))  # the fit is not this row's
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
    wide = Case(
        copy.deepcopy(model).double(), (x.double(), case.train[1]), (valid_x.double(), case.valid[1]), case.l2
    )
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


# --- Invariance


class Seen(nn.Module):
    """A model whose input has been changed by A: it is fed `A x`, and what is valued stays what it was."""

    def __init__(self, model: nn.Module, A: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("back", torch.linalg.inv(A))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x @ self.back.T)


def seen(case: Case, A: Tensor) -> Case:
    moved = [(x @ A.T, y) for x, y in (case.train, case.valid)]
    return Case(Seen(case.model, A).eval(), *moved, case.l2)


def refitted(case: Case, A: Tensor) -> Case:
    """A head without a ridge, fitted to the changed input: it is the old one after the inverse change."""
    assert case.l2 == 0
    model = copy.deepcopy(case.model)
    model.weight.data = case.model.weight.data @ torch.linalg.inv(A)
    return Case(model, *[(x @ A.T, y) for x, y in (case.train, case.valid)], 0.0)


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]


def general(d: int) -> Tensor:
    """Scales over a factor of 10, turned on both sides."""
    return rotation(d) @ torch.diag(torch.logspace(-0.5, 0.5, d, dtype=torch.float64)) @ rotation(d)


@pytest.mark.parametrize("method", ["exact", "ekfac"])
@pytest.mark.parametrize("make", [head, network])
def test_a_rotation_and_a_scale_change_nothing(make: Callable[[int, int], Case], method: str) -> None:
    for classes, d in ((3, 6), (5, 2)):
        case, A = make(classes, d), 2.5 * rotation(d)
        assert relative(seen(case, A).util(method), case.util(method)) < ALLOWED
        assert relative(seen(case, A).active(method), case.active(method)) < ALLOWED


@pytest.mark.parametrize("method", ["exact", "ekfac"])
@pytest.mark.parametrize("make", [head, network])
def test_no_linear_change_matters_to_a_metric_of_full_rank(make: Callable[[int, int], Case], method: str) -> None:
    for classes, d in ((5, 3), (5, 2), (2, 1)):
        case, A = make(classes, d), general(d)
        assert relative(seen(case, A).util(method), case.util(method)) < ALLOWED
        assert relative(seen(case, A).active(method), case.active(method)) < ALLOWED


def test_heads_without_a_ridge_that_are_refitted() -> None:
    case = head(3, 6, 0.0)
    assert relative(refitted(case, 2.5 * rotation(6)).util(), case.util()) < ALLOWED
    case = head(5, 3, 0.0)
    assert relative(refitted(case, general(3)).util(), case.util()) < ALLOWED


@pytest.mark.parametrize("make", [head, network])
def test_a_metric_of_less_than_full_rank_depends_on_the_coordinates(make: Callable[[int, int], Case]) -> None:
    """d > K - 1: a loss moves in directions in which the prediction does not, and G^+ drops what is orthogonal."""
    case = make(3, 6)
    other = seen(case, general(6))
    ratio = other.util() / case.util()
    print(f"\nratios {float(ratio.min()):.2f} to {float(ratio.max()):.2f}")
    assert relative(other.util(), other.truth()) < ALLOWED
    assert float((ratio - 1).abs().max()) > 0.1


# --- One-hot rows


def sure_case() -> tuple[Case, list[int]]:
    """A head of three classes and its rows, some of them so far out that their probabilities are 0 and 1."""
    case, sure = head(3, 6), [3, 17, 30]
    x = case.train[0].clone()
    x[sure] *= 1e5
    P = case.model(x).softmax(1)
    assert ((P == 0).sum(1) == 2).nonzero()[:, 0].tolist() == sure
    return Case(case.model, (x, case.train[1]), case.valid, case.l2), sure


def test_one_hot_rows_have_no_measure_and_are_counted() -> None:
    case, sure = sure_case()
    scores = rayinf.influence_measure(case.task, case.train, case.valid, curvature="exact")
    found, truth = torch.from_numpy(scores.to_numpy()[:, 0]), case.truth()
    others = [i for i in range(41) if i not in sure]
    assert found[sure].tolist() == [0.0, 0.0, 0.0]
    assert scores.metadata["one_hot_rows"] == 3
    assert relative(found[others], truth[others]) < ALLOWED
    pairs = case.pairs()
    assert not pairs[:, sure].any()
    for aggregate in ("mean", "trimmed_mean"):
        assert relative(case.active(aggregate=aggregate), om.aggregated(pairs, aggregate)) < ALLOWED
    assert case.active(aggregate="quantile:0.0").abs().max() == 0
    case = head(3, 6)
    assert rayinf.influence_measure(case.task, case.train, case.valid).metadata["one_hot_rows"] == 0


# --- KFSVD


@pytest.mark.parametrize("name", CASES)
def test_svd_of_full_rank_is_exact(name: str) -> None:
    case = CASES[name]()
    d = case.train[0].shape[1]
    assert relative(case.util(rank=d), case.util()) < 1e-5
    assert relative(case.active(rank=d), case.active()) < 1e-5


@pytest.mark.parametrize(("name", "ranks"), [(SOME[0], (1, 2)), (SOME[1], (1, 2, 3))])
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
        assert relative(case.active(rank=rank), om.aggregated(case.pairs(rank=rank))) < 1e-5


@pytest.mark.parametrize("make", [head, network])
def test_the_error_of_the_svd_falls_with_its_rank(make: Callable[[int, int], Case]) -> None:
    """16 features, so that the subspace is iterated for. From one rank to the next it may rise, on single rows too."""
    case = make(3, 16)
    truth = case.util()
    errors = [float(((case.util(rank=k) - truth).abs() / truth).mean()) for k in (1, 2, 8, 12, 16)]
    print("\nmean relative error", " ".join(f"{e:.1e}" for e in errors))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


# --- Mutants, on the oracle's side: what the tests above must see


def without_identity(case: Case, row: Row, x: Tensor, y: Tensor) -> Row:
    """M without the part `g (x) I` of its first layer: the input in `g a'` itself does not move."""
    first = next(m for m in case.model.modules() if isinstance(m, nn.Linear))
    o, d = first.weight.shape
    g = case.subject.gradient(x, y)[o * d : o * d + o]
    M = row.M.clone()
    M[: o * d] -= (g[:, None, None] * torch.eye(d, dtype=g.dtype)).flatten(0, 1)
    return row._replace(M=M)


MUTANTS: dict[str, Callable[[Case, Row, Tensor, Tensor, int], tuple[Row, int]]] = {
    "M without e (x) I": lambda case, row, x, y, n: (without_identity(case, row, x, y), n),
    "n dropped": lambda case, row, x, y, n: (row, 1),
    "T without d theta": lambda case, row, x, y, n: (row._replace(in_theta=0 * row.in_theta), n),
    "T with the other sign of d theta": lambda case, row, x, y, n: (row._replace(in_theta=-row.in_theta), n),
    "T of d theta alone": lambda case, row, x, y, n: (row._replace(in_x=0 * row.in_x), n),
}


def mutated(case: Case, what: str, gradient: Tensor) -> Tensor:
    H_inverse, n = om.symmetric_inverse(case.curvature()), len(case.train[0])
    out = []
    for row, x, y in zip(om.rows_of(case.subject, case.train), *case.train, strict=True):
        changed, rows = MUTANTS[what](case, row, x, y, n)
        out.append(om.measure(changed, gradient, H_inverse, rows))
    return torch.stack(out)


@pytest.mark.parametrize("what", MUTANTS)
@pytest.mark.parametrize("name", CASES)
def test_a_mutant_is_seen(what: str, name: str) -> None:
    case = CASES[name]()
    if what == "M without e (x) I" and name.startswith("last"):
        pytest.skip("the input of the last layer is not the features")
    gradient = om.mean_gradient(case.subject, case.valid)
    truth = case.truth()
    median = float(((mutated(case, what, gradient) - truth).abs() / truth).median())
    print(f"\n{what}, {name}: half of the rows are off by {median:.2g}, allowed {ALLOWED:.0e}")
    assert median > SEEN


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
