"""Leave-one-out and Data Shapley, against trainings of every set of rows by a routine of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles_shapley import shapley
from torch import nn

import rayinf
from rayinf.training import data_shapley, valued_by_retraining
from rayinf.training.set_worth import SetCosts

RNG = np.random.default_rng(0)
N, D, K, L2 = 10, 3, 2, 0.2
Y = np.arange(N) % K
X = RNG.normal(size=(N, D)) + 0.8 * Y[:, None]
VALID = RNG.normal(size=(30, D)) + 0.8 * (np.arange(30) % K)[:, None], np.arange(30) % K
TASK = rayinf.Task(nn.Linear(D, K).double(), l2=L2)


def fitted(rows: np.ndarray) -> np.ndarray:
    """Softmax regression by plain Newton steps on `(sum of losses) / N + l2/2 ||theta||^2`: `[K, D + 1]`."""
    theta = np.zeros((K, D + 1))
    a = np.hstack([X[rows], np.ones((len(rows), 1))])
    for _ in range(8):
        p = np.exp(a @ theta.T)
        p /= p.sum(1, keepdims=True)
        gradient = (p - np.eye(K)[Y[rows]]).T @ a / N + L2 * theta
        h = np.einsum("bk,kl,bi,bj->kilj", p, np.eye(K), a, a) - np.einsum("bk,bl,bi,bj->kilj", p, p, a, a)
        h = h.reshape(theta.size, theta.size) / N + L2 * np.eye(theta.size)
        theta = theta - np.linalg.solve(h, gradient.ravel()).reshape(theta.shape)
    return theta


def costs(rows: Any) -> np.ndarray:
    """The summed validation loss, of all and by class; and minus the share that is classified right."""
    theta = fitted(np.array(rows, int))
    z = np.hstack([VALID[0], np.ones((30, 1))]) @ theta.T
    loss = np.log(np.exp(z).sum(1)) - z[np.arange(30), VALID[1]]
    right = z.argmax(1) == VALID[1]
    return np.array([loss.sum(), *(loss[VALID[1] == c].sum() for c in range(K)), -right.mean()])


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """Shapley values `[N, 4]` of minus the costs, over all 1,024 sets."""
    return shapley(N, lambda rows: -costs(rows))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four orders between two looks at the standard errors."""
    monkeypatch.setattr(data_shapley, "BLOCK", 4)
    monkeypatch.setattr(valued_by_retraining, "BLOCK", 4)


def baseline(method: str, given: rayinf.Task = TASK, **more: Any) -> rayinf.Scores:
    more = {"objective": ["total", "category"], **more}
    return rayinf.baseline(given, (X, Y), VALID, method=method, **more)


