"""The linear datamodelling score: against plain NumPy and SciPy, mutants, what is trained again, Ray, refusals."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from engine.fault_jobs import digest
from scipy.stats import pearsonr, spearmanr
from torch import nn

import rayinf
from rayinf.data.batches import Columns
from rayinf.data.labels import Classes
from rayinf.data.tables import as_table
from rayinf.training.subset_trainings import TrainOnSubsets
from rayinf.training.subsets import Subsets, read_keys

WIDTH, CLASSES, N, V = 3, 3, 60, 24
L2 = 0.1
SUBSETS = 8


def frame(rows: int, seed: int) -> pd.DataFrame:
    """Overlapping classes, a number for every row and a group of two."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % CLASSES
    x = (rng.normal(size=(rows, WIDTH)) + np.eye(CLASSES, WIDTH)[y]).astype(np.float32)
    columns = {f"x{j}": x[:, j] for j in range(WIDTH)}
    return pd.DataFrame({**columns, "label": y, "one": np.arange(rows), "side": (x[:, 0] > 0).astype(int)})


TRAIN, VALID = frame(N, 0), frame(V, 1)
FEATURES = [f"x{j}" for j in range(WIDTH)]
OBJECTIVES = ["total", "category", "slice:one"]


@pytest.fixture(scope="module")
def task() -> rayinf.Task:
    return rayinf.logistic_regression(TRAIN, l2=L2, features=FEATURES)


@pytest.fixture(scope="module")
def scores(task: rayinf.Task) -> rayinf.Scores:
    return rayinf.influence(task, TRAIN, VALID, OBJECTIVES, curvature="exact")


def masks(count: int, share: float = 0.5, seed: int = 0) -> list[np.ndarray]:
    """The subsets, whose draw has tests of its own."""
    table = as_table(TRAIN, FEATURES, ["label"], "train")
    keys, _ = read_keys(table, Columns(tuple(FEATURES), False, "label", None), Classes((0, 1, 2)))
    return [Subsets(keys, round(share * N), seed).keep(j) for j in range(count)]


def losses_of(weights: np.ndarray, data: pd.DataFrame) -> np.ndarray:
    """Cross-entropy of every row under `[K, d + 1]`."""
    x = np.column_stack([data[FEATURES].to_numpy(float), np.ones(len(data))])
    logits = x @ weights.T
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(data)), data["label"]]


def naive_head(keep: np.ndarray) -> np.ndarray:
    """A softmax regression by Newton steps: minimises `sum of kept losses / N + l2 / 2 |w|^2`, w with its bias."""
    x = np.column_stack([TRAIN[FEATURES].to_numpy(float), np.ones(N)])[keep]
    onehot = np.eye(CLASSES)[TRAIN["label"].to_numpy()[keep]]
    w = np.zeros((CLASSES, WIDTH + 1))
    for _ in range(30):
        p = np.exp(x @ w.T)
        p /= p.sum(1, keepdims=True)
        gradient = ((p - onehot).T @ x / N + L2 * w).ravel()
        hessian = sum(np.kron(np.diag(q) - np.outer(q, q), np.outer(r, r)) for q, r in zip(p, x, strict=True)) / N
        w -= np.linalg.solve(hessian + L2 * np.eye(w.size), gradient).reshape(w.shape)
    return w


def naive_columns(losses: np.ndarray) -> np.ndarray:
    """total, then each class, then each row."""
    classes = [losses[VALID["label"] == k].sum() for k in range(CLASSES)]
    return np.array([losses.sum(), *classes, *losses])


# --- Figures


