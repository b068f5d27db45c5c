"""Influence under every curvature against naive float64 definitions, at low damping, beside what the identity gives."""

from __future__ import annotations

import oracles
import pytest
import torch
import torch.nn.functional as F
from core.cases import (
    FIRST,
    LAYERS,
    LOW,
    Case,
    Method,
    Table,
    by_class,
    case,
    cross_entropy,
    drawn_labels,
    error,
    fit,
    fit_to_optimum,
    influence,
    layer_influence,
    layer_truth,
    least_spearman,
    query_matrices,
)
from oracles import Fisher, Loss
from torch import Tensor, nn

from rayinf.errors import InputError


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=0.2)


def head_case(classes: int, l2: float) -> Case:
    """A logistic regression at its optimum, on 150 rows of 4 features."""
    torch.manual_seed(5)
    x = oracles.correlated_inputs(190, 4, seed=5)
    y = drawn_labels(x, classes)
    model = fit_to_optimum(nn.Sequential(nn.Linear(4, classes)), x[:150], y[:150], l2)
    return Case(model, (x[:150], y[:150]), (x[150:], y[150:]), classes)


def network_case(norm: bool, loss: Loss = cross_entropy) -> Case:
    """A small tanh network, with or without a layer that K-FAC has no rule for."""
    torch.manual_seed(6)
    x = oracles.correlated_inputs(110, 4, seed=6)
    y = drawn_labels(x, 3)
    middle = [nn.LayerNorm(3)] if norm else []
    model = fit(nn.Sequential(nn.Linear(4, 3), *middle, nn.Tanh(), nn.Linear(3, 3)), x[:80], y[:80], 60)
    return Case(model, (x[:80], y[:80]), (x[80:], y[80:]), 3)


def gradients(c: Case, loss: Loss = cross_entropy, names: list[str] | None = None) -> tuple[Tensor, Tensor]:
    """Row gradients `[n, p]` and query vectors `[1 + K, p]`."""
    rows, valid = (oracles.row_gradients(c.model, loss, *table, names) for table in (c.train, c.valid))
    return rows, by_class(valid, c.valid[1], c.classes)


def compare(what: str, found: Tensor, truth: Tensor, rows: Tensor, queries: Tensor, most: float) -> None:
    doing_nothing = least_spearman(oracles.identity_influence(queries, rows), truth)
    print(
        f"\n{what}: error {error(found, truth):.1e} of {most:.0e}; the identity's rank correlation {doing_nothing:.3f}"
    )
    assert error(found, truth) < most
    assert doing_nothing < 0.97


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("method", ["ekfac", "kfac"])
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_a_layer_at_low_damping(name: str, layer: str, method: Method, fisher: Fisher) -> None:
    found, truth = layer_influence(name, layer, method, fisher)
    held = layer_truth(name, layer, fisher)
    other: Method = "kfac" if method == "ekfac" else "ekfac"
    mistaken = error(held.influence(other, LOW * float(held.eigenvalues[method].mean())), truth)
    doing_nothing = least_spearman(held.identity(), truth)
    print(f"\n{name}, {layer}: error {error(found, truth):.1e} of 1e-06; {other} {mistaken:.2f}")
    print(f"rank correlation {least_spearman(found, truth):.6f}, the identity's {doing_nothing:.3f}")
    assert error(found, truth) < 1e-6
    assert mistaken > 0.05
    assert doing_nothing < 0.95


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "tokens", "embedding", "called twice"])
def test_all_layers_at_the_damping_of_peers(name: str, method: Method) -> None:
    c = case(name)
    layers = [n for n, m in c.model.named_modules() if list(m.parameters(recurse=False))]
    queries = {layer: query_matrices(c, layer) for layer in layers}
    truth = oracles.textbook_influence(
        c.model, cross_entropy, c.train, queries, layers, method, l2=0.01, damping_scale=0.1
    )
    found = influence(c.model, c.train, c.valid, {"l2": 0.01}, curvature=method, damping="layer_mean:0.1")
    assert error(found, truth) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 13])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "embedding"])
def test_the_batch_size_does_not_matter(name: str, batch_size: int) -> None:
    found, truth = layer_influence(name, FIRST[name], "ekfac", batch_size=batch_size)
    assert error(found, truth) < 1e-6


