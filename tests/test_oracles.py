"""Self-checks of the oracles: two independent routes to one number, or a theorem."""

from __future__ import annotations

import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import Fisher
from torch import Tensor, nn


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def ready(model: nn.Module) -> nn.Module:
    return model.double().eval()


class Pooled(nn.Module):
    """A layer under test, an in-place non-linearity, the mean over positions, a head."""

    def __init__(self, layer: nn.Module, width: int, positions_last: bool, calls: int = 1) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)
        self.positions_last, self.calls = positions_last, calls

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for _ in range(self.calls):
            hidden = torch.tanh_(self.layer(hidden))
        return self.head(hidden.flatten(2).mean(2) if self.positions_last else hidden.flatten(1, -2).mean(1))


class InPlace(nn.Module):
    """ReLU in place on the very tensor that the layer returned, then a head."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 4, bias=bias), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu_(self.layer(x)))


def layer_case(name: str) -> tuple[nn.Module, Tensor]:
    grouped = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    cases = {
        "linear": lambda: (InPlace(), torch.randn(6, 5)),
        "linear without bias": lambda: (InPlace(bias=False), torch.randn(6, 5)),
        "linear over tokens": lambda: (Pooled(nn.Linear(5, 4), 4, False), torch.randn(6, 7, 5)),
        "linear called twice": lambda: (Pooled(nn.Linear(5, 5), 5, False, calls=2), torch.randn(6, 3, 5)),
        "conv2d": lambda: (Pooled(nn.Conv2d(3, 4, (2, 3), padding=(0, 1)), 4, True), torch.randn(6, 3, 5, 6)),
        "conv2d grouped": lambda: (Pooled(nn.Conv2d(4, 6, 3, **grouped), 6, True), torch.randn(6, 4, 9, 8)),
        "conv2d depthwise": lambda: (
            Pooled(nn.Conv2d(4, 4, 3, groups=4, bias=False, padding="same"), 4, True),
            torch.randn(6, 4, 5, 5),
        ),
        "conv2d circular": lambda: (
            Pooled(nn.Conv2d(2, 4, 3, padding=(1, 2), padding_mode="circular"), 4, True),
            torch.randn(6, 2, 5, 5),
        ),
        "conv1d grouped": lambda: (Pooled(nn.Conv1d(4, 6, 3, **grouped), 6, True), torch.randn(6, 4, 11)),
        "embedding": lambda: (Pooled(nn.Embedding(9, 4), 4, False), torch.randint(9, (6, 7))),
    }
    model, x = cases[name]()
    return ready(model), x.double() if x.is_floating_point() else x


LAYER_CASES = [
    "linear",
    "linear without bias",
    "linear over tokens",
    "linear called twice",
    "conv2d",
    "conv2d grouped",
    "conv2d depthwise",
    "conv2d circular",
    "conv1d grouped",
    "embedding",
]


def linear_problem(n: int, d: int, classes: int, bias: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear softmax model, labels drawn from it, more rows than parameters."""
    torch.manual_seed(1)
    model = ready(nn.Sequential(nn.Linear(d, classes, bias=bias)))
    x = oracles.correlated_inputs(n, d, seed=2)
    with torch.no_grad():
        y = torch.multinomial(model(x).softmax(1), 1)[:, 0]
    return model, x, y


def transposed(basis: oracles.Basis) -> oracles.Basis:
    return basis._replace(Q_A=basis.Q_A.mT, Q_G=basis.Q_G.mT)