def test_a_head_against_plain_numpy(task: rayinf.Task, scores: rayinf.Scores) -> None:
    found = rayinf.lds(task, TRAIN, VALID, scores, SUBSETS)
    kept = masks(SUBSETS)
    measured = np.stack([naive_columns(losses_of(naive_head(keep), VALID)) for keep in kept])
    predicted = np.stack([scores.to_numpy()[~keep].sum(0) for keep in kept])
    assert np.allclose(found.effects.measured[0], measured, atol=1e-6)
    assert np.allclose(found.effects.predicted["scores"], predicted, atol=1e-6)
    lines = found.to_pandas().query("scores == 'scores'")
    assert lines["column"].tolist() == scores.columns
    columns = range(measured.shape[1])
    ranks = np.array([spearmanr(predicted[:, k], measured[:, k]).statistic for k in columns])
    slopes = np.array([np.polyfit(predicted[:, k], measured[:, k], 1)[0] for k in columns])
    assert np.allclose(lines["spearman"], ranks, atol=1e-9)
    assert np.allclose(lines["slope"], slopes, atol=1e-5)
    assert np.allclose(lines["pearson"], [pearsonr(predicted[:, k], measured[:, k]).statistic for k in columns])
    assert lines["ceiling"].isna().all()
    for name, at in (("total", slice(0, 1)), ("category", slice(1, 4)), ("slice_one", slice(4, None))):
        figures = found.summary["scores"][name]
        p, m = (v[:, at] - v[:, at].mean(0) for v in (predicted, measured))
        assert figures["columns"] == p.shape[1] and figures["ceiling"] is None
        assert figures["spearman"] == pytest.approx(ranks[at].mean())
        assert figures["slope"] == pytest.approx((p * m).sum() / (p * p).sum(), abs=1e-5)
        assert figures["low"] <= figures["spearman"] <= figures["high"]
    # Half of the rows go, and the model is convex: the order is right, and first-order sizes are too small.
    assert ranks[4:].mean() > 0.9
    assert 1.0 < found.summary["scores"]["category"]["slope"] < 2.5
    assert found.metadata == {
        "subsets": SUBSETS,
        "share": 0.5,
        "kept": 30,
        "seeds": 1,
        "rows": {"train": N, "valid": V},
    }
    assert len(found.notes) == 1 and "goes to convergence" in found.notes[0]


def test_other_values_of_the_same_rows(task: rayinf.Task, scores: rayinf.Scores) -> None:
    """A constant factor divides the slope; a flipped sign, and values of other rows, fail."""
    held = scores.to_numpy()
    shuffled = np.stack([held[np.random.default_rng(k).permutation(N)] for k in range(4)])
    given = {
        "own": held,
        "times 5": 5 * held,
        "flipped": -held,
        **{f"shuffled {k}": values for k, values in enumerate(shuffled)},
    }
    several = {name: rayinf.Scores.from_numpy(values, scores.columns) for name, values in given.items()}
    found = rayinf.lds(task, TRAIN, VALID, several, 20).summary
    for group in ("total", "category", "slice_one"):
        own = found["own"][group]
        assert own["spearman"] > 0.85
        assert found["times 5"][group]["spearman"] == pytest.approx(own["spearman"])
        assert found["times 5"][group]["slope"] == pytest.approx(own["slope"] / 5)
        assert found["flipped"][group]["spearman"] == pytest.approx(-own["spearman"])
        assert found["flipped"][group]["slope"] == pytest.approx(-own["slope"])
        assert found["random"][group]["slope"] is None
    by_row = [found[f"shuffled {k}"]["slice_one"]["spearman"] for k in range(4)]
    assert abs(np.mean(by_row)) < 0.3 and abs(found["random"]["slice_one"]["spearman"]) < 0.3


def test_the_rows_own_loss(task: rayinf.Task, scores: rayinf.Scores) -> None:
    found = rayinf.lds(task, TRAIN, VALID, scores, 4).effects.predicted["own_loss"]
    head = task.build()
    loss = losses_of(np.column_stack([head.weight.detach().numpy(), head.bias.detach().numpy()]), TRAIN)
    for j, keep in enumerate(masks(4)):
        assert found[j, 0] == pytest.approx(loss[~keep].sum())
        by_class = [loss[~keep & (TRAIN["label"] == k)].sum() for k in range(CLASSES)]
        assert np.allclose(found[j], [loss[~keep].sum(), *by_class, *[loss[~keep].sum()] * V])


