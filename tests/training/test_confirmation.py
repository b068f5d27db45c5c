"""The cross-fit of a search: who chooses, who judges, what noise is not claimed, and going on where it stopped."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.small_search import CLASSES, SMALL, TRAIN, VALID, CountedFit, digest, search, task

import rayinf
from rayinf.api import pareto_reweight
from rayinf.data.batches import in_second_half
from rayinf.data.vectors import InfluenceRows
from rayinf.pareto.cross_fit import gain_error
from rayinf.training import reweight_request
from rayinf.training.candidates import CandidateTrainer, Evaluation, Training
from rayinf.training.confirmation import choose, confirm
from rayinf.training.generations import Generations
from rayinf.training.steps import Steps

TARGETS = [0, 2]


@pytest.fixture(scope="module")
def valued() -> rayinf.Scores:
    return rayinf.influence(task(), TRAIN, VALID, "category", curvature="ggn", damping=0.1, halves=True, seed=5)


@pytest.fixture(scope="module")
def first(tmp_path_factory: Any, valued: rayinf.Scores) -> tuple[rayinf.Reweighting, Path]:
    out = tmp_path_factory.mktemp("confirmed") / "run"
    return search(scores=valued, out=out), out


def by_hand(valued: rayinf.Scores, line: dict[str, Any]) -> np.ndarray:
    """`[2, K]`, changes of accuracy on each half of a model whose weights the other half chose."""
    second = in_second_half(VALID[0], VALID[1], 5)
    fit = replace(task().fit, fresh=False, epochs=1)
    alpha = [line[f"alpha_{k}"] for k in range(CLASSES)]
    out = np.zeros((2, CLASSES))

    def right(weights: np.ndarray | None) -> np.ndarray:
        model = rayinf.retrain(rayinf.Task(task().model, fit=fit), TRAIN, weights=weights, seed=3).model
        return (model(torch.tensor(VALID[0])).argmax(1).numpy() == VALID[1]).astype(float)

    plain = right(None)
    for half, name in enumerate(("first_half:", "second_half:")):
        own = valued.select([name + c for c in valued.columns]).to_pandas().to_numpy()
        scores = rayinf.Scores.from_numpy(own, valued.columns)
        w = rayinf.reweight_lp(scores, TARGETS_OF(scores), alpha, radius=line["radius"], slack="scaled").weights
        judged = second == (half == 0)
        for k in range(CLASSES):
            mine = judged & (VALID[1] == k)
            out[half, k] = (right(w) - plain)[mine].mean()
    return out


def TARGETS_OF(scores: rayinf.Scores) -> list[str]:  # noqa: N802
    return [scores.columns[k] for k in TARGETS]


def test_one_half_chooses_the_weights_and_the_other_is_measured(first: Any, valued: rayinf.Scores) -> None:
    found, _ = first
    crossed = [line for line in found.candidates.to_pylist() if line["crossed_gain"] is not None]
    assert 1 <= len(crossed) <= SMALL.confirm
    change, line = by_hand(valued, found.chosen), found.chosen
    sizes = np.array(
        [[(in_second_half(*VALID, 5)[VALID[1] == k] == (h == 0)).sum() for k in range(CLASSES)] for h in (0, 1)]
    )
    whole = (change * sizes).sum(0) / sizes.sum(0)
    assert line["crossed_gain"] == pytest.approx(whole[TARGETS].mean(), abs=1e-9)
    assert line["crossed_others"] == pytest.approx(np.delete(whole, TARGETS).mean(), abs=1e-9)
    assert line["crossed_error"] == pytest.approx(gain_error(change, TARGETS), rel=1e-6)
    text = found.to_text()
    assert "Cross-fitted, on rows that did not choose the weights" in text
    assert ("none is claimed" in text) is not line["crossed_shown"]


def test_the_best_by_cross_fit_is_chosen_among_the_best_of_the_search(first: Any) -> None:
    frame = first[0].to_pandas()
    worth = frame["gain"] + SMALL.prefer * frame["others"]
    crossed = frame["crossed_gain"] + SMALL.prefer * frame["crossed_others"]
    tried = frame["crossed_gain"].notna()
    beats = (worth > 0) & (frame["gain"] > 0)
    assert set(frame.index[tried]) <= set(frame.index[beats])
    assert first[0].chosen["candidate"] == frame["candidate"][crossed[tried].idxmax()]


def test_stopped_while_it_is_cross_fitted_it_ends_with_the_same_bytes(valued: rayinf.Scores, tmp_path: Path) -> None:
    def run(name: str, out: Path, **faults: int) -> rayinf.Reweighting:
        marks = tmp_path / name
        marks.mkdir(exist_ok=True)
        return search(task=task(CountedFit.planned(marks, **faults)), scores=valued, out=out)

    run("whole", tmp_path / "run")
    calls, crossed = len(list((tmp_path / "whole").iterdir())), len(list((tmp_path / "run/confirmed").iterdir()))
    assert crossed >= 3
    for stop in (calls - 1 - crossed, calls - 3):
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(f"marks-{stop}", out, stops_at=stop)
        run(f"marks-{stop}", out)
        assert digest(out) == digest(tmp_path / "run")
        assert len(list((tmp_path / f"marks-{stop}").iterdir())) == calls + 1
    assert rayinf.verify(tmp_path / "run").ok


def test_on_disk_again_nothing_is_trained(first: Any, valued: rayinf.Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CandidateTrainer, "__call__", lambda *_: pytest.fail("trained"))
    assert search(scores=valued, out=first[1]).to_text() == first[0].to_text()


def test_scores_without_halves_or_without_their_seed_are_not_cross_fitted(valued: rayinf.Scores) -> None:
    few = replace(SMALL, iterations=1)
    columns = [n for n in valued.source.schema.names if "half:" not in n]
    without = rayinf.Scores(valued.select(columns), valued.metadata)
    unknown = rayinf.Scores(valued.select(valued.source.schema.names), {})
    for scores, why in ((without, "no halves"), (unknown, "do not say which")):
        found = search(scores=scores, search=few)
        assert found.candidates["crossed_gain"].null_count == found.candidates.num_rows
        assert any(note.startswith("Not cross-fitted") and why in note for note in found.notes)
    off = search(scores=valued, search=replace(few, confirm=0))
    assert off.candidates["crossed_gain"].null_count == off.candidates.num_rows


ROWS = np.array([400, 400, 400])


def noise(effect: float, seed: int) -> tuple[Generations, Any]:
    """A search whose candidates differ by noise alone, but for what they do to class 0."""
    rng = np.random.default_rng(seed)
    plain = Evaluation((ROWS * 0.7).astype(int).tolist(), ROWS.tolist(), [1.0] * 3)

    def calls(trainings: dict[str, Training]) -> Any:
        for name, training in trainings.items():
            share = 1.0 if training.half is None else 0.5
            bonus = 0.0 if training.alpha is None else effect
            right = ROWS * share * (0.7 + np.array([bonus, 0, 0])) + 8 * share**0.5 * rng.standard_normal(3)
            if training.alpha is None:
                right = ROWS * share * 0.7
            yield (
                name,
                Evaluation(right.astype(int).tolist(), (ROWS * share).astype(int).tolist(), [1.0] * 3, [0.0] * 3),
            )

    settings = rayinf.Search(2, 2, 2, 2, iterations=3, prefer=1.0)
    state = Generations(Steps(None), settings, (0,), "correct", 3, seed, plain, plain)
    for _ in state.run(calls):
        pass
    return state, calls


def claimed(seed: int, effect: float) -> tuple[bool, bool, list[float]]:
    """Whether the search itself finds something, whether a gain is claimed, and the gains by cross-fit."""
    state, calls = noise(effect, seed)
    held = confirm(state, calls)
    chosen = choose(state, held)
    shown = chosen.key in held and held[chosen.key].holds
    return state.best.key != "unweighted", shown, [c.crossed.gain for c in held.values()]


def test_a_search_among_noise_claims_no_gain() -> None:
    found = [claimed(seed, 0.0) for seed in range(40)]
    assert sum(f[0] for f in found) >= 38  # the best of twenty noisy candidates always looks like a gain
    assert sum(f[1] for f in found) <= 5
    assert abs(np.mean([g for f in found for g in f[2]])) < 0.004


def test_a_gain_above_the_noise_is_claimed() -> None:
    assert sum(claimed(seed, 0.15)[1] for seed in range(20)) >= 18  # seven standard errors, of three classes


def test_candidates_that_one_half_cannot_train_are_not_confirmed() -> None:
    state, calls = noise(0.06, 0)

    def failing(trainings: dict[str, Training]) -> Any:
        for name, found in calls(trainings):
            yield name, Evaluation(problem="It diverged.") if name.endswith("-2.json") else found

    assert confirm(state, failing) == {}
    assert choose(state, {}).key == "unweighted" and choose(state, None) == state.best


def test_what_is_kept_of_it(first: Any) -> None:
    files = sorted((first[1] / "confirmed").iterdir())
    names = {f.stem for f in files}
    assert "unweighted-1" in names and len(names) % 2 == 1
    held = json.loads(files[0].read_text())
    assert sum(held["rows"]) < len(VALID[1])


def test_influence_vectors_that_are_read_from_disk(
    first: tuple[rayinf.Reweighting, Path], valued: rayinf.Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the bound they are read at every pass of a linear program, to the same bytes; pickled, they are a path."""
    rayinf.influence(
        task(), TRAIN, VALID, "category", curvature="ggn", damping=0.1, halves=True, seed=5, out=tmp_path / "scores"
    )
    on_disk = rayinf.Scores.load(tmp_path / "scores")
    monkeypatch.setattr(reweight_request, "_HELD_BYTES", 0)
    held: list[Any] = []
    make = pareto_reweight._trainer

    def noted(*given: Any) -> CandidateTrainer:
        trainer = make(*given)
        held.append(trainer.vectors)
        return trainer

    monkeypatch.setattr(pareto_reweight, "_trainer", noted)
    search(scores=on_disk, out=tmp_path / "run")
    assert isinstance(held[0], InfluenceRows)
    assert len(pickle.dumps(held[0])) < 10_000
    assert digest(tmp_path / "run") == digest(first[1])
    search(scores=valued)
    assert isinstance(held[1], np.ndarray)  # in memory anyway