class TestLeaveOneOut:
    def test_is_the_rise_of_every_cost_without_the_row(self) -> None:
        whole, rows = costs(range(N)), np.arange(N)
        truth = np.stack([costs(rows[rows != i]) - whole for i in rows])
        scores = baseline("loo")
        np.testing.assert_allclose(scores.to_numpy(), truth[:, :3], atol=1e-6)
        assert scores.metadata["trainings"] == N + 1
        by_accuracy = baseline("loo", utility="accuracy", objective="total").to_numpy()
        np.testing.assert_allclose(by_accuracy[:, 0], truth[:, 3], atol=1e-12)

    def test_influence_predicts_it(self) -> None:
        """The same sign, unit and column: of one row of ten, no more than its order."""
        predicted = rayinf.influence(rayinf.logistic_regression((X, Y), l2=L2), (X, Y), VALID, curvature="exact")
        found = baseline("loo", objective="total").to_numpy()[:, 0]
        assert np.corrcoef(predicted.to_numpy()[:, 0], found)[0, 1] > 0.95

    def test_some_rows_alone(self, tmp_path: Path) -> None:
        every = baseline("loo").to_numpy()
        scores = baseline("loo", only=[7, 2], out=tmp_path / "out")
        assert len(scores) == N
        known = np.isin(np.arange(N), [2, 7])
        np.testing.assert_array_equal(np.isnan(scores.to_numpy()).all(1), ~known)
        np.testing.assert_allclose(scores.to_numpy()[known], every[known])
        assert rayinf.verify(tmp_path / "out").ok
        assert set(rayinf.trim(scores, 1, by="total").removed) <= {2, 7}

    def test_a_network_is_trained_beside_itself_with_gaps(self) -> None:
        """Pairs of trainings: a row of weight near nothing in the loss moves hardly anything."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, K)).double()
        fit = rayinf.Fit("sgd", lr=0.1, epochs=2, batch_size=4)
        given = rayinf.Task(network, fit=fit)
        found = baseline("loo", given, only=[3], objective="total", seeds=2)
        truth = []
        for seed in (0, 1):
            models = [
                rayinf.retrain(given, (X, Y), keep=keep, seed=seed, paired=True) for keep in (None, np.arange(N) != 3)
            ]
            before, after = (30 * rayinf.evaluate(m, VALID)["loss"] for m in models)
            truth.append(after - before)
        assert found.to_numpy()[3, 0] == pytest.approx(np.mean(truth), rel=1e-6)
        assert found.metadata["trainings"] == 4

    def test_too_many_trainings(self, tmp_path: Path) -> None:
        with pytest.raises(
            rayinf.InputError, match="of 10 rows takes 11 trainings, and retrainings=5 are allowed"
        ) as caught:
            baseline("loo", retrainings=5, out=tmp_path / "out")
        assert "only=[...]" in caught.value.fix
        assert not (tmp_path / "out").exists()
        assert baseline("loo", only=[1, 2, 3, 4], retrainings=5).metadata["trainings"] == 5


class TestDataShapley:
    def test_against_all_1024_sets(self, exact: np.ndarray, tmp_path: Path) -> None:
        """Within four standard errors of each row; what all rows are worth together is exact."""
        scores = baseline("data_shapley", tolerance=0.25, out=tmp_path / "out")
        found, sets = scores.to_numpy(), scores.metadata["permutations"]
        assert scores.metadata["converged"]
        assert sets == 20 * round(sets / 20)
        assert rayinf.verify(tmp_path / "out").ok
        np.testing.assert_allclose(found.sum(0), costs(())[:3] - costs(range(N))[:3], rtol=1e-6)
        each = np.stack([_permutation(tmp_path / "out", k) for k in range(sets)])
        np.testing.assert_allclose(each.mean(0), found)
        errors = each.std(0) / (sets - 1) ** 0.5
        assert (np.abs(found - exact[:, :3]) < 4 * errors).all()
        assert np.corrcoef(found[:, 0], exact[:, 0])[0, 1] > 0.9
        relative = errors[:, 0].mean() / np.abs(found[:, 0]).mean()
        assert scores.metadata["relative_error"] == pytest.approx(relative)

    def test_of_accuracy(self, exact: np.ndarray, small_blocks: None) -> None:
        """A worth of few values is known less well: its sum over rows is exact, up to the worth of no row."""
        found = baseline("data_shapley", utility="accuracy", objective="total", tolerance=5.0).to_numpy()[:, 0]
        assert found.sum() == pytest.approx(-costs(range(N))[3] - 0.5)  # the model of no row takes one class
        assert np.abs(found - exact[:, 3]).max() < 0.25

    def test_an_interrupted_run_goes_on_and_more_trainings_sharpen_it(
        self, tmp_path: Path, monkeypatch: Any, small_blocks: None
    ) -> None:
        more: dict[str, Any] = {"objective": "total", "tolerance": 1e-9}
        truth = baseline("data_shapley", retrainings=80, **more)
        measured = []

        def counted(self: SetCosts, kept: Any, seed: int, paired: bool = False) -> list[float]:
            measured.append(kept)
            if len(measured) == 40:
                raise KeyboardInterrupt
            return original(self, kept, seed, paired)

        original = SetCosts.of
        monkeypatch.setattr(SetCosts, "of", counted)
        with pytest.raises(KeyboardInterrupt):
            baseline("data_shapley", retrainings=40, out=tmp_path / "out", **more)
        monkeypatch.setattr(SetCosts, "of", original)
        assert rayinf.status(tmp_path / "out").state == "stopped"
        first = baseline("data_shapley", retrainings=40, out=tmp_path / "out", **more)
        assert (first.metadata["permutations"], first.metadata["converged"]) == (4, False)
        second = baseline("data_shapley", retrainings=80, out=tmp_path / "out", **more)
        assert second.metadata["permutations"] == 8
        np.testing.assert_array_equal(second.to_numpy(), truth.to_numpy())

    def test_truncation_cuts_orders_short(self, small_blocks: None) -> None:
        more: dict[str, Any] = {"objective": "total", "tolerance": 100.0}
        whole, cut = (baseline("data_shapley", truncation=t, **more) for t in (0.0, 0.8))
        assert whole.metadata["measured_sets"] == 40
        assert cut.metadata["measured_sets"] < 38
        missing = whole.to_numpy().sum() - cut.to_numpy().sum()
        assert 0 < abs(missing) <= 0.8 * abs(whole.to_numpy().sum())

    def test_too_many_trainings(self) -> None:
        with pytest.raises(rayinf.InputError, match="up to 200 trainings for its first 20 orders, and retrainings=199"):
            baseline("data_shapley", retrainings=199)

    def test_objectives_that_no_count_is_of(self) -> None:
        def squares(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return logits.square().sum(1)

        with pytest.raises(rayinf.InputError, match="objective='squares' is something else"):
            baseline("data_shapley", utility="accuracy", objective=squares)


def test_a_task_that_cannot_be_trained() -> None:
    given = rayinf.Task(nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, K)).double())
    with pytest.raises(rayinf.InputError, match=r"Task\(fit=rayinf.Fit"):
        baseline("loo", given)


def _permutation(out: Path, number: int) -> np.ndarray:
    import json

    return np.array(json.loads((out / "permutations" / f"{number:06d}.json").read_text())["values"])