def small_network() -> rayinf.Task:
    torch.manual_seed(0)
    fit = rayinf.Fit(optimizer="adam", lr=1e-2, epochs=3, batch_size=16)
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    return rayinf.Task(model, l2=1e-2, fit=fit, features=FEATURES)


def test_a_network_averages_seeds(tmp_path: Path) -> None:
    network = small_network()
    values = np.random.default_rng(0).normal(size=(N, 4))
    columns = ["total", *(f"category_{k}" for k in range(CLASSES))]
    given = (network, TRAIN, VALID, rayinf.Scores.from_numpy(values, columns), 4, 0.3, 3)
    found = rayinf.lds(*given, seed=5)
    measured = np.empty((3, 4, 4))
    for s in range(3):
        for j, keep in enumerate(masks(4, 0.3, 5)):
            trained = rayinf.retrain(network, TRAIN, keep=keep, seed=5 + s, rows=N)
            with torch.no_grad():
                logits = trained.build()(torch.tensor(VALID[FEATURES].to_numpy())).double()
            losses = nn.functional.cross_entropy(logits, torch.tensor(VALID["label"].to_numpy()), reduction="none")
            measured[s, j] = naive_columns(losses.numpy())[:4]
    assert np.allclose(found.effects.measured, measured, atol=1e-6)
    total = found.to_pandas().iloc[0]
    assert total["spearman"] == pytest.approx(
        spearmanr(found.effects.predicted["scores"][:, 0], measured.mean(0)[:, 0])[0]
    )
    halves = measured[:1, :, 0].mean(0), measured[1:, :, 0].mean(0)
    assert total["ceiling"] == pytest.approx(spearmanr(*halves)[0])
    assert found.notes == () and "not known" not in str(found)
    for path in (tmp_path / "a.png", tmp_path / "b.svg"):
        assert found.plot(path) == path and path.stat().st_size > 5_000
    assert "ceiling is not known with one seed" in str(rayinf.lds(*given[:6]))


# --- What is kept


class Counted:
    """Trains a linear model; counts how often, and fails at a given time."""

    def __init__(self, fail: int | None = None) -> None:
        self.calls, self.fail = 0, fail

    def __getstate__(self) -> dict[str, Any]:
        return {}  # counts are no part of what it is

    def __call__(self, task: rayinf.Task, train: Any, weights: Any, seed: int) -> nn.Module:
        if self.calls == self.fail:
            self.fail = None
            raise KeyboardInterrupt
        self.calls += 1
        model = nn.Linear(WIDTH, CLASSES)
        x, y = torch.tensor(train[FEATURES].to_numpy()), torch.tensor(train["label"].to_numpy())
        w = torch.from_numpy(weights).float()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) / 10)
        step = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(5):
            step.zero_grad()
            (w * nn.functional.cross_entropy(model(x), y, reduction="none")).mean().backward()
            step.step()
        return model


def counted(fail: int | None = None) -> tuple[rayinf.Task, Counted]:
    fit = Counted(fail)
    return rayinf.Task(nn.Linear(WIDTH, CLASSES), features=FEATURES, fit=fit, group="side"), fit


def values(*columns: str, seed: int = 0) -> rayinf.Scores:
    held = np.random.default_rng(seed).normal(size=(N, len(columns)))
    return rayinf.Scores.from_numpy(held, list(columns))