def test_row_gradients_add_up_to_the_batch_gradient() -> None:
    torch.manual_seed(0)
    model = ready(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    x, y = oracles.correlated_inputs(8, 5, seed=0), torch.randint(3, (8,))
    parameters = list(model.parameters())
    batch = torch.autograd.grad(cross_entropy(model(x), y).sum(), parameters)
    rows = oracles.row_gradients(model, cross_entropy, x, y)
    torch.testing.assert_close(rows.sum(0), torch.cat([g.flatten() for g in batch]))
    head = oracles.row_gradients(model, cross_entropy, x, y, names=["2.bias", "2.weight"])
    torch.testing.assert_close(head, rows[:, -15:])


@pytest.mark.parametrize("name", LAYER_CASES)
def test_a_layers_row_gradient_is_the_sum_over_positions_of_g_a(name: str) -> None:
    torch.manual_seed(0)
    model, x = layer_case(name)
    y = torch.randint(3, (len(x),))
    truth = oracles.layer_row_gradients(model, cross_entropy, x, y, "layer")
    a = oracles.layer_positions(model, x, "layer")
    g = oracles.layer_output_gradients(model, cross_entropy, x, y, "layer")
    assert truth.abs().max() > 1e-3
    torch.testing.assert_close(torch.einsum("nrto,nrti->nroi", g, a), truth)


def test_the_bias_is_the_last_column() -> None:
    torch.manual_seed(0)
    model, x = layer_case("conv2d grouped")
    y = torch.randint(3, (len(x),))
    rows = oracles.layer_row_gradients(model, cross_entropy, x, y, "layer")
    bias = oracles.row_gradients(model, cross_entropy, x, y, names=["layer.bias"])
    torch.testing.assert_close(rows[..., -1].flatten(1), bias)


def test_hessian_ggn_and_fisher_agree_on_a_linear_softmax_model() -> None:
    model, x, y = linear_problem(n=60, d=4, classes=3, bias=False)
    H = oracles.hessian(model, cross_entropy, x, y)
    torch.testing.assert_close(oracles.ggn(model, cross_entropy, x, y), H)
    torch.testing.assert_close(oracles.fisher_block(model, cross_entropy, x, y, "0", "true")[0], H)
    empirical = oracles.fisher_block(model, cross_entropy, x, y, "0", "empirical")[0]
    assert (empirical - H).norm() > 0.05 * H.norm()


def test_hessian_differs_from_the_ggn_behind_a_nonlinearity_and_is_the_slope_of_the_gradient() -> None:
    torch.manual_seed(0)
    model = ready(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)))
    x, y = oracles.correlated_inputs(30, 3, seed=0), torch.randint(3, (30,))
    H, J = (f(model, cross_entropy, x, y) for f in (oracles.hessian, oracles.ggn))
    assert (H - J).norm() > 0.05 * H.norm()
    sides, bias, step = [], dict(model.named_parameters())["2.bias"], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            bias[1] += sign * step
        sides.append(oracles.row_gradients(model, cross_entropy, x, y).mean(0))
        with torch.no_grad():
            bias[1] -= sign * step
    torch.testing.assert_close((sides[0] - sides[1]) / (2 * step), H[:, -2], atol=1e-8, rtol=1e-6)
    head = oracles.hessian(model, cross_entropy, x, y, names=["2.weight", "2.bias"])
    torch.testing.assert_close(head, H[-9:, -9:])


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("name", ["linear", "conv2d grouped", "linear over tokens"])
def test_ekfac_is_the_best_diagonal_in_its_basis(name: str, fisher: Fisher) -> None:
    torch.manual_seed(0)
    model, x = layer_case(name)
    y = torch.randint(3, (len(x),))
    arguments = (model, cross_entropy, x, y, "layer", fisher)
    dense = oracles.fisher_block(*arguments)
    basis = oracles.eigenbasis(oracles.factors(*arguments))
    ekfac = oracles.recomposed_block(basis, oracles.textbook_lambda(*arguments))
    kfac = oracles.recomposed_block(basis, oracles.kfac_lambda(*arguments))
    error, kfac_error = ((block - dense).flatten(1).norm(dim=1) for block in (ekfac, kfac))
    print(f"\n{name}, {fisher}: EKFAC {error.tolist()}, K-FAC {kfac_error.tolist()}")
    assert (error < 0.999 * kfac_error).all()
    trace = dense.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(ekfac.diagonal(dim1=1, dim2=2).sum(1), trace)


