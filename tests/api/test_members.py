"""Several models of one task: means and standard errors of values, their folders, and what refuses them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import small_job
from safetensors.torch import save_model
from torch import nn

import rayinf
from rayinf.training import members
from rayinf.training.scored_table import check_scored

COLUMNS = ["total", "category_0", "category_1", "category_2"]


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(small_job.WIDTH, 5), nn.Tanh(), nn.Linear(5, 3)).eval()


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return small_job.arrays(count, seed)[:2]


TRAIN, VALID = rows(90, 1), rows(40, 2)


def value(task: rayinf.Task, **more: Any) -> rayinf.Scores:
    return rayinf.influence(task, TRAIN, VALID, objective=["total", "category"], **more)


def test_two_equal_members_are_the_one_model() -> None:
    one = value(rayinf.Task(net(0)), halves=True)
    two = value(rayinf.Task(net(5), ensemble=[net(0), net(0).state_dict()]), halves=True)
    assert two.value_columns == one.columns == COLUMNS
    assert two.columns == [*COLUMNS, *(f"{c}_se" for c in COLUMNS)]
    for column in COLUMNS:
        np.testing.assert_array_equal(one.table[column], two.table[column])
        assert not np.asarray(two.table[f"{column}_se"]).any()
    assert one.halves is not None and two.halves is not None
    for mine, theirs in zip(one.halves, two.halves, strict=True):
        np.testing.assert_array_equal(mine.to_numpy(), theirs.to_numpy())
    assert one.metadata["objective_values"] == two.metadata["objective_values"]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", ["ensemble", "checkpoints"])
def test_means_and_standard_errors(on_disk: bool, kind: str, tmp_path: Path) -> None:
    own = np.stack([value(rayinf.Task(net(k))).to_numpy() for k in range(3)])
    out = tmp_path / "run" if on_disk else None
    found = value(rayinf.Task(net(0), **{kind: [net(0), net(1), net(2)]}), out=out)
    got = found.to_numpy()
    size = np.abs(own).max()
    np.testing.assert_allclose(got[:, :4], own.mean(0), atol=1e-6 * size)
    np.testing.assert_allclose(got[:, 4:], own.std(0, ddof=1) / 3**0.5, atol=1e-6 * size)
    assert (got[:, 4:] > 0).any()
    assert (found.metadata["members"], found.metadata["members_are"]) == (3, kind)
    losses = [m["objective_values"]["total"] for m in found.metadata["of_members"]]
    assert found.metadata["objective_values"]["total"] == pytest.approx(np.mean(losses))
    assert len(set(losses)) == 3


def test_the_order_of_an_ensemble_moves_no_bit(tmp_path: Path) -> None:
    models = [net(k) for k in range(3)]
    first = value(rayinf.Task(net(9), ensemble=models), out=tmp_path / "a")
    again = value(rayinf.Task(net(9), ensemble=models[::-1]), out=tmp_path / "b")
    assert small_job.digest(tmp_path / "a") == small_job.digest(tmp_path / "b")
    assert first.metadata == {**again.metadata}
    # The same run by its identity: nothing is computed.
    record = (tmp_path / "a" / "run.json").read_bytes()
    value(rayinf.Task(net(9), ensemble=[models[1], models[0], models[2]]), out=tmp_path / "a")
    assert (tmp_path / "a" / "run.json").read_bytes() == record
    with pytest.raises(rayinf.InputError, match="another config"):
        value(rayinf.Task(net(9), ensemble=models[:2]), out=tmp_path / "a")


def test_a_run_goes_on_where_a_member_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that are done are not valued again; shards are merged one by one; the folder is whole."""
    task = rayinf.Task(net(9), ensemble=[net(0), net(1)])
    train = small_job.write(tmp_path / "train.parquet", 90, 1, 30)
    given: dict[str, Any] = {"objective": "category", "out": tmp_path / "run"}
    rayinf.influence(task, train, VALID, objective="category", out=tmp_path / "whole")
    right, calls = rayinf.engine.pipeline.score, []

    def stops(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*args)

    with monkeypatch.context() as patch:
        patch.setattr("rayinf.engine.pipeline.score", stops)
        with pytest.raises(KeyboardInterrupt):
            rayinf.influence(task, train, VALID, **given)
    done = (tmp_path / "run" / "members" / "0" / "run.json").stat().st_mtime_ns
    rayinf.influence(task, train, VALID, **given)
    assert (tmp_path / "run" / "members" / "0" / "run.json").stat().st_mtime_ns == done
    assert small_job.digest(tmp_path / "whole") == small_job.digest(tmp_path / "run")
    assert len(list((tmp_path / "run" / "scores").iterdir())) == 3
    checked = rayinf.verify(tmp_path / "run")
    assert checked.ok, checked.to_text()
    assert rayinf.status(tmp_path / "run").state == "finished"
    part = next((tmp_path / "run" / "members" / "1" / "scores").iterdir())
    part.write_bytes(part.read_bytes()[:-9] + b"123456789")
    assert "members/1" in rayinf.verify(tmp_path / "run").to_text()


