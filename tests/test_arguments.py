"""Every public argument with a wrong type, a wrong value and an edge: one error, which names both, before any work."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data.refusals import TRAIN, VALID, linear
from torch import nn

import rayinf
from rayinf.data import tables

NAN, INF = float("nan"), float("inf")
SCORES = rayinf.Scores.from_numpy(np.arange(12.0).reshape(6, 2) - 5, ["category_0", "category_1"])


def _words(text: str) -> list[str]:
    return text.split()


class _Estimator:
    """As scikit-learn's pipelines look."""

    def fit(self, x: Any, y: Any) -> _Estimator:
        return self

    def predict(self, x: Any) -> Any:
        return x


class _OpenedError(Exception):
    """A table was opened: all arguments had passed."""


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table can be opened."""

    def opened(*given: Any, **more: Any) -> None:
        raise _OpenedError

    monkeypatch.setattr("rayinf.submission._start", opened)
    monkeypatch.setattr("rayinf.engine.ray_jobs.JobServer", lambda address: None)
    for place in (
        "rayinf.engine.run",
        "rayinf.engine.fit",
        "rayinf.training.open_table",
        "rayinf.api.active_learning",
        "rayinf.training.scored_table",
        "rayinf.api.trim_rounds",
        "rayinf.api.trim_stream",
    ):
        monkeypatch.setattr(f"{place}.as_table", opened)


TASK = rayinf.Task(linear(), fit=rayinf.Fit())
HEAD = rayinf.Task(linear())
SHARED: dict[str, tuple[Any, ...]] = {
    "task": (linear(), nn.Linear, _Estimator(), None, "task.py:task", 5),
    "curvature": ("newton", 5, None, ["ekfac"], ""),
    "fisher": ("True", True, None),
    "damping": ("0.1", -1, NAN, INF, True, [0.1]),
    "factors": (5, "", True, ["runs/a"]),
    "halves": (1, "yes", None),
    "cluster": ({"workers": 2}, "auto", 4, True, rayinf.Cluster, [rayinf.Cluster()]),
    "out": (5, "", "  ", True, ["out"], "https://host/run"),
    "seed": (-1, 1.5, "0", True, None, NAN, 2**63),
    "batch_size": (0, -5, 1.5, "64", True),
    "curvature_rows": (0, -5, 1.5, "64", True),
    "on_error": ("ignore", "", True, None, 5),
    "precision": ("fp8", 16, True),
    "objective": (None, 5, [], "totl", {}, int, [None], ["total", "total"], "slice:"),
    "rank": (0, -1, 1.5, "3", True),
    "subsample": (0, -0.1, 1.5, "0.5", True, None, NAN),
}
# Of a job: nothing of it is opened before it is sent.
JOB = {"task": "sklearn.datasets:load_digits", "train": "/a", "valid": "/b", "out": "/c"}
VERBS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "influence": (
        rayinf.influence,
        {"task": TASK, "train": TRAIN, "valid": VALID},
        {
            k: SHARED[k]
            for k in _words(
                "task curvature fisher damping factors halves cluster out seed batch_size precision objective "
                "curvature_rows on_error"
            )
        },
    ),
    "self_influence": (
        rayinf.self_influence,
        {"task": TASK, "train": TRAIN},
        {k: SHARED[k] for k in _words("task curvature fisher damping factors cluster out seed batch_size precision")},
    ),
    "pairs": (
        rayinf.pairs,
        {"task": TASK, "train": TRAIN, "valid": VALID},
        {
            "top": ("5", 0, -1, 1.5, True, None),
            **{k: SHARED[k] for k in _words("task curvature fisher damping factors cluster out seed batch_size")},
        },
    ),
    "baseline": (
        rayinf.baseline,
        {"task": TASK, "train": TRAIN, "valid": VALID},
        {
            "method": ("los", 5, None, [], ["loss", "loss"], {}),
            **{k: SHARED[k] for k in _words("task cluster out seed batch_size precision")},
        },
    ),
    "baseline.trak": (
        rayinf.baseline,
        {"task": TASK, "train": TRAIN, "valid": VALID, "method": "trak", "dim": 2},
        {
            "dim": (0, 1.5, "64", True, None),
            "checkpoints": (5, "model.pt", {}, [], [5], [None]),
            "objective": SHARED["objective"],
        },
    ),
    "baseline.tracin": (
        rayinf.baseline,
        {"task": TASK, "train": TRAIN, "valid": VALID, "method": "tracin"},
        {"rates": (0, -1.0, "0.1", [], [0.1, 0.2], True)},
    ),
    "baseline.knn_shapley": (
        rayinf.baseline,
        {"task": TASK, "train": TRAIN, "valid": VALID, "method": "knn_shapley"},
        {"neighbors": (0, 1.5, "5", True, None), "space": ("pixels", 5, None)},
    ),
    "baseline.loo": (
        rayinf.baseline,
        {"task": TASK, "train": TRAIN, "valid": VALID, "method": "loo"},
        {
            "seeds": (0, 1.5, "3", True, None),
            "utility": ("los", 5, None),
            "retrainings": (0, 1.5, "9", True, None),
        },
    ),
    "baseline.data_shapley": (
        rayinf.baseline,
        {"task": TASK, "train": TRAIN, "valid": VALID, "method": "data_shapley"},
        {"tolerance": (0, -1, "0.1", NAN, True, None), "truncation": (-1, "0.1", NAN, True, None)},
    ),
    "predict_removal": (
        rayinf.predict_removal,
        {"task": TASK, "train": TRAIN, "valid": VALID, "rows": [1, 2]},
        {
            k: SHARED[k]
            for k in _words("task objective curvature fisher damping factors cluster out seed batch_size precision")
        },
    ),
    "label_issues": (
        rayinf.label_issues,
        {"task": TASK, "train": TRAIN, "scores": SCORES, "by": "category_0"},
        {
            "scores": ("runs/a", None, 5),
            "by": (5, "", None, "nothing"),
            "limit": (0, 1.5, "3", True),
            **{k: SHARED[k] for k in _words("task cluster batch_size precision")},
        },
    ),
    "influence_measure": (
        rayinf.influence_measure,
        {"task": TASK, "train": TRAIN, "valid": VALID},
        {
            k: SHARED[k]
            for k in _words("task curvature fisher damping factors rank subsample cluster out seed batch_size")
        },
    ),
    "acquire": (
        rayinf.acquire,
        {"task": TASK, "labeled": TRAIN, "pool": VALID, "n": 3},
        {
            "n": (0, -1, 2.5, "3", True, None),
            "strategy": ("fy", 5, None, ["fi"], {}),
            "aggregate": (None, True, 1.5, NAN, []),
            "samples": (0, 1.5, "20", True),
            "exclude": (5, "abc", 1.5),
            **{k: SHARED[k] for k in _words("task curvature rank subsample cluster out seed fisher damping factors")},
        },
    ),
    "plan": (
        rayinf.plan,
        {"task": TASK, "train": TRAIN, "valid": VALID},
        {
            "verb": ("influense", 5, None),
            "top": (0, 1.5, "3", True),
            "seeds": (0, 1.5, "3", True),
            **{k: SHARED[k] for k in _words("task objective curvature fisher damping halves cluster out seed rank")},
        },
    ),
    "active_learning": (
        rayinf.active_learning,
        {"task": TASK, "labeled": TRAIN, "pool": VALID, "oracle": VALID, "test": VALID, "rounds": 1, "n": 3},
        {
            "rounds": (0, 1.5, "2", True, None),
            "n": (0, 1.5, "2", True, None),
            "strategy": (5, None, [], ["fi", "fi"], [1]),
            "seed": (-1, 1.5, "0", True, [], [0, 0], [0, "1"], None),
            **{k: SHARED[k] for k in _words("task cluster out curvature rank subsample fisher damping")},
            "samples": (0, "20"),
        },
    ),
    "trim": (
        rayinf.trim,
        {"scores": SCORES, "budget": 1, "by": "category_0"},
        {
            "scores": ("runs/a", Path("runs/a"), pd.DataFrame({"total": [1.0]}), None, np.ones(3), rayinf.Scores),
            "budget": (-1, 1.5, "3", True, None),
            "by": (5, "", "total", ["category_0"]),
            "floor": (-1, 1.5, "3", True, None),
            "retrain": (1, "yes", None),
            "predict": (1, "yes", None),
            "seed": (-1, 1.5, "0"),
        },
    ),
    "ceiling": (
        rayinf.ceiling,
        {"scores": SCORES},
        {
            "scores": ("runs/a", None, pd.DataFrame()),
            "method": ("simplex", 5, True),
            "gap": (0, 1, "1e-8", True, None),
            "resamples": (9, 1.5, "1000", True),
            "seed": (-1, 1.5, "0"),
        },
    ),
    "reweight_lp": (
        rayinf.reweight_lp,
        {"scores": SCORES, "targets": [0]},
        {
            "scores": ("runs/a", None, {}),
            "targets": (None, [], "category_7", [0, 0], True, 7, [None], {}),
            "alpha": ("high", [0.9], NAN, None, {0: 0.9}),
            "upper": ("2", 0, INF, True, None),
            "radius": ("gene", 0, 2, True),
            "slack": ("tight", 5, None),
            "stream": (1, "no"),
            "out": (5, ""),
        },
    ),
    "pareto_reweight": (
        rayinf.pareto_reweight,
        {"task": TASK, "train": TRAIN, "valid": VALID, "scores": SCORES, "targets": [0]},
        {
            "scores": ("runs/a", Path("runs/a")),
            "mode": ("dirct", 5, None),
            "search": ({"iterations": 2}, 5, rayinf.Search),
            **{k: SHARED[k] for k in ("task", "cluster", "out", "seed")},
        },
    ),
    "removal_check": (
        rayinf.removal_check,
        {"task": TASK, "train": TRAIN, "valid": VALID, "test": VALID, "scores": SCORES},
        {
            "scores": ("runs/a", Path("runs/a")),
            "share": (0, 1, 1.5, "0.1", True, None, NAN),
            "seeds": (0, 1.5, "3", True, None, [0, 1]),
            **{k: SHARED[k] for k in ("task", "cluster", "out", "seed")},
        },
    ),
    "lds": (
        rayinf.lds,
        {"task": TASK, "train": TRAIN, "valid": VALID, "scores": SCORES},
        {
            "scores": ("runs/a", None, {}, {"random": SCORES}, {5: SCORES}, {"a": "runs/a"}),
            "subsets": (2, 1.5, "50", True, None),
            "share": (0, 1, 1.5, "0.5", True, None, NAN),
            "seeds": (0, 1.5, "3", True, None, [0, 1]),
            "objective": (5, [], "totl", int),
            **{k: SHARED[k] for k in ("task", "cluster", "out", "seed")},
        },
    ),
    "retrain": (
        rayinf.retrain,
        {"task": TASK, "table": TRAIN},
        {
            "task": SHARED["task"],
            "seed": SHARED["seed"],
            "rows": (0, 1.5, "5", True),
            "paired": (1, None),
            "weights": ("abc", ["a"], [[1], [1, 2]], {}),
        },
    ),
    "evaluate": (
        rayinf.evaluate,
        {"task": TASK, "table": TRAIN},
        {"task": SHARED["task"], "objective": (None, 5, [], "totl", int), "against": (linear(), 5)},
    ),
    "trim_rounds": (
        rayinf.trim_rounds,
        {"task": TASK, "train": TRAIN, "valid": VALID},
        {
            "rounds": (0, 1.5, "2", True, None),
            "budget": (0, 1.5, "2", True),
            **{k: SHARED[k] for k in _words("task objective curvature fisher damping cluster out seed")},
        },
    ),
    "trim_stream": (
        rayinf.trim_stream,
        {"task": TASK, "batches": [TRAIN], "valid": VALID},
        {
            "batches": (5, None, TRAIN, "train.parquet", pd.DataFrame()),
            "budget": (0, 1.5, -1, "0.1", True, None, NAN),
            "by": (5, ""),
            "refit": (1, None),
            "floor": (-1, 1.5, "3"),
            **{k: SHARED[k] for k in ("task", "curvature", "damping", "cluster", "out", "seed")},
        },
    ),
    "logistic_regression": (
        rayinf.logistic_regression,
        {"train": TRAIN},
        {
            "l2": ("1e-3", -1, NAN, None, True),
            "features": (5, [], None, "", [1.5], ["a", "a"]),
            "label": (1.5, None, "", ["label"]),
            "group": (1.5, "", ["g"]),
            "row_id": (1.5, "", True),
        },
    ),
    "Task": (
        rayinf.Task,
        {"model": linear()},
        {
            "model": (5, None, "model.pt", {}, nn.Linear, _Estimator(), lambda x: x, HEAD),
            "loss": (5, None, "l1", nn.CrossEntropyLoss, ["cross_entropy"]),
            "features": (5, [], None, "", [1.5], ["a", "a"], {}),
            "label": (1.5, None, "", ["label"]),
            "group": (1.5, "", ["g"]),
            "row_id": (1.5, "", True),
            "transform": (5, "resize", nn.Flatten),
            "parameters": (5, None, [], "", [0], ["a", "a"]),
            "l2": ("1e-3", -1, NAN, INF, None, True),
            "fit": (5, "adam", {"lr": 0.1}, rayinf.Fit),
            "classes": ("ab", 5, [], ["a"], ["a", "a"], {"a", "b"}, [None, 1], [0.5, 1.5]),
            "mask": (5, "mask", nn.Flatten),
        },
    ),
    "Fit": (
        rayinf.Fit,
        {},
        {
            "optimizer": ("sdg", 5, None, torch.optim.SGD),
            "schedule": ("cos", 5, None),
            "lr": ("0.1", 0, -1, NAN, INF, True, None),
            "epochs": (0, 1.5, "3", True, None),
            "batch_size": (0, 1.5, "64", True, None),
            "momentum": (2, 1, -0.1, "0.9", NAN, True),
            "weight_decay": (-1, "0.1", NAN, True),
            "fresh": (1, "yes", None),
        },
    ),
    "Cluster": (
        rayinf.Cluster,
        {},
        {
            "address": (5, "", ["auto"]),
            "workers": ("2", "all", "", 0, -1, 1.5, True, None),
            "cpus_per_worker": (0, -1, NAN, INF, "1", True, None),
            "gpus_per_worker": (-1, NAN, "1", True, None),
            "patience": (0, -1, NAN, "900", True, None),
            "runtime_env": (5, "pip", ["numpy"]),
        },
    ),
    "Search": (
        rayinf.Search,
        {},
        {
            "elites": (-1, 1.5, "6", True),
            "population": (5, "24", True),
            "iterations": (0, 1.5, "20", True),
            "crossover_rate": (-0.1, 1.5, "1", NAN),
            "strength": (-1, NAN, "0.25"),
            "upper": (0, INF, "2"),
            "radius": (0, 2, "genes", True),
            "slack": ("tight", 5),
            "prefer": (-1, "papers", NAN, None),
            "epochs": (0, 1.5),
            "lr": (0, "1e-4", NAN),
            "threads": (0, 1.5, None),
        },
    ),
    "Objective": (
        rayinf.Objective,
        {"name": "mine"},
        {
            "name": (5, "", None),
            "rows": (5, "loss", nn.CrossEntropyLoss),
            "split": (5, ""),
            "combine": (5,),
            "where": ("label",),
            "attack": ("pgd",),
            "hard": (5,),
        },
    ),
    "demographic_parity": (rayinf.demographic_parity, {}, {"group": (1.5, [], "")}),
    "equal_opportunity": (rayinf.equal_opportunity, {}, {"group": (1.5, [])}),
    "robustness": (
        rayinf.robustness,
        {"attack": "pgd", "epsilon": 0.1},
        {
            "attack": ("pdg", 5, None, nn.Linear),
            "epsilon": (None, 0, -1, "0.1", NAN, INF, True),
            "steps": (0, 1.5, "10", True),
            "step": (-1, "0.1", NAN),
            "clip": (5, (0,), (1, 0), ("0", "1"), "01"),
        },
    ),
    "LabelFolder": (rayinf.LabelFolder, {}, {"path": (5, None, "", ["answers"])}),
    "Scores.load": (rayinf.Scores.load, {}, {"path": (5, None, "", SCORES)}),
    "submit": (
        rayinf.submit,
        {"verb": "influence", "config": JOB, "address": "http://127.0.0.1:9"},
        {
            "verb": ("influense", "trim", 5, None, ["influence"], rayinf.influence),
            "config": (5, None, "", True, ["run.yaml"], TASK),
            "address": (
                5,
                "",
                "head:8265",
                "auto",
                "ray://head:10001",
                "10.0.0.1:6379",
                "http://",
                ["http://head:8265"],
            ),
            "follow": (1, "yes", None),
            "runtime_env": (5, "pip", ["numpy"], {"working_dir": "."}, {"env_vars": {"A": "b"}}, {"pip": TASK}),
        },
    ),
    "verify": (rayinf.verify, {}, {"run": (5, None, "", True, SCORES)}),
    "status": (rayinf.status, {}, {"run": (5, None, "", True, SCORES)}),
    "Scores.from_numpy": (
        rayinf.Scores.from_numpy,
        {"values": np.ones((3, 1)), "columns": ["total"]},
        {
            "values": (None, "abc", [["a"], ["b"], ["c"]], np.full((3, 1), NAN), np.ones((3, 2))),
            "columns": (5, None, [], [5], ["total", "total"], ["row_id"]),
            "row_ids": ([1, 1, 2], [1, 2], 5, "abc", [[1], [2], [3]]),
            "labels": ([1, 2], 5, [None, 1, 2]),
            "halves": (5, (np.ones((3, 1)),), "ab"),
        },
    ),
}
CASES = [
    (verb, name, value) for verb, (_, _, wrong) in VERBS.items() for name, values in wrong.items() for value in values
]


def _id(case: Any) -> str:
    verb, name, value = case
    # Addresses and the order of a set differ between processes that share the tests.
    shown = re.sub(r" at 0x[0-9a-f]+", "", repr(sorted(value) if isinstance(value, set) else value))
    return f"{verb}-{name}-{shown}"[:60].replace("\n", " ")


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_a_wrong_argument(case: tuple[str, str, Any]) -> None:
    """An InputError of one line with a mend, which names the argument (or says what it must be), before any table."""
    verb, name, value = case
    function, sound, _ = VERBS[verb]
    with pytest.raises(rayinf.InputError) as caught:
        function(**{**sound, name: value})
    what, fix = caught.value.what, caught.value.fix
    assert name in what.lower(), what
    assert "\n" not in str(caught.value)
    assert len(what) < 300
    assert what.endswith(".")
    assert fix.endswith((".", "?"))
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        assert str(value).strip() in what, what


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("verb", [v for v, (_, sound, _) in VERBS.items() if sound])
def test_the_same_call_unspoilt(verb: str) -> None:
    """It gets as far as the tables, or gives its result."""
    function, sound, _ = VERBS[verb]
    try:
        found = function(**sound)
        if isinstance(found, Iterator):
            next(found)
    except _OpenedError:
        pass
    assert tables.as_table is not None


def test_every_public_name_stands_in_the_table() -> None:
    """But results, which users do not make, and errors."""
    results = {
        "Ceiling", "History", "InputError", "LDS", "LabelIssues", "Pairs", "RayinfError", "RemovalCheck",
        "RemovalPrediction", "Reweighting", "RowWeights", "RunError", "Selection", "Status", "SubmittedJob",
        "TrimRounds", "TrimmedBatch", "Verification",
    }  # fmt: skip
    elsewhere = {"InfluenceTree"}  # tests/select/test_tree.py
    assert set(rayinf.__all__) - results - elsewhere <= {v.split(".")[0] for v in VERBS}


@pytest.mark.parametrize(
    ("call", "mend"),
    [
        (lambda: rayinf.influence(linear(), TRAIN, VALID), "rayinf.Task(model)"),  # type: ignore[arg-type]
        (lambda: rayinf.influence(_Estimator(), TRAIN, VALID), "rayinf.Task(model)"),  # type: ignore[arg-type]
        (lambda: rayinf.influence(TASK, TRAIN, VALID, cluster={"workers": 2}), "Cluster(workers=2)"),  # type: ignore[arg-type]
        (lambda: rayinf.influence(TASK, TRAIN, VALID, cluster="auto"), "Cluster(address='auto')"),  # type: ignore[arg-type]
        (lambda: rayinf.influence(TASK, TRAIN, VALID, cluster=4), "Cluster(workers=4)"),  # type: ignore[arg-type]
        (lambda: rayinf.Cluster(workers="2"), "workers=2, without quotes"),  # type: ignore[arg-type]
        (lambda: rayinf.Fit(lr="0.1"), "lr=0.1, without quotes"),  # type: ignore[arg-type]
        (lambda: rayinf.Fit(epochs=3.0), "epochs=3."),  # type: ignore[arg-type]
        (lambda: rayinf.Task(nn.Linear), "a trained instance of Linear"),
        (lambda: rayinf.Task(lambda x: x), "goes into the forward"),  # type: ignore[arg-type,misc]
        (lambda: rayinf.Task("model.pt"), "a function that loads it"),  # type: ignore[arg-type]
        (lambda: rayinf.trim("runs/a"), "rayinf.Scores.load('runs/a')"),  # type: ignore[arg-type]
        (lambda: rayinf.trim(pd.DataFrame({"total": [1.0]})), "rayinf.Scores.from_numpy("),  # type: ignore[arg-type]
    ],
)
def test_the_mend_is_what_to_write(call: Callable[[], Any], mend: str) -> None:
    with pytest.raises(rayinf.InputError) as caught:
        call()
    assert mend in caught.value.fix


def test_numpy_scalars_are_numbers_and_come_back_plain() -> None:
    """Plain ones alone make the same identity, and can be written as JSON."""
    fit = rayinf.Fit(lr=np.float64(0.1), epochs=np.int64(3), batch_size=np.int32(8), fresh=np.bool_(False))  # type: ignore[arg-type]
    assert repr(fit) == repr(rayinf.Fit(lr=0.1, epochs=3, batch_size=8, fresh=False))
    cluster = rayinf.Cluster(workers=np.int64(3), cpus_per_worker=np.float32(0.5))  # type: ignore[arg-type]
    assert repr(cluster) == repr(rayinf.Cluster(workers=3, cpus_per_worker=0.5))
    assert type(rayinf.Task(linear(), l2=np.float32(0.5)).l2) is float  # type: ignore[arg-type]
    assert rayinf.Task(linear(), classes=np.array(["a", "b", "c"])).classes == ("a", "b", "c")  # type: ignore[arg-type]
    search = rayinf.Search(iterations=np.int64(2), upper=np.float64(1.5))  # type: ignore[arg-type]
    assert repr(search) == repr(rayinf.Search(iterations=2, upper=1.5))


def test_a_run_of_numpy_scalars_is_the_run_of_plain_ones(tmp_path: Path) -> None:
    """The second call finds it finished."""
    first = rayinf.influence(
        TASK,
        TRAIN,
        VALID,
        damping=np.float32(0.5),
        seed=np.int64(3),
        batch_size=np.int32(16),
        out=tmp_path / "a",  # type: ignore[arg-type]
    )
    begin = (tmp_path / "a" / "run.json").stat().st_mtime_ns
    again = rayinf.influence(TASK, TRAIN, VALID, damping=0.5, seed=3, batch_size=16, out=tmp_path / "a")
    assert (tmp_path / "a" / "run.json").stat().st_mtime_ns == begin
    np.testing.assert_array_equal(first.to_numpy(), again.to_numpy())


def test_checks_cost_nothing() -> None:
    """Far less than a millisecond a call."""
    begin = time.perf_counter()
    for _ in range(100):
        rayinf.Fit()
        rayinf.Cluster()
    assert time.perf_counter() - begin < 1.0
