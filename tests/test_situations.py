"""Ordinary situations in which a valuation can be wrong without a word: each with an expected value of its own.

The truths are another form of the same model, float64 autograd, or real retraining; not one comes from the package.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rayinf
from rayinf.errors import FitWarning, InputError

pytestmark = pytest.mark.filterwarnings("ignore::rayinf.errors.FitWarning")

ROWS, HELD, WIDTH, CLASSES = 90, 50, 5, 3


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


@lru_cache
def data(classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of a noisy linear teacher, float64: train and valid."""
    x = oracles.correlated_inputs(ROWS + HELD, WIDTH, seed=5)
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(WIDTH, classes, generator=generator, dtype=torch.float64)
    y = (x @ teacher + torch.randn(len(x), classes, generator=generator, dtype=torch.float64)).argmax(1)
    return x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:]


@lru_cache
def trained(classes: int = CLASSES) -> nn.Sequential:
    """A small network, float64, trained for a while."""
    x, y, _, _ = data(classes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, classes)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    return model.eval()


def tables(classes: int = CLASSES) -> tuple[Any, Any]:
    x, y, x_valid, y_valid = data(classes)
    return (x, y), (x_valid, y_valid)


def far(found: Any, truth: Any) -> float:
    """The largest difference, in units of the largest true value."""
    found, truth = np.asarray(found, float), np.asarray(truth, float)
    return float(np.abs(found - truth).max() / np.abs(truth).max())


# --- A loss of log-probabilities, or of probabilities


def negative_log(p: Tensor, y: Tensor) -> Tensor:
    return -p.gather(1, y[:, None])[:, 0].log()


WEIGHTS = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)


class Functional(nn.Module):
    """`F.log_softmax` inside forward, as much published code has it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.inner(x), dim=1)


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    """Label smoothing of log-probabilities, as written by hand."""
    return -0.9 * z.gather(1, y[:, None])[:, 0] - 0.1 * z.mean(1)


# The end of the model, the loss of what it returns, and the same loss of logits.
ENDS: dict[str, tuple[Callable[[nn.Module], nn.Module], Any, Any]] = {
    "NLLLoss": (lambda m: nn.Sequential(m, nn.LogSoftmax(1)), nn.NLLLoss(reduction="none"), "cross_entropy"),
    "nll_loss": (Functional, lambda z, y: F.nll_loss(z, y, reduction="none"), "cross_entropy"),
    "weighted": (
        Functional,
        nn.NLLLoss(weight=WEIGHTS, reduction="none"),
        lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS, reduction="none"),
    ),
    "smoothed": (Functional, smoothed, lambda z, y: smoothed(z.log_softmax(1), y)),
    "probabilities": (lambda m: nn.Sequential(m, nn.Softmax(1)), negative_log, "cross_entropy"),
    "weighted probabilities": (
        lambda m: nn.Sequential(m, nn.Softmax(1)),
        lambda p, y: WEIGHTS[y] * negative_log(p, y),
        lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS, reduction="none"),
    ),
}


def both(end: str) -> tuple[rayinf.Task, rayinf.Task]:
    """The task in question, and the one with logits."""
    close, loss, of_logits = ENDS[end]
    return rayinf.Task(close(copy.deepcopy(trained())), loss=loss), rayinf.Task(trained(), loss=of_logits)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "ggn", "exact", "identity"])
@pytest.mark.parametrize("end", ENDS)
def test_influence_is_that_of_the_logits(end: str, curvature: str, fisher: Any) -> None:
    task, truth = both(end)
    how: Any = {"curvature": curvature, "fisher": fisher, "objective": ["total", "category"]}
    how["damping"] = 2.0 if curvature in ("exact", "ggn") else None
    found, expected = (rayinf.influence(t, *tables(), **how).to_numpy() for t in (task, truth))
    assert far(found, expected) < 1e-6


def test_log_probabilities_have_the_textbook_values() -> None:
    """Against the dense definitions, on the model without its LogSoftmax."""
    x, y, x_valid, y_valid = data()
    queries = {
        n: oracles.layer_row_gradients(trained(), cross_entropy, x_valid, y_valid, n).sum(0)[None] for n in ("0", "2")
    }
    truth = oracles.textbook_influence(trained(), cross_entropy, (x, y), queries, ("0", "2"))
    task = rayinf.Task(nn.Sequential(*trained(), nn.LogSoftmax(1)), loss=nn.NLLLoss(reduction="none"))
    assert far(rayinf.influence(task, *tables(), damping="layer_mean:0.1").to_numpy(), truth) < 1e-8


@pytest.mark.parametrize("curvature", ["ekfac", "exact"])
@pytest.mark.parametrize("end", ["NLLLoss", "weighted", "probabilities"])
def test_measures_are_those_of_the_logits(end: str, curvature: str) -> None:
    task, truth = both(end)
    how: Any = {"curvature": curvature, "damping": 2.0 if curvature == "exact" else None}
    for verb in (
        lambda t: rayinf.influence_measure(t, *tables(), **how).to_numpy(),
        lambda t: rayinf.self_influence(t, tables()[0], **how).to_numpy(),
    ):
        assert far(verb(task), verb(truth)) < 1e-6


@pytest.mark.parametrize("strategy", ["fi", "iv", "isal", "entropy", "margin", "least_confidence", "bald"])
@pytest.mark.parametrize("end", ["nll_loss", "probabilities"])
def test_acquisition_is_that_of_the_logits(end: str, strategy: str) -> None:
    found = []
    for task in both(end):
        inner = task.model
        assert isinstance(inner, nn.Module)
        model = nn.Sequential(nn.Dropout(0.2), inner)
        train, valid = tables()
        picked = rayinf.acquire(replace(task, model=model), train, valid[0], 5, strategy, valid=valid)
        frame = picked.to_pandas().sort_values("row_id")
        found.append(frame["value"].to_numpy())
    assert far(*found) < 1e-6


@pytest.mark.parametrize("end", ["NLLLoss", "probabilities"])
def test_gaps_are_those_of_the_logits(end: str) -> None:
    (x, y), (x_valid, y_valid) = tables()
    groups = np.arange(HELD) % 2
    asked = [f(favourable=1, group="group") for f in (rayinf.demographic_parity, rayinf.equal_opportunity)]
    found, expected = (
        rayinf.influence(
            replace(t, group="group"), (x, y, np.arange(ROWS) % 2), (x_valid, y_valid, groups), objective=asked
        )
        for t in both(end)
    )
    assert far(found.to_numpy(), expected.to_numpy()) < 1e-6
    for column, value in expected.metadata["objective_values"].items():
        assert found.metadata["objective_values"][column] == pytest.approx(value, rel=1e-6)


def test_a_users_function_takes_what_the_model_returns() -> None:
    """An objective over probabilities: the sum of P_0, in both forms."""
    task, truth = both("probabilities")
    of_p = rayinf.Objective("p0", rows=lambda p, y: p[:, 0])
    of_z = rayinf.Objective("p0", rows=lambda z, y: z.softmax(1)[:, 0])
    found = rayinf.influence(task, *tables(), objective=of_p).to_numpy()
    assert far(found, rayinf.influence(truth, *tables(), objective=of_z).to_numpy()) < 1e-6


def test_sure_logits_are_not_taken_for_log_probabilities() -> None:
    """Logits (0, s), s under -15 in the first rows: normalised there, and yet the loss of squares is one of logits."""

    class TwoLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(WIDTH, 1).double()
            with torch.no_grad():
                self.one.weight.mul_(12.0)

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.one(x), (1, 0))

    def squares(z: Tensor, y: Tensor) -> Tensor:
        return (z - F.one_hot(y, 2)).square().sum(1)

    x, _, x_valid, _ = data()
    torch.manual_seed(0)
    model = TwoLogits().eval()
    x = x[model(x)[:, 1].argsort()]
    assert float(model(x)[3, 1]) < -15 < 0 < float(model(x)[-1, 1])
    y, y_valid = torch.zeros(ROWS, dtype=torch.int64), torch.zeros(HELD, dtype=torch.int64)
    y[::2] = 1
    grads = [oracles.row_gradients(model, squares, *rows) for rows in ((x, y), (x_valid, y_valid))]
    truth = oracles.dense_influence(
        grads[1].sum(0)[None], grads[0], oracles.ggn(model, squares, x, y), l2=0.0, damping=1.0
    )
    task = rayinf.Task(model, loss=squares)
    found = rayinf.influence(task, (x, y), (x_valid, y_valid), curvature="ggn", damping=1.0).to_numpy()
    assert far(found, truth) < 1e-8


def margin(z: Tensor, y: Tensor) -> Tensor:
    """The multi-class hinge: linear wherever it is smooth."""
    return (1 + z - z.gather(1, y[:, None])).clamp(min=0).sum(1)


@pytest.mark.parametrize(
    "loss", [margin, lambda z, y: -z.gather(1, y[:, None])[:, 0], lambda z, y: -(z.square().sum(1))]
)
@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "ggn"])
def test_a_loss_without_curvature_is_refused(loss: Any, curvature: str) -> None:
    """Linear or concave in the outputs: every value would be 0."""
    with pytest.raises(InputError, match=r"no positive curvature.*Fix: return logits"):
        rayinf.influence(rayinf.Task(trained(), loss=loss), *tables(), curvature=curvature, damping=0.1)


def test_a_loss_without_second_derivatives_is_refused() -> None:
    """torch's own hinge has none."""
    task = rayinf.Task(trained(), loss=lambda z, y: F.multi_margin_loss(z, y, reduction="none"))
    with pytest.raises(InputError, match=r"cannot be differentiated twice.*Fix: write it"):
        rayinf.influence(task, *tables())