def test_later_calls_train_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    task, fit = counted(fail=2)
    with pytest.raises(KeyboardInterrupt):
        rayinf.lds(task, TRAIN, VALID, values("total"), 3, out=out)
    assert len(list((out / "trainings").iterdir())) == 2
    first = rayinf.lds(task, TRAIN, VALID, values("total"), 3, out=out)
    assert fit.calls == 3
    by_row = values(*(f"slice_one_{k}" for k in range(V)), "category_1", seed=1)
    before = digest(out)
    other = rayinf.lds(task, TRAIN, VALID, {"a": values("total"), "b": by_row}, 3, out=out)  # other scores
    assert fit.calls == 3 and digest(out) == before
    assert other.summary["a"] == first.summary["scores"] and other.summary["b"]["slice_one"]["columns"] == V
    rayinf.lds(task, TRAIN, VALID, values("total"), 5, seeds=2, out=out)  # more subsets and seeds
    assert fit.calls == 10
    whole = rayinf.lds(task, TRAIN, VALID, values("total"), 5, seeds=2, out=tmp_path / "whole")
    assert fit.calls == 20 and digest(out) == digest(tmp_path / "whole")
    again = rayinf.lds(task, TRAIN, VALID, values("total"), 3, out=out)  # fewer
    assert fit.calls == 20 and again.table.equals(first.table)
    (out / "trainings" / "subset4-seed1.parquet").write_bytes(b"damaged")
    found = rayinf.lds(task, TRAIN, VALID, values("total"), 5, seeds=2, out=out)
    assert fit.calls == 21 and found.table.equals(whole.table) and rayinf.verify(out).ok


