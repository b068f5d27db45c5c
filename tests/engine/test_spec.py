"""The one description of a run: the fields of a verb's spec, what of it is sent, what makes two runs the same."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rayinf
from rayinf.data.tables import as_table
from rayinf.engine import acquisition, plan
from rayinf.engine.baseline_spec import METHODS, OPTIONS, BaselineSpec
from rayinf.engine.entry import JOINT
from rayinf.engine.measure_spec import AcquireSpec, MeasureSpec
from rayinf.engine.run import Run
from rayinf.engine.spec import InfluenceSpec, PairsSpec, RunSpec, SelfInfluenceSpec
from rayinf.training import trial

VERBS: dict[Callable[..., Any], type[RunSpec]] = {
    rayinf.influence: InfluenceSpec,
    rayinf.self_influence: SelfInfluenceSpec,
    rayinf.pairs: PairsSpec,
    rayinf.baseline: BaselineSpec,
    rayinf.influence_measure: MeasureSpec,
    rayinf.acquire: AcquireSpec,
}
OTHER: dict[str, Any] = {
    "curvature": "ggn",
    "fisher": "empirical",
    "inverse": "damped",
    "training_time": 2.0,
    "damping": 0.5,
    "seed": 7,
    "batch_size": 9,
    "precision": "bf16",
    "halves": True,
    "top": 3,
    "rank": 2,
    "subsample": 0.5,
    "scale": "sum",
    "perturb": "0",
    "strategy": "isal",
    "aggregate": 0.25,
    "samples": 3,
}
ELSEWHERE = {"task", "train", "valid", "labeled", "pool", "objective", "factors", "cluster", "out", "n", "exclude"} | {
    "curvature_rows",  # where rows are drawn
    "on_error",
}


def table(rows: int = 40) -> tuple[Any, Any]:
    rng = np.random.default_rng(rows)
    return rng.normal(size=(rows, 4)).astype(np.float32), np.arange(rows) % 3


def task() -> rayinf.Task:
    torch.manual_seed(0)
    return rayinf.Task(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)))


def spec(kind: type[RunSpec], **given: Any) -> RunSpec:
    held = {f.name: table() for f in fields(kind) if "table" in f.metadata}
    return kind(**{"task": task(), **held, **given})


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: v.__name__)
def test_a_field_for_every_argument(verb: Callable[..., Any]) -> None:
    """With the same default; what a verb does not offer, it does not take from elsewhere either."""
    arguments = inspect.signature(verb).parameters
    held = {f.name: f for f in fields(VERBS[verb]) if f.init}
    assert set(arguments) <= set(held)
    assert set(held) - set(arguments) <= {"precision", "exclude"}
    for name, argument in arguments.items():
        if argument.default is not inspect.Parameter.empty and name != "exclude":
            assert held[name].default == argument.default, name


@pytest.mark.parametrize("kind", [k for k in VERBS.values() if k is not BaselineSpec], ids=lambda k: k.verb)
def test_identity_is_every_argument_but_where_and_how_to_run(kind: type[RunSpec]) -> None:
    first = spec(kind)
    for f in fields(kind):
        if not f.init or f.name in ELSEWHERE or (f.name == "precision" and first.precision == "fp64"):
            continue
        base = replace(first, strategy="bald") if f.name == "samples" else first
        assert replace(base, **{f.name: OTHER[f.name]}).identity() != base.identity(), f.name
    same = replace(first, cluster=rayinf.Cluster(), out="/somewhere", factors="/else")
    assert same.identity() == replace(first).identity() == first.identity()


@pytest.mark.parametrize("method", METHODS)
def test_identity_of_a_baseline_is_its_method_and_the_options_that_this_has(method: str) -> None:
    first = spec(BaselineSpec, method=method)
    other: dict[str, Any] = {
        "checkpoints": [task().build()],
        "rates": [0.5],
        "dim": 3,
        "neighbors": 3,
        "space": "embedding",
        "utility": "accuracy",
        "tolerance": 0.5,
        "truncation": 0.5,
    }
    for name, value in other.items():
        if method in OPTIONS[name]:
            assert replace(first, **{name: value}).identity() != first.identity(), name
        else:
            with pytest.raises(rayinf.InputError, match=f"{name}=.* is an option of"):
                replace(first, **{name: value})
    assert replace(first, seed=7).identity() != first.identity()
    assert replace(first, cluster=rayinf.Cluster(), out="/somewhere").identity() == first.identity()
    others = [spec(BaselineSpec, method=m).identity() for m in METHODS if m != method]
    assert first.identity() not in others


def test_picks_that_depend_on_what_is_excluded_and_on_how_many() -> None:
    def own(**given: Any) -> Any:
        return spec(AcquireSpec, **given).identity()

    assert own(n=3, exclude=[1]) == own(n=4, exclude=[2]) == own()
    assert own(subsample=0.5, exclude=[1]) != own(subsample=0.5, exclude=[2])
    assert own(subsample=0.5, exclude=[1], n=3) == own(subsample=0.5, exclude=[1], n=4)
    for joint in JOINT:
        assert own(strategy=joint, n=3) != own(strategy=joint, n=4)
    draws = {AcquireSpec.draw.func(spec(AcquireSpec, subsample=0.5, exclude=e)) for e in ([], [1], [2])}  # type: ignore[attr-defined]
    assert len(draws) == 3


@pytest.mark.parametrize("kind", VERBS.values(), ids=lambda k: k.verb)
def test_what_is_sent_to_workers(kind: type[RunSpec]) -> None:
    """Numbers: tables and the task are in the job, functions in its targets."""
    given = spec(kind, cluster=rayinf.Cluster(), seed=np.int64(3))
    sent = pickle.loads(pickle.dumps(given))
    assert not {"task", "train", "valid", "labeled", "pool", "cluster", "out", "objective"} & set(vars(sent))
    assert sent.identity() == given.identity()
    assert (sent.seed, type(sent.seed)) == (3, int)
    assert len(pickle.dumps(given)) < 1000


def test_tables_that_a_strategy_does_not_read_are_not_opened() -> None:
    rows = {"valid": table(9), "labeled": table(10), "pool": table(11)}
    read = {s: spec(AcquireSpec, strategy=s, **rows).tables for s in ("fi", "iv", "isal", "entropy")}
    assert {s: list(held) for s, held in read.items()} == {
        "fi": ["train", "pool"],
        "iv": ["train", "valid", "pool"],
        "isal": ["train", "valid", "pool"],
        "entropy": ["train", "pool"],
    }
    assert read["isal"]["valid"] is rows["labeled"]


# --- A plan is made of the stages of the run


@pytest.mark.parametrize(
    ("verb", "more"),
    [
        ("influence", {"objective": "category", "halves": True}),
        ("influence", {"curvature": "ggn"}),
        ("influence", {"curvature": "exact", "damping": 10.0}),
        ("influence_measure", {"rank": 2}),
        ("self_influence", {}),
        ("pairs", {"top": 3}),
        ("pairs", {"curvature": "exact", "damping": 10.0}),
        ("acquire", {"strategy": "fi", "aggregate": "mean"}),
        ("acquire", {"strategy": "tree"}),
        ("acquire", {"strategy": "bald"}),
    ],
)
@pytest.mark.parametrize("tile", [512 << 20, 2000])
def test_a_plan_has_the_stages_of_the_run(
    verb: str, more: dict[str, Any], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those over rows, whatever fits in a tile of labelled rows."""
    for module in (acquisition, plan):
        monkeypatch.setattr(module, "TILE_BYTES", tile)
    rows, valid, pool = table(300), table(60), table(90)[0]
    if verb == "acquire":
        given: dict[str, Any] = {"labeled": rows, "valid": valid, "pool": pool, "n": 2}
        planned = {"train": rows, "valid": valid, "pool": pool, "strategy": more["strategy"]}
    else:
        given = {"train": rows, **({} if verb == "self_influence" else {"valid": valid})}
        planned = {**given, **more}
    timed, done = Run.timed, set[str]()
    monkeypatch.setattr(Run, "timed", lambda run, name, *a, **k: done.add(name) or timed(run, name, *a, **k))
    getattr(rayinf, verb)(task(), **given, **more)
    monkeypatch.setattr(Run, "timed", timed)
    done = {"scores" if name.startswith("pairs-") else name for name in done}
    cost = rayinf.plan(task(), verb=verb, **planned)
    names = [s.name for s in cost.stages]
    over_rows = [n for n in names if not n.startswith("scan ")]
    assert len(set(names)) == len(names)
    assert set(over_rows) <= done
    assert done - set(over_rows) <= {"factors", "solved", "inverse", "measured", "norms", "norms-valid"}
    assert all(s.seconds >= 0 and s.memory > 0 for s in cost.stages)


