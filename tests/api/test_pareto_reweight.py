"""pareto_reweight: the same bytes whatever the workers and whatever dies, candidates trained once, bad input."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from training import small_search
from training.small_search import (
    CLASSES,
    SMALL,
    TRAIN,
    VALID,
    CountedFit,
    digest,
    rows,
    scores,
    search,
    task,
    weighted_steps,
)

import rayinf
from rayinf.data.checked_folder import CheckedFolder
from rayinf.pareto.fitness import rank, relative_change
from rayinf.pareto.lp import ReweightLP
from rayinf.training.candidates import CandidateTrainer, Evaluation
from rayinf.training.generations import Generations
from rayinf.training.steps import Steps


@pytest.fixture(scope="module")
def valued() -> rayinf.Scores:
    return scores()


@pytest.fixture(scope="module")
def first(tmp_path_factory, valued) -> tuple[rayinf.Reweighting, Path]:
    out = tmp_path_factory.mktemp("search") / "run"
    return search(scores=valued, out=out), out


def test_result(first, valued):
    found, out = first
    assert found.candidates.num_rows > 15 and found.mode == "direct" and found.path == out
    line = found.chosen
    assert list(found.alpha) == ["0", "1", "2", "3"] and found.radius == line["radius"]
    assert found.alpha["2"] == line["alpha_2"]
    alpha = np.array(list(found.alpha.values()))
    expected = ReweightLP(valued.to_numpy(), [0, 2], "scaled").solve(alpha, radius=found.radius)
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert [line[f"predicted_{k}"] for k in range(CLASSES)] == expected.predicted_change.tolist()
    table = pq.read_table(out / "weights.parquet")
    assert table.schema.names == ["row_id", "weight"]
    np.testing.assert_array_equal(table["weight"].to_numpy(), found.weights)
    np.testing.assert_array_equal(table["row_id"].to_numpy(), found.row_ids)


def test_the_weighted_checkpoint_is_the_one_measured(first):
    found, _ = first
    told = rayinf.evaluate(found.task, VALID)
    for line in found.classes.to_pylist():
        assert told[f"accuracy_{line['class']}"] == line["weighted"] == found.chosen[f"accuracy_{line['class']}"]
        assert line["weighted_low"] < line["weighted"] < line["weighted_high"] and line["rows"] == 100
    before = rayinf.evaluate(task(), VALID)
    assert [before[f"accuracy_{k}"] for k in range(CLASSES)] == found.classes["checkpoint"].to_pylist()


def test_a_candidate_is_one_weighted_epoch(first):
    found, _ = first
    fit = replace(task().fit, fresh=False, epochs=1)
    again = rayinf.retrain(rayinf.Task(task().model, fit=fit), TRAIN, weights=found.weights, seed=3)
    for name, value in found.task.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), again.model.state_dict()[name].numpy())
    plain = rayinf.evaluate(rayinf.retrain(rayinf.Task(task().model, fit=fit), TRAIN, seed=3), VALID)
    assert [plain[f"accuracy_{k}"] for k in range(CLASSES)] == found.classes["unweighted"].to_pylist()


def test_gains_and_the_front_are_what_they_say(first):
    found, _ = first
    frame = found.to_pandas()
    shares = frame[[f"accuracy_{k}" for k in range(CLASSES)]].to_numpy()
    change = shares - shares[0]
    np.testing.assert_allclose(frame["gain"], change[:, [0, 2]].mean(1), atol=1e-12)
    np.testing.assert_allclose(frame["others"], change[:, [1, 3]].mean(1), atol=1e-12)
    beaten = [
        any((frame.gain >= g) & (frame.others >= o) & ((frame.gain > g) | (frame.others > o)))
        for g, o in zip(frame.gain, frame.others, strict=True)
    ]
    assert not any(np.array(beaten) & frame["front"])
    points = set(zip(found.front["gain"].to_pylist(), found.front["others"].to_pylist(), strict=True))
    assert all(b or (g, o) in points for b, g, o in zip(beaten, frame.gain, frame.others, strict=True))
    worth = frame["gain"] + SMALL.prefer * frame["others"]
    lifts = frame["fitness"].notna() & (worth > 0)  # every target gains
    assert found.chosen["candidate"] == frame["candidate"][(worth[lifts] if lifts.any() else worth).idxmax()]


@pytest.mark.parametrize("mode", ["direct", "correct"])
def test_prefer_paper_takes_the_best_of_line_7(valued, mode):
    found = search(scores=valued, mode=mode, search=replace(SMALL, prefer="paper"))
    frame = found.to_pandas()
    shares = frame[[f"accuracy_{k}" for k in range(CLASSES)]].to_numpy()
    old = np.array(found.classes["checkpoint" if mode == "direct" else "unweighted"])
    orders = [rank(relative_change(s, old), [0, 2]) for s in shares]
    assert orders[frame["chosen"].to_numpy().argmax()] == max(orders)
    np.testing.assert_allclose(frame["fitness"].fillna(-np.inf), [o[0] for o in orders])


def test_on_disk_again_nothing_is_trained(first, valued, tmp_path, monkeypatch):
    found, out = first
    before = digest(out)
    monkeypatch.setattr("rayinf.training.candidates.CandidateTrainer.__call__", lambda *_: pytest.fail("trained"))
    again = search(scores=valued, out=out)
    assert digest(out) == before and again.to_text() == found.to_text()
    np.testing.assert_array_equal(again.weights, found.weights)
    for a, b in zip(again.task.model.parameters(), found.task.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_threads_of_the_caller_move_nothing(first, valued, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        search(scores=valued, out=tmp_path / "run")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert digest(tmp_path / "run") == digest(first[1])


def counted(marks: Path, valued: rayinf.Scores, out: Path, cluster: rayinf.Cluster | None = None, **faults: int):
    marks.mkdir(exist_ok=True)
    return search(task=task(CountedFit.planned(marks, **faults)), scores=valued, out=out, cluster=cluster)


def test_stopped_in_every_generation_it_ends_with_the_same_bytes(valued, tmp_path):
    counted(tmp_path / "whole", valued, tmp_path / "run")
    calls = len(list((tmp_path / "whole").iterdir()))
    per_generation = [json.loads(f.read_text()) for f in sorted((tmp_path / "run/generations").iterdir())]
    distinct = {c["candidate"] for g in per_generation for c in g["population"]}
    assert calls == len(distinct) + 2  # each once, the unweighted epoch, and the chosen one to keep it
    for stop in (0, 4, calls - 6, calls - 2, calls - 1):  # in the reference, the generations, and the last training
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            counted(tmp_path / f"marks-{stop}", valued, out, stops_at=stop)
        counted(tmp_path / f"marks-{stop}", valued, out, stops_at=stop)
        assert digest(out) == digest(tmp_path / "run")
        assert len(list((tmp_path / f"marks-{stop}").iterdir())) == calls + 1  # nothing but the lost one again


@pytest.mark.chaos
def test_a_killed_process_goes_on_to_the_same_bytes(valued, tmp_path):
    whole, out, marks = tmp_path / "run", tmp_path / "killed", tmp_path / "marks"
    counted(tmp_path / "whole", valued, whole)
    marks.mkdir()
    dead = subprocess.run([sys.executable, small_search.__file__, marks, out, "12"], timeout=120, check=False)
    assert dead.returncode == -signal.SIGKILL and not (out / "weights.parquet").exists()
    assert len(list((out / "candidates").glob("*.json"))) == 11  # the twelfth training is the eleventh candidate's
    counted(marks, valued, out)
    assert digest(out) == digest(whole)


@pytest.mark.chaos
def test_a_killed_worker_is_replaced(valued, ray_session, tmp_path):
    counted(tmp_path / "whole", valued, tmp_path / "run")
    counted(tmp_path / "marks", valued, tmp_path / "again", rayinf.Cluster(workers=2), dies_at=9)
    assert digest(tmp_path / "again") == digest(tmp_path / "run")
    processes = {f.name.split("-")[1] for f in (tmp_path / "marks").iterdir()}
    assert (tmp_path / "marks.died").exists()
    assert len(processes) in (2, 3)  # the other one took its item over, or a new one came sooner


def test_a_damaged_candidate_is_trained_anew(first, valued, tmp_path):
    out = tmp_path / "run"
    search(scores=valued, out=out)
    file = sorted((out / "candidates").iterdir())[3]
    file.write_text(file.read_text()[:50])
    (out / "weights.parquet").unlink()
    search(scores=valued, out=out)
    assert digest(out) == digest(first[1])


@pytest.mark.parametrize("few", [1, 2])
def test_more_generations_go_on_from_what_is_there(few, first, valued, tmp_path, monkeypatch):
    out, trained = tmp_path / "run", []
    part = search(scores=valued, out=out, search=replace(SMALL, iterations=few))
    lines = part.candidates["candidate"].to_pylist()
    assert lines == first[0].candidates["candidate"].to_pylist()[: len(lines)]
    plain = CandidateTrainer.__call__
    monkeypatch.setattr(CandidateTrainer, "__call__", lambda self, t: trained.append(t) or plain(self, t))
    found = search(scores=valued, out=out)
    new = first[0].candidates.num_rows - part.candidates.num_rows
    assert len(trained) == new + (found.chosen["candidate"] != part.chosen["candidate"])
    assert digest(out) == digest(first[1]) and found.to_text() == first[0].to_text()
    assert rayinf.verify(out).ok
    with pytest.raises(rayinf.InputError, match=f"holds a search of 3 generations, and .*iterations={few}. has fewer"):
        search(scores=valued, out=out, search=replace(SMALL, iterations=few))
    assert digest(out) == digest(first[1])


def test_the_files_of_another_choice_are_not_read(valued, tmp_path, monkeypatch):
    """Stopped at changes of files while more generations choose another candidate; then the old call, or the same."""
    few = replace(SMALL, iterations=1)
    calm, more = tmp_path / "calm", tmp_path / "more"
    part, whole = search(scores=valued, out=calm, search=few), search(scores=valued, out=more)
    assert part.chosen["candidate"] != whole.chosen["candidate"]
    for name in ("put", "put_table", "put_json", "remove"):
        for at in range(2):
            out = tmp_path / f"{name}-{at}"
            shutil.copytree(calm, out)
            left, plain = [at], getattr(CheckedFolder, name)

            def stopped(self, file, *given, left=left, plain=plain):
                if "/" not in file:
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                return plain(self, file, *given)

            monkeypatch.setattr(CheckedFolder, name, stopped)
            with contextlib.suppress(KeyboardInterrupt):
                search(scores=valued, out=out)
            monkeypatch.undo()
            if json.loads((out / "run.json").read_text())["status"] == "running":
                again = search(scores=valued, out=out, search=few)
                np.testing.assert_array_equal(again.weights, part.weights)
                for a, b in zip(again.task.model.parameters(), part.task.model.parameters(), strict=True):
                    assert torch.equal(a, b)
            search(scores=valued, out=out)
            assert digest(out) == digest(more)


def test_another_config_is_refused(first, valued):
    for changed in ({"seed": 4}, {"mode": "correct"}, {"targets": [1]}, {"search": replace(SMALL, strength=0.1)}):
        with pytest.raises(rayinf.InputError, match="another config"):
            search(scores=valued, out=first[1], **changed)


def test_another_seed_is_another_search(first, valued):
    other = search(scores=valued, seed=4)
    assert set(other.candidates["candidate"].to_pylist()) & set(first[0].candidates["candidate"].to_pylist()) == {
        "unweighted"
    }


def test_infeasible_alphas_are_told_and_rank_last(valued):
    found = search(scores=valued, search=replace(SMALL, mutation_rate=1.0, strength=5.0))
    frame = found.to_pandas()
    lost = frame[frame["problem"].notna()]
    assert len(lost) and lost["fitness"].isna().all() and not lost["front"].any()
    assert all(len(conflict) >= 1 and set(conflict) <= {"0", "1", "2", "3"} for conflict in lost["conflict"])
    assert f"{len(lost)} without a model" in found.to_text()


def test_the_unweighted_epoch_comes_back_where_nothing_is_better(valued, tmp_path):
    found = search(scores=valued, search=replace(SMALL, prefer=1000.0, radius=1.0), targets=[1], out=tmp_path / "run")
    assert found.alpha is None and (found.weights == 1).all() and found.chosen["candidate"] == "unweighted"
    assert "the weights are all 1" in found.to_text()
    assert found.classes["weighted"].to_pylist() == found.classes["unweighted"].to_pylist()


def test_all_classes_as_targets(valued):
    found = search(scores=valued, targets=[0, 1, 2, 3])
    assert any("no other class to spare" in note for note in found.notes)
    assert (found.candidates["others"].to_numpy() == 0).all() and found.front.num_rows == 1


def test_a_class_whose_summed_influence_is_negative_is_told(valued):
    values = valued.to_numpy()
    values[:, 1] -= values[:, 1].mean() + 0.01
    changed = rayinf.Scores.from_numpy(values, valued.columns)
    assert re.search(r"negative for class .*1 \(-1\.6\)", search(scores=changed).to_text())
    paper = search(scores=changed, search=replace(SMALL, slack="paper"))
    assert any("alpha < 1 demands" in note for note in paper.notes)
    assert paper.classes["total"].to_pylist()[1] == pytest.approx(-0.01 * len(values))


def test_columns_in_any_order_and_string_labels():
    names = np.array(["ant", "bee", "cat", "dog"])
    train, valid = ((x, names[y]) for x, y in (TRAIN, VALID))
    base = task()
    named = rayinf.Task(base.model, fit=base.fit)
    valued = rayinf.influence(named, train, valid, "category", curvature="ggn", damping=0.1)
    turned = rayinf.Scores.from_numpy(valued.to_numpy()[:, ::-1], valued.columns[::-1])
    a, b = (rayinf.pareto_reweight(named, train, valid, s, ["category_cat"], search=SMALL) for s in (valued, turned))
    np.testing.assert_array_equal(a.weights, b.weights)
    assert a.classes["class"].to_pylist() == names.tolist() and a.classes["target"].to_pylist()[2]


def test_a_function_as_fit(valued):
    found = search(task=task(weighted_steps), scores=valued)
    again = weighted_steps(task(), TRAIN, found.weights, 3)
    assert torch.equal(again[0].weight, found.task.model[0].weight)


def test_epochs_that_diverge_rank_last(first, valued):
    middle = np.median(first[0].candidates["mean_weight"].to_numpy())

    def wild(task, train, weights, seed):
        model = weighted_steps(task, train, weights, seed)
        if weights is not None and weights.mean() > middle:
            model[0].weight.data.fill_(np.nan)
        return model

    found = search(task=task(wild), scores=valued)
    lost = found.to_pandas().query("problem.notna()")
    assert len(lost) and lost["problem"].str.contains("losses by class").all()


def test_a_live_table_is_plain_lines_off_a_terminal(valued, capsys):
    search(scores=valued)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rayinf pareto_reweight")]
    assert len(lines) == 3 and "generation 1 of 3" in lines[0] and "best fitness" in lines[2]


def test_a_live_table_on_a_terminal(valued, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    search(scores=valued)
    told = capsys.readouterr().err
    assert "candidate 8 of 8" in told and "0 (target)" in told and "checkpoint" in told
    assert "generation 3 of 3" in told and "rayinf pareto_reweight" not in told


def test_plot(first, tmp_path):
    assert first[0].plot(tmp_path / "front.png").stat().st_size > 10_000


def test_equal_candidates_are_tried_once(tmp_path):
    """Mutation and crossover off: nothing but elites, copies of them and new ones."""
    plain = Evaluation([50, 50], [100, 100], [1.0, 1.0])
    still = rayinf.Search(2, 2, 0, 4, iterations=4, mutation_rate=0.0, crossover_rate=0.0, radius=None, prefer=1.0)
    files = CheckedFolder(tmp_path, "")
    state = Generations(Steps(lambda: files), still, (0,), "direct", 2, 0, plain, plain)
    tried = []

    def calls(trainings):
        for key, training in trainings.items():
            tried.append(key)
            yield key, Evaluation([int(100 * training.alpha[0]), 50], [100, 100], [1.0, 1.0])

    counts = [trained for _, _, trained in state.run(calls)]
    assert counts == [8, 0, 0, 0] and len(tried) == len(set(tried)) == 8


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"targets": [7]}, "7 is not a class"),
        ({"targets": []}, "names no class"),
        ({"targets": [0, 0]}, "one twice"),
        ({"mode": "sideways"}, "mode='sideways' is unknown"),
        ({"seed": -1}, "seed=-1"),
        ({"search": 7}, "search=7: search must be a rayinf.Search"),
        ({"task": rayinf.Task(torch.nn.Linear(6, 4))}, "does not say how its model is trained"),
        ({"train": rows(159, 0)}, "train has 159 rows"),
        ({"valid": tuple(v[VALID[1] != 1] for v in VALID)}, "no row of class 1"),
        ({"out": "https://host/run"}, "lies on a web server"),
        ({"search": rayinf.Search(lr=0.1), "task": task(weighted_steps)}, "has no say"),
    ],
)
def test_bad_input(valued, changed, told):
    with pytest.raises(rayinf.InputError, match=told):
        search(scores=valued, **changed)


def test_scores_of_other_classes_are_refused(valued):
    few = rayinf.Scores.from_numpy(valued.to_numpy()[:, :3], valued.columns[:3])
    with pytest.raises(rayinf.InputError, match="no column for class '3'"):
        search(scores=few)
    other = rayinf.Scores.from_numpy(valued.to_numpy(), ["a", "b", "c", "category_0"])
    with pytest.raises(rayinf.InputError, match="not the model's classes"):
        search(scores=other)


def test_scores_of_other_rows_are_refused(valued):
    frame_train = {"features": list(TRAIN[0]), "label": TRAIN[1], "row_id": np.arange(len(TRAIN[1]))[::-1] + 1000}
    moved = rayinf.Scores.from_numpy(valued.to_numpy(), valued.columns, row_ids=np.arange(len(TRAIN[1])) + 1000)
    with pytest.raises(rayinf.InputError, match="Row 0 of train has the id"):
        search(scores=moved, train=pd.DataFrame(frame_train))


def test_an_unweighted_epoch_that_diverges_is_an_error(valued):
    base = task()
    hot = rayinf.Task(base.model, fit=replace(base.fit, lr=1e30))
    with pytest.raises(rayinf.RunError, match=r"diverged|losses by class"):
        search(task=hot, scores=valued)


def test_a_fit_that_trains_the_checkpoint_itself_is_refused(valued):
    with pytest.raises(rayinf.InputError, match="in place"):
        search(task=task(lambda task, train, weights, seed: task.model), scores=valued)
    with pytest.raises(rayinf.InputError, match="returned a int"):
        search(task=task(lambda task, train, weights, seed: 1), scores=valued)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"elites": -1}, "elites=-1"),
        ({"iterations": 0}, "iterations=0"),
        ({"crossover_rate": 1.5}, "crossover_rate=1.5"),
        ({"strength": float("inf")}, "strength=inf"),
        ({"upper": 0}, "upper=0"),
        ({"radius": 0}, "radius=0"),
        ({"radius": 2.0}, "radius=2.0"),
        ({"radius": "genes"}, "radius='genes'"),
        ({"slack": "loose"}, "slack='loose'"),
        ({"prefer": -1}, "prefer=-1"),
        ({"prefer": "mine"}, "prefer='mine'"),
        ({"lr": 0}, "lr=0"),
        ({"confirm": -1}, "confirm=-1"),
        ({"first": "grid"}, "first='grid'"),
        ({"population": 4}, "less than the elites"),
        ({"population": 23}, "6 elites"),
        ({"elites": 5, "mutated_elites": 0, "randoms": 0, "crossover_children": 0}, "no one new"),
        ({"threads": True}, "threads=True"),
    ],
)
def test_a_search_that_makes_no_sense(arguments, told):
    with pytest.raises(rayinf.InputError, match=told):
        rayinf.Search(**arguments)


def test_table_2_is_the_default():
    assert rayinf.Search(population=24).size == 24 and rayinf.Search().iterations == 20