@pytest.mark.parametrize("curvature", ["exact", "ggn"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_logistic_head_at_its_optimum(classes: int, curvature: str) -> None:
    l2 = 1e-2
    c = head_case(classes, l2)
    rows, queries = gradients(c)
    H = oracles.hessian(c.model, cross_entropy, *c.train)
    truth = oracles.dense_influence(queries, rows, H, l2, 0.0)
    found = influence(c.model, c.train, c.valid, {"l2": l2}, curvature=curvature)
    compare(f"{curvature}, K = {classes}", found, truth, rows, queries, 1e-8)


def test_a_singular_head_is_solved_where_the_queries_are() -> None:
    """Without a ridge the logits may all shift together; no gradient has a part there."""
    c = head_case(3, 0.0)
    rows, queries = gradients(c)
    H = oracles.hessian(c.model, cross_entropy, *c.train)
    truth = rows @ torch.linalg.pinv(len(rows) * H, rtol=1e-10) @ queries.T
    found = influence(c.model, c.train, c.valid, curvature="exact")
    compare("exact without a ridge", found, truth, rows, queries, 1e-8)


@pytest.mark.parametrize("curvature", ["exact", "ggn"])
@pytest.mark.parametrize("loss", [cross_entropy, smoothed])
@pytest.mark.parametrize("norm", [False, True])
def test_a_network_of_few_parameters(norm: bool, loss: Loss, curvature: str) -> None:
    c = network_case(norm)
    rows, queries = gradients(c, loss)
    H = (oracles.hessian if curvature == "exact" else oracles.ggn)(c.model, loss, *c.train)
    values = torch.linalg.eigvalsh(H)
    damping = float(1e-3 * values.mean() + 2 * (-values.min()).clamp(min=0))
    truth = oracles.dense_influence(queries, rows, H, 1e-3, damping)
    task = {"l2": 1e-3, "loss": "cross_entropy" if loss is cross_entropy else loss}
    found = influence(c.model, c.train, c.valid, task, curvature=curvature, damping=damping)
    compare(f"{curvature}, LayerNorm {norm}, {loss.__name__}", found, truth, rows, queries, 1e-8)


@pytest.mark.parametrize("curvature", ["exact", "ggn"])
def test_the_last_layer_of_a_network(curvature: str) -> None:
    c = network_case(norm=True)
    names = ["3.weight", "3.bias"]
    rows, queries = gradients(c, names=names)
    H = oracles.hessian(c.model, cross_entropy, *c.train, names)
    truth = oracles.dense_influence(queries, rows, H, 1e-4, 0.0)
    found = influence(c.model, c.train, c.valid, {"l2": 1e-4, "parameters": "last"}, curvature=curvature)
    compare(f"{curvature} of the last layer", found, truth, rows, queries, 1e-8)


def test_the_identity() -> None:
    c = network_case(norm=True)
    rows, queries = gradients(c)
    found = influence(c.model, c.train, c.valid, curvature="identity")
    assert error(found, oracles.identity_influence(queries, rows)) < 1e-12


def test_a_negative_hessian_is_refused() -> None:
    c = network_case(norm=False)
    assert torch.linalg.eigvalsh(oracles.hessian(c.model, cross_entropy, *c.train)).min() < -1e-6
    with pytest.raises(InputError, match=r"negative eigenvalues.*Fix: use curvature=\"ggn\""):
        influence(c.model, c.train, c.valid, curvature="exact")


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_a_layer_without_a_rule_is_named(method: Method) -> None:
    c = network_case(norm=True)
    with pytest.raises(InputError, match=r"2 of the valued parameters .*1\.weight \(LayerNorm"):
        influence(c.model, c.train, c.valid, curvature=method)
    peers = "layer_mean:0.1"
    supported = influence(c.model, c.train, c.valid, {"parameters": "supported"}, curvature=method, damping=peers)
    queries = {layer: query_matrices(c, layer) for layer in ("0", "3")}
    truth = oracles.textbook_influence(c.model, cross_entropy, c.train, queries, ["0", "3"], method)
    assert error(supported, truth) < 1e-6


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_a_query_where_the_curvature_is_singular_is_refused(method: Method) -> None:
    c = case("linear")

    def flat(table: Table, feature: float) -> Table:
        x = table[0].clone()
        x[:, 2] = feature
        return x, table[1]

    with pytest.raises(InputError, match=r"is singular, and .* of a query's norm lies in its null space"):
        influence(c.model, flat(c.train, 0.0), flat(c.valid, 1.0), curvature=method, damping=0.0)


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_a_dead_layer_contributes_nothing(method: Method) -> None:
    """No gradient passes a head of zeros."""
    c = case("tokens")
    held = c.model.state_dict()
    dead = {k: torch.zeros_like(v) if k == "head.weight" else v for k, v in held.items()}
    model = type(c.model)(nn.Linear(5, 4), 4, 3).double().eval()
    model.load_state_dict(dead)
    found = influence(model, c.train, c.valid, curvature=method, damping=1e-6)
    head = influence(model, c.train, c.valid, {"parameters": ["head"]}, curvature=method, damping=1e-6)
    assert torch.equal(found, head)
    assert head.abs().max() > 0
