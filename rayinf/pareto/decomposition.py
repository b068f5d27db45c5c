"""Dantzig-Wolfe decomposition of the reweighting LP: passes over the rows generate points, a small master mixes them.

`max gain'x, x_k = sum_i v_i a_ik >= floor_k, |v_i| <= 1`, with `a_ik` the influence of row i in the class's unit. For
prices y of the demands the best v of a row is the sign of `a_i (gain + y)`: a pass over the rows gives the sums x of
that point and, as `sum_i |a_i (gain + y)| - floor'y`, a bound of the optimum from above. The master, a linear program
for HiGHS, mixes the points of all passes; its optimum is a bound from below, its duals are the prices of the next pass.
Points hold for any floor and any goal.

Plain Dantzig-Wolfe takes 50 to 200 passes. Here the rows whose sign is least certain, those nearest to the hyperplane
of the prices, stand in the master one by one, each with a v of its own; the points give the values of all others. Then
four to ten passes are enough, from the prices of a sample. At the end one point is left, so that the optimum is a
vertex: all v are -1 or 1 except for as many as there are binding demands. The optimum of one master is feasible in the
next one (rows that differ from the points in use stay explicit), so it never falls, and the method ends as
Dantzig-Wolfe does.

Rows are added up in blocks of one size, column by column, without BLAS: the same bits whatever the threads and shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayinf.errors import InputError, RunError
from rayinf.pareto.blocks import Nearest
from rayinf.pareto.certificate import Sample, Sampler
from rayinf.pareto.linear_program import Goal, Mixture, solve

Array = np.ndarray[Any, Any]
Blocks = Callable[[], Iterator[Array]]
# Rows of the sample, and rows that become explicit in a pass.
SAMPLE = 5000
EXPLICIT = 2000
_MOST_PASSES = 500
# Relative to what all rows are worth: bounds this near have met; and so have these, where a pass brings no more.
_GAP = 1e-12
_ROUNDING = 1e-9
# Demands that are missed by less, in units of the class's `b_k`, are met.
_MISSED = 1e-10
# A point with a smaller share is not in use.
_UNUSED = 1e-12


@dataclass(frozen=True)
class Survey:
    """Sums over the n training rows of `P [n, K]`, and a sample, from one pass.

    Attributes:
        rows: n.
        total: `S_k = sum_i P_i^k`.
        absolute: `b_k = sum_i |P_i^k|`.
        sample: of the rows, drawn by their size.
    """

    rows: int
    total: Array
    absolute: Array
    sample: Sample = field(repr=False)

    @classmethod
    def of(cls, blocks: Blocks) -> Survey:
        """Survey all rows.

        Raises:
            InputError: an influence that is not finite, or no row.
        """
        rows, total, absolute = 0, np.zeros(1), np.zeros(1)
        draw, sampler = np.random.default_rng(0), None
        for block in blocks():
            if not np.isfinite(block).all():
                row, k = np.argwhere(~np.isfinite(block))[0]
                raise InputError(
                    f"The influence of row {rows + row} on class {k} is {block[row, k]}.",
                    "compute the scores anew, or leave that row out.",
                )
            sampler = sampler or Sampler(SAMPLE, block.shape[1])
            sampler.add(block, 1.0 - draw.random(len(block)), rows)
            rows, total, absolute = rows + len(block), total + block.sum(0), absolute + np.abs(block).sum(0)
        if sampler is None:
            raise InputError("There are no influence vectors.", "pass scores of at least one row.")
        if not np.isfinite(absolute).all():
            raise InputError(f"The influences on a class add up to {absolute.max()}.", "scale the scores down.")
        return cls(rows, total, absolute, sampler.take())


@dataclass(frozen=True)
class Optimum:
    """Row values v: one number for each explicit row, and signs of `P_i direction`, mixed in shares, for all others.

    Attributes:
        value: of the goal.
        prices: `[K]`, of the demands.
        positions: of the explicit rows, rising.
        v: theirs.
        directions: `[J, K]`.
        shares: `[J]`.
        height: of the goal.
        passes: how many it took.
    """

    value: float
    prices: Array
    positions: Array
    v: Array
    directions: Array
    shares: Array
    height: float
    passes: int

    def of_block(self, block: Array, start: int) -> Array:
        """Values of a block of rows, `[B]`, the first of which is `start`."""
        out = np.zeros(len(block))
        for direction, share in zip(self.directions, self.shares, strict=True):
            out += share * np.sign(_times(block, direction))
        # Shares add up to 1 up to rounding; where all points agree, the row is at its bound.
        out = np.where(np.abs(out) > 1.0 - _UNUSED, np.sign(out), out)
        first, last = np.searchsorted(self.positions, (start, start + len(block)))
        out[self.positions[first:last] - start] = self.v[first:last]
        return out


class InfeasibleDemands(Exception):  # noqa: N818
    """The demands cannot be met together: `prices` prove it (Farkas); demands with a price above 0 conflict."""

    def __init__(self, prices: Array) -> None:
        super().__init__()
        self.prices = prices


class Search:
    """One search for an optimum, or several over the same rows, which then share their points.

    Args:
        blocks: the rows, anew at every call, in blocks of one size `[B, K]`.
        survey: of these rows.
        unit: `[K]`, what a class's influence is counted in; > 0.
    """

    def __init__(self, blocks: Blocks, survey: Survey, unit: Array) -> None:
        self._blocks, self._survey, self._unit = blocks, survey, unit
        classes = len(unit)
        # The first point is v = 0, whose sums are 0 without a pass.
        self._directions, self._points = np.zeros((1, classes)), np.zeros((1, classes))
        self._explicit, self._positions = np.zeros((0, classes)), np.zeros(0, np.int64)
        self._passes = 0
        # What the rows' influences on a class add up to, in absolute value.
        self._whole = float((survey.absolute / unit).max())

    def best(self, gain: Array, floor: Array) -> Optimum:
        """The best v for `gain'x` that meets the demands.

        Raises:
            InfeasibleDemands: there are none.
            RunError: the bounds do not meet within 500 passes.
        """
        goal = Goal(gain)
        first = self._of_sample(goal, floor)
        found = None if first is None else self._climb(goal, floor, first)
        if found is None:
            floor = self.reachable(floor)
            found = self._climb(goal, floor, np.zeros(len(floor)) if first is None else first)
        if found is None:
            raise RunError(
                "HiGHS finds no feasible point in a program that has one.", "scale the scores, or ask for less."
            )
        return found

    def reachable(self, floor: Array) -> Array:
        """The demands, lowered where they are missed by rounding alone.

        Raises:
            InfeasibleDemands: they cannot be met together.
            RunError: the bounds do not meet within 500 passes.
        """
        goal = Goal(np.zeros(len(floor)), np.ones(len(floor)), 0.0)
        missed = _MISSED * self._whole
        found = self._climb(goal, floor, self._start(goal, floor), enough=-missed)
        assert found is not None
        if found.height < -missed:
            raise InfeasibleDemands(found.prices)
        return floor + min(found.height, 0.0)

    def highest(self, lift: Array, floor: Array) -> float:
        """The largest height with `x >= floor + height lift`; infinite where it is unbounded.

        Raises:
            RunError: the bounds do not meet within 500 passes.
        """
        if (lift[np.isfinite(floor)] <= 0).all():
            return np.inf
        goal = Goal(np.zeros(len(floor)), lift)
        found = self._climb(goal, floor, self._start(goal, floor))
        assert found is not None
        return found.height

    def _of_sample(self, goal: Goal, floor: Array) -> Array | None:
        """The prices of a sample of the rows; None where the sample cannot meet the demands."""
        sample = self._survey.sample
        rows = sample.p * (sample.weight[:, None] / self._unit)
        found = solve(rows, np.zeros((1, len(floor))), floor, goal)
        return None if found is None else found.prices

    def _start(self, goal: Goal, floor: Array) -> Array:
        found = self._of_sample(goal, floor)
        assert found is not None  # any demand is met at some height
        return found

    def _climb(self, goal: Goal, floor: Array, prices: Array, enough: float = np.inf) -> Optimum | None:
        """Alternate passes and masters until the bounds meet; None where the master cannot meet the demands (yet).

        Args:
            goal: what is maximised.
            floor: the demands.
            prices: those of the first pass.
            enough: stop as soon as this value is reached, or known to be out of reach.

        Raises:
            RunError: the bounds do not meet within 500 passes.
        """
        demanded = np.where(np.isfinite(floor), floor, 0.0)
        bound, scale, best = np.inf, 1.0, prices
        for _ in range(_MOST_PASSES):
            worth = self._pass(goal.gain + prices)
            above, before = worth - float(demanded @ prices), bound
            if above < bound:
                bound, scale, best = above, max(worth + abs(float(demanded @ prices)), self._whole), prices
            signs = np.stack([np.sign(_times(self._explicit, d)) for d in self._directions])
            rows = self._explicit / self._unit
            found = solve(rows, self._points - signs @ rows, floor, goal)
            if found is None:
                return None
            gap = bound - found.value
            # The bounds have met; or they are as near as rounding allows, and this pass did not halve their distance.
            met = gap <= _GAP * scale or (gap <= _ROUNDING * scale and bound > before - gap / 2)
            if met or (enough < np.inf and (found.value >= enough or bound < enough)):
                return self._optimum(found, best)
            self._prune(found, signs)
            prices = found.prices
        raise RunError(
            f"After {_MOST_PASSES} passes the optimum is still only known to be under {bound:.12g} (scaled).",
            "ask for less (a lower alpha).",
        )

    def _pass(self, direction: Array) -> float:
        """Add the point of a direction, and the rows nearest to its hyperplane; returns `sum_i |P_i direction|`."""
        d, inverse = direction / self._unit, 1.0 / self._unit
        near, sums, worth, start = Nearest(EXPLICIT), np.zeros(len(d)), 0.0, 0
        for block in self._blocks():
            value, size = _times(block, d), np.einsum("bk,k->b", np.abs(block), inverse)
            sign, absolute = np.sign(value), np.abs(value)
            sums += np.einsum("b,bk->k", sign, block)
            worth += float(absolute.sum())
            distance = np.divide(absolute, size, out=np.full(len(size), np.inf), where=size > 0)
            near.add(distance, p=block, rows=np.arange(start, start + len(block)))
            start += len(block)
        self._directions = np.concatenate([self._directions, d[None]])
        self._points = np.concatenate([self._points, sums[None] / self._unit])
        self._passes += 1
        found = near.take()
        if found:
            new = ~np.isin(found["rows"], self._positions, assume_unique=True)
            positions = np.concatenate([self._positions, found["rows"][new]])
            order = np.argsort(positions)
            self._positions = positions[order]
            self._explicit = np.concatenate([self._explicit, found["p"][new]])[order]
        return worth

    def _prune(self, found: Mixture, signs: Array) -> None:
        """Keep explicit the rows that differ from the points in use: this optimum stays feasible in the next master."""
        kept = (signs[found.shares > _UNUSED] != found.v).any(0)
        self._positions, self._explicit = self._positions[kept], self._explicit[kept]

    def _optimum(self, found: Mixture, prices: Array) -> Optimum:
        used = found.shares > 0
        return Optimum(
            found.value,
            prices,
            self._positions,
            found.v,
            self._directions[used],
            found.shares[used],
            found.height,
            self._passes,
        )


def _times(block: Array, direction: Array) -> Array:
    """`block @ direction`, every row by the same operations in the same order, so that its sign never changes."""
    out = np.zeros(len(block))
    for k in np.flatnonzero(direction):
        out += block[:, k] * direction[k]
    return out
