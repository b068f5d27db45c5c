"""BatchBALD (Kirsch et al. 2019): the batch whose labels together have the greatest mutual information with the model.

Rows of high BALD are often redundant; here a row counts by the information that it adds to the rows already picked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.errors import InputError

Array = np.ndarray[Any, Any]

# Label configurations of the picked rows that the entropies are taken over.
CONFIGURATIONS = 2_000
# Numbers of one chunk of candidates: configurations x candidates x classes, and samples x candidates x classes.
_CHUNK_FLOATS = 1 << 18
# The logarithm of a probability of 0 becomes that of the least positive float64, so that products stay finite.
_LEAST_LOG = -745.0


def pick_batch(log_probabilities_snc: Array, n: int, seed: int, most: int = CONFIGURATIONS) -> tuple[Array, Array]:
    """Greedily, the n candidates of greatest joint mutual information between their labels and the model.

    A pick adds `I(y; model | labels of the rows picked) = E_m H(y | m) - E_s H(y | s)`, where m runs over the label
    configurations of the rows picked and s over the samples. Configurations are all taken, with their probabilities,
    as long as there are at most `most`. Then `most` are drawn from their joint distribution (the estimator of the
    paper), and every further pick extends them by a draw.

    Cost: a pick is a product of `[configurations, S]` and `[S, N K]`, and as many logarithms as it has results: about
    `most N K (2 S + 20)` operations. 10,000 candidates of 10 classes, 100 samples: about 3 seconds a pick on one core.
    Take the candidates from those of high BALD. Memory: the input, and about 100 MB.

    Args:
        log_probabilities_snc: `[S, N, K]`, natural logarithms.
        n: candidates to pick.
        seed: of the configurations drawn.
        most: configurations, at least 1.

    Returns:
        The positions `[n]` of the candidates picked, best first, and what each added, in nats: their sum is the joint
        mutual information. The first adds its BALD. Ties: the earlier candidate.

    Raises:
        InputError: fewer candidates than n.
    """
    candidates = log_probabilities_snc.shape[1]
    if n > candidates:
        raise InputError(
            f"A batch of {n} rows cannot be picked from {candidates} candidates.", f"pass n <= {candidates}."
        )
    generator = np.random.default_rng(seed)
    given_sample = _sample_entropies(log_probabilities_snc)
    state = _Configurations.of_no_rows(log_probabilities_snc.shape[0])
    picked, gains = np.empty(n, np.int64), np.empty(n)
    for k in range(n):
        gain = _label_entropies(log_probabilities_snc, state) - given_sample
        gain[picked[:k]] = -np.inf
        picked[k] = best = int(np.argmax(gain))
        gains[k] = gain[best]
        state = state.extend(_logs(log_probabilities_snc[:, best]), most, generator)
    return picked, gains


@dataclass(frozen=True)
class _Configurations:
    """Labels that the picked rows may have, m of them.

    Attributes:
        logs_ms: the logarithm of each one's probability given each sample.
        source_m: the sample that each was drawn from; None while all are listed.
    """

    logs_ms: Array
    source_m: Array | None

    @classmethod
    def of_no_rows(cls, samples: int) -> _Configurations:
        return cls(np.zeros((1, samples)), None)

    def posterior(self) -> tuple[Array, Array]:
        """The weight `[m]` of each configuration, and the samples' probabilities given it, `[m, S]`."""
        most_m1 = self.logs_ms.max(1, keepdims=True)  # subtracted before exp, which would underflow
        p_ms = np.exp(self.logs_ms - most_m1)
        total_m1 = p_ms.sum(1, keepdims=True)
        count, samples = p_ms.shape
        listed = np.exp(most_m1[:, 0]) * total_m1[:, 0] / samples
        return listed if self.source_m is None else np.full(count, 1 / count), p_ms / total_m1

    def extend(self, logs_sc: Array, most: int, generator: np.random.Generator) -> _Configurations:
        """The configurations of one more row, whose log-probabilities are `[S, K]`."""
        count, samples = self.logs_ms.shape
        if self.source_m is None and count * logs_sc.shape[1] <= most:
            return _Configurations((self.logs_ms[:, None] + logs_sc.T).reshape(-1, samples), None)
        drawn = self if self.source_m is not None else self._draw(most, generator)
        labels_m = _draw_each(np.exp(logs_sc)[drawn.source_m], generator)
        return _Configurations(drawn.logs_ms + logs_sc.T[labels_m], drawn.source_m)

    def _draw(self, most: int, generator: np.random.Generator) -> _Configurations:
        """Draws from the joint distribution of those listed, as many from every sample where `most` allows it."""
        samples = self.logs_ms.shape[1]
        source_m = np.repeat(generator.permutation(samples)[:most], max(1, most // samples))
        which_m = _draw_each(np.exp(self.logs_ms.T)[source_m], generator)
        return _Configurations(self.logs_ms[which_m], source_m)


def _draw_each(p_mk: Array, generator: np.random.Generator) -> Array:
    """A draw from each row's distribution, `[m]`."""
    up_to = p_mk.cumsum(1)
    threshold = generator.random((len(p_mk), 1)) * up_to[:, -1:]
    drawn: Array = (up_to <= threshold).sum(1)
    return np.minimum(drawn, p_mk.shape[1] - 1)


def _sample_entropies(logs_snc: Array) -> Array:
    """`E_s H(y | s)` of every candidate, `[N]`."""
    out = np.empty(logs_snc.shape[1])
    for part in _chunks(logs_snc, 1):
        logs = _logs(logs_snc[:, part])
        out[part] = -(np.exp(logs) * logs).sum(2).mean(0)
    return out


def _label_entropies(logs_snc: Array, state: _Configurations) -> Array:
    """`E_m H(y | m)` of every candidate, `[N]`."""
    samples, candidates, classes = logs_snc.shape
    weight_m, posterior_ms = state.posterior()
    out = np.empty(candidates)
    for part in _chunks(logs_snc, len(weight_m)):
        p_snc = np.exp(_logs(logs_snc[:, part]))
        p_mk = posterior_ms @ p_snc.reshape(samples, -1)
        terms = np.log(np.maximum(p_mk, np.finfo(np.float64).tiny))
        terms *= p_mk
        out[part] = -(weight_m @ terms).reshape(-1, classes).sum(1)
    return out


def _chunks(logs_snc: Array, configurations: int) -> list[slice]:
    """Slices of the candidates, so small that memory stays bounded."""
    samples, candidates, classes = logs_snc.shape
    step = max(1, _CHUNK_FLOATS // (max(samples, configurations) * classes))
    return [slice(at, at + step) for at in range(0, candidates, step)]


def _logs(log_probabilities: Array) -> Array:
    return np.maximum(log_probabilities.astype(np.float64), _LEAST_LOG)