def test_such_a_loss_can_be_valued_by_gradients() -> None:
    x, y, x_valid, y_valid = data()
    rows, valid = (oracles.row_gradients(trained(), margin, *t) for t in ((x, y), (x_valid, y_valid)))
    truth = oracles.identity_influence(valid.sum(0)[None], rows)
    found = rayinf.influence(rayinf.Task(trained(), loss=margin), *tables(), curvature="identity").to_numpy()
    assert far(found, truth) < 1e-8


class Apart(nn.Module):
    """Two logits from one layer, and a third from another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.curved, self.flat = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.curved(x), self.flat(x)], 1)


def partly_linear(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[:, :2], y % 2, reduction="none") + (y + 1) * z[:, 2]


@pytest.mark.parametrize("verb", ["influence", "self_influence", "influence_measure"])
@pytest.mark.parametrize("curvature", ["ekfac", "kfac"])
def test_a_layer_without_curvature_is_refused_by_name(verb: str, curvature: str) -> None:
    task = rayinf.Task(Apart().double().eval(), loss=partly_linear)
    given = tables()[:1] if verb == "self_influence" else tables()
    with pytest.raises(InputError, match="curvature of layer 'flat' is 0"):
        getattr(rayinf, verb)(task, *given, curvature=curvature)


def test_a_layer_that_no_row_reaches_contributes_nothing() -> None:
    """A dead unit is no error: its rows have no gradient either."""
    model = copy.deepcopy(trained())
    model = nn.Sequential(model[0], nn.ReLU(), nn.Linear(6, 4).double(), nn.ReLU(), nn.Linear(4, CLASSES).double())
    with torch.no_grad():
        model[2].bias.fill_(-1e6)
    scores = rayinf.influence(rayinf.Task(model), *tables())
    assert scores.metadata["contributes_nothing"] == ["0", "2"]
    assert np.abs(scores.to_numpy()).max() > 0


def test_probabilities_with_the_loss_of_logits_are_refused() -> None:
    with pytest.raises(InputError, match=r"returns probabilities.*Fix: return logits"):
        rayinf.influence(rayinf.Task(nn.Sequential(trained(), nn.Softmax(1))), *tables())


@pytest.mark.parametrize("strategy", ["entropy", "fi"])
def test_probabilities_that_a_loss_does_not_explain_are_not_taken_for_logits(strategy: str) -> None:
    """Brier's score is curved in the probabilities, and no softmax of them is meant."""

    def brier(p: Tensor, y: Tensor) -> Tensor:
        return (p - F.one_hot(y, CLASSES)).square().sum(1)

    task = rayinf.Task(nn.Sequential(*trained(), nn.Softmax(1)).eval(), loss=brier)
    train, valid = tables()
    with pytest.raises(InputError, match="needs logits"):
        rayinf.acquire(task, train, valid[0], 5, strategy)
    rows, queries = (oracles.row_gradients(task.model, brier, *t) for t in tables())  # type: ignore[arg-type]
    ggn = oracles.ggn(task.model, brier, *train)  # type: ignore[arg-type]
    truth = oracles.dense_influence(queries.sum(0)[None], rows, ggn, l2=0.0, damping=0.5)
    assert far(rayinf.influence(task, *tables(), curvature="ggn", damping=0.5).to_numpy(), truth) < 1e-8