def test_gaps_and_attacks_are_measured_as_evaluate_does(tmp_path: Path) -> None:
    """And an objective that is no sum of losses is measured with the model at hand: a later one trains again."""
    out = tmp_path / "run"
    task, fit = counted()
    two = TRAIN.assign(label=TRAIN["label"] % 2), VALID.assign(label=VALID["label"] % 2)
    task = replace(task, model=nn.Linear(WIDTH, CLASSES), classes=(0, 1, 2))
    several = ["total", rayinf.demographic_parity(favourable=1), rayinf.robustness("fgsm", epsilon=0.1)]
    given = (task, *two)
    rayinf.lds(*given, values("total"), 3, out=out)
    assert fit.calls == 3
    columns = ("total", "demographic_parity", "robustness")
    found = rayinf.lds(*given, values(*columns), 3, out=out, objective=several)
    assert fit.calls == 6
    table = as_table(two[0], FEATURES, ["label"], "train")
    keys, _ = read_keys(table, Columns(tuple(FEATURES), False, "label", None), Classes((0, 1, 2)))
    for j in range(3):
        trained = rayinf.retrain(task, two[0], keep=Subsets(keys, N // 2, 0).keep(j), rows=N)
        told = rayinf.evaluate(trained, two[1], several, against=task)
        assert np.allclose(found.effects.measured[0, j], [told[c] for c in columns], atol=1e-5)
    rayinf.lds(*given, values("total"), 4, out=out)
    assert fit.calls == 10
    again = rayinf.lds(*given, values("robustness"), 3, out=out, objective=several[2])
    assert fit.calls == 10 and np.array_equal(again.effects.measured[..., 0], found.effects.measured[..., 2])
    file = next((out / "measures").glob("robust*/*.json"))
    file.write_text("{}")
    with pytest.raises(rayinf.InputError, match=r"1 files of an earlier call .* values of 'robustness'"):
        rayinf.lds(*given, values("total"), 4, out=out)
    rayinf.lds(*given, values("robustness"), 3, out=out, objective=several[2])
    assert fit.calls == 11 and rayinf.verify(out).ok


def test_what_is_sent_to_workers() -> None:
    """A copy opens the tables itself, and gives the same."""
    table = as_table(TRAIN, FEATURES, ["label"], "train")
    keys, _ = read_keys(table, Columns(tuple(FEATURES), False, "label", None), Classes((0, 1, 2)))
    here = TrainOnSubsets(replace(small_network(), classes=(0, 1, 2)), TRAIN, VALID, Subsets(keys, N // 2, 0), {})
    first = here((1, 3))["loss"]
    there = pickle.loads(pickle.dumps(here))
    assert there._opened is None and here._opened is not None
    assert (there((1, 3))["loss"] == first).all() and len(first) == V


@pytest.mark.slow
def test_on_ray(ray_session: None, tmp_path: Path) -> None:
    given = (small_network(), TRAIN, VALID, values("total", "category_0"), 4, 0.5, 2)
    cluster = rayinf.Cluster(address="auto", workers=2)
    found = [rayinf.lds(*given, out=tmp_path / str(k), cluster=c) for k, c in enumerate((None, cluster))]
    assert found[0].table.equals(found[1].table)
    assert digest(tmp_path / "0") == digest(tmp_path / "1")


# --- Bad input


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "rayinf.training.subset_trainings.Retraining", lambda *a, **k: pytest.fail("a model was trained")
    )
    return


def test_what_does_not_fit(task: rayinf.Task, scores: rayinf.Scores, no_training: None, tmp_path: Path) -> None:
    def refused(message: str, *given: Any, **more: Any) -> None:
        with pytest.raises(rayinf.InputError, match=message):
            rayinf.lds(*given, **more)

    refused("subsets=2: subsets must be an integer >= 3", task, TRAIN, VALID, scores, 2)
    refused("share must be a number in", task, TRAIN, VALID, scores, share=1.0)
    refused("share=0.001 of 60 rows keeps 0", task, TRAIN, VALID, scores, share=0.001)
    refused("seeds=0: seeds must be an integer", task, TRAIN, VALID, scores, seeds=0)
    refused("scores must be rayinf.Scores", task, TRAIN, VALID, scores.to_numpy())
    refused("holds no scores", task, TRAIN, VALID, {})
    refused("cannot be called 'random'", task, TRAIN, VALID, {"random": scores})
    refused(r"scores\['a'\] must be rayinf.Scores", task, TRAIN, VALID, {"a": "runs/a"})
    refused("train has 59 rows, and the scores have 60", task, TRAIN[:-1], VALID, scores)
    refused("The scores are of another table", task, TRAIN, VALID.assign(x0=VALID["x0"] + 1), scores)
    refused("weights differ", rayinf.logistic_regression(TRAIN, l2=1.0, features=FEATURES), TRAIN, VALID, scores)
    refused("a column 'fi', whose name does not tell", task, TRAIN, VALID, values("fi"))
    refused("a column 'slice_one_99', which is none of", task, TRAIN, VALID, values("slice_one_99"))
    refused("a column 'mine', which is none of", task, TRAIN, VALID, values("mine"), objective="total")
    deep = rayinf.Task(nn.Sequential(nn.Linear(WIDTH, 3), nn.ReLU(), nn.Linear(3, CLASSES)), features=FEATURES)
    refused("does not say how its model is trained", deep, TRAIN, VALID, values("total"))
    (tmp_path / "x").write_text("")
    refused("not empty and holds no run", task, TRAIN, VALID, scores, out=tmp_path)


def test_a_folder_of_another_config(tmp_path: Path) -> None:
    task, _ = counted()
    rayinf.lds(task, TRAIN, VALID, values("total"), 3, out=tmp_path)
    for change, word in (({"share": 0.4}, "share"), ({"seed": 1}, "seed"), ({"task": replace(task, l2=0.5)}, "l2")):
        given = {"task": task, "train": TRAIN, "valid": VALID, "scores": values("total"), "subsets": 3, **change}
        with pytest.raises(rayinf.InputError, match=f"holds a run of another config: {word}"):
            rayinf.lds(**given, out=tmp_path)
    with pytest.raises(rayinf.InputError, match="another config"):
        rayinf.lds(task, TRAIN, VALID.assign(x0=0.0), values("total"), 3, out=tmp_path)
