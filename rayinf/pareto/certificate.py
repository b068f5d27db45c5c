"""The certificate: the best gain that all classes can have in common, found over passes and proved by its dual.

`gain = max t : sum_i delta_i P_i^k >= t b_k, |delta_i| <= 1 = min over y in the simplex of F(y)`,
`F(y) = sum_i |sum_k y_k P_i^k / b_k|`, `b_k = sum_i |P_i^k|`. Any y bounds it from above, any delta from below.

A pass at y gives F(y), the cut of all rows, and the rows nearest to the hyperplane of y, which keep a cut each: their
signs are the only ones that a small step can change. The model of the next step is those rows, a sample of the
others, and the linear term that gives it F's slope at y; HiGHS minimises it. Where the least of F lies nearer than the
farthest row that was kept, it is found exactly. Each pass also computes the gain of the row weights that the step
proposes, a bound from below. (One cut a shard, without the sample, takes 40 to 50 passes for ten classes; this takes
about four.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.pareto.blocks import GROUPS, Nearest, group_sums
from rayinf.pareto.common_gain import common_gain

Array = np.ndarray[Any, Any]
# Bounds this near are equal; a row this near the hyperplane (of its size) lies on it; F moves by this in rounding.
_ZERO = 1e-12
_ON_PLANE = 1e-11
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Policy:
    """Row weights `1 + delta`: delta is the sign of `P_i pi`, and another number for a few rows.

    Attributes:
        pi: `[K]`, the prices.
        rows: positions in the table, rising.
        delta: of those rows.
    """

    pi: Array
    rows: Array
    delta: Array

    def signs(self, value_b: Array, size_b: Array, start: int) -> tuple[Array, Array]:
        """The signs of a block, 0 for rows on the hyperplane up to rounding; and the policy's deltas.

        Args:
            value_b: `P_i pi`.
            size_b: the most that it can be, `sum_k |P_i^k| / b_k`.
            start: the block's first row.
        """
        sign = np.where(np.abs(value_b) > _ON_PLANE * size_b, np.sign(value_b), 0.0)
        first, last = np.searchsorted(self.rows, (start, start + len(value_b)))
        delta = sign
        if last > first:
            delta = sign.copy()
            delta[self.rows[first:last] - start] = self.delta[first:last]
        return sign, delta


@dataclass(frozen=True)
class Sample:
    """Rows drawn by their size; all rows where there are few.

    Attributes:
        p: `[m, K]`.
        rows: positions in the table, rising.
        weight: `[m]`, how many rows each stands for.
    """

    p: Array
    rows: Array
    weight: Array


class Sampler:
    """Draws rows in one pass, in proportion to their size in units of the classes' means so far (priority sampling).

    Args:
        capacity: rows to draw.
        classes: K.
    """

    def __init__(self, capacity: int, classes: int) -> None:
        self._kept, self._capacity = Nearest(capacity + 1), capacity
        self._scale = np.zeros(classes)

    def add(self, p_bk: Array, uniform_b: Array, start: int) -> None:
        """Offer a block whose first row is `start`; `uniform_b` are random numbers in (0, 1)."""
        absolute = np.abs(p_bk)
        self._scale += absolute.sum(0)
        size = absolute @ np.divide(1.0, self._scale, out=np.zeros_like(self._scale), where=self._scale > 0)
        size *= start + len(p_bk)
        key = np.divide(uniform_b, size, out=np.full(len(size), np.inf), where=size > 0)
        self._kept.add(key, p=p_bk, rows=np.arange(start, start + len(p_bk)), size=size)

    def take(self) -> Sample:
        """The sample, of which `sum of weight * f(p)` estimates the sum over all rows without bias."""
        held = self._kept.take()
        if not held:
            return Sample(np.zeros((0, len(self._scale))), np.zeros(0, np.int64), np.zeros(0))
        weight = np.ones(len(held["key"]))
        if len(weight) > self._capacity:
            last = held["key"].argmax()
            held = {name: np.delete(column, last, 0) for name, column in held.items() if name != "key"} | {
                "limit": held["key"][last]
            }
            weight = np.maximum(1.0, 1.0 / (held["limit"] * held["size"]))
        return Sample(held["p"], held["rows"], weight)


def thinned(sample: Sample, capacity: int, seed: int) -> Sample:
    """A sample of all rows, drawn down to some of them."""
    if len(sample.rows) <= capacity:
        return sample
    sampler = Sampler(capacity, sample.p.shape[1])
    sampler.add(sample.p, 1.0 - np.random.default_rng(seed).random(len(sample.p)), 0)
    drawn = sampler.take()
    return Sample(drawn.p, sample.rows[drawn.rows], drawn.weight)


class Certifier:
    """Minimises F over passes: `add` all blocks, then `close` the pass; until `done`.

    Args:
        b_k: `sum_i |P_i^k|`, all > 0.
        sample: where it starts from.
        capacity: how many rows keep a cut of their own.
        gap: relative; when the bounds are this near, it is done.

    Attributes:
        y: `[K]`, in the simplex, with the least F so far.
        upper: F at y.
        values: `[GROUPS]`, the sums that F(y) is made of, by groups of rows.
        lower: the largest common gain of the row weights of all passes.
        policy: these weights.
        judged_best: whether they are those of the last pass.
        passes: over the rows so far.
    """

    def __init__(self, b_k: Array, sample: Sample, capacity: int, gap: float) -> None:
        self._b, self._sample, self._capacity, self._gap = b_k, sample, capacity, gap
        self._unit_sample = sample.p * (sample.weight[:, None] / b_k)
        self.upper, self.lower, self.passes, self.judged_best = np.inf, 0.0, 0, False
        self._stalled, self._sampled = False, True
        self.values = np.zeros(GROUPS)
        found = common_gain(self._unit_sample)
        self.y = found.y
        self.policy = Policy(np.zeros(len(b_k)), sample.rows, np.zeros(len(sample.rows)))
        self._open(found.y, sample.rows, found.delta)

    @property
    def done(self) -> bool:
        """Whether the bounds have met, or no step improves them any more."""
        return self._stalled or (self.passes > 0 and self.upper - self.lower <= max(self._gap * self.upper, _ZERO))

    @property
    def prices(self) -> Array:
        """`[K]`, of the pass that is open: the signs of `P_i prices` are its row weights."""
        return self._trial.pi

    def add(self, p_bk: Array, start: int) -> Array:
        """Add a block of rows whose first is `start`; returns the deltas `[B]` of the weights of this pass."""
        value, size = p_bk @ self._trial.pi, np.abs(p_bk) @ (1.0 / self._b)
        absolute, rows = np.abs(value), np.arange(start, start + len(p_bk))
        sign, delta = self._trial.signs(value, size, start)
        self._cut += sign @ p_bk
        self._judged += delta @ p_bk
        self._values += group_sums(absolute)
        distance = np.divide(absolute, size, out=np.full(len(size), np.inf), where=size > 0)
        self._near.add(distance, p=p_bk, rows=rows, sign=sign)
        return delta

    def close(self) -> None:
        """End a pass: update the bounds, and choose the y of the next."""
        value, gained = float(self._values.sum()), float((self._judged / self._b).min())
        self.passes += 1
        self.judged_best = gained > self.lower or self.passes == 1
        if self.judged_best:
            self.lower, self.policy = max(gained, 0.0), self._trial
        was = self.upper
        if value < was:
            self.y, self.upper, self.values = self._y, value, self._values
        if self.done:
            return
        if value > was * (1 + _ROUNDING):
            # The step overshot. F falls in its direction at first, so that halving it must succeed at last.
            self._open((self.y + self._y) / 2, np.zeros(0, np.int64), np.zeros(0))
            return
        if value > was * (1 - _ROUNDING) and not self.judged_best:
            # No progress: the next step leaves out the sample, since rows near the hyperplane balance the others
            # exactly, which sampled rows with large weights cannot. A second pass without progress ends the search.
            self._stalled, self._sampled = not self._sampled, False
        if not self._stalled:
            self._step()

    def _step(self) -> None:
        """Minimise the model around this pass's y, and begin a pass at its minimum."""
        near, sample = self._near.take(), self._sample
        p = near["p"] / self._b
        others = ~np.isin(sample.rows, near["rows"], assume_unique=True) & self._sampled
        drawn = self._unit_sample[others]
        signs, _ = self._trial.signs(sample.p[others] @ self._trial.pi, np.abs(sample.p[others]) @ (1 / self._b), 0)
        slope = self._cut / self._b - near["sign"] @ p - signs @ drawn
        found = common_gain(np.concatenate([p, drawn]), slope)
        self._open(found.y, np.concatenate([near["rows"], sample.rows[others]]), found.delta)

    def _open(self, y: Array, rows: Array, delta: Array) -> None:
        """Begin a pass at y, with the weights given by its signs and the deltas of some rows."""
        order = np.argsort(rows)
        self._y, self._trial = y, Policy(y / self._b, rows[order], delta[order])
        self._near = Nearest(self._capacity)
        self._cut, self._judged, self._values = np.zeros(len(y)), np.zeros(len(y)), np.zeros(GROUPS)
