"""Values of pairs against float64 products of dense row gradients through the dense inverse, block by block."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import rayinf
from rayinf.core import inverse

ROWS, VALID = 30, 7


def flat() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def images() -> nn.Module:
    body = [nn.Conv2d(1, 3, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(nn.Unflatten(1, (1, 3, 3)), *body)


def words() -> nn.Module:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    return nn.Sequential(nn.Embedding(6, 4), Mean(), nn.Linear(4, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {"flat": (flat, 5), "images": (images, 9), "words": (words, 4)}


def gradients(model: nn.Module, x: np.ndarray, y: np.ndarray) -> dict[str, torch.Tensor]:
    """Of every parameter, one row at a time, float64."""
    model = model.double()
    rows: dict[str, list[torch.Tensor]] = {n: [] for n, _ in model.named_parameters()}
    for row, label in zip(torch.tensor(x), torch.tensor(y), strict=True):
        row = row.double() if row.is_floating_point() else row
        loss = nn.functional.cross_entropy(model(row[None]), label[None])
        for (name, value), g in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            rows[name].append(g.reshape(value.shape).flatten())
    model.float()
    return {n: torch.stack(v) for n, v in rows.items()}


def make(name: str) -> tuple[nn.Module, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    torch.manual_seed(0)
    build, d = MODELS[name]
    rng, n = np.random.default_rng(0), ROWS + VALID
    x = (
        rng.integers(0, 6, (n, d))
        if name == "words"
        else (rng.normal(size=(n, d)) @ rng.normal(size=(d, d))).astype("f4")
    )
    y = rng.integers(0, 3, n)
    y[:3] = y[ROWS : ROWS + 3] = np.arange(3)
    return build(), (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])


def dense(found: rayinf.Pairs) -> np.ndarray:
    frame = found.to_pandas()
    return (
        frame.drop_duplicates(["valid_row_id", "row_id"])
        .pivot(index="valid_row_id", columns="row_id", values="value")
        .to_numpy()
    )


@pytest.mark.parametrize(
    ("curvature", "model"), [*itertools.product(["identity", "ekfac", "kfac"], MODELS), ("exact", "flat")]
)
def test_pairs_are_those_of_single_validation_rows(model: str, curvature: str) -> None:
    """Each row of `pairs` is `influence` of all training rows on that validation row alone, which solves densely."""
    net, train, valid = make(model)
    options = {"curvature": curvature, "inverse": "damped", "damping": None if curvature == "identity" else 0.05}
    if curvature == "exact":
        options["damping"] = 5.0
    found = dense(rayinf.pairs(rayinf.Task(net), train, valid, top=ROWS, **options))
    for k in range(VALID):
        one = rayinf.influence(rayinf.Task(net), train, tuple(v[k : k + 1] for v in valid), **options).to_numpy()[:, 0]
        assert np.abs(found[k] - one).max() < 2e-5 * np.abs(one).max()


@pytest.mark.parametrize("model", MODELS)
def test_identity_against_autograd(model: str) -> None:
    net, train, valid = make(model)
    left, right = gradients(net, *valid), gradients(net, *train)
    truth = sum(left[n] @ right[n].T for n in left) / ROWS
    found = dense(rayinf.pairs(rayinf.Task(net), train, valid, top=ROWS, curvature="identity"))
    assert np.abs(found - truth.numpy()).max() < 1e-5 * float(truth.abs().max())


def test_a_wrong_rotation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: rows that do not stay in the eigenbasis, though they are taken to."""
    net, train, valid = make("flat")
    right = dense(rayinf.pairs(rayinf.Task(net), train, valid, top=ROWS, inverse="damped", damping=0.05))
    solve = inverse.solve_rows
    from rayinf.engine import pair_stages

    monkeypatch.setattr(pair_stages, "solve_rows", lambda *given: solve(*given[:-1], False))
    wrong = dense(rayinf.pairs(rayinf.Task(net), train, valid, top=ROWS, inverse="damped", damping=0.05))
    assert np.abs(wrong - right).max() > 1e-2 * np.abs(right).max()