# --- A network that is sure of every row


def stable_rows(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Row gradients `[n, p]` in float64, with `P_y - 1` as minus the sum of the other probabilities."""
    parameters, rows = list(model.parameters()), []
    for k in range(len(x)):
        z = model(x[k : k + 1])
        p = z.detach().softmax(1)
        p[0, y[k]] = 0.0
        p[0, y[k]] = -p.sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(z, parameters, p)]))
    return torch.stack(rows)


def sure(scale: float) -> nn.Sequential:
    """The network with logits that many times larger; its labels are its own predictions."""
    model = copy.deepcopy(trained())
    with torch.no_grad():
        for p in model[2].parameters():
            p.mul_(scale)
    return model


@lru_cache
def near_the_border() -> Tensor:
    """Some rows, and others between rows of different classes, of which the model is hardly sure."""
    x, _, x_valid, _ = data()
    classes = trained()(x).argmax(1)
    out = [x, x_valid]
    for k in range(12):
        low, high = x[k], x[int(torch.nonzero(classes != classes[k])[k])]
        for _ in range(9 + k % 3):
            middle = (low + high) / 2
            low, high = (middle, high) if trained()(middle[None]).argmax() == classes[k] else (low, middle)
        out.append(low[None])
    return torch.cat(out).detach()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3, 3e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sure_network_has_the_values_of_float64(scale: float, dtype: torch.dtype) -> None:
    """Logits up to 1e5: gradients down to e^-700, whose squares and products float32 does not hold."""
    model = sure(scale).to(dtype)
    exact = copy.deepcopy(model).double()
    x, x_valid = near_the_border().to(dtype), data()[2].to(dtype)
    x_valid = torch.cat([x_valid, x[-4:]]) if scale == 1e4 else x_valid
    y, y_valid = (exact(v.double()).argmax(1) for v in (x, x_valid))
    rows, queries = (stable_rows(exact, a.double(), b) for a, b in ((x, y), (x_valid, y_valid)))
    # With products brought into float64's range, of which they would fall out.
    size = rows.abs().max()
    truth = (rows / size) @ (queries.sum(0) / queries.sum(0).abs().max()) / len(rows)
    found = rayinf.influence(rayinf.Task(model), (x, y), (x_valid, y_valid), curvature="identity").to_numpy()[:, 0]
    assert np.abs(found).max() > 0
    # Of float32, the logits themselves are only known to 1e-7 of their size.
    allowed = 1e-9 if dtype is torch.float64 else max(1e-5, 1e-6 * scale)
    assert far(found / np.abs(found).max(), truth / truth.abs().max()) < allowed


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_a_sure_network_has_the_textbook_values(method: Any) -> None:
    """Float32 at logits of 1e3, against the dense definitions in float64: squares down to e^-80."""
    model = sure(100.0).float()
    exact = copy.deepcopy(model).double()
    x, _, x_valid, _ = (v.float() for v in data())
    y, y_valid = (exact(v.double()).argmax(1) for v in (x, x_valid))
    queries = {
        n: oracles.layer_row_gradients(exact, cross_entropy, x_valid.double(), y_valid, n).sum(0)[None]
        for n in ("0", "2")
    }
    truth = oracles.textbook_influence(exact, cross_entropy, (x.double(), y), queries, ("0", "2"), method)
    task, peers = rayinf.Task(model), "layer_mean:0.1"
    found = rayinf.influence(task, (x, y), (x_valid, y_valid), curvature=method, damping=peers).to_numpy()
    assert far(found, truth) < 1e-3


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "identity"])
def test_sure_rows_have_self_influence(curvature: str) -> None:
    model, x = sure(1e4), near_the_border()
    y = model(x).argmax(1)
    found = rayinf.self_influence(rayinf.Task(model.float()), (x.float(), y), curvature=curvature).to_numpy()
    assert np.isfinite(found).all()
    assert found.max() > 0


@pytest.mark.parametrize("verb", ["influence", "self_influence", "influence_measure"])
@pytest.mark.parametrize("curvature", ["ekfac", "identity"])
def test_values_that_are_all_zero_are_an_error(verb: str, curvature: str) -> None:
    """Margins of millions: every gradient is 0, in float64 too."""
    model = sure(1e9)
    x, _, x_valid, _ = data()
    y, y_valid = (model(v).argmax(1) for v in (x, x_valid))
    given: Any = [(x, y)] if verb == "self_influence" else [(x, y), (x_valid, y_valid)]
    with pytest.raises(InputError, match=r"every row|every layer is 0|has a gradient|is flat|are 0"):
        getattr(rayinf, verb)(rayinf.Task(model), *given, curvature=curvature)


# --- Gaps under other names


def gap_gradient(group: np.ndarray[Any, Any], kind: str) -> Tensor:
    """The gradient of the absolute gap over the validation rows, by autograd on its definition."""
    _, _, x, y = data(2)
    model = trained(2)
    z = model(x)
    value = z.softmax(1)[:, 1] if kind == "demographic_parity" else cross_entropy(z, y)
    rows = torch.ones(len(y), dtype=torch.bool) if kind == "demographic_parity" else y == 1
    g = torch.from_numpy(group)
    gap = (value[rows & (g == 1)].mean() - value[rows & (g == 0)].mean()).abs()
    return torch.cat([v.flatten() for v in torch.autograd.grad(gap, list(model.parameters()))])


def with_groups() -> tuple[Any, Any, dict[str, np.ndarray[Any, Any]]]:
    x, y, x_valid, y_valid = data(2)
    rng = np.random.default_rng(3)
    groups = {"sex": rng.integers(0, 2, HELD), "age": rng.integers(0, 2, HELD)}
    train = pa.table({"features": list(x.numpy()), "label": y.numpy()})
    valid = pa.table({"features": list(x_valid.numpy()), "label": y_valid.numpy(), **groups})
    return train, valid, groups


@pytest.mark.parametrize("kind", ["demographic_parity", "equal_opportunity"])
@pytest.mark.parametrize(
    "rename",
    [
        lambda make: replace(make(group="sex"), name="dp_sex"),
        lambda make: make(group="sex").named("dp_sex"),
        lambda make: make(group="sex", name="dp_sex"),
        # The other gap's own name.
        lambda make: make(group="sex").named("equal_opportunity"),
        lambda make: make(group="sex").named("demographic_parity"),
        lambda make: make(group="sex").named("fi"),
    ],
)
def test_a_gap_is_the_same_under_any_name(kind: str, rename: Any) -> None:
    train, valid, groups = with_groups()
    objective = rename(getattr(rayinf, kind))
    scores = rayinf.influence(rayinf.Task(trained(2)), train, valid, objective=objective, curvature="identity")
    x, y, _, _ = data(2)
    truth = oracles.identity_influence(
        gap_gradient(groups["sex"], kind)[None], oracles.row_gradients(trained(2), cross_entropy, x, y)
    )
    assert scores.columns == [objective.name]
    assert far(scores.to_numpy(), truth) < 1e-8


def test_two_gaps_over_two_columns_in_one_call() -> None:
    train, valid, groups = with_groups()
    asked = [rayinf.demographic_parity(group=g, name=f"dp_{g}") for g in groups]
    scores = rayinf.influence(rayinf.Task(trained(2)), train, valid, objective=asked, curvature="identity")
    x, y, _, _ = data(2)
    rows = oracles.row_gradients(trained(2), cross_entropy, x, y)
    gradients = torch.stack([gap_gradient(g, "demographic_parity") for g in groups.values()])
    assert scores.columns == ["dp_sex", "dp_age"]
    assert far(scores.to_numpy(), oracles.identity_influence(gradients, rows)) < 1e-8
    assert abs(far(scores.to_numpy()[:, 0], scores.to_numpy()[:, 1])) > 0.1


def test_the_advice_about_two_gaps_of_one_name_works() -> None:
    with pytest.raises(InputError, match=r"named twice.*named\('demographic_parity_2'\)"):
        rayinf.influence(
            rayinf.Task(trained(2)), *with_groups()[:2], objective=[rayinf.demographic_parity(group="sex")] * 2
        )
    with pytest.raises(InputError, match="cannot be named"):
        rayinf.demographic_parity(group="sex", name="")


def test_an_objective_called_fi_has_a_sign() -> None:
    """`trim` removes the most negative rows of a signed column, whatever its name; of FI, the largest."""
    scores = rayinf.influence(rayinf.Task(trained()), *tables(), objective=rayinf.Objective("fi"), curvature="identity")
    values = scores.to_numpy()[:, 0]
    assert set(rayinf.trim(scores, budget=5).removed.tolist()) == set(np.argsort(values)[:5].tolist())
    measured = rayinf.influence_measure(rayinf.Task(trained()), *tables())
    fi = measured.to_numpy()[:, 0]
    assert set(rayinf.trim(measured, budget=5).removed.tolist()) == set(np.argsort(-fi)[:5].tolist())


# --- A frozen backbone


def test_a_frozen_backbone_is_not_valued() -> None:
    """Leave-one-out retraining of the head alone, to convergence, is what the values must predict."""
    l2 = 0.02
    x, y, x_valid, y_valid = data()
    model = copy.deepcopy(trained())
    for p in model[0].parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        hidden, hidden_valid = (torch.tanh(model[0](v)) for v in (x, x_valid))

    def head(keep: Tensor, start: nn.Linear | None = None) -> nn.Linear:
        layer = nn.Linear(6, CLASSES).double() if start is None else copy.deepcopy(start)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300, tolerance_grad=1e-11, tolerance_change=0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            ridge = sum(p.square().sum() for p in layer.parameters())
            value = cross_entropy(layer(hidden[keep]), y[keep]).sum() / ROWS + l2 / 2 * ridge
            value.backward()
            return value

        optimizer.step(closure)
        return layer

    everyone = torch.arange(ROWS)
    fitted = head(everyone)
    with torch.no_grad():
        for own, new in zip(model[2].parameters(), fitted.parameters(), strict=True):
            own.copy_(new)
    before = float(cross_entropy(fitted(hidden_valid), y_valid).sum().detach())
    changes = []
    for row in range(0, ROWS, 3):
        refit = head(everyone[everyone != row], fitted)
        changes.append(float(cross_entropy(refit(hidden_valid), y_valid).sum().detach()) - before)
    scores = rayinf.influence(rayinf.Task(model, l2=l2), *tables(), curvature="exact")
    predicted = scores.to_numpy()[::3, 0]
    assert list(scores.metadata["blocks"]) == ["2"]
    assert oracles.spearman(torch.tensor(predicted), torch.tensor(changes)) > 0.98
    assert np.polyfit(predicted, changes, 1)[0] == pytest.approx(1, abs=0.15)
    # With the backbone valued as well, they do not.
    for p in model[0].parameters():
        p.requires_grad_(True)
    other = rayinf.influence(rayinf.Task(model, l2=l2), *tables(), curvature="ggn").to_numpy()[::3, 0]
    assert oracles.spearman(torch.tensor(other), torch.tensor(changes)) < 0.98


def test_what_is_frozen_and_what_is_named() -> None:
    model = copy.deepcopy(trained()).requires_grad_(False)
    with pytest.raises(InputError, match=r"all 4 parameters of the model are frozen.*requires_grad_\(True\)"):
        rayinf.influence(rayinf.Task(model), *tables())
    truth = rayinf.influence(rayinf.Task(trained(), parameters=["0"]), *tables()).to_numpy()
    assert far(rayinf.influence(rayinf.Task(model, parameters=["0"]), *tables()).to_numpy(), truth) < 1e-12
    last = rayinf.influence(rayinf.Task(model, parameters="last"), *tables())
    assert list(last.metadata["blocks"]) == ["2"]


def test_a_frozen_bias_is_left_out_of_its_layer() -> None:
    model = copy.deepcopy(trained())
    model[2].bias.requires_grad_(False)
    x, y, x_valid, y_valid = data()
    names = ["0.weight", "0.bias", "2.weight"]
    rows, queries = (
        oracles.row_gradients(trained(), cross_entropy, *t, names=names) for t in ((x, y), (x_valid, y_valid))
    )
    truth = oracles.identity_influence(queries.sum(0)[None], rows)
    for curvature in ("identity", "ggn"):
        how: Any = {"curvature": curvature, "damping": 1.0 if curvature == "ggn" else None}
        scores = rayinf.influence(rayinf.Task(model), *tables(), **how)
        assert scores.metadata["blocks"] == {"0": [1, 6, 6], "2": [1, CLASSES, 6]}
        if curvature == "ggn":
            ggn = oracles.ggn(trained(), cross_entropy, x, y, names=names)
            truth = oracles.dense_influence(queries.sum(0)[None], rows, ggn, l2=0.0, damping=1.0)
        assert far(scores.to_numpy(), truth) < 1e-8


# --- How well the model fits


def measured(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and mean loss, in plain torch."""
    with torch.no_grad():
        z = model(x)
    return float((z.argmax(1) == y).double().mean()), float(cross_entropy(z, y).mean())


@pytest.mark.parametrize("verb", ["influence", "influence_measure", "self_influence", "pairs"])
def test_fit_quality_is_told(verb: str) -> None:
    x, y, x_valid, y_valid = data()
    given = tables()[:1] if verb == "self_influence" else tables()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FitWarning)
        fit = getattr(rayinf, verb)(rayinf.Task(trained()), *given).metadata["fit"]
    for name, rows in (("train", (x, y)), ("valid", (x_valid, y_valid)))[: len(given)]:
        accuracy, loss = measured(trained(), *rows)
        assert fit[name]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert fit[name]["mean_loss"] == pytest.approx(loss, rel=1e-9)
        assert fit[name]["rows"] == len(rows[1])
    assert ("valid" in fit) == (len(given) > 1)