def test_weights_from_files_and_models_from_factories(tmp_path: Path) -> None:
    """The same bytes from every form; a factory's members are built where they are used."""
    truth = value(rayinf.Task(net(9), ensemble=[net(0), net(1)])).to_numpy()
    torch.save(net(0).state_dict(), tmp_path / "a.pt")
    save_model(net(1), str(tmp_path / "b.safetensors"))
    paths = [str(tmp_path / "a.pt"), tmp_path / "b.safetensors"]
    for model in (net(9), lambda: net(9)):
        found = value(rayinf.Task(model, ensemble=paths))
        np.testing.assert_array_equal(found.to_numpy(), truth)
    made = members.members_of(rayinf.Task(lambda: net(9), ensemble=paths))
    assert all(isinstance(one.model, members.Member) for one in made)


def test_self_influence_of_several_models(tmp_path: Path) -> None:
    own = np.stack([rayinf.self_influence(rayinf.Task(net(k)), TRAIN).to_numpy()[:, 0] for k in range(2)])
    found = rayinf.self_influence(rayinf.Task(net(0), ensemble=[net(0), net(1)]), TRAIN, out=tmp_path / "run")
    np.testing.assert_allclose(found.table["self_influence"], own.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.table["self_influence_se"], own.std(0, ddof=1) / 2**0.5, rtol=1e-4, atol=1e-9)


def test_other_verbs_read_the_values_alone() -> None:
    task = rayinf.Task(net(9), ensemble=[net(0), net(1)])
    scores = rayinf.influence(task, TRAIN, VALID, objective="category", halves=True)
    assert rayinf.ceiling(scores).cross_fit is not None
    total = rayinf.influence(task, TRAIN, VALID)
    assert len(rayinf.trim(total, budget=5)) >= 85  # needs no by=
    check_scored(scores, task, TRAIN)
    check_scored(scores, rayinf.Task(net(1)), TRAIN)
    with pytest.raises(rayinf.InputError, match="another model"):
        check_scored(scores, rayinf.Task(net(9)), TRAIN)
    with pytest.raises(rayinf.InputError, match="another model"):
        check_scored(scores, rayinf.Task(net(9), ensemble=[net(0), net(2)]), TRAIN)


@pytest.mark.parametrize(
    "call",
    [
        lambda task: rayinf.pairs(task, TRAIN, VALID),
        lambda task: rayinf.influence_measure(task, TRAIN, VALID),
        lambda task: rayinf.acquire(task, TRAIN, VALID[0], 3),
        lambda task: rayinf.predict_removal(task, TRAIN, VALID, [1]),
        lambda task: rayinf.evaluate(task, VALID),
        lambda task: rayinf.plan(task, TRAIN, VALID),
        lambda task: rayinf.trim_rounds(replace(task, fit=rayinf.Fit()), TRAIN, VALID),
    ],
)
def test_other_verbs_refuse_several_models(call: Any) -> None:
    with pytest.raises(rayinf.InputError, match=r"takes one model, and the task has 2 \(ensemble=") as caught:
        call(rayinf.Task(net(0), ensemble=[net(0), net(1)]))
    assert "replace(task, ensemble=None)" in caught.value.fix


def test_a_refit_has_one_model() -> None:
    fit = rayinf.Fit("sgd", epochs=1)
    assert not rayinf.retrain(rayinf.Task(net(0), ensemble=[net(0), net(1)], fit=fit), TRAIN).members


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ensemble": [net(0)]}, "two or more"),
        ({"ensemble": "a.pt"}, "two or more"),
        ({"checkpoints": [net(0), 5]}, "state dict"),
        ({"checkpoints": [net(0), net(1)], "ensemble": [net(0), net(1)]}, "both"),
        ({"ensemble": [net(0), nn.Linear(2, 2)]}, r"Task.ensemble\[1\] belongs to another model"),
        ({"checkpoints": ["none.pt", net(0)]}, r"Task.checkpoints\[0\]: there is no file none.pt"),
    ],
)
def test_wrong_members_are_refused(given: Any, said: str) -> None:
    with pytest.raises(rayinf.InputError, match=said):
        value(rayinf.Task(net(0), **given))


def test_a_file_of_something_else_and_borrowed_factors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(hashlib.sha256(b"").digest())
    with pytest.raises(rayinf.InputError, match="holds more than tensors"):
        value(rayinf.Task(net(0), ensemble=[tmp_path / "a.pt", net(0)]))
    value(rayinf.Task(net(0)), out=tmp_path / "run")
    with pytest.raises(rayinf.InputError, match="are of one model"):
        value(rayinf.Task(net(0), ensemble=[net(0), net(1)]), factors=tmp_path / "run")
