"""Scores know what they are of: verbs that use them refuse another model, other rows, other labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rayinf

WIDTH, CLASSES = 4, 3
FIT = rayinf.Fit(optimizer="adam", lr=1e-2, epochs=1, batch_size=16)
SEARCH = rayinf.Search(elites=1, mutated_elites=1, randoms=1, crossover_children=1, iterations=1)


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % CLASSES)
    return (rng.normal(size=(n, WIDTH)) + 1.5 * np.eye(CLASSES, WIDTH)[y]).astype(np.float32), y


TRAIN, VALID, TEST = rows(60, 0), rows(45, 1), rows(45, 2)


def network(seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 5), activation(), nn.Linear(5, CLASSES))


def task(seed: int = 0, **more: Any) -> rayinf.Task:
    return rayinf.Task(network(seed), **{"fit": FIT, **more})


def named(x: np.ndarray, y: np.ndarray, ids: Any = None) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    return pa.table({"features": lists, "label": y, "row_id": np.arange(len(y)) + 100 if ids is None else ids})


def scored(task: rayinf.Task, train: Any = None, valid: Any = None, out: Path | None = None) -> rayinf.Scores:
    train, valid = (TRAIN if train is None else train), (VALID if valid is None else valid)
    return rayinf.influence(task, train, valid, "category", curvature="identity", out=out)


def check(scores: rayinf.Scores, of: rayinf.Task, train: Any = TRAIN, valid: Any = VALID) -> None:
    rayinf.removal_check(of, train, valid, TEST, scores, 0.2, seeds=1)


def reweight(scores: rayinf.Scores, of: rayinf.Task, train: Any = TRAIN, valid: Any = VALID) -> None:
    rayinf.pareto_reweight(of, train, valid, scores, targets=[0], search=SEARCH)


def trimmed(scores: rayinf.Scores, of: rayinf.Task, train: Any = TRAIN, valid: Any = VALID) -> None:
    rayinf.trim(scores, 5, by="category_0", retrain=True, task=of, train=train, test=TEST)


VERBS = [check, reweight, trimmed]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def scores() -> rayinf.Scores:
    return scored(task())


def own_loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z, y, reduction="none", label_smoothing=0.1)


@pytest.mark.parametrize("verb", VERBS)
def test_other_tasks(verb: Callable[..., None], scores: rayinf.Scores) -> None:
    others: dict[str, rayinf.Task] = {
        "another model than the task's: the weights differ": task(1),
        "a model with other code, attributes or shapes": rayinf.Task(network(0, nn.ReLU), fit=FIT),
        "of which the loss differs": task(loss=own_loss),
        r"of which Task\(transform=...\) differs": task(transform=lambda x: 2 * x),
    }
    for said, other in others.items():
        with pytest.raises(rayinf.InputError, match=said):
            verb(scores, other)


@pytest.mark.parametrize("verb", VERBS)
def test_other_training_rows(verb: Callable[..., None]) -> None:
    x, y = TRAIN
    held = scored(task(), named(x, y))
    verb(held, task(), named(x, y))
    for said, other in {
        r"by its fingerprint: the training table has other values.*\(label\)": named(x, (y + 1) % CLASSES),
        r"by its fingerprint: the training table has other values.*\(features\)": named(x[::-1].copy(), y),
        "has the id": named(x, y, np.arange(60)[::-1]),
        "train has 59 rows, and the scores have 60": named(x, y).slice(1),
    }.items():
        with pytest.raises(rayinf.InputError, match=said):
            verb(held, task(), other)


@pytest.mark.parametrize("verb", [check, reweight])
def test_other_validation_rows(verb: Callable[..., None], scores: rayinf.Scores) -> None:
    x, y = VALID
    for said, other in {
        r"the validation table has other values, or its rows in another order \(features, label\)": rows(45, 9),
        r"the validation table has other values.*\(label\)": (x, (y + 1) % CLASSES),
        "valid has 44 rows, and the scores|the validation table has 45 -> 44 rows": (x[1:], y[1:]),
    }.items():
        with pytest.raises(rayinf.InputError, match=said):
            verb(scores, task(), valid=other)


@pytest.mark.parametrize("verb", VERBS)
def test_what_goes_on_working(verb: Callable[..., None], scores: rayinf.Scores, tmp_path: Path) -> None:
    """The same task and rows in other objects, files, forms; from disk; and scores of no known origin."""
    verb(scores, task())
    verb(scores, rayinf.Task(network().train(), fit=replace(FIT, lr=2e-2), l2=0.1))
    verb(scored(task(), out=tmp_path / "run"), task())
    verb(rayinf.Scores.load(tmp_path / "run"), rayinf.Task(network, fit=FIT))
    pq.write_table(named(*TRAIN), tmp_path / "t.parquet", row_group_size=13)
    verb(scores, task(), tmp_path / "t.parquet")
    elsewhere = rayinf.Scores.from_numpy(scores.to_numpy(), scores.columns)
    verb(elsewhere, task(3))


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_was_rewritten_between_two_verbs(verb: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(named(*TRAIN), file)
    held = scored(task(), file, out=tmp_path / "run")
    pq.write_table(named(TRAIN[0], (TRAIN[1] + 1) % CLASSES), file)
    with pytest.raises(rayinf.InputError, match="by its fingerprint: the training table has other values"):
        verb(held, task(), file)


def test_course_correction_may_value_the_unweighted_epoch() -> None:
    """As examples/pareto_ceiling/cifar.py does; other code and other rows are still refused."""
    start = task(fit=replace(FIT, fresh=False))
    after = rayinf.retrain(start, TRAIN, seed=0)
    held = scored(after)
    given: Any = {"targets": [0], "search": SEARCH}
    found = rayinf.pareto_reweight(start, TRAIN, VALID, held, mode="correct", **given)
    assert any("not of the checkpoint" in note for note in found.notes)
    found = rayinf.pareto_reweight(start, TRAIN, VALID, scored(start), mode="correct", **given)
    assert not any("not of the checkpoint" in note for note in found.notes)
    with pytest.raises(rayinf.InputError, match="the weights differ"):
        rayinf.pareto_reweight(start, TRAIN, VALID, held, mode="direct", **given)
    with pytest.raises(rayinf.InputError, match="other code, attributes or shapes"):
        rayinf.pareto_reweight(replace(start, model=network(0, nn.ReLU)), TRAIN, VALID, held, mode="correct", **given)
    with pytest.raises(rayinf.InputError, match="the validation table"):
        rayinf.pareto_reweight(start, TRAIN, rows(45, 9), held, mode="correct", **given)


def test_what_scores_are_of() -> None:
    held = scored(task())
    of = held.metadata["of"]
    assert set(of) == {"model", "architecture", "loss", "transform", "mask", "train", "valid"}
    assert (of["loss"], of["transform"], of["train"]["rows"], of["valid"]["rows"]) == ("cross_entropy", None, 60, 45)
    assert rayinf.trim(held, 5, by="category_0").metadata["of"] == of
    other = scored(task(1), named(*TRAIN)).metadata["of"]
    assert other["model"] != of["model"]
    assert other["architecture"] == of["architecture"]
    assert {k: v for k, v in other["train"].items() if k != "row_id"} == of["train"]
