"""Self-checks of the oracle of FI: refits of perturbed rows, the metric as a divergence, two routes to one number."""

from __future__ import annotations

import oracles
import oracles_measure as om
import pytest
import torch
from oracles_measure import Head, Subject, Table, cross_entropy
from torch import Tensor, nn

STEP = 1e-4
L2 = 0.02


def labels(x: Tensor, classes: int) -> Tensor:
    """Of a noisy linear teacher: no class is sure, so that a fit without a ridge has its minimum."""
    teacher = torch.randn(x.shape[1], classes, dtype=torch.float64) / x.shape[1] ** 0.5
    return torch.multinomial((x / x.std(0) @ teacher).softmax(1), 1)[:, 0]


def refit(model: nn.Linear, train: Table, l2: float) -> nn.Linear:
    """Newton's method on the mean loss + l2/2 |theta|^2, from where the model is; a class shift stays as it is."""
    fitted = nn.Linear(model.in_features, model.out_features).double().eval()
    fitted.load_state_dict(model.state_dict())
    for _ in range(12):
        theta = torch.cat([p.detach().flatten() for p in fitted.parameters()])
        gradient = oracles.row_gradients(fitted, cross_entropy, *train).mean(0) + l2 * theta
        H = oracles.hessian(fitted, cross_entropy, *train) + l2 * torch.eye(len(theta), dtype=torch.float64)
        theta = theta - torch.linalg.pinv(H, rtol=1e-12, hermitian=True) @ gradient
        nn.utils.vector_to_parameters(theta, fitted.parameters())
    return fitted


def fitted_head(classes: int, d: int, l2: float, n: int = 30) -> tuple[nn.Linear, Table, Table]:
    torch.manual_seed(classes)
    x = oracles.correlated_inputs(n + 8, d, seed=d)
    y = labels(x, classes)
    start = nn.Linear(d, classes).double()
    nn.init.zeros_(start.weight)
    nn.init.zeros_(start.bias)
    return refit(start, (x[:n], y[:n]), l2), (x[:n], y[:n]), (x[n:], y[n:])


