"""The rivals of influence values against naive float64 forms that share no code with the package."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from core import cases
from core.cases import cross_entropy
from engine import small_job
from oracles_shapley import shapley, vote
from safetensors.torch import save_model
from scipy.stats import spearmanr
from torch import Tensor, nn

import rayinf
from rayinf.core.projection import Projection
from rayinf.engine import nearest

CASE = cases.case("mlp")
P = sum(v.numel() for v in CASE.model.parameters())
OBJECTIVES = ["total", "category"]


def task(model: nn.Module = CASE.model, **more: Any) -> rayinf.Task:
    return rayinf.Task(model, **more)


def value(method: Any, given: rayinf.Task | None = None, **more: Any) -> Tensor:
    """What the package gives, `[n, columns]`."""
    given = given or task()
    return torch.from_numpy(rayinf.baseline(given, CASE.train, CASE.valid, method=method, **more).to_numpy())


def other_models(count: int) -> list[nn.Module]:
    """The same architecture, trained longer or from elsewhere."""
    found = []
    for k in range(count):
        torch.manual_seed(10 + k)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
        found.append(cases.fit(model, *CASE.train, 20 + 10 * k))
    return found


def gradients(model: nn.Module, loss: Any = cross_entropy) -> tuple[Tensor, Tensor]:
    """Row gradients of the training rows `[n, p]`, and those of the objectives `[1 + K, p]` of the loss."""
    valid = oracles.row_gradients(model, cross_entropy, *CASE.valid)
    return oracles.row_gradients(model, loss, *CASE.train), cases.by_class(valid, CASE.valid[1], CASE.classes)


def in_blocks(rows: Tensor) -> Tensor:
    """Columns in the package's order: of each output its weights, then its bias."""
    order = [torch.cat([w.flatten(1), b[:, None]], 1).flatten() for w, b in _places()]
    return rows[:, torch.cat(order)]


def _places() -> list[tuple[Tensor, Tensor]]:
    """Where each weight and bias of the case's model stands among the columns of the oracles."""
    at = torch.arange(P)
    parts = dict(
        zip(
            (n for n, _ in CASE.model.named_parameters()),
            at.split([v.numel() for v in CASE.model.parameters()]),
            strict=True,
        )
    )
    return [(parts[f"{k}.weight"].view(o, -1), parts[f"{k}.bias"]) for k, o in ((0, 6), (2, 3))]


def odds(logits: Tensor, y: Tensor) -> Tensor:
    """The log-odds of the label, by its definition."""
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    return (p / (1 - p)).log()


class TestOfTheRow:
    def test_loss_margin_and_gradient_norm(self) -> None:
        x, y = CASE.train
        with torch.no_grad():
            logits = CASE.model(x)
        own = logits.gather(1, y[:, None])[:, 0]
        best = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        norms = oracles.row_gradients(CASE.model, cross_entropy, x, y).norm(dim=1)
        found = value(["loss", "margin", "grad_norm"], batch_size=7)
        torch.testing.assert_close(found, torch.stack([-cross_entropy(logits, y), own - best, -norms], 1))
        for k, name in enumerate(("loss", "margin", "grad_norm")):
            torch.testing.assert_close(value(name), found[:, [k]])

    def test_columns_labels_and_what_they_mean(self) -> None:
        scores = rayinf.baseline(task(), CASE.train, method=["margin", "loss"])
        assert scores.columns == ["margin", "loss"]
        np.testing.assert_array_equal(scores.labels, CASE.train[1])
        assert scores.metadata["sign"].startswith("positive: the row helps")
        assert scores.metadata["fit"]["train"]["mean_loss"] == pytest.approx(-scores.to_numpy()[:, 1].mean())
        assert rayinf.baseline(task(), CASE.train).metadata["unit"] == "minus the row's own loss"

    def test_the_lowest_are_trimmed(self) -> None:
        scores = rayinf.baseline(task(), CASE.train, method="loss")
        order = np.argsort(scores.to_numpy()[:, 0])
        assert rayinf.trim(scores, 5).removed.tolist() == order[:5].tolist()

    def test_random_is_uniform_seeded_and_free_of_shards(self, tmp_path: Path) -> None:
        given = rayinf.Task(small_job.model())
        files = [small_job.write(tmp_path / f"{size}.parquet", 600, 1, size) for size in (600, 17)]
        one, many = (
            rayinf.baseline(given, f, method="random", batch_size=b).to_numpy()
            for f, b in zip(files, (600, 5), strict=True)
        )
        np.testing.assert_array_equal(one, many)
        assert -1 <= one.min() < -0.99
        assert -0.01 < one.max() < 0
        assert abs(one.mean() + 0.5) < 0.05
        other = rayinf.baseline(given, files[0], method="random", seed=1).to_numpy()
        assert abs(spearmanr(one[:, 0], other[:, 0]).statistic) < 0.2


