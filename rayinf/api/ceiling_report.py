"""What `ceiling` found: numbers, words and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rayinf.errors import InputError
from rayinf.pareto.ceiling import Found, Gain
from rayinf.pareto.pairwise import pairwise_gain
from rayinf.pareto.regions import Regions
from rayinf.store.places import AnyPath

Array = np.ndarray[Any, Any]
# Classes in a text and in a heat map, the dearest ones where there are more.
_SHOWN, _DRAWN = 20, 30
_PREFIX = "category_"  # of columns, where the scores do not hold the labels


@dataclass(frozen=True)
class Ceiling:
    """Whether all classes can still gain in common.

    Attributes:
        found: what the passes found.
        labels: of the K classes.
        row_labels: of the training rows, in table order; empty where the scores do not hold them.
        halves: whether the scores had the halves of the validation rows.
    """

    found: Found = field(repr=False)
    labels: tuple[Any, ...]
    row_labels: tuple[Any, ...] = field(repr=False)
    halves: bool = field(repr=False)

    @property
    def names(self) -> list[str]:
        """The labels as text."""
        return [str(label).removeprefix(_PREFIX) for label in self.labels]

    @property
    def gain(self) -> float:
        """The largest common gain, in [0, 1], in-sample: inflated by noise. An upper bound, `gap` over the best."""
        return self._gain.value

    @property
    def gain_interval(self) -> tuple[float, float]:
        """95% of a bootstrap over training rows with the prices held (the first order, by the envelope theorem).

        The noise of the validation rows is not in it: it lifts `gain` itself, see `cross_fit`.
        """
        return self._gain.interval

    @property
    def gap(self) -> float:
        """`gain` less the common gain of row weights that were found: how far it may lie above the truth."""
        return self._gain.value - self._gain.lower

    @property
    def passes(self) -> int:
        """Readings of the rows that closed the gap, beside the first one for all else."""
        return self._gain.passes

    @property
    def cross_fit(self) -> float | None:
        """The gain of weights chosen on one half of the validation rows and judged on the other, both ways, averaged.

        None where the scores have no halves, or fewer than two classes have any influence in both.
        """
        return None if self.found.cross_fit is None else self.found.cross_fit.value

    @property
    def cross_fit_interval(self) -> tuple[float, float] | None:
        """95% (at least) over training rows and validation rows, with the chosen weights held.

        Below, the least over classes of their lower ends; above, the least of upper ends that hold for all at once: the
        least of several noisy gains lies below the least true one. The training rows' part is a bootstrap, that of the
        validation rows is `cross_fit_noise` times Student's t.
        """
        return None if self.found.cross_fit is None else self.found.cross_fit.interval

    @property
    def cross_fit_noise(self) -> float | None:
        """The part of the validation rows: the standard error of a class's cross-fitted gain, pooled over classes.

        From how far the halves differ in each class under weights that this class had no part in choosing.
        """
        return None if self.found.cross_fit is None else self.found.cross_fit.noise

    @property
    def cross_fit_directions(self) -> tuple[float, float] | None:
        """`cross_fit` chosen on the first half and judged on the second, and the other way round."""
        return None if self.found.cross_fit is None else self.found.cross_fit.directions

    @property
    def prices(self) -> Array:
        """`[K]`, `y_k / b_k`: weights change the classes' losses by c with `sum_k prices_k c_k` at most `gain`."""
        return self._gain.prices

    @property
    def dual(self) -> Array:
        """`[K]`, y: each class's part in holding the common gain down; they add up to 1."""
        return self._gain.y

    @property
    def binding(self) -> tuple[Any, ...]:
        """The classes that bind, dearest first: the others gain more than `gain`, at no cost."""
        return tuple(self.labels[k] for k in np.argsort(-self.dual, kind="stable") if self.dual[k] > 1e-9)

    @property
    def exchange(self) -> Array:
        """`[K, K]`, the price of one unit of row class's loss in units of the column class's; NaN for free columns."""
        out = np.full((len(self.labels),) * 2, np.nan)
        return np.divide(self.prices[:, None], self.prices, out=out, where=self.prices > 0)

    @property
    def left_out(self) -> tuple[Any, ...]:
        """The classes that no row has any influence on, in all or in a half: one half has no validation row of them.

        Of these the verdict says nothing.
        """
        return tuple(
            label
            for k, label in enumerate(self.labels)
            if not self.found.total[k] > 0 or label in self.left_out_of_cross_fit
        )

    @property
    def left_out_of_cross_fit(self) -> tuple[Any, ...]:
        """The classes of `gain` that have influence in one half of the validation rows only: no row, as a rule."""
        held = self.found.in_halves
        if held is None:
            return ()
        return tuple(label for k, label in enumerate(self.labels) if self.found.total[k] > 0 and not held[k])

    @property
    def regions(self) -> Regions:
        """How many rows help all classes, harm all, or are mixed; for every class; and from which labels they come."""
        return self.found.regions

    @property
    def explained_variance(self) -> Array:
        """`[K]`, shares of the vectors' variance along their principal components, largest first."""
        return self.found.moments.explained_variance

    @property
    def room(self) -> bool | None:
        """Whether there is evidence that all classes can gain in common; None without a cross-fit.

        That is: both directions of the cross-fit are positive, and so is the lower end of its interval.
        """
        held = self.found.cross_fit
        return None if held is None else bool(min(held.directions) > 0 and held.interval[0] > 0)

    @cached_property
    def pairwise(self) -> Array:
        """`[K, K]`, the gain of every two classes alone (in-sample); `gain` is at most the least of them.

        On all rows, or a sample of some thousands. NaN for classes that are left out.
        """
        return pairwise_gain(self.found.sample.p, self.found.sample.weight)

    @property
    def verdict(self) -> str:
        """In words, whether there is room, by the cross-fit."""
        held = self.found.cross_fit
        if held is None:
            why = "one half of the validation rows has too few classes" if self.halves else "the scores have no halves"
            mend = "" if self.halves else ': compute them with influence(..., objective="category", halves=True)'
            caution = "The in-sample gain alone is inflated by noise and shows nothing."
            return f"No verdict: {why}{mend}. {caution}{self._alone}"
        low, high = held.interval
        estimate = f"{held.value:+.3f} (95%: {low:+.3f} to {high:+.3f}; the two directions: "
        estimate += f"{held.directions[0]:+.3f} and {held.directions[1]:+.3f})"
        if self.room:
            return (
                f"There is room: weights chosen on half of the validation rows are predicted to lower every class's "
                f"loss on the other half, by {held.value:.1%} of what weights could do for it alone, "
                f"{estimate}.{self._alone}"
            )
        if held.value <= 0:
            return f"No evidence of room: the cross-fitted gain is not positive, {estimate}.{self._alone}"
        return (
            f"No evidence of room: the cross-fitted gain cannot be distinguished from noise, {estimate}.{self._alone}"
        )

    @property
    def _alone(self) -> str:
        """The classes that a verdict by halves leaves out, in words."""
        left = self.left_out_of_cross_fit
        if not left:
            return ""
        return (
            f" It says nothing of {', '.join(map(str, left))}: one half of the validation rows has no row of "
            f"{'it' if len(left) == 1 else 'them'}; add validation rows."
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON; NaN becomes None."""
        regions = self.regions
        by_label = {
            name: {str(label): line.tolist() for label, line in zip(self.row_labels, table, strict=False)}
            for name, table in (
                ("helpful", regions.helpful_from),
                ("harmful", regions.harmful_from),
                ("joint", regions.joint_from),
            )
        }
        held = self.found.cross_fit
        return {
            "rows": regions.rows,
            "classes": self.names,
            "left_out": [str(label) for label in self.left_out],
            "gain": self.gain,
            "gain_interval": list(self.gain_interval),
            "gap": self.gap,
            "cross_fit": self.cross_fit,
            "cross_fit_interval": None if held is None else list(held.interval),
            "cross_fit_noise": self.cross_fit_noise,
            "cross_fit_directions": None if held is None else list(held.directions),
            "cross_fit_by_class": None if held is None else _plain(held.by_class),
            "room": self.room,
            "verdict": self.verdict,
            "dual": self.dual.tolist(),
            "prices": self.prices.tolist(),
            "binding": [str(label) for label in self.binding],
            "exchange": _plain(self.exchange),
            "total": self.found.total.tolist(),
            "explained_variance": self.explained_variance.tolist(),
            "regions": {
                "jointly_helpful": regions.jointly_helpful,
                "jointly_harmful": regions.jointly_harmful,
                "zero": regions.zero,
                "mixed": regions.mixed,
                "helpful": regions.helpful.tolist(),
                "harmful": regions.harmful.tolist(),
                "by_label": by_label,
            },
        }

    def to_text(self) -> str:
        """A page of plain text."""
        regions, variance = self.regions, self.explained_variance
        n, classes = regions.rows, len(self.labels)

        def share(count: int) -> str:
            return f"{count:,} ({count / n:.1%})"

        low, high = self.gain_interval
        lines = [
            f"{n:,} rows, {classes} classes",
            f"Jointly helpful {share(regions.jointly_helpful)}, jointly harmful {share(regions.jointly_harmful)}"
            + (f" (of which all zero: {regions.zero:,})" if regions.zero else "")
            + f", mixed {share(regions.mixed)}",
            f"Variance along the first component {variance[0]:.3f}, along the last {variance[-1]:.3f} (a first above "
            f"0.2 has been read as room; with {classes} classes it is {1 / classes:.2f} at least)",
            f"In-sample gain {self.gain:.4f} (95% over training rows: {low:.4f} to {high:.4f}; gap "
            f"{max(self.gap, 0.0):.1e})",
            "Cross-fitted gain: none" if self.cross_fit is None else f"Cross-fitted gain {self.cross_fit:+.4f}",
            self.verdict,
            "",
            *self._class_lines(),
        ]
        silent = [label for label in self.left_out if label not in self.left_out_of_cross_fit]
        if silent:
            lines.append(f"Left out, since no row has any influence on them: {', '.join(map(str, silent))}")
        return "\n".join(lines)

    def plot(self, path: str | AnyPath, classes: Sequence[Any] | None = None, title: str = "") -> AnyPath:
        """Draw the rows in the plane of two classes (Nahin 2025, Figures 1 and 2B), with the counts of its quadrants.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).
            classes: labels of two of the classes. None: the two that can gain least in common.
            title: over it.

        Returns:
            The path.

        Raises:
            InputError: not two classes, or a figure that cannot be written.
        """
        a, b = self._two(classes)
        names = [self.names[k] for k in (a, b)]
        regions = self.regions
        both, neither = int(regions.both_helpful[a, b]), int(regions.both_harmful[a, b])
        counts = (both, int(regions.helpful[b]) - both, neither, int(regions.helpful[a]) - both)
        points = self.found.sample.p[:, [a, b]]
        from rayinf.plots import influence_plane

        plane = influence_plane.Plane(points, names, self.found.total[[a, b]], counts, regions.rows)
        return influence_plane.plot(plane, path, title)

    def plot_classes(self, path: str | AnyPath) -> AnyPath:
        """Draw heat maps: the gain of every two classes alone; where labels are known, who helps and harms whom.

        A low cell of the first marks two classes that gain at each other's cost, and bounds the common gain. The
        others are Figure 8 of Nahin 2025: of the rows of each label, the share that helps and that harms a class.
        Above 30
        classes, the dearest are drawn.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).

        Returns:
            The path.

        Raises:
            InputError: a figure that cannot be written.
        """
        chosen = np.sort(np.argsort(-self.dual, kind="stable")[:_DRAWN])
        names = [self.names[k] for k in chosen]
        sample = self.found.sample
        gains = self.pairwise if len(chosen) == len(self.labels) else pairwise_gain(sample.p[:, chosen], sample.weight)
        gains = np.where(np.eye(len(chosen), dtype=bool), np.nan, gains)
        from rayinf.plots import class_maps
        from rayinf.plots.class_maps import ClassMap

        maps = [ClassMap("Gain of two classes in common", gains, names, names, ("Class", "Class"))]
        order = sorted(range(len(self.row_labels)), key=lambda j: self._place(self.row_labels[j]))[:_DRAWN]
        if order:
            rows = [str(self.row_labels[j]) for j in order]
            size = self.regions.joint_from[order].sum(1, keepdims=True)
            axes = ("Label of the rows", "Class")
            for effect, table in (("help", self.regions.helpful_from), ("harm", self.regions.harmful_from)):
                shares = table[order][:, chosen] / size
                shade = "Greens" if effect == "help" else "Oranges"
                maps.append(ClassMap(f"Share of rows that {effect} the class", shares, rows, names, axes, shade))
        return class_maps.plot(maps, path)

    @property
    def _gain(self) -> Gain:
        assert self.found.gain is not None
        return self.found.gain

    def _place(self, label: Any) -> tuple[int, str]:
        """Labels of rows in the order of the classes."""
        names = self.names
        return (names.index(str(label)) if str(label) in names else len(names), str(label))

    def _two(self, classes: Sequence[Any] | None) -> tuple[int, int]:
        """Positions of two classes.

        Raises:
            InputError: not two, or one that is not a class.
        """
        if classes is None:
            gains = np.where(np.tri(len(self.labels), dtype=bool), np.inf, self.pairwise)
            a, b = np.unravel_index(np.nanargmin(gains), gains.shape)
            return int(a), int(b)
        names = self.names
        wanted = [] if isinstance(classes, str) else [str(c).removeprefix(_PREFIX) for c in classes]
        held = [names.index(c) for c in wanted if c in names]
        if len(wanted) != 2 or len(held) != 2 or held[0] == held[1]:
            raise InputError(
                f"classes={classes!r} are not two of the classes.", f"pass two of {', '.join(names[:12])}."
            )
        return held[0], held[1]

    def _class_lines(self) -> list[str]:
        """A line a class, dearest first where there are many."""
        order = np.argsort(-self.dual, kind="stable")[:_SHOWN]
        order = np.sort(order) if len(self.labels) <= _SHOWN else order
        names = [self.names[k] for k in order]
        width = max(5, *map(len, names))
        dearest = float(self.prices.max())
        held = self.found.cross_fit
        lines = [
            f"{'class':<{width}}  {'helpful rows':>12}  {'harmful rows':>12}  {'influence':>10}  {'dual':>6}"
            f"  {'price':>6}" + ("" if held is None else f"  {'cross-fit':>9}")
        ]
        for name, k in zip(names, order, strict=True):
            price = self.prices[k] / dearest if dearest > 0 else 0.0
            line = f"{name:<{width}}  {self.regions.helpful[k]:>12,}  {self.regions.harmful[k]:>12,}"
            line += f"  {self.found.total[k]:>10.4g}  {self.dual[k]:>6.3f}  {price:>6.3f}"
            if held is not None:
                line += f"  {np.mean(held.by_class[:, k]):>+9.3f}"
            lines.append(line)
        if len(self.labels) > _SHOWN:
            lines.append(f"... and {len(self.labels) - _SHOWN} more")
        lines.append("price: of one unit of the class's loss, the dearest class's being 1; 0: it does not bind")
        return lines


def _plain(values: Array) -> list[list[float | None]]:
    return [[None if np.isnan(v) else float(v) for v in line] for line in values]
