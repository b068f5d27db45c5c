"""The forest of ranks: its ranks, its honesty, and the same bytes on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy.stats import rankdata, spearmanr

from rayinf.errors import InputError
from rayinf.select.forest import RankForest, limit_of, rank_of


def rows(m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels, and values that depend on both."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(m, 5)), rng.integers(0, 3, m)
    return x, y, np.exp(x[:, 0] + (y == 1) * x[:, 1])


def test_ranks_of_the_reference_itself() -> None:
    values = np.random.default_rng(0).integers(0, 12, 50).astype(float)
    found = rank_of(values, np.sort(values))
    np.testing.assert_allclose(found, (rankdata(values) - 1) / 49, rtol=1e-14)
    distinct = np.array([3.0, -1.0, 10.0, 4.0])
    assert rank_of(distinct, np.sort(distinct)).tolist() == [1 / 3, 0, 1, 2 / 3]


def test_ranks_beside_the_reference() -> None:
    reference = np.array([0.0, 1.0, 2.0])
    found = rank_of(np.array([-5.0, 0.5, 1.5, 9.0]), reference)
    assert found.tolist() == [0, 0.25, 0.75, 1]
    assert rank_of(np.array([7.0]), np.array([7.0])).tolist() == [0]


def test_the_forest_predicts_rows_it_never_saw() -> None:
    x, y, values = rows(600)
    forest = RankForest.fit(x, values, y, seed=0)
    new_x, new_y, new_values = rows(300, seed=1)
    found = forest.predict(new_x, new_y)
    assert found.min() >= 0 and found.max() <= 1
    reached = spearmanr(found, new_values).statistic
    assert reached > 0.85
    assert forest.oob_rank_correlation == pytest.approx(reached, abs=0.05)
    blind = RankForest.fit(x, values, None, seed=0)
    assert blind.oob_rank_correlation < forest.oob_rank_correlation - 0.02


def test_the_correlation_is_spearmans() -> None:
    x, _, values = rows(80)
    forest = RankForest.fit(x, values, None, seed=0)
    expected = spearmanr(forest.model.oob_prediction_, values).statistic
    assert forest.oob_rank_correlation == pytest.approx(expected, abs=1e-12)


def test_nothing_to_learn_is_reported() -> None:
    x, _, _ = rows(200)
    noise = np.random.default_rng(5).random(200)
    assert abs(RankForest.fit(x, noise, None, seed=0).oob_rank_correlation) < 0.2
    assert RankForest.fit(x, np.ones(200), None, seed=0).oob_rank_correlation == 0


def test_same_bytes_whatever_the_threads() -> None:
    x, y, values = rows(100)
    one, two, other = (RankForest.fit(x, values, y, seed=s, jobs=j) for s, j in ((0, 1), (0, 2), (1, 1)))
    assert one.to_array().tobytes() == two.to_array().tobytes()
    assert one.to_array().tobytes() != other.to_array().tobytes()


def test_a_row_does_not_know_its_batch() -> None:
    x, y, values = rows(100)
    forest = RankForest.fit(x, values, y, seed=0)
    whole = forest.predict(x, y)
    parts = [forest.predict(x[k : k + 7], y[k : k + 7]) for k in range(0, 100, 7)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert forest.predict(x[:0], y[:0]).shape == (0,)


def test_it_travels_as_an_array() -> None:
    x, _, values = rows(50)
    forest = RankForest.fit(x, values, None, seed=0)
    array = load(save({"forest": forest.to_array()}))["forest"]
    assert array.dtype == np.uint8 and array.ndim == 1
    back = RankForest.from_array(array)
    assert back.oob_rank_correlation == forest.oob_rank_correlation
    assert np.array_equal(back.predict(x, None), forest.predict(x, None))


def test_features_of_any_shape_and_kind() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 4, 4), dtype=np.uint8)
    values = images.reshape(40, -1).mean(1)
    forest = RankForest.fit(images, values, None, seed=0)
    assert np.array_equal(forest.predict(images, None), forest.predict(images.reshape(40, 16).astype(float), None))


@pytest.mark.parametrize("kind", [object, "U5"])
def test_text_is_refused(kind: type | str) -> None:
    text = np.array(["a b c"] * 30).astype(kind)
    with pytest.raises(InputError, match=r"not numbers.*Fix: pass subsample=1\.0, or embeddings"):
        RankForest.fit(text, np.arange(30.0), None, seed=0)


@pytest.mark.parametrize(("m", "fix"), [(0, "pass subsample=1.0."), (4, "pass a subsample 10 times as large, or")])
def test_too_few_rows(m: int, fix: str) -> None:
    x, _, values = rows(m)
    with pytest.raises(InputError, match=f"holds {m} scored rows: a forest of ranks needs about 20.*{fix}"):
        RankForest.fit(x, values, None, seed=0)


def test_weighted_ranks_are_those_of_as_many_rows_each() -> None:
    rng = np.random.default_rng(0)
    reference, weights = np.sort(rng.choice(20, 30).astype(float)), rng.integers(1, 5, 30)
    repeated = np.repeat(reference, weights)
    first, last = weights[0] / 2, len(repeated) - weights[-1] / 2
    for value in (-1.0, 0.0, 3.5, 7.0, 19.0, 40.0):
        middle = (repeated < value).sum() + (repeated == value).sum() / 2
        truth = np.clip((middle - first) / (last - first), 0, 1)
        assert rank_of(np.array([value]), reference, weights)[0] == pytest.approx(truth, abs=1e-12)
    assert np.array_equal(rank_of(reference, reference, np.full(30, 7.0)), rank_of(reference, reference))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_the_limit_of_the_top(share: float) -> None:
    """With ties at the limit, as many of them as belong to the top."""
    predicted = np.random.default_rng(1).choice([0.1, 0.2, 0.4, 0.41, 0.9], 400)
    at, part = limit_of(predicted, share)
    expected = (predicted > at).sum() + part * (predicted == at).sum()
    assert expected == pytest.approx(share * 400)
    assert 0 <= part <= 1