class TestGradients:
    def test_dot_is_the_product_of_the_gradients(self) -> None:
        rows, queries = gradients(CASE.model)
        found = value("grad_dot", objective=OBJECTIVES)
        torch.testing.assert_close(found, rows @ queries.T)
        identity = cases.influence(CASE.model, CASE.train, CASE.valid, curvature="identity")
        torch.testing.assert_close(found, identity * len(rows))

    def test_cosine_is_the_product_over_both_norms(self) -> None:
        rows, queries = gradients(CASE.model)
        truth = (rows / rows.norm(dim=1, keepdim=True)) @ (queries / queries.norm(dim=1, keepdim=True)).T
        found = value("grad_cos", objective=OBJECTIVES)
        torch.testing.assert_close(found, truth)
        assert found.abs().max() <= 1

    def test_of_some_layers_alone(self) -> None:
        rows = oracles.row_gradients(CASE.model, cross_entropy, *CASE.train, ["2.weight", "2.bias"])
        queries = oracles.row_gradients(CASE.model, cross_entropy, *CASE.valid, ["2.weight", "2.bias"]).sum(0)
        torch.testing.assert_close(value("grad_dot", task(parameters="last"))[:, 0], rows @ queries)


class TestTracIn:
    def test_sum_over_checkpoints_of_rate_times_product(self) -> None:
        models, rates = other_models(3), [0.5, 0.2, 0.01]
        parts = [gradients(m) for m in models]
        truth = sum(r * rows @ queries.T for r, (rows, queries) in zip(rates, parts, strict=True))
        states = [m.state_dict() for m in models]
        torch.testing.assert_close(value("tracin", checkpoints=states, rates=rates, objective=OBJECTIVES), truth)
        swapped = value("tracin", checkpoints=states, rates=rates[::-1], objective=OBJECTIVES)
        assert cases.error(swapped, truth) > 0.05

    def test_without_checkpoints_it_is_the_product_at_the_tasks_own_model(self) -> None:
        torch.testing.assert_close(value("tracin"), value("grad_dot"))
        torch.testing.assert_close(value("tracin", rates=0.5), 0.5 * value("grad_dot"))

    def test_modules_state_dicts_and_files_are_the_same(self, tmp_path: Path) -> None:
        (model,) = other_models(1)
        save_model(model, str(tmp_path / "a.safetensors"))
        torch.save(model.state_dict(), tmp_path / "b.pt")
        truth = value("tracin", checkpoints=[model])
        for given in (model.state_dict(), tmp_path / "a.safetensors", str(tmp_path / "b.pt")):
            torch.testing.assert_close(value("tracin", checkpoints=[given]), truth, rtol=0, atol=0)
        assert cases.error(value("tracin"), truth) > 0.05