def test_fit_quality_of_pairs_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation rows in several tiles, a run that stops after the first one and goes on, and a finished run."""
    from rayinf.engine import pair_pipeline, pair_stages

    monkeypatch.setattr(pair_pipeline, "tile_rows", lambda parameters: 30)
    run = lambda out: rayinf.pairs(rayinf.Task(trained()), *tables(), top=3, out=out)  # noqa: E731
    whole = run(None)
    call, done = pair_stages.RowQueries.__call__, 0

    def stops(self: Any, item: Any) -> Any:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt
        return call(self, item)

    monkeypatch.setattr(pair_stages.RowQueries, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.setattr(pair_stages.RowQueries, "__call__", call)
    again, finished = run(tmp_path / "run"), run(tmp_path / "run")
    assert dict(whole.metadata["fit"]) == again.metadata["fit"] == finished.metadata["fit"]
    assert again.table.equals(whole.table)
    accuracy, loss = measured(trained(), *data()[2:])
    assert again.metadata["fit"]["valid"]["accuracy"] == pytest.approx(accuracy)
    assert again.metadata["fit"]["valid"]["mean_loss"] == pytest.approx(loss)


def test_fit_quality_of_a_pool() -> None:
    """A pool has no labels; what is told is of the rows that it is valued by."""
    train, valid = tables()
    task = rayinf.Task(trained())
    iv = rayinf.acquire(task, train, valid[0], 5, "iv", valid=valid).metadata["fit"]
    assert set(iv) == {"valid", "warnings"}
    assert iv["valid"]["mean_loss"] == pytest.approx(measured(trained(), *valid)[1])
    isal = rayinf.acquire(task, train, valid[0], 5, "isal").metadata["fit"]
    assert set(isal) == {"train", "warnings"}
    assert isal["train"]["accuracy"] == pytest.approx(measured(trained(), *train)[0])
    assert "fit" not in rayinf.acquire(task, train, valid[0], 5, "entropy").metadata


@pytest.mark.parametrize("verb", ["influence", "influence_measure"])
def test_fit_quality_survives_a_resume(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops after its second shard, and goes on: the numbers are of all rows, once."""
    from rayinf.engine import measure_stages, scoring

    stage = scoring.Score if verb == "influence" else measure_stages.Measure
    write_shards(tmp_path)
    call = stage.__call__
    done = 0

    def stops(self: Any, item: Any) -> Any:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return call(self, item)

    run = lambda out: getattr(rayinf, verb)(rayinf.Task(trained()), tmp_path / "train", tables()[1], out=out)  # noqa: E731
    monkeypatch.setattr(stage, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.setattr(stage, "__call__", call)
    fit = run(tmp_path / "run").metadata["fit"]
    assert fit == run(tmp_path / "other").metadata["fit"]
    x, y, _, _ = data()
    accuracy, loss = measured(trained(), x, y)
    assert fit["train"] == {"rows": ROWS, "accuracy": pytest.approx(accuracy), "mean_loss": pytest.approx(loss)}


def write_shards(folder: Path, count: int = 5) -> None:
    import pyarrow.parquet as pq

    x, y, _, _ = data()
    (folder / "train").mkdir()
    for k in range(count):
        rows = slice(k * ROWS // count, (k + 1) * ROWS // count)
        part = pa.table({"features": list(x[rows].numpy()), "label": y[rows].numpy()})
        pq.write_table(part, folder / "train" / f"{k}.parquet")


def untrained() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def by_relu() -> nn.Module:
    """A network whose logits grow with its features."""
    x, y, _, _ = data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, CLASSES)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    return model.eval()


# What is wrong, and the model and labels with which it shows.
MISFITS: dict[str, Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]] = {
    "all labels are swapped": lambda: (trained(), lambda x: x, lambda y: (y + 1) % CLASSES),
    "the model was never trained": lambda: (untrained(), lambda x: x, lambda y: y),
    "features of 0 to 255": lambda: (by_relu(), lambda x: 255 * x, lambda y: y),
    "features of another mean": lambda: (trained(), lambda x: x + 30, lambda y: y),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("verb", ["influence", "influence_measure"])
def test_a_model_that_does_not_fit_is_warned_of(misfit: str, verb: str) -> None:
    model, change, relabel = MISFITS[misfit]()
    x, y, x_valid, y_valid = data()
    train, valid = (change(x), relabel(y)), (change(x_valid), relabel(y_valid))
    with pytest.warns(FitWarning, match="no better than its majority class|worse than a uniform guess"):
        scores = getattr(rayinf, verb)(rayinf.Task(model), train, valid)
    fit = scores.metadata["fit"]
    assert fit["train"]["accuracy"] == pytest.approx(measured(model, *train)[0])
    assert fit["warnings"]


def test_an_honest_model_of_rare_classes_is_not_warned_of() -> None:
    """95% of one class: predicting it always is honest, with the right probabilities."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3))
    y = (rng.random(600) < 0.05 * np.exp(0.3 * x[:, 0])).astype(int)
    task = rayinf.logistic_regression((x, y), l2=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FitWarning)
        scores = rayinf.influence(task, (x[:400], y[:400]), (x[400:], y[400:]))
    assert scores.metadata["fit"]["train"]["accuracy"] <= 1 - y[:400].mean() + 1e-12


# --- The order of labels


@lru_cache
def linear(classes: int) -> tuple[nn.Module, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A linear model that is right on most of 600 rows."""
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    w = 3 * rng.normal(size=(8, classes))
    y = (x @ w + rng.normal(size=(600, classes))).argmax(1)
    model = nn.Linear(8, classes, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w.T))
    return model, x, y