@pytest.mark.parametrize(
    ("verb", "more", "stage"),
    [
        ("removal_check", {"test": table(60), "seeds": 2}, "trainings"),
        ("pareto_reweight", {"search": rayinf.Search(iterations=2)}, "candidates"),
    ],
)
def test_a_plan_of_verbs_that_train(
    verb: str, more: dict[str, Any], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values by class, and every training: seven removals by two seeds; 24 candidates, twice, and ten beside."""
    monkeypatch.setattr(trial, "_each", lambda work, table: 1e-3)
    monkeypatch.setattr(trial, "program_seconds", lambda *given: 5.0)
    given = replace(task(), fit=rayinf.Fit(epochs=3))
    cost = rayinf.plan(given, table(300), table(60), verb=verb, **more)
    names = [s.name for s in cost.stages]
    assert {"covariance", "lambda", "solved", "scores"} < set(names)
    assert names[-1] == stage
    one = {"trainings": 3 * 0.3 + 0.06, "candidates": 0.3 + 0.06 + 5.0}[stage]
    assert cost.stages[-1].seconds == pytest.approx({"trainings": 7 * 2, "candidates": 24 * 2 + 11}[stage] * one)


def test_seconds_of_a_training_grow_with_its_rows() -> None:
    """From real trainings on the first rows of a table."""
    few, many = (as_table(table(n), ["features"], ["label"], "train") for n in (2000, 8000))
    given = replace(task(), fit=rayinf.Fit(epochs=1, batch_size=8))
    costs = [trial.training_cost(given, t, few) for t in (few, many)]
    assert all(c.training > 0 < c.measuring for c in costs)
    assert costs[0].memory == costs[1].memory > 0
    assert trial.program_seconds(100, 3, rayinf.Search()) > 0