class TestTrak:
    def truth(self, models: list[nn.Module], dim: int, seed: int = 0) -> Tensor:
        """Park et al. 2023, with every matrix formed; of the model's margins, weighed by how each moves the loss."""
        x, y = CASE.train
        products, weights = [], []
        signs = Projection(P, dim, seed).down(torch.eye(P, dtype=torch.float64))
        for model in models:
            phi = in_blocks(oracles.row_gradients(model, odds, x, y)) @ signs
            phi_valid = in_blocks(oracles.row_gradients(model, odds, *CASE.valid)) @ signs
            with torch.no_grad():
                p = model(x).softmax(1).gather(1, y[:, None])[:, 0]
                p_valid = model(CASE.valid[0]).softmax(1).gather(1, CASE.valid[1][:, None])
            # A row that raises a margin lowers that row's loss by 1 - p as much.
            of_rows = (1 - p_valid) * (phi_valid @ torch.linalg.inv(phi.T @ phi) @ phi.T)
            products.append(cases.by_class(of_rows, CASE.valid[1], CASE.classes).T)
            weights.append(1 - p)
        return torch.stack(products).mean(0) * torch.stack(weights).mean(0)[:, None]

    @pytest.mark.parametrize("dim", [8, 20])
    def test_against_the_dense_form(self, dim: int) -> None:
        found = value("trak", dim=dim, objective=OBJECTIVES, batch_size=7, seed=5)
        assert cases.error(found, self.truth([CASE.model], dim, 5)) < 1e-8

    def test_several_models_average_both_factors(self) -> None:
        models = other_models(3)
        truth = self.truth(models, 8)
        found = value("trak", dim=8, checkpoints=models, objective=OBJECTIVES)
        assert cases.error(found, truth) < 1e-8
        each = torch.stack([self.truth([m], 8) for m in models]).mean(0)
        assert cases.error(each, truth) > 0.01

    def test_with_as_many_dimensions_as_directions_no_projection_matters(self) -> None:
        """Of a full-rank P, `P (P' F' F P)^-1 P'` is `(F' F)^-1`: a truth that knows nothing of the draw."""
        x, y = CASE.train[0], CASE.train[1] % 2
        valid = CASE.valid[0], CASE.valid[1] % 2
        model = _OneSided(cases.fit(nn.Linear(5, 2), x, y, 60))
        f = oracles.row_gradients(model, odds, x, y)
        q = oracles.row_gradients(model, cross_entropy, *valid).sum(0)
        with torch.no_grad():
            rest = 1 - model(x).softmax(1).gather(1, y[:, None])[:, 0]
        truth = -(f @ torch.linalg.inv(f.T @ f) @ q) * rest
        for seed in (0, 13):  # of others, six by six signs are singular
            scores = rayinf.baseline(task(model), (x, y), valid, method="trak", dim=6, seed=seed)
            assert cases.error(torch.from_numpy(scores.to_numpy())[:, 0], truth) < 1e-7

    def test_a_dim_that_the_rows_do_not_span(self) -> None:
        head = cases.case("linear").model  # gradients over classes add up to 0: 12 directions of 18 parameters
        with pytest.raises(rayinf.InputError, match=r"span fewer directions.*smaller dim"):
            rayinf.baseline(task(head), CASE.train, CASE.valid, method="trak", dim=13)
        with pytest.raises(rayinf.InputError, match="dim=512: 82 training rows and 57 parameters"):
            value("trak")

    def test_of_another_loss(self) -> None:
        def squared(logits: Tensor, y: Tensor) -> Tensor:
            return (logits - nn.functional.one_hot(y, 3)).square().sum(1)

        with pytest.raises(rayinf.InputError, match="log-odds"):
            value("trak", task(loss=squared), dim=4)