def labelled(names: Any, classes: int, rows: np.ndarray[Any, Any] | None = None) -> tuple[nn.Module, pa.Table]:
    model, x, y = linear(classes)
    keep = np.ones(len(y), bool) if rows is None else rows
    return model, pa.table({"features": list(x[keep]), "label": pa.array([names[k] for k in y[keep]])})


def value(model: nn.Module, table: pa.Table, **task: Any) -> Any:
    return rayinf.influence(rayinf.Task(model, **task), table, table, objective="category", curvature="identity")


@pytest.mark.parametrize(
    ("names", "fits"),
    [
        (["spam", "ham"], "'spam', 'ham'"),
        (["c", "a", "b"], "'c', 'a', 'b'"),
        # One of three, and two of five, stand where they should by chance.
        (["a", "c", "b"], "'a', 'c', 'b'"),
        (["a", "b", "c", "e", "d"], "'a', 'b', 'c', 'e', 'd'"),
        ([30, 10, 20], "30, 10, 20"),
        ([f"class {k}" for k in range(12)], "'class 0', 'class 1', 'class 2'"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(names: list[Any], fits: str) -> None:
    model, table = labelled(names, len(names))
    with pytest.raises(InputError, match=rf"not in the order of the model's logits.*in the order {fits}.*classes=\["):
        value(model, table)
    truth = value(linear(len(names))[0], labelled(list(range(len(names))), len(names))[1])
    found = value(model, table, classes=names)
    assert far(found.to_numpy(), truth.to_numpy()) == 0


@pytest.mark.parametrize(
    "names",
    [
        ["ant", "bee"],
        [str(k) for k in range(12)],
        [str(k - 1) for k in range(12)],
        [k / 2 + 1 for k in range(2, 22, 2)],
        ["1", "2", "3"],
        [1, 2, 3],
        [-1, 1],
    ],
)
def test_an_order_that_fits_is_taken(names: list[Any]) -> None:
    """Numbers in numeric order, also as text; 2 before 10."""
    model, table = labelled(names, len(names))
    truth = value(linear(len(names))[0], labelled(list(range(len(names))), len(names))[1]).to_numpy()
    assert far(value(model, table).to_numpy(), truth) == 0


@pytest.mark.parametrize("names", [[1, 2, 3], ["1", "2", "3"]])
def test_labels_from_1_whose_highest_class_is_missing(names: list[Any]) -> None:
    """1 and 2 of 1, 2, 3: they would be taken for the second and the third logit."""
    _, _, y = linear(3)
    model, table = labelled(names, 3, y < 2)
    shown = ", ".join(map(repr, names))
    with pytest.raises(InputError, match=rf"in the order {shown} it would be.*classes=\[{shown}\]"):
        rayinf.influence(rayinf.Task(model), table, table, curvature="identity")
    found = rayinf.influence(rayinf.Task(model, classes=names), table, table, curvature="identity").to_numpy()
    _, plain = labelled([0, 1, 2], 3, y < 2)
    assert far(found, rayinf.influence(rayinf.Task(model), plain, plain, curvature="identity").to_numpy()) == 0


def test_labels_from_1_of_a_model_that_knows_nothing() -> None:
    """1 and 2 of three logits, and a model that is right on as many rows either way: both readings are named."""
    _, _, y = linear(3)
    _, table = labelled([1, 2, 3], 3, y < 2)
    torch.manual_seed(5)
    net = nn.Linear(len(table["features"][0]), 3)
    with pytest.raises(InputError, match=r"does not decide it.*classes=\[1, 2, 3\]\), or Task\(classes=\[0, 1, 2\]\)"):
        rayinf.influence(rayinf.Task(net), table, table, curvature="identity")


def test_labels_from_1_whose_lowest_class_is_missing_are_logits() -> None:
    """1 and 2 of 0, 1, 2 name their logits, and the model says so."""
    _, _, y = linear(3)
    model, table = labelled([0, 1, 2], 3, y > 0)
    scores = rayinf.influence(rayinf.Task(model), table, table, curvature="identity")
    assert scores.metadata["classes"] == {"0": 0, "1": 1, "2": 2}


@pytest.mark.parametrize("sort", [False, True])
def test_a_table_that_is_sorted_by_label_is_sampled_all_over(sort: bool) -> None:
    model, x, y = linear(2)
    order = np.argsort(y, kind="stable") if sort else np.arange(len(y))
    names = np.array(["spam", "ham"])
    table = pa.table({"features": list(np.tile(x[order], (4, 1))), "label": np.tile(names[y[order]], 4)})
    table = table.sort_by("label") if sort else table
    with pytest.raises(InputError, match="not in the order"):
        rayinf.influence(rayinf.Task(model), table, table.slice(0, 10), curvature="identity")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_no_order_is_refused_of_a_model_that_knows_nothing(seed: int, classes: int) -> None:
    """A model that was never trained: no order of its labels is right."""
    _, table = labelled([f"c{k:02d}" for k in range(classes)], classes)
    torch.manual_seed(seed)
    scores = rayinf.influence(
        rayinf.Task(nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, classes))),
        table,
        table.slice(0, 50),
        curvature="identity",
    )
    assert len(scores) == 600


def test_swapped_integers_are_warned_of() -> None:
    """0 and 1 name their logits, so that the user's word is taken, and the pass over all rows says what it saw."""
    model, x, y = linear(2)
    with pytest.warns(FitWarning, match=r"Another order of the labels fits better.*1, 0"):
        rayinf.influence(rayinf.Task(model), (x, 1 - y), (x, 1 - y), curvature="identity")


# --- Halves of the validation rows


def test_a_class_with_one_validation_row_is_named_in_the_verdict() -> None:
    x, y, x_valid, y_valid = data()
    keep = np.flatnonzero((y_valid != 2).numpy())
    only = np.flatnonzero((y_valid == 2).numpy())[:1]
    chosen = np.concatenate([keep, only])
    scores = rayinf.influence(
        rayinf.Task(trained()), (x, y), (x_valid[chosen], y_valid[chosen]), objective="category", halves=True
    )
    assert scores.halves is not None
    sides = [np.abs(half.to_numpy()[:, 2]).max() for half in scores.halves]
    assert min(sides) == 0 < max(sides)  # the one row lies in one half
    report = rayinf.ceiling(scores)
    assert report.left_out == (2,)
    assert "nothing of 2: one half of the validation rows has no row of it" in report.verdict
    assert report.to_dict()["left_out"] == ["2"]
    whole = rayinf.influence(rayinf.Task(trained()), *tables(), objective="category", halves=True)
    assert rayinf.ceiling(whole).left_out == ()
    assert "It says nothing" not in rayinf.ceiling(whole).verdict


def test_a_gap_whose_group_has_rows_in_one_half_only_is_refused() -> None:
    train, valid, _ = with_groups()
    sex = np.zeros(HELD, int)
    sex[7] = 1
    valid = valid.set_column(valid.schema.get_field_index("sex"), "sex", pa.array(sex))
    with pytest.raises(InputError, match=r"combine gives.*in both halves"):
        rayinf.influence(
            rayinf.Task(trained(2)), train, valid, objective=rayinf.demographic_parity(group="sex"), halves=True
        )


# --- Errors that say what is wrong


class Tied(nn.Module):
    """A language model's head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.stem.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.stem(x).mean(1))))


def token_rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 7, (60, 4), generator=generator), torch.randint(0, 7, (60,), generator=generator)


@pytest.mark.parametrize("parameters", ["last", ["head"], ["stem"]])
def test_a_tied_head_is_found_and_named(parameters: Any) -> None:
    model = Tied().double().eval()
    task = rayinf.Task(model, parameters=parameters)
    rows = token_rows()
    with pytest.raises(InputError, match=r"no rule for 1 .*stem.weight \(Embedding, tied to head.weight"):
        rayinf.influence(task, rows, rows)
    gradients = oracles.row_gradients(model, cross_entropy, *rows, names=["stem.weight"])
    truth = oracles.identity_influence(gradients.sum(0)[None], gradients)
    assert far(rayinf.influence(task, rows, rows, curvature="identity").to_numpy(), truth) < 1e-8


def test_a_name_that_is_no_module_is_answered_with_those_that_are() -> None:
    model = nn.Sequential()
    model.add_module("stem", nn.Linear(WIDTH, 4))
    model.add_module("fc", nn.Linear(4, CLASSES))
    with pytest.raises(InputError, match=r"no module 'head'. Fix: name some of stem, fc \(\"last\" is fc\)"):
        rayinf.influence(rayinf.Task(model.double(), parameters=["head"]), *tables())
    with pytest.raises(InputError, match=r"did you mean stem\?"):
        rayinf.influence(rayinf.Task(model.double(), parameters=["sten"]), *tables())


def test_a_singular_curvature_names_its_layer_and_its_share() -> None:
    """Of a model that is one layer, without damping: a class shift is singular, and one query lies a little in it."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, CLASSES).double()
    shift = rayinf.Objective("shift", rows=lambda z, y: cross_entropy(z, y) + 1e-5 * z.sum(1))
    with pytest.raises(InputError, match=r"curvature of the model's one layer is singular, and (\d\.\d\d%|a share of)"):
        rayinf.influence(rayinf.Task(model), *tables(), objective=shift, curvature="kfac", damping=0.0)


class Residual(nn.Module):
    """A residual connection around an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + torch.relu_(self.first(x)))


@pytest.mark.parametrize("way", ["whole", "part", "method"])
def test_a_compiled_model_is_valued_as_what_it_was_made_of(way: str) -> None:
    plain = Residual().double().eval()
    compiled: Any = copy.deepcopy(plain)
    if way == "whole":
        compiled = torch.compile(compiled)
    elif way == "part":
        compiled.first = torch.compile(compiled.first)
    else:
        compiled.compile()
    for curvature in ("ekfac", "identity"):
        found, truth = (
            rayinf.influence(rayinf.Task(m), *tables(), curvature=curvature).to_numpy() for m in (compiled, plain)
        )
        assert far(found, truth) == 0
    assert list(rayinf.influence(rayinf.Task(compiled), *tables()).metadata["blocks"]) == ["first", "second"]


def test_a_transform_may_write_into_its_rows(tmp_path: Path) -> None:
    write_shards(tmp_path)
    seen = []

    def centre(x: np.ndarray[Any, Any]) -> Tensor:
        seen.append(x.flags.writeable)
        x -= 0.0
        return torch.from_numpy(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rayinf.influence(rayinf.Task(trained(), transform=centre), tmp_path / "train", tables()[1]).to_numpy()
    assert all(seen)
    assert far(found, rayinf.influence(rayinf.Task(trained()), *tables()).to_numpy()) < 1e-8


# --- The exact Hessian of a network


def wide(steps: int) -> nn.Module:
    """A network of 363 parameters."""
    x, y, _, _ = data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 40), nn.Tanh(), nn.Linear(40, CLASSES)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    return model.eval()


def test_a_network_that_is_not_at_a_minimum_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayinf.core import exact

    x, y, _, _ = data()
    model = wide(5)
    least = float(torch.linalg.eigvalsh(oracles.hessian(model, cross_entropy, x, y)).min())
    assert least < -1e-3
    monkeypatch.setattr(exact, "add_hessian", lambda *_: pytest.fail("the whole Hessian was computed"))
    with pytest.raises(InputError, match="not at a minimum") as caught:
        rayinf.influence(rayinf.Task(model), *tables(), curvature="exact")
    found = float(str(caught.value).split("rows is ")[1].split(" ")[0])
    assert least <= found + 1e-4 * abs(least)  # the curvature along a direction is no lower than the least eigenvalue
    assert found < 0.5 * least  # and the direction is near the worst


def test_where_damping_makes_it_a_minimum_the_whole_hessian_is_taken() -> None:
    x, y, x_valid, y_valid = data()
    model = wide(5)
    h = oracles.hessian(model, cross_entropy, x, y)
    damping = 1.05 * abs(float(torch.linalg.eigvalsh(h).min()))
    rows, queries = (oracles.row_gradients(model, cross_entropy, *t) for t in ((x, y), (x_valid, y_valid)))
    truth = oracles.dense_influence(queries.sum(0)[None], rows, h, l2=0.0, damping=damping)
    found = rayinf.influence(rayinf.Task(model), *tables(), curvature="exact", damping=damping).to_numpy()
    assert far(found, truth) < 1e-6


@pytest.mark.parametrize("end", ["logarithm", "probabilities"])
def test_a_loss_that_is_cut_off_is_not_taken_for_cross_entropy(end: str) -> None:
    """`min(-log P, 1)`: on sure rows it is cross-entropy, and on the others it is flat."""
    x, y, x_valid, y_valid = data()
    inner = copy.deepcopy(trained())
    with torch.no_grad():
        first = [k for k in range(ROWS) if float(cross_entropy(inner(x[k : k + 1]), y[k : k + 1])) < 0.9]
    order = torch.tensor([*first, *(k for k in range(ROWS) if k not in first)])
    x, y = x[order], y[order]

    def cut(z: Tensor, y: Tensor) -> Tensor:
        log_p = z.log_softmax(1) if end == "logarithm" else z.log()
        return (-log_p.gather(1, y[:, None])[:, 0]).clamp(max=1.0)

    model = nn.Sequential(*inner, nn.LogSoftmax(1) if end == "logarithm" else nn.Softmax(1)).eval()
    rows, queries = (oracles.row_gradients(model, cut, *t) for t in ((x, y), (x_valid, y_valid)))
    found = rayinf.influence(rayinf.Task(model, loss=cut), (x, y), (x_valid, y_valid), curvature="identity").to_numpy()
    assert far(found, oracles.identity_influence(queries.sum(0)[None], rows)) < 1e-8


def test_a_users_cross_entropy_keeps_the_values_of_sure_rows() -> None:
    """The same loss as a function of the user's: in float32, `P_y - 1` would be 0."""
    model, x = sure(30.0).float(), near_the_border().float()
    x_valid = data()[2].float()
    y, y_valid = (model.double()(v.double()).argmax(1) for v in (x, x_valid))
    model = model.float()
    found, truth = (
        rayinf.influence(rayinf.Task(model, loss=loss), (x, y), (x_valid, y_valid), curvature=curvature).to_numpy()
        for curvature in ("ekfac",)
        for loss in (nn.CrossEntropyLoss(reduction="none"), "cross_entropy")
    )
    size = np.abs(truth) / np.abs(truth).max()
    told = size > 1e-11  # what float64 autograd can tell
    assert (told & (size < 1e-8)).any()
    assert np.allclose(found[told], truth[told], rtol=1e-2, atol=0)


@pytest.mark.parametrize("end", ["NLLLoss", "probabilities"])
def test_evaluate_takes_probabilities_for_what_they_are(end: str) -> None:
    task, truth = both(end)
    x, y, _, _ = data()
    table = (x, y, np.arange(ROWS) % 2)
    asked = rayinf.demographic_parity(favourable=1, group="group")
    found, expected = (rayinf.evaluate(replace(t, group="group"), table, asked) for t in (task, truth))
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9)
