"""What `lds` found: for each column of scores, how well predicted effects of subsets agree with measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.store.places import AnyPath
from rayinf.training.agreement import pearson, slope_parts, spearman

if TYPE_CHECKING:
    import pandas as pd

# Resamples of the subsets, and their seed.
_RESAMPLES, _SEED = 1000, 0
_CONFIDENCE = 0.95
_FIGURES = ("spearman", "pearson", "slope", "ceiling")


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
            number `columns`; `low` and `high` are of the mean; `slope` is common to them: the sums of products over
            the sum of squares. Of `slice:<column of row ids>` this is the usual figure, the mean over validation rows.
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
        lines: list[dict[str, Any]] = []
        summary: dict[str, dict[str, dict[str, Any]]] = {}
        counts = _resamples(effects.measured.shape[1])
        ceilings = _ceilings(effects.measured)
        for name, predicted in effects.predicted.items():
            there: Array = np.all(np.isfinite(predicted), axis=0)
            groups = dict.fromkeys(o for o, t in zip(effects.objectives, there, strict=True) if t)
            summary[name] = {}
            for group in groups:
                at = [k for k, o in enumerate(effects.objectives) if o == group and there[k]]
                held, figures = _agreement(effects, name, at, counts)
                known = [ceilings[k] for k in at]
                summary[name][group] = {"columns": len(at), **figures, "ceiling": _mean(known)}
                lines += [
                    {"scores": name, "objective": group, "column": effects.columns[k], **line, "ceiling": _known(c)}
                    for k, line, c in zip(at, held, known, strict=True)
                ]
        return cls(pa.Table.from_pylist(lines, _SCHEMA), summary, effects, tuple(notes), metadata)

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


def _agreement(
    effects: Effects, name: str, at: Sequence[int], counts: Array
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The figures of some columns of one objective: of each, and of all."""
    predicted, measured = effects.predicted[name], effects.measured.mean(0)
    lines, total, defined = [], np.zeros(len(counts)), np.zeros(len(counts))
    parts = np.zeros(2)
    for k in at:
        p, m = predicted[:, k], measured[:, k]
        found = spearman(p, m, counts)
        total, defined = total + np.nan_to_num(found), defined + np.isfinite(found)
        above, below = slope_parts(p, m)
        parts += (above, below)
        constant = np.ptp(p) == 0
        own = None if constant or name in effects.rivals else above / below
        lines.append({**_interval(found), "pearson": _known(pearson(p, m)), "slope": own})
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = _interval(total / defined)
    common = None if parts[1] == 0 or name in effects.rivals else float(parts[0] / parts[1])
    return lines, {**figures, "pearson": _mean([line["pearson"] for line in lines]), "slope": common}


def _interval(found: Array) -> dict[str, float | None]:
    """The figure of the whole sample, and the percentiles of those of the resamples."""
    rest = found[1:][np.isfinite(found[1:])]
    if not np.isfinite(found[0]):
        return {"spearman": None, "low": None, "high": None}
    ends = np.quantile(rest, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2]) if len(rest) else (np.nan, np.nan)
    return {"spearman": float(found[0]), "low": _known(ends[0]), "high": _known(ends[1])}


def _ceilings(measured: Array) -> list[float | None]:
    """Of each column, the rank correlation of the means over the first and over the second half of the seeds."""
    half = len(measured) // 2
    if not half:
        return [None] * measured.shape[2]
    first, second = measured[:half].mean(0), measured[half:].mean(0)
    return [_known(spearman(first[:, k], second[:, k])[0]) for k in range(measured.shape[2])]


def _known(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    held = [v for v in values if v is not None]
    return float(np.mean(held)) if held else None


def _figure(value: float | None, otherwise: str = "undefined") -> str:
    return otherwise if value is None else f"{value:.2f}"