class _OneSided(nn.Module):
    """A head of two classes as one layer of one logit, the other being 0: all of its directions are seen."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(head.weight[1:] - head.weight[:1])
            self.layer.bias.copy_(head.bias[1:] - head.bias[:1])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return torch.cat([torch.zeros_like(z), z], 1)


class TestKnnShapley:
    X, Y = CASE.train[0][:9].numpy(), CASE.train[1][:9].numpy()
    VALID = CASE.valid[0][:8].numpy(), CASE.valid[1][:8].numpy()

    def truth(self, x: np.ndarray, valid: np.ndarray, neighbors: int) -> np.ndarray:
        distances = np.linalg.norm(x[None] - valid[:, None], axis=2)
        out = np.zeros((9, 4))
        for d, y in zip(distances, self.VALID[1], strict=True):
            values = shapley(9, partial(vote, distances=d, same=y == self.Y, neighbors=neighbors))
            out[:, 0] += values
            out[:, 1 + y] += values
        return out

    def found(self, given: rayinf.Task, neighbors: int = 3, **more: Any) -> np.ndarray:
        train = (self.X, self.Y)
        scores = rayinf.baseline(
            given, train, self.VALID, method="knn_shapley", neighbors=neighbors, objective=OBJECTIVES, **more
        )
        return scores.to_numpy()

    @pytest.mark.parametrize("neighbors", [1, 3, 12])
    def test_on_features_against_all_subsets(self, neighbors: int) -> None:
        truth = self.truth(self.X, self.VALID[0], neighbors)
        np.testing.assert_allclose(self.found(task(), neighbors), truth, atol=1e-10)

    def test_on_the_input_of_the_last_layer(self) -> None:
        with torch.no_grad():
            inner = [CASE.model[:2](torch.from_numpy(v)).numpy() for v in (self.X, self.VALID[0])]
        truth = self.truth(inner[0], inner[1], 3)
        np.testing.assert_allclose(self.found(task(), space="embedding"), truth, atol=1e-10)
        assert np.abs(self.found(task()) - truth).max() > 0.01

    def test_tiles_shards_and_the_order_of_rows_change_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = rayinf.Task(small_job.model())
        order = np.random.default_rng(0).permutation(200)
        files = {k: small_job.write(tmp_path / f"{k}.parquet", 200, 1, 9, o) for k, o in (("a", None), ("b", order))}
        whole, valid = (
            small_job.write(tmp_path / "whole.parquet", 200, 1, 200),
            small_job.write(tmp_path / "v.parquet", 60, 2, 7),
        )
        more = {"method": "knn_shapley", "objective": ["total", "slice:group"]}
        truth = rayinf.baseline(given, whole, valid, **more).to_numpy()
        monkeypatch.setattr(nearest, "_DISTANCES", 200 * 11)
        monkeypatch.setattr(nearest, "_LEAST_ROWS", 5)
        found = rayinf.baseline(given, files["a"], valid, batch_size=8, out=tmp_path / "out", **more)
        np.testing.assert_allclose(found.to_numpy(), truth, atol=1e-12)
        shuffled = rayinf.baseline(given, files["b"], valid, **more).to_numpy()
        np.testing.assert_allclose(shuffled, truth[order], atol=1e-12)

    def test_objectives_that_are_no_votes(self) -> None:
        with pytest.raises(rayinf.InputError, match=r"votes, and objective='odds'.*slice:<column>"):
            value("knn_shapley", objective=odds)


class TestRefused:
    @pytest.mark.parametrize(
        ("method", "more", "part"),
        [
            ("los", {}, "method='los' is unknown"),
            (["loss", "grad_dot"], {}, "'grad_dot' takes passes of its own"),
            (["loss", "loss"], {}, "method=['loss', 'loss']"),
            ([], {}, "method=[]"),
            ("loss", {"dim": 3}, "dim=3 is an option of 'trak', not of 'loss'"),
            ("trak", {"neighbors": 3}, "neighbors=3 is an option of 'knn_shapley', not of 'trak'"),
            ("grad_dot", {"checkpoints": [{}]}, "is an option of 'tracin' and 'trak', not of 'grad_dot'"),
            ("knn_shapley", {"seeds": 2}, "seeds=2 is an option of 'loo', not of 'knn_shapley'"),
            ("knn_shapley", {"space": "pixels"}, "space='pixels' is unknown"),
            ("tracin", {"checkpoints": CASE.model.state_dict()}, "checkpoints"),
            ("tracin", {"checkpoints": [5]}, "checkpoints[0]"),
            ("tracin", {"checkpoints": ["/no/such.pt"]}, "there is no file /no/such.pt"),
            ("tracin", {"checkpoints": [{"0.weight": torch.zeros(6, 5)}]}, "3 missing (0.bias, 2.weight, 2.bias)"),
            ("tracin", {"checkpoints": [nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))]},
             "'0.weight' is [7, 5]"),
            ("tracin", {"checkpoints": [CASE.model], "rates": [0.1, 0.2]}, "2 learning rates for 1 checkpoint"),
            ("tracin", {"rates": [0.0]}, "rates=0.0"),
            ("trak", {"dim": 0}, "dim=0"),
        ],
    )  # fmt: skip
    def test_before_any_work(self, method: Any, more: dict[str, Any], part: str, tmp_path: Path) -> None:
        with pytest.raises(rayinf.InputError) as caught:
            value(method, out=tmp_path / "out", **more)
        assert part in str(caught.value)
        assert " Fix: " in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_without_validation_rows(self) -> None:
        with pytest.raises(rayinf.InputError, match="method='grad_cos' needs validation rows"):
            rayinf.baseline(task(), CASE.train, method="grad_cos")

    def test_a_file_that_is_no_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "a.pt").write_text("no tensors")
        torch.save(CASE.model, tmp_path / "b.pt")
        torch.save([1], tmp_path / "c.pt")
        state = {k: v * torch.nan for k, v in CASE.model.state_dict().items()}
        for given, part in (
            (tmp_path / "a.pt", ""),
            (tmp_path / "b.pt", "state_dict"),
            (tmp_path / "c.pt", "list"),
            (state, "NaN"),
        ):
            with pytest.raises(rayinf.InputError, match=rf"checkpoints\[0\].*{part}"):
                value("tracin", checkpoints=[given])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_on_ray_the_bytes_are_those_of_one_process(tmp_path: Path) -> None:
    """Two models and their join; sums over validation rows."""
    train = small_job.write(tmp_path / "train.parquet", 200, 1, 30)
    valid = small_job.write(tmp_path / "valid.parquet", 60, 2, 20)
    half = {k: v * 0.5 for k, v in small_job.model().state_dict().items()}
    given = rayinf.Task(small_job.model())
    for method, more in (("trak", {"dim": 8, "checkpoints": [given.build(), half]}), ("knn_shapley", {})):
        for place, cluster in (("alone", None), ("ray", rayinf.Cluster(workers=2))):
            rayinf.baseline(given, train, valid, method, cluster=cluster, out=tmp_path / place / method, **more)
        assert small_job.digest(tmp_path / "ray" / method) == small_job.digest(tmp_path / "alone" / method)
