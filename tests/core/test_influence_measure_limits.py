"""What FI must not depend on, rows at the edge of its definition, and mutants of it that the tests must see."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import oracles_measure as om
import pytest
import torch
from core.measure_cases import ALLOWED, CASES, SOME, Case, head, network, relative
from oracles_measure import Row
from torch import Tensor, nn
from torch.func import jacfwd, jacrev

import rayinf

# What every mutant must exceed at half of the rows.
SEEN = 1e-2
# For models that were not fitted.
DAMPING = 5.0
# Of the logits of a row that is nearly sure.
GAPS = (3.0, 30.0, 45.0, 300.0)


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


def rotation(d: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


def general(d: int) -> Tensor:
    """Scales over a factor of 10, rotated on both sides."""
    return rotation(d) @ torch.diag(torch.logspace(-0.5, 0.5, d, dtype=torch.float64)) @ rotation(d, seed=2)


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


def sure_row(case: Case, gap: float) -> tuple[Case, float]:
    """A model of two classes that is this sure of its first row, and that row's FI without cancellation.

    In the gap z of the logits, the label's above the other's, and with q the probability of the other:
    `M = q (1 - q) z_theta z_x' - q z_theta_x`, `T = z_theta' d theta + z_x`, `FI = (v'T)^2 / (q (1 - q) |T|^4)`.
    """
    model = copy.deepcopy(case.model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    x, y = case.train[0], case.train[1].clone()
    y[0] = 1
    with torch.no_grad():
        last.bias[1] += gap - (model(x[:1]) @ torch.tensor([[-1.0], [1.0]], dtype=torch.float64)).item()
    sure = dataclasses.replace(case, model=model, train=(x, y))
    of = sure.subject

    def z(theta: Tensor, row: Tensor) -> Tensor:
        logits = of.logits(theta, row)
        return logits[1] - logits[0]

    in_theta, in_x = jacrev(z, argnums=(0, 1))(of.theta, x[0])
    mixed = jacfwd(jacrev(z), argnums=1)(of.theta, x[0])
    q = torch.sigmoid(torch.tensor(-gap, dtype=torch.float64))
    M = q * (1 - q) * torch.outer(in_theta, in_x) - q * mixed
    moved = -om.symmetric_inverse(sure.curvature(DAMPING)) @ M / len(x)
    T = in_theta @ moved + in_x
    v = moved.T @ om.mean_gradient(of, sure.valid)
    return sure, float((v @ T) ** 2 / (q * (1 - q) * (T @ T) ** 2))


@pytest.mark.parametrize(
    ("make", "gap"),
    [(make, g) for make in (head, network) for g in GAPS],
)
def test_rows_that_are_nearly_sure(make: Callable[[int, int], Case], gap: float) -> None:
    """At 45 one probability is exactly 1 in float64, and the other is not yet 0: the row has its measure."""
    case, truth = sure_row(make(2, 4), gap)
    if gap == 3:
        assert float(case.truth(case.curvature(DAMPING))[0]) == pytest.approx(truth, rel=ALLOWED)
    how = {"curvature": "exact", "damping": DAMPING}
    scores = rayinf.influence_measure(case.task, case.train, case.valid, **how)
    print(f"\n{gap}: {scores.to_numpy()[0, 0]:.6g}, truth {truth:.6g}")
    assert scores.to_numpy()[0, 0] == pytest.approx(truth, rel=ALLOWED, abs=0)
    assert scores.metadata["one_hot_rows"] == 0


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


def mutated(case: Case, what: str) -> Tensor:
    gradient, H_inverse = om.mean_gradient(case.subject, case.valid), om.symmetric_inverse(case.curvature())
    out = []
    for row, x, y in zip(om.rows_of(case.subject, case.train), *case.train, strict=True):
        changed, rows = MUTANTS[what](case, row, x, y, len(case.train[0]))
        out.append(om.measure(changed, gradient, H_inverse, rows))
    return torch.stack(out)


@pytest.mark.parametrize("what", MUTANTS)
@pytest.mark.parametrize("name", [*(name for name in CASES if name.startswith("head")), SOME[1]])
def test_a_mutant_is_seen(what: str, name: str) -> None:
    case = CASES[name]()
    truth = case.truth()
    median = float(((mutated(case, what) - truth).abs() / truth).median())
    print(f"\n{what}, {name}: half of the rows are off by {median:.2g}, allowed {ALLOWED:.0e}")
    assert median > SEEN
