"""Fairness and robustness on runs: workers, shards, identity, bad input before any work, the tree's acquisition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from engine import small_job as job
from engine.test_invariance import distance
from torch import nn

import rayinf
from rayinf import demographic_parity, equal_opportunity, robustness
from rayinf.errors import InputError

OBJECTIVES: list[Any] = [
    "total",
    demographic_parity(1),
    equal_opportunity(2),
    robustness("fgsm", epsilon=0.1),
]


def values(train: Any, valid: Any, objective: Any = OBJECTIVES, model: nn.Module | None = None, **how: Any) -> Any:
    task = rayinf.Task(job.model() if model is None else model, group="group", transform=job.same)
    return rayinf.influence(task, train, valid, objective, **how)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return (
        job.write(folder / "train.parquet", job.ROWS, 1, 100),
        job.write(folder / "valid.parquet", job.VALID, 2, 40),
        job.write(folder / "valid1.parquet", job.VALID, 2, job.VALID),
    )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_batches_shards_and_workers(tables: tuple[Path, Path, Path]) -> None:
    train, valid, whole = tables
    truth = values(train, valid).to_numpy()
    for way in ({"batch_size": 13}, {"cluster": rayinf.Cluster(workers=1)}):
        assert distance(values(train, valid, **way).to_numpy(), truth) < 1e-5
    assert distance(values(train, whole).to_numpy(), truth) < 1e-5


def test_a_stopped_run_goes_on_and_other_numbers_are_another_run(
    tables: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    train, valid, _ = tables
    first = values(train, valid, out=tmp_path / "a")
    digest = job.digest(tmp_path / "a")
    (tmp_path / "a" / "scores" / "part-00001.parquet").unlink()
    again = values(train, valid, out=tmp_path / "a")
    assert job.digest(tmp_path / "a") == digest
    assert again.metadata["objective_details"] == first.metadata["objective_details"]
    others: list[Any] = [
        demographic_parity(0),
        equal_opportunity(0),
        robustness("fgsm", epsilon=0.2),
    ]
    for k, other in enumerate(others):
        changed = [*OBJECTIVES]
        changed[k + 1] = other
        with pytest.raises(InputError, match="another"):
            values(train, valid, changed, out=tmp_path / "a")


def test_the_plan_prices_them(tables: tuple[Path, Path, Path]) -> None:
    train, valid, _ = tables
    task = rayinf.Task(job.model(), group="group", transform=job.same)
    cost = rayinf.plan(task, train, valid, objective=[*OBJECTIVES, "category"])
    assert {"queries", "scores"} <= {s.name for s in cost.stages}
    tree = rayinf.plan(task, train, valid, verb="acquire", pool=train, strategy="tree")
    assert {"queries", "labelled values", "scores"} <= {s.name for s in tree.stages}


# --- Bad input


def frame(n: int = 60, classes: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    held = pd.DataFrame(rng.normal(size=(n, 3)).astype(np.float32), columns=["a", "b", "c"])
    return held.assign(label=np.arange(n) % classes, group=np.arange(n) // 2 % 2)


def two(classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, classes))


def refused(what: str, objective: Any, valid: pd.DataFrame | None = None, **task: Any) -> None:
    """The call is refused with a way to mend it, and nothing is written."""
    classes = task.pop("classes", 2)
    out = task.pop("out")
    made = rayinf.Task(task.pop("model", two(classes)), features=["a", "b", "c"], **{"group": "group", **task})
    train = frame(classes=classes)
    with pytest.raises(InputError, match=what) as caught:
        influence_of(made, train, train if valid is None else valid, objective, out)
    assert "Fix: " in str(caught.value)
    assert not out.exists()


def influence_of(task: rayinf.Task, train: Any, valid: Any, objective: Any, out: Path) -> None:
    asked = objective() if getattr(objective, "__name__", "") == "<lambda>" else objective
    rayinf.influence(task, train, valid, asked, curvature="identity", out=out)


def same_input(predict: Any, x: Any, labels: Any, loss: Any) -> Any:
    return "rubbish"


def too_few(predict: Any, x: Any, labels: Any, loss: Any) -> Any:
    return x[:1]


def test_groups_and_classes_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    one = frame().assign(group=7)
    for name in ("demographic_parity", "equal_opportunity"):
        refused("'group' of valid holds one value, 7", name, one, out=out)
        refused("names no column", name, group=None, out=out)
        refused("with 3 classes: which is the favourable one", name, classes=3, out=out)
        refused("favourable='yes' is not a label", getattr(rayinf, name)("yes"), out=out)
        refused("no column 'sex'", getattr(rayinf, name)(group="sex"), out=out)
    empty = frame().assign(group=lambda f: np.where(f["label"] == 1, "a", np.where(f["a"] > 0, "a", "b")))
    refused("no validation row of group 'b' has the favourable label 1", "equal_opportunity", empty, out=out)
    task = rayinf.Task(two(), features=["a", "b", "c"], group="group")
    assert rayinf.influence(task, empty, empty, "demographic_parity", curvature="identity").columns
    with pytest.raises(InputError, match="null"):
        rayinf.influence(task, frame(), empty.assign(group=pd.array([None, *empty["group"][1:]], "string")),
                         "demographic_parity", curvature="identity")  # fmt: skip


def test_attacks_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused("gamma=1.0", lambda: robustness(gamma=1.0), out=out)
    refused("gamma=nan", lambda: robustness(gamma=float("nan")), out=out)
    for name in ("fgsm", "pgd"):
        for budget in (None, 0.0, -1.0, float("inf"), float("nan")):
            refused("must have a budget", lambda n=name, b=budget: robustness(n, epsilon=b), out=out)
    refused("steps must be an integer >= 1", lambda: robustness("pgd", epsilon=0.1, steps=0), out=out)
    refused("clip must be a range", lambda: robustness("pgd", epsilon=0.1, clip=(1, 0)), out=out)
    refused("'nonsense'. is unknown", lambda: robustness("nonsense"), out=out)
    refused("for two classes, and the model has 3", "robustness", classes=3, out=out)
    refused("after its attack, the model raised", robustness(same_input), out=out)
    refused("some that are not finite|logits for 4 rows", robustness(too_few), out=out)


def test_tokens_cannot_be_attacked(tmp_path: Path) -> None:
    tokens = frame().assign(**{k: np.arange(60) % 5 for k in "abc"})
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    task = rayinf.Task(model, features=["a", "b", "c"])
    for objective in (robustness(), robustness("fgsm", epsilon=1.0)):
        with pytest.raises(InputError, match="no floating-point numbers"):
            rayinf.influence(task, tokens, tokens, objective, curvature="identity", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- The strategy "tree"


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_a_tree_of_influence_values_the_pool(tables: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """By hand: influence of the labelled rows, a tree on their features alone, its predictions on the pool."""
    train, valid, _ = tables
    x, y, _, _ = job.arrays(job.ROWS, 1)
    pool = job.arrays(200, 4)[0]
    task = rayinf.Task(job.model(), transform=job.same)
    how: dict[str, Any] = {"strategy": "tree", "valid": valid}
    picked = rayinf.acquire(task, train, pool, 15, **how)
    influence = rayinf.influence(task, train, valid, damping="layer_mean:0.1").to_numpy()[:, 0]
    tree = rayinf.InfluenceTree(max_depth=None, append_label=False).fit(x, y, influence)
    expected = tree.predict(pool)
    found = picked.to_pandas().sort_values("row_id")["value"].to_numpy()
    # Splits between equal gains may fall either way when values differ in their last bits.
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert picked.row_ids.tolist() == np.argsort(-found, kind="stable")[:15].tolist()
    on_ray = rayinf.acquire(task, train, pool, 15, cluster=rayinf.Cluster(workers=1), out=tmp_path / "a", **how)
    assert len(set(on_ray.row_ids) & set(picked.row_ids)) >= 14
    again = rayinf.acquire(task, train, pool, 15, out=tmp_path / "a", **how)
    assert again.row_ids.tolist() == on_ray.row_ids.tolist()


def test_a_tree_needs_validation_rows_and_numbers(tables: tuple[Path, Path, Path]) -> None:
    train = tables[0]
    task = rayinf.Task(job.model(), transform=job.same)
    with pytest.raises(InputError, match="'tree' needs validation rows"):
        rayinf.acquire(task, train, train, 5, strategy="tree")
    table = pd.DataFrame({"features": ["a b", "c"] * 20, "label": [0, 1, 2, 0] * 10})
    texts = rayinf.Task(job.model(), transform=lengths)
    with pytest.raises(InputError, match="cannot split"):
        rayinf.acquire(texts, table, table, 5, strategy="tree", valid=table)


def lengths(texts: Any) -> Any:
    return np.array([[len(t)] * job.WIDTH for t in texts], np.float32)
