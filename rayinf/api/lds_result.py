"""What `lds` found: for each column of scores, how well predicted effects of subsets agree with measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.store.places import AnyPath
from rayinf.training.agreement import pearson, slope_parts, spearman, standard_ranks

if TYPE_CHECKING:
    import pandas as pd

# Resamples of the subsets, and their seed.
_RESAMPLES, _SEED = 1000, 0
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effects:
    """The effects of J subsets on Q columns.

    Attributes:
        columns: their names.
        objectives: of each column, the name of the objective that it belongs to.
        measured: the objective's value after training on the subset: a layer for every seed `[S, J, Q]`.
        predicted: by the name of the scores, the predicted change against all rows `[J, Q]`; NaN in columns that the
            scores do not have.
        rivals: those of `predicted` whose values have no unit, so that a slope says nothing.
    """

    columns: tuple[str, ...]
    objectives: tuple[str, ...]
    measured: Array = field(repr=False)
    predicted: Mapping[str, Array] = field(repr=False)
    rivals: tuple[str, ...] = ()

    def column(self, name: str, k: int) -> Array:
        """A column of what some scores predict, `[J]`."""
        held: Array = self.predicted[name][:, k]
        return held

    def scores_with(self, k: int) -> list[str]:
        """The scores that have a column."""
        return [name for name, held in self.predicted.items() if np.isfinite(held[:, k]).all()]


@dataclass(frozen=True)
class LDS:
    """The linear datamodelling score (Park et al. 2023; Ilyas et al. 2022).

    Attributes:
        table: a line for each of the scores and each of their columns: `scores`, `objective`, `column`; `spearman`, the
            score: the rank correlation, over subsets, of predicted and measured effects; its interval of 95% over
            resampled subsets, `low` and `high`; `pearson`; `slope`, the measured change for each unit of predicted
            change (1 at best), by regression through the point of both means; `ceiling`, the rank correlation of what
            one half of the seeds measured with what the other half did (null for one seed: not known). Null where an
            effect is constant. The lines of `random` and `own_loss` are those of rivals: see `lds`.
        summary: scores -> objective -> the same figures of all its columns together, means over columns, with their
            number `columns`, `undefined` of them without a score; `low` and `high` are of the mean; `slope` is common
            to them: the sums of products over the sum of squares. Of `slice:<column of row ids>` this is the usual
            figure, the mean over validation rows.
        effects: predicted and measured.
        notes: what a reader should know before trusting the figures.
        metadata: subsets, share, rows kept, seeds, rows of the tables.
    """

    table: pa.Table = field(repr=False)
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]]
    effects: Effects = field(repr=False)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, effects: Effects, notes: Sequence[str], metadata: Mapping[str, Any]) -> LDS:
        """From the effects.

        Args:
            effects: of the subsets.
            notes: as in the class.
            metadata: as in the class.

        Cost: 1,000 resamples of the subsets, about a millisecond a column.
        """
        counts = _resamples(effects.measured.shape[1])
        lines: dict[str, list[dict[str, Any]]] = {name: [] for name in effects.predicted}
        summary: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in effects.predicted}
        for group in dict.fromkeys(effects.objectives):
            sums = {name: _Sums(len(counts)) for name in effects.predicted}
            for k in [k for k, o in enumerate(effects.objectives) if o == group]:
                ranks, ceiling = standard_ranks(effects.measured[:, :, k].mean(0), counts), _ceiling(effects, k)
                for name in effects.scores_with(k):
                    line = sums[name].add(effects, name, k, (standard_ranks(effects.column(name, k), counts) * ranks))
                    place = {"scores": name, "objective": group, "column": effects.columns[k]}
                    lines[name].append({**place, **line, "ceiling": ceiling})
            for name, held in sums.items():
                if held.columns:
                    known = [line["ceiling"] for line in lines[name] if line["objective"] == group]
                    summary[name][group] = {**held.figures(), "ceiling": _mean(known)}
        table = pa.Table.from_pylist([line for held in lines.values() for line in held], _SCHEMA)
        return cls(table, summary, effects, (*notes, *_undefined(summary)), metadata)

    def to_pandas(self) -> pd.DataFrame:
        """The table as a frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def to_text(self) -> str:
        """The figures of every objective as a table, and the notes."""
        m = self.metadata
        seeds = f"{m['seeds']} seeds averaged" if m["seeds"] > 1 else "one seed"
        head = ("scores", "objective", "columns", "LDS", "95% interval", "Pearson", "slope", "ceiling")
        lines = [
            (
                name,
                group,
                f"{s['columns']:,}",
                _figure(s["spearman"]),
                f"{_figure(s['low'])} to {_figure(s['high'])}" if s["low"] is not None else "undefined",
                _figure(s["pearson"]),
                "" if name in self.effects.rivals else _figure(s["slope"]),
                _figure(s["ceiling"], "not known" if m["seeds"] < 2 else "undefined"),
            )
            for name, groups in self.summary.items()
            for group, s in groups.items()
        ]
        widths = [max(len(line[k]) for line in (head, *lines)) for k in range(len(head))]
        shown = [
            "  ".join(
                cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (head, *lines)
        ]
        title = (
            f"Linear datamodelling score: {m['subsets']} subsets of {m['kept']:,} of {m['rows']['train']:,} rows, "
            f"{seeds}; means over columns:"
        )
        return "\n".join([title, *(f"  {line}" for line in shown), *(f"  Note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        """The same as `to_text`."""
        return self.to_text()

    def plot(self, path: str | AnyPath) -> AnyPath:
        """Draw the scores of every objective with their intervals and the ceiling, beside the rivals.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).

        Returns:
            The path.
        """
        from rayinf.plots import agreement

        groups = list(dict.fromkeys(g for held in self.summary.values() for g in held))
        panels = []
        for group in groups:
            points = [
                agreement.Point(name, s["spearman"], s["low"], s["high"])
                for name, held in self.summary.items()
                if (s := held.get(group)) is not None and s["spearman"] is not None
            ]
            figures = next(held[group] for held in self.summary.values() if group in held)
            panels.append(agreement.Panel(group, figures["columns"], points, figures["ceiling"]))
        return agreement.plot(panels, path)


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("scores", "objective", "column")]
    + [(name, pa.float64()) for name in ("spearman", "low", "high", "pearson", "slope", "ceiling")]
)


def _resamples(subsets: int) -> Array:
    """The whole sample, then bootstrap resamples: how often each subset counts, `[1 + B, J]`."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(subsets, np.full(subsets, 1 / subsets), size=_RESAMPLES)
    return np.concatenate([np.ones((1, subsets), np.int64), drawn])


class _Sums:
    """What the figures of all columns of one objective are made of, for one of the scores."""

    def __init__(self, resamples: int) -> None:
        self.columns = self.undefined = 0
        self._total, self._defined = np.zeros(resamples), np.zeros(resamples)
        self._pearson: list[float | None] = []
        self._slope = np.zeros(2)
        self._unitless = False

    def add(self, effects: Effects, name: str, k: int, products: Array) -> dict[str, float | None]:
        """Add a column, and give its own figures.

        Args:
            effects: of the subsets.
            name: of the scores.
            k: the column's place.
            products: whose sums over subsets are the score, in the whole sample and in each resample `[1 + B, J]`.
        """
        found, own = products.sum(1), np.array(slope_parts(effects.column(name, k), effects.measured[:, :, k].mean(0)))
        pearson_k = _known(pearson(effects.column(name, k), effects.measured[:, :, k].mean(0)))
        self.columns += 1
        self.undefined += not np.isfinite(found[0])
        self._total += np.nan_to_num(found)
        self._defined += np.isfinite(found)
        self._pearson.append(pearson_k)
        self._slope += own
        self._unitless = name in effects.rivals
        return {**_interval(found), "pearson": pearson_k, "slope": self._ratio(own)}

    def figures(self) -> dict[str, Any]:
        """Of all columns together."""
        with np.errstate(invalid="ignore", divide="ignore"):
            held = _interval(self._total / self._defined)
        numbers = {"columns": self.columns, "undefined": self.undefined}
        return {**numbers, **held, "pearson": _mean(self._pearson), "slope": self._ratio(self._slope)}

    def _ratio(self, parts: Array) -> float | None:
        return None if self._unitless or not parts[1] else float(parts[0] / parts[1])


def _undefined(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Notes on columns without a score."""
    return [
        f"{s['undefined']:,} of {s['columns']:,} columns of {group} have no score by {name}: an effect is the same on "
        "all subsets."
        for name, held in summary.items()
        for group, s in held.items()
        if s["undefined"]
    ]


def _interval(found: Array) -> dict[str, float | None]:
    """The figure of the whole sample, and the percentiles of those of the resamples."""
    rest = found[1:][np.isfinite(found[1:])]
    if not np.isfinite(found[0]):
        return {"spearman": None, "low": None, "high": None}
    ends = np.quantile(rest, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2]) if len(rest) else (np.nan, np.nan)
    return {"spearman": float(found[0]), "low": _known(ends[0]), "high": _known(ends[1])}


def _ceiling(effects: Effects, k: int) -> float | None:
    """Of a column, the rank correlation of the means over the first and over the second half of the seeds."""
    held = effects.measured[:, :, k]
    half = len(held) // 2
    return _known(spearman(held[:half].mean(0), held[half:].mean(0))[0]) if half else None


def _known(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    held = [v for v in values if v is not None]
    return float(np.mean(held)) if held else None


def _figure(value: float | None, otherwise: str = "undefined") -> str:
    return otherwise if value is None else f"{value:.2f}"