def test_kfac_has_the_scale_of_the_fisher_where_it_is_exact() -> None:
    """One row: K-FAC is the Fisher itself where T = 1; T positions that are alike make it T times less."""
    torch.manual_seed(0)
    model, x = layer_case("linear")
    y = torch.zeros(1, dtype=torch.long)
    dense = oracles.fisher_block(model, cross_entropy, x[:1], y, "layer")
    basis = oracles.eigenbasis(oracles.factors(model, cross_entropy, x[:1], y, "layer"))
    block = oracles.recomposed_block(basis, oracles.kfac_lambda(model, cross_entropy, x[:1], y, "layer"))
    torch.testing.assert_close(block, dense)

    model, x = layer_case("linear over tokens")
    alike = x[:1, :1].expand(1, 7, 5)
    total = oracles.textbook_lambda(model, cross_entropy, alike, y, "layer").sum()
    kfac_total = oracles.kfac_lambda(model, cross_entropy, alike, y, "layer").sum()
    torch.testing.assert_close(total, 7 * kfac_total)


def test_ekfac_follows_the_dense_inverse_at_low_damping_and_its_mutants_do_not() -> None:
    model, x, y = linear_problem(n=400, d=5, classes=4, bias=True)
    valid, labels = oracles.correlated_inputs(40, 5, seed=2), torch.arange(40) % 4
    queries = oracles.layer_row_gradients(model, cross_entropy, valid, labels, "0")
    queries = torch.stack([queries[labels == c].sum(0) for c in range(4)])
    arguments = (model, cross_entropy, x, y, "0", "true")
    rows = oracles.layer_row_gradients(*arguments[:-1])
    basis, eigenvalues = oracles.eigenbasis(oracles.factors(*arguments)), oracles.textbook_lambda(*arguments)
    damping = 1e-3 * eigenvalues.mean().item()
    H = oracles.fisher_block(*arguments)[0]
    truth = oracles.dense_influence(queries.flatten(1), rows.flatten(1), H, 0.0, damping)

    def score(values: Tensor) -> float:
        return min(oracles.spearman(values[:, q], truth[:, q]) for q in range(4))

    def mutant(other: oracles.Basis) -> float:
        solved = oracles.solve_in_basis(queries, other, eigenvalues, len(x), damping)
        return score(rows.flatten(1) @ solved.flatten(1).T)

    ekfac, kfac = (
        oracles.textbook_influence(
            model, cross_entropy, (x, y), {"0": queries}, ["0"], method=method, damping_scale=1e-3
        )
        for method in ("ekfac", "kfac")
    )
    identity = score(oracles.identity_influence(queries.flatten(1), rows.flatten(1)))
    wrong = mutant(transposed(basis))
    print(f"\nEKFAC {score(ekfac):.3f}, K-FAC {score(kfac):.3f}")
    print(f"transposed {wrong:.3f}, identity (doing nothing) {identity:.3f}")
    assert mutant(basis) == pytest.approx(score(ekfac))
    assert score(ekfac) > 0.95
    assert max(wrong, identity) < 0.8


def test_textbook_influence_adds_layers_and_skips_a_dead_one() -> None:
    torch.manual_seed(0)
    model, x = layer_case("linear")
    y = torch.randint(3, (len(x),))
    queries = {name: oracles.layer_row_gradients(model, cross_entropy, x, y, name) for name in ("layer", "head")}

    def influence(*names: str) -> Tensor:
        return oracles.textbook_influence(model, cross_entropy, (x, y), queries, names, l2=0.1)

    torch.testing.assert_close(influence("layer", "head"), influence("layer") + influence("head"))
    with torch.no_grad():
        model.get_submodule("head").weight.zero_()
    assert influence("layer").eq(0).all()


def test_a_model_in_training_mode_or_in_float32_is_refused() -> None:
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    for model in (nn.Linear(2, 2).double(), nn.Linear(2, 2).eval()):
        with pytest.raises(ValueError, match="an oracle needs"):
            oracles.row_gradients(model, cross_entropy, x, y)


def test_correlated_inputs_are_correlated_and_seeded() -> None:
    x = oracles.correlated_inputs(500, 6, seed=3)
    assert x.dtype == torch.float64 and torch.equal(x, oracles.correlated_inputs(500, 6, seed=3))
    values = torch.linalg.eigvalsh(torch.cov(x.T))
    assert values[-1] > 100 * values[0]
    assert (torch.corrcoef(x.T) - torch.eye(6)).abs().max() > 0.3
