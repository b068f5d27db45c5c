"""Whether all classes can gain in common: regions, variance, the certificate and its cross-fit, over passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from rayinf.pareto.blocks import GROUPS, blocks, group_sums
from rayinf.pareto.certificate import Certifier, Sample, Sampler, thinned
from rayinf.pareto.regions import Moments, Regions

Array = np.ndarray[Any, Any]
# Batches `(P,)`, or `(P, P of the first half, P of the second)`, `[B, K]` each, in row order; called with True, the
# rows' labels as codes `[B]` come last.
Source = Callable[[bool], Iterator[tuple[Array, ...]]]

_LEVELS = (0.025, 0.975)
_NORMAL = 1.96
_AT_ONCE = 200  # resamples


@dataclass(frozen=True)
class Options:
    """Settings of the search for the certificate.

    Attributes:
        sample: rows that the search starts from. With as many as the table has, HiGHS solves the whole LP.
        near: rows nearest to the hyperplane of the prices that stand in the LP one by one.
        gap: relative, between the certificate's bounds.
        passes: at most, to close it.
        resamples: of the bootstrap.
        seed: of the sample and of the bootstrap.
    """

    sample: int
    near: int
    gap: float
    passes: int
    resamples: int
    seed: int


@dataclass(frozen=True)
class Gain:
    """The certificate.

    Attributes:
        value: `F(y)`.
        lower: the gain of the best row weights found; `value - lower` is the gap.
        interval: 95% of the bootstrap.
        y: `[K]`, 0 for classes that are left out.
        prices: `[K]`, `y_k / b_k`.
        total: `[K]`, `b_k`.
        used: positions of the classes with `b_k > 0`.
        passes: over the rows until the gap was closed.
    """

    value: float
    lower: float
    interval: tuple[float, float]
    y: Array
    prices: Array
    total: Array
    used: Array
    passes: int


@dataclass(frozen=True)
class CrossFit:
    """The gain on one half of the validation rows of row weights chosen on the other half.

    Attributes:
        value: the mean of both directions.
        interval: 95% at least, over training rows and validation rows; `value`, the least of several estimates, lies in
            its lower half.
        noise: standard error that the choice of validation rows gives a class's mean over both directions, in units of
            its b, pooled over the classes.
        directions: chosen on the first half and judged on the second; the other way round.
        by_class: `[2, K]`, what each class gains in each direction, in units of its b; NaN where a class is left out.
        gain: `[2]`, in-sample, of each half.
    """

    value: float
    interval: tuple[float, float]
    noise: float
    directions: tuple[float, float]
    by_class: Array
    gain: tuple[float, float]


@dataclass(frozen=True)
class Found:
    """The results of the passes; `gain` is None where fewer than two classes have any influence.

    `in_halves` `[K]`: whether each class has influence in both halves, and takes part in the cross-fit; None without
    halves.
    """

    regions: Regions
    moments: Moments
    total: Array
    sample: Sample
    gain: Gain | None
    cross_fit: CrossFit | None
    in_halves: Array | None = None


def find(source: Source, options: Options) -> Found:
    """Read the rows a few times, and find how much all classes can still gain in common.

    Raises:
        RunError: HiGHS gave up.
        Exception: raised by the source.

    Cost: one pass for regions, moments and the samples, and about three for the certificate; `O(K)` a row and pass,
    `O(K^2)` in the first. Memory does not grow with rows beyond `options.sample`.
    """
    first = _first_pass(source, options)
    absolute = first.absolute
    total = absolute[0].sum(0)
    used = [np.flatnonzero(total > 0)]
    if len(absolute) > 1:
        used += [np.flatnonzero((absolute[1].sum(0) > 0) & (absolute[2].sum(0) > 0))] * 2
    active = [k for k, held in enumerate(used) if len(held) > 1]
    searches = {k: _Search(first, k, used[k], options) for k in active}
    _pass_until_done(source, searches, options.passes)
    bootstrap = _Bootstrap(min(first.rows, GROUPS), options)
    gain = _gain(searches[0], absolute[0], bootstrap) if 0 in searches else None
    cross = _cross_fit((searches[1], searches[2]), absolute, bootstrap) if 1 in searches else None
    shown = thinned(first.samples[0], options.near, options.seed)
    in_halves = np.isin(np.arange(len(total)), used[1]) if len(used) > 1 else None
    return Found(first.regions, first.moments, total, shown, gain, cross, in_halves)


@dataclass(frozen=True)
class _First:
    rows: int
    regions: Regions
    moments: Moments
    absolute: list[Array]
    samples: list[Sample]


def _first_pass(source: Source, options: Options) -> _First:
    """Regions and moments; of the whole and of each half, `b_k` by groups of rows `[GROUPS, K]` and a sample."""
    rng, start = np.random.default_rng(options.seed), 0
    counted: list[tuple[Regions, Moments]] = []
    absolute: list[Array] = []
    samplers: list[Sampler] = []
    for *parts, codes in blocks(source(True)):
        known = codes if (codes >= 0).all() else None
        here = (Regions.of(parts[0], known), Moments.of(parts[0]))
        counted = [(counted[0][0].merge(here[0]), counted[0][1].merge(here[1]))] if counted else [here]
        sums = [group_sums(np.abs(p)) for p in parts]
        absolute = [a + b for a, b in zip(absolute, sums, strict=True)] if absolute else sums
        samplers = samplers or [Sampler(options.sample, parts[0].shape[1]) for _ in parts]
        uniform = 1.0 - rng.random(len(parts[0]))
        for sampler, p in zip(samplers, parts, strict=True):
            sampler.add(p, uniform, start)
        start += len(parts[0])
    return _First(start, *counted[0], absolute, [s.take() for s in samplers])


class _Search:
    """The certificate of the whole or of a half; of a half also the gain of its weights on the other, by groups.

    And a sample of the validation rows' noise: for each class j the weights `sign(sum_{k != j} pi_k P_i^k)`, in whose
    choice class j has no part but for K prices, judged on j in both halves. What the halves differ by is the noise of
    j's validation rows alone.
    """

    def __init__(self, first: _First, part: int, used: Array, options: Options) -> None:
        whole = len(used) == first.samples[part].p.shape[1]
        self._columns = slice(None) if whole else used
        held = first.samples[part]
        sample = Sample(np.ascontiguousarray(held.p[:, self._columns]), held.rows, held.weight)
        self.certifier = Certifier(first.absolute[part].sum(0)[used], sample, options.near, options.gap)
        self.used, self._part, self._other = used, part, {0: 0, 1: 2, 2: 1}[part]
        own, other = (first.absolute[k].sum(0)[used] for k in (part, self._other))
        self._scale = np.stack([1 / own, -1 / other])
        self._judged, self._apart = np.zeros((GROUPS, len(used))), np.zeros(len(used))
        self.judged, self.apart = self._judged, self._apart

    def add(self, parts: tuple[Array, ...], start: int) -> None:
        """Add a block."""
        own = parts[self._part][:, self._columns]
        delta = self.certifier.add(own, start)
        if not self._part:
            return
        other = parts[self._other][:, self._columns]
        self._judged += group_sums(delta[:, None] * other)
        pi = self.certifier.prices
        without = np.sign((own @ pi)[:, None] - own * pi)
        self._apart += np.einsum("bk,bk->k", without, own * self._scale[0] + other * self._scale[1])

    def close(self) -> None:
        """End a pass."""
        self.certifier.close()
        if self.certifier.judged_best:
            self.judged, self.apart = self._judged, self._apart
        self._judged, self._apart = np.zeros_like(self._judged), np.zeros_like(self._apart)


def _pass_until_done(source: Source, searches: dict[int, _Search], passes: int) -> None:
    for _ in range(passes):
        open_ones = [s for s in searches.values() if not s.certifier.done]
        if not open_ones:
            return
        start = 0
        for parts in blocks(source(False)):
            for search in open_ones:
                search.add(parts, start)
            start += len(parts[0])
        for search in open_ones:
            search.close()


class _Bootstrap:
    """The bootstrap: multinomial weights of groups of rows, the same for every ratio that is resampled."""

    def __init__(self, groups: int, options: Options) -> None:
        self._groups, self._options = groups, options

    def ratios(self, above: Array, below: Array) -> Array:
        """Ratios of weighted sums of `[GROUPS, ...]`, `[R, ...]`; 0 where the denominator is 0."""
        rng, left, found = np.random.default_rng(self._options.seed), self._options.resamples, []
        while left > 0:
            count = min(left, _AT_ONCE)
            shares = np.full(self._groups, 1 / self._groups)
            weights = rng.multinomial(self._groups, shares, count).astype(float)
            over, under = (weights @ sums[: self._groups] for sums in (above, below))
            found.append(np.divide(over, under, out=np.zeros_like(over), where=under > 0))
            left -= count
        return np.concatenate(found)


def _gain(search: _Search, absolute: Array, bootstrap: _Bootstrap) -> Gain:
    """The certificate over all classes, with its interval: a first-order bootstrap at fixed prices.

    `gain = min over pi >= 0 of sum_i |P_i pi| / sum_k pi_k b_k`, whose slope in the weights of rows at the best pi is
    that of this ratio at pi (the envelope theorem), so that no resample needs another LP.
    """
    found, used = search.certifier, search.used
    total = absolute.sum(0)
    y, prices = np.zeros(len(total)), np.zeros(len(total))
    y[used] = found.y
    prices[used] = found.y / total[used]
    low, high = np.quantile(bootstrap.ratios(found.values, absolute @ prices), _LEVELS)
    return Gain(found.upper, found.lower, (float(low), float(high)), y, prices, total, used, found.passes)


def _cross_fit(searches: tuple[_Search, _Search], absolute: list[Array], bootstrap: _Bootstrap) -> CrossFit:
    """Both directions, their mean, and an interval over training and validation rows at fixed weights."""
    used = searches[0].used
    by_class = np.full((2, absolute[0].shape[1]), np.nan)
    drawn = []
    for k, search in enumerate(searches):
        sums = absolute[2 - k][:, used]  # of the half that judges
        by_class[k, used] = search.judged.sum(0) / sums.sum(0)
        drawn.append(bootstrap.ratios(search.judged, sums))
    held = by_class[:, used]
    noise = validation_noise(held, np.stack([s.apart for s in searches]))
    low, high = np.mean([_of_least(v, d, noise) for v, d in zip(held, drawn, strict=True)], axis=0)
    first, second = map(float, held.min(1))
    gains = (searches[0].certifier.upper, searches[1].certifier.upper)
    return CrossFit((first + second) / 2, (float(low), float(high)), noise, (first, second), by_class, gains)


def validation_noise(by_class: Array, apart: Array) -> float:
    """The standard error, over draws of the validation rows, of a class's gain averaged over both directions.

    In units of the class's b, with one variance for all classes. `apart_j` has the variance `2 s^2`, where `s^2` is
    that of one direction: two halves of j's rows, seen through weights that j did not choose. The directions are
    positively correlated (by r): where noise chooses, `sign(P1) P2` and `sign(P2) P1` share a part. Their difference
    has the variance `2 s^2 (1 - r)`, their mean `s^2 (1 + r) / 2 = s^2 - (variance of the difference) / 4`, and at
    least `s^2 / 2`.

    Args:
        by_class: `[2, K]`, gains in both directions.
        apart: `[2, K]`, differences between the halves, of either direction's weights.
    """
    one = float((apart**2).mean()) / 2
    return float(np.sqrt(max(one - float(((by_class[0] - by_class[1]) ** 2).mean()) / 4, one / 2)))


def _of_least(value_k: Array, drawn_rk: Array, noise: float) -> tuple[float, float]:
    """An interval for the least of several means, of which the least estimate is too low where they are close.

    Lower end: the least of the classes' lower ends, since the least mean is that of one class. Upper end: the least of
    upper ends that hold for all classes simultaneously. The noise of the validation rows is estimated from K classes:
    Student's t with K degrees of freedom.
    """
    error = drawn_rk.std(0)
    apart = np.divide(value_k - drawn_rk, error, out=np.zeros_like(drawn_rk), where=error > 0).max(1)
    wide = max(float(np.quantile(apart, _LEVELS[1])), _NORMAL)
    of_valid = float(stdtrit(len(value_k), _LEVELS[1])) * noise
    low, high = (np.hypot(width * error, of_valid) for width in (_NORMAL, wide))
    return float((value_k - low).min()), float((value_k + high).min())