def network(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double().eval()


def perturbed(train: Table, i: int, w: Tensor) -> Table:
    x = train[0].clone()
    x[i] += w
    return x, train[1]


def refits(model: nn.Linear, train: Table, i: int, l2: float) -> list[tuple[nn.Linear, nn.Linear]]:
    """The fits with row i moved forth and back along every coordinate."""
    steps = STEP * torch.eye(train[0].shape[1], dtype=torch.float64)
    return [(refit(model, perturbed(train, i, w), l2), refit(model, perturbed(train, i, -w), l2)) for w in steps]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("l2", [0.0, L2])
@pytest.mark.parametrize("classes", [2, 3])
def test_parameters_move_as_refits_do(classes: int, l2: float) -> None:
    """The sign of `d theta` too, which the paper has both ways."""
    model, train, _ = fitted_head(classes, 2, l2)
    of = Subject(model)
    H_inverse = om.symmetric_inverse(om.mean_curvature(of, train, l2))
    for i in (0, 7):
        row = om.row_of(of, train[0][i], train[1][i])
        moved = om.moved_parameters(row, H_inverse, len(train[0]))
        truth = torch.stack([(flat(a) - flat(b)) / (2 * STEP) for a, b in refits(model, train, i, l2)], 1)
        assert truth.abs().max() > 1e-3
        assert (moved - truth).abs().max() < 1e-6 * truth.abs().max()


def test_slope_and_metric_are_those_of_refits() -> None:
    """v: the slope of a loss after the refit. `w'G w / 2`: the divergence of the row's own prediction after it."""
    model, train, valid = fitted_head(3, 2, L2)
    of, i = Subject(model), 4
    H_inverse = om.symmetric_inverse(om.mean_curvature(of, train, L2))
    row = om.row_of(of, train[0][i], train[1][i])
    moved = om.moved_parameters(row, H_inverse, len(train[0]))

    slopes = [
        (float(mean_loss(a, valid)) - float(mean_loss(b, valid))) / (2 * STEP) for a, b in refits(model, train, i, L2)
    ]
    v, truth = moved.T @ om.mean_gradient(of, valid), torch.tensor(slopes, dtype=torch.float64)
    assert (v - truth).abs().max() < 1e-6 * truth.abs().max()

    G = om.metric(row, moved)
    for w in 1e-3 * torch.randn(4, 2, dtype=torch.float64):
        both = [divergence(model, refit(model, perturbed(train, i, s * w), L2), train[0][i], s * w) for s in (1, -1)]
        assert sum(both) == pytest.approx(float(w @ G @ w), rel=1e-4)


def mean_loss(model: nn.Module, table: Table) -> Tensor:
    return cross_entropy(model(table[0]), table[1]).mean().detach()


def divergence(before: nn.Module, after: nn.Module, x: Tensor, w: Tensor) -> float:
    """`KL(P before || P after)` of the row, where it lies then."""
    with torch.no_grad():
        old, new = before(x[None]).log_softmax(1)[0], after((x + w)[None]).log_softmax(1)[0]
    return float((old.exp() * (old - new)).sum())


def test_fi_is_the_steepest_slope_a_unit_of_the_metric() -> None:
    """Where G has full rank, FI is the largest `(v'w)^2 / w'G w`."""
    model, train, valid = fitted_head(4, 2, L2)
    of = Subject(model)
    H_inverse = om.symmetric_inverse(om.mean_curvature(of, train, L2))
    gradient = om.mean_gradient(of, valid)
    row = om.row_of(of, train[0][0], train[1][0])
    moved = om.moved_parameters(row, H_inverse, len(train[0]))
    angles = torch.linspace(0, torch.pi, 20_001, dtype=torch.float64)
    w = torch.stack([angles.cos(), angles.sin()], 1)
    ratios = (w @ moved.T @ gradient).square() / ((w @ om.metric(row, moved)) * w).sum(1)
    assert float(om.measure(row, gradient, H_inverse, len(train[0]))) == pytest.approx(float(ratios.max()), rel=1e-6)


def test_mixed_derivative_of_a_network_by_differences() -> None:
    model = network()
    for names in (None, ["2.weight", "2.bias"]):
        of, x, y = Subject(model, names), torch.randn(4, dtype=torch.float64), torch.tensor(1)
        steps = 1e-5 * torch.eye(4, dtype=torch.float64)
        truth = torch.stack([(of.gradient(x + w, y) - of.gradient(x - w, y)) / 2e-5 for w in steps], 1)
        assert (om.row_of(of, x, y).M - truth).abs().max() < 1e-8


def test_gradients_of_log_probabilities_add_up_to_nothing() -> None:
    """`sum_c P_c d log P_c = 0`, so G has rank K - 1 at most."""
    row = om.row_of(Subject(network()), torch.randn(4, dtype=torch.float64), torch.tensor(0))
    assert (row.P @ row.in_theta).abs().max() < 1e-14
    assert (row.P @ row.in_x).abs().max() < 1e-14
    assert row.P.sum() == pytest.approx(1)


def test_truncated() -> None:
    M = torch.randn(7, 4, dtype=torch.float64)
    assert torch.linalg.matrix_rank(om.truncated(M, 2)) == 2
    assert torch.allclose(om.truncated(M, 4), M)
    assert om.truncated(M, None) is M


def test_layers_as_one_curvature() -> None:
    """The diagonal blocks of the Gauss-Newton matrix, which for softmax is the true Fisher."""
    model = network()
    x = oracles.correlated_inputs(9, 4, seed=1)
    y = labels(x, 3)
    blocks = {name: oracles.fisher_block(model, cross_entropy, x, y, name) for name in ("0", "2")}
    found, whole = om.curvature_of_layers(model, blocks), oracles.ggn(model, cross_entropy, x, y)
    assert torch.allclose(found[:25, :25], whole[:25, :25], atol=1e-14)
    assert torch.allclose(found[25:, 25:], whole[25:, 25:], atol=1e-14)
    assert not found[:25, 25:].any()


def test_aggregates() -> None:
    pairs = torch.arange(20.0, dtype=torch.float64).flip(0)[None]
    assert float(om.aggregated(pairs)) == pytest.approx(sum(range(2, 18)) / 16)
    assert float(om.aggregated(pairs[:, :1])) == 19
    assert float(om.aggregated(pairs[:, :11])) == pytest.approx(sum(range(10, 19)) / 9)
    assert float(om.aggregated(pairs, "mean")) == 9.5
    assert float(om.aggregated(pairs, "quantile:0.25")) == 4.75
    assert float(om.aggregated(pairs, "median")) == 9.5


@pytest.mark.parametrize("l2", [0.0, L2])
@pytest.mark.parametrize(("classes", "d"), [(2, 5), (3, 4), (5, 3)])
def test_dense_is_the_naive_form(classes: int, d: int, l2: float) -> None:
    model, train, valid = fitted_head(classes, d, l2, n=60)
    of, head = Subject(model), Head(model.weight.detach(), model.bias.detach())
    H = om.mean_curvature(of, train, l2)
    assert_close(om.fi_util_dense(head, train, valid, l2), om.fi_util_naive(of, train, valid, H))
    pairs = om.fi_pairs_naive(of, train, valid[0], H)
    assert_close(om.fi_pairs_dense(head, train, valid[0], l2), pairs)
    assert_close(om.fi_active_dense(head, train, valid[0], l2), om.aggregated(pairs))


def test_dense_through_an_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the head is valued, the features of the whole model are perturbed; batches of few rows."""
    model = network()
    x = oracles.correlated_inputs(25, 4, seed=2)
    train, valid = (x[:20], labels(x[:20], 3)), (x[20:], labels(x[20:], 3))
    of = Subject(model, ["2.weight", "2.bias"])
    head = Head(model[2].weight.detach(), model[2].bias.detach(), model[:2])
    H = om.mean_curvature(of, train, L2, 0.01)
    monkeypatch.setattr(om, "M_FLOATS", 3 * len(H) * 4)
    assert_close(om.fi_util_dense(head, train, valid, L2, 0.01), om.fi_util_naive(of, train, valid, H))
    assert_close(om.fi_pairs_dense(head, train, valid[0], L2, 0.01), om.fi_pairs_naive(of, train, valid[0], H))


def assert_close(found: Tensor, truth: Tensor) -> None:
    error = float(((found - truth).abs() / truth).max())
    print(f"largest relative error {error:.1e}")
    assert error < 1e-7
