"""Ranks of rows that were never scored, from a random forest on those that were (Yu 2025, Algorithms 6 and 8)."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayinf.errors import InputError

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor

Array = np.ndarray[Any, Any]

# Rows that a subsample must be expected to hold. What is drawn may be fewer, and so few are still fitted.
LEAST_ROWS, _FEWEST = 20, 5
# More rows add time and memory (a forest on these takes about 120 MB), and hardly improve the ranks.
MOST_ROWS = 50_000
_TREES = 100


@dataclass(frozen=True)
class RankForest:
    """A forest that gives a row's rank among all, in [0, 1], from its features (and its label).

    Attributes:
        model: the fitted forest, of scikit-learn.
        oob_rank_correlation: Spearman's, of each scored row's rank and its prediction by the trees that did not see
            it; 0 where one of both is constant.
        oob_ranks: `[m]`, these predictions.
    """

    model: RandomForestRegressor
    oob_rank_correlation: float
    oob_ranks: Array

    @classmethod
    def fit(cls, features: Array, values: Array, labels: Array | None, seed: int, jobs: int = 1) -> RankForest:
        """Fit the forest on the ranks of scored rows. The same bytes whatever `jobs` is.

        Cost: m rows of d features take about `100 m log(m) d / 3` comparisons: 400 rows of 64 features 0.3 s.

        Args:
            features: `[m, ...]` numbers, flattened to `[m, d]`; at most `MOST_ROWS` rows, which the caller chooses.
            values: `[m]`, finite; ranked in rising order.
            labels: `[m]` integer codes, where they are known of all rows to predict too.
            seed: of the trees, at least 0.
            jobs: threads that share the trees.

        Raises:
            InputError: fewer than 5 rows, or features that are not numbers.
        """
        from sklearn.ensemble import RandomForestRegressor  # a second to import, and few runs need it

        rows = len(values)
        if rows < _FEWEST:
            grow = f"a subsample {2 * LEAST_ROWS / rows:.2g} times as large, or " if rows else ""
            raise InputError(
                f"The subsample holds {rows} scored rows: a forest of ranks needs about {LEAST_ROWS}.",
                f"pass {grow}subsample=1.0.",
            )
        ranks = rank_of(values, np.sort(values))
        # scikit-learn takes 32 bits of a seed; a longer one starts a generator of all its bits.
        start = seed if seed < 2**32 else np.random.RandomState(np.random.MT19937(seed))
        model = RandomForestRegressor(
            _TREES, max_features=1 / 3, min_samples_leaf=3, oob_score=True, random_state=start, n_jobs=jobs
        )
        model.fit(_columns(features, labels), ranks)
        model.n_jobs = 1  # threads would sum the trees in any order, which changes the last bits
        return cls(model, _rank_correlation(model.oob_prediction_, ranks), model.oob_prediction_)

    def predict(self, features: Array, labels: Array | None) -> Array:
        """Predicted ranks `[B]` in [0, 1]; a row's depends on the row alone.

        Args:
            features: `[B, ...]`, as in `fit`.
            labels: `[B]`, if and only if `fit` had them.

        Raises:
            InputError: features that are not numbers.
        """
        if not len(features):
            return np.zeros(0)
        return np.clip(self.model.predict(_columns(features, labels)), 0.0, 1.0)

    def to_array(self) -> Array:
        """The forest as bytes `[size]`, uint8 (a pickle), for a payload of arrays."""
        return np.frombuffer(pickle.dumps(self, protocol=5), np.uint8)

    @staticmethod
    def from_array(array: Array) -> RankForest:
        """The forest that `to_array` gave: only from a source that is trusted, since it is a pickle."""
        forest: RankForest = pickle.loads(array.tobytes())
        return forest


def rank_of(values: Array, reference: Array, weights: Array | None = None) -> Array:
    """Ranks in [0, 1] among `m` reference values: `j / (m - 1)` for the j-th of them, the average rank at ties.

    Args:
        values: `[B]`, finite; outside the reference they rank half-way between its neighbours.
        reference: `[m]`, sorted.
        weights: `[m]`, how many rows each of them stands for; None: as many each.
    """
    weights = np.ones(len(reference)) if weights is None else weights
    up_to = np.concatenate([[0.0], weights.cumsum()])
    low, high = weights[0] / 2, up_to[-1] - weights[-1] / 2
    left, right = (up_to[np.searchsorted(reference, values, side)] for side in ("left", "right"))
    return np.clip(((left + right) / 2 - low) / (high - low if high > low else 1.0), 0.0, 1.0)


def limit_of(predicted: Array, share: float) -> tuple[float, float]:
    """Where the top share of predicted ranks begins: a rank, and the share of the rows at it that belongs to the top.

    Args:
        predicted: `[m]` ranks of rows drawn by chance.
        share: of all rows that are like them, in [0, 1].
    """
    wanted = share * len(predicted)
    if wanted <= 0:
        return 1.0, 0.0
    at = float(np.sort(predicted)[::-1][min(int(np.ceil(wanted)), len(predicted)) - 1])
    above, equal = int((predicted > at).sum()), int((predicted == at).sum())
    return at, float(np.clip((wanted - above) / equal, 0.0, 1.0))


def _columns(features: Array, labels: Array | None) -> Array:
    if features.dtype.kind not in "fiub":
        raise InputError(
            f"The features are {features.dtype}, not numbers: a forest cannot predict ranks from them.",
            "pass subsample=1.0, or embeddings as the features.",
        )
    flat = features.reshape(len(features), -1).astype(np.float32)
    return flat if labels is None else np.column_stack([flat, labels.astype(np.float32)])


def _rank_correlation(a: Array, b: Array) -> float:
    x, y = (rank_of(v, np.sort(v)) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0
