"""BatchBALD against an enumeration of all label configurations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rayinf.errors import InputError
from rayinf.select import batchbald
from rayinf.select.batchbald import pick_batch


def draws(samples: int, rows: int, classes: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    logits = scale * np.random.default_rng(seed).normal(size=(samples, rows, classes))
    return logits - np.log(np.exp(logits).sum(2, keepdims=True))


def joint_information(logs: np.ndarray, rows: list[int]) -> float:
    """`H(y_1..y_n) - E_s sum_i H(y_i | s)`, configuration by configuration."""
    p = np.exp(logs).tolist()
    samples, classes = len(p), logs.shape[2]
    joint = 0.0
    for labels in itertools.product(range(classes), repeat=len(rows)):
        mass = sum(math.prod(p[s][i][y] for i, y in zip(rows, labels, strict=True)) for s in range(samples)) / samples
        joint -= mass * math.log(mass) if mass > 0 else 0.0
    given = -sum(v * math.log(v) for s in range(samples) for i in rows for v in p[s][i] if v > 0) / samples
    return joint - given


def slow_pick(logs: np.ndarray, n: int) -> tuple[list[int], list[float]]:
    picked: list[int] = []
    scores: list[float] = []
    for _ in range(n):
        left = [i for i in range(logs.shape[1]) if i not in picked]
        values = [joint_information(logs, [*picked, i]) for i in left]
        scores.append(max(values))
        picked.append(left[int(np.argmax(values))])
    return picked, scores


@pytest.mark.parametrize(("samples", "rows", "classes", "n"), [(4, 7, 2, 5), (3, 6, 3, 4), (1, 4, 2, 2), (6, 5, 4, 3)])
def test_exact_while_configurations_are_few(samples: int, rows: int, classes: int, n: int) -> None:
    logs = draws(samples, rows, classes, seed=samples)
    picked, gains = pick_batch(logs, n, seed=0)
    expected, joint = slow_pick(logs, n)
    np.testing.assert_allclose(gains.cumsum(), joint, rtol=1e-10, atol=1e-12)
    if samples > 1:  # one sample: all gains are 0
        assert picked.tolist() == expected
    assert len(set(picked.tolist())) == n


def test_certain_labels() -> None:
    """Probabilities of exactly 0 and 1: two samples that disagree on everything are distinguished by one label."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3]))
    picked, gains = pick_batch(logs, 3, seed=0)
    assert picked.tolist() == [0, 1, 2]
    np.testing.assert_allclose(gains, [math.log(2), 0, 0], atol=1e-12)


@pytest.mark.parametrize("most", [1, 9, 60, 3000])
def test_drawn_configurations_estimate_the_exact_gain(most: int) -> None:
    """All of a batch from draws: the joint information is near the exact one, nearer with more draws."""
    logs = draws(12, 6, 3, seed=5, scale=1.0)
    exact, drawn = [], []
    for seed in range(20):
        picked, gains = pick_batch(logs, 6, seed, most)
        exact.append(joint_information(logs, list(range(6))))
        drawn.append(gains.sum())
        assert sorted(picked.tolist()) == list(range(6))
    error = abs(np.mean(drawn) / exact[0] - 1)
    assert error < {1: 0.5, 9: 0.1, 60: 0.05, 3000: 1e-9}[most]


def test_drawn_picks_are_those_of_the_enumeration_where_they_stand_out() -> None:
    """Copies of a row add little information: picks go through the groups, then through them again."""
    groups = draws(40, 4, 3, seed=2, scale=3.0)
    logs = np.repeat(groups, 5, axis=1)
    picked, _ = pick_batch(logs, 8, seed=1, most=400)
    assert sorted((picked[:4] // 5).tolist()) == [0, 1, 2, 3]
    assert slow_pick(logs, 4)[0] == picked[:4].tolist()


def test_the_first_gain_is_bald_and_gains_fall() -> None:
    logs = draws(10, 30, 3, seed=9)
    picked, gains = pick_batch(logs, 6, seed=0)
    bald = [joint_information(logs, [i]) for i in range(30)]
    assert picked[0] == int(np.argmax(bald)) and gains[0] == pytest.approx(max(bald))
    assert (np.diff(gains) <= 1e-12).all()


def test_one_seed_one_answer_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logs = draws(8, 25, 3, seed=4)
    whole = pick_batch(logs, 10, seed=3, most=50)
    again = pick_batch(logs, 10, seed=3, most=50)
    assert np.array_equal(whole[0], again[0]) and np.array_equal(whole[1], again[1])
    monkeypatch.setattr(batchbald, "_CHUNK_FLOATS", 500)
    small = pick_batch(logs, 10, seed=3, most=50)
    assert np.array_equal(whole[0], small[0])
    np.testing.assert_allclose(whole[1], small[1], rtol=1e-10)


def test_a_long_batch_does_not_underflow() -> None:
    """The probability of 330 labels of ten classes underflows in float64."""
    picked, gains = pick_batch(draws(5, 340, 10, seed=6), 330, seed=0, most=100)
    assert len(set(picked.tolist())) == 330 and np.isfinite(gains).all()
    assert gains.sum() == pytest.approx(math.log(5), rel=0.05)  # all there is to know of five samples


def test_more_rows_than_candidates() -> None:
    with pytest.raises(InputError, match="batch of 4 rows cannot be picked from 3 candidates"):
        pick_batch(draws(2, 3, 2), 4, seed=0)
    assert pick_batch(draws(2, 3, 2), 0, seed=0)[0].shape == (0,)
