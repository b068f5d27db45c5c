"""What `pareto_reweight` found: the front, the candidate that is chosen, its weights and its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.pareto.wilson import wilson
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.candidates import Evaluation
from rayinf.training.confirmation import Confirmed
from rayinf.training.generations import PLAIN, Candidate, Generations

if TYPE_CHECKING:
    import pandas as pd

_CROSSED = ("crossed_gain", "crossed_others", "crossed_error")
_PLACE = ("candidate", "generation", "slot", "front", "chosen", "fitness", "gain", "others")
_FIRST = (*_PLACE, *_CROSSED, "radius", "mean_weight")


@dataclass(frozen=True)
class Reweighting:
    """A Pareto improvement of a checkpoint by row weights, as far as one was found.

    Accuracies are shares of the validation rows of a class. Those rows also guided the search, so that the chosen
    candidate looks better on them than it is: measure `task` on rows that neither the scores nor the search saw.

    Attributes:
        candidates: a line for each that was trained, the unweighted epoch first: `candidate` (a name), `generation` and
            `slot` (where it came up), `front` (no other beats it), `chosen`, `fitness` (the paper's line 7; null of
            minus infinity), `gain` and `others` (mean change of the accuracy of the targets and of the other classes
            against the unweighted epoch), `crossed_gain` and `crossed_others` (the same by cross-fit: on rows that did
            not choose the weights; null of those that were not cross-fitted) and `crossed_error` (the standard error of
            the gain), `radius`, `mean_weight`, `problem` (why it has no model, with `conflict`, the
            classes whose alphas cannot be met together), and of every class `alpha_<label>`, `accuracy_<label>` and
            `predicted_<label>`, the fall of its summed loss that the LP expects.
        classes: a line a class: `class`, `target`, `rows`, `total` (S_k, its summed influence), and its accuracy at the
            `checkpoint`, after the `unweighted` epoch and after the `weighted` one, each with the ends of a 95%
            interval (Wilson) as `<name>_low` and `<name>_high`.
        weights: of the training rows `[n]`, in table order; all 1 where nothing beats the unweighted epoch.
        row_ids: of the same rows.
        alpha: label -> alpha of the chosen candidate; None where it is the unweighted epoch.
        radius: of its trust region; None of the box.
        mode: "direct" or "correct".
        task: the task around the model of the weighted epoch.
        notes: what a reader should know.
        path: the run's folder.
    """

    candidates: pa.Table = field(repr=False)
    classes: pa.Table = field(repr=False)
    weights: Array = field(repr=False)
    row_ids: Array = field(repr=False)
    alpha: Mapping[str, float] | None
    radius: float | None
    mode: str
    task: Task = field(repr=False)
    notes: tuple[str, ...] = ()
    path: AnyPath | None = None

    @property
    def front(self) -> pa.Table:
        """The lines of `candidates` that no other one beats in `gain` and `others` at once, by falling gain."""
        table = self.candidates.filter(self.candidates["front"])
        return table.sort_by([("gain", "descending")])

    @property
    def chosen(self) -> dict[str, Any]:
        """The line of `candidates` that is chosen."""
        line: dict[str, Any] = self.candidates.filter(self.candidates["chosen"]).to_pylist()[0]
        return line

    def to_pandas(self) -> pd.DataFrame:
        """All candidates as a frame."""
        frame: pd.DataFrame = self.candidates.to_pandas()
        return frame

    def to_text(self) -> str:
        """The result in words and figures."""
        chosen, tried = self.chosen, self.candidates.num_rows - 1
        lost = self.candidates["problem"].to_pylist()
        lines = [f"{self.mode}: {tried} candidates, {tried - lost[1:].count(None)} without a model; "]
        lines[0] += f"{self.candidates['front'].to_pylist().count(True)} on the front (the unweighted epoch counted)."
        crossed = sum(v is not None for v in self.candidates["crossed_gain"].to_pylist())
        if chosen["candidate"] == PLAIN:
            where = f" by cross-fit (the best {crossed} were tried)" if crossed else ""
            lines.append(f"No candidate is worth more than the unweighted epoch{where}: the weights are all 1.")
        else:
            region = "the box" if self.radius is None else f"radius {self.radius:.3f}"
            fitness = "minus infinity" if chosen["fitness"] is None else f"{chosen['fitness']:.4g}"
            lines.append(
                f"Chosen: {region}, fitness {fitness}; against the unweighted epoch the targets "
                f"{100 * chosen['gain']:+.2f} and the others {100 * chosen['others']:+.2f} points (means of classes)."
            )
        if chosen["crossed_gain"] is not None:
            lines.append(
                "Cross-fitted, on rows that did not choose the weights (of the same alphas and radius): targets "
                f"{100 * chosen['crossed_gain']:+.2f} (standard error {100 * chosen['crossed_error']:.2f}), others "
                f"{100 * chosen['crossed_others']:+.2f} points."
            )
        width = max(5, *(len(n) + 2 for n in self.classes["class"].to_pylist()))
        lines.append(f"{'class':<{width}} {'checkpoint':>18} {'unweighted':>18} {'weighted':>18}  change, points")
        for line in self.classes.to_pylist():
            name = line["class"] + (" *" if line["target"] else "")
            cells = (
                f"{100 * line[c]:6.1f} ({100 * line[f'{c}_low']:.1f}-{100 * line[f'{c}_high']:.1f})".rjust(18)
                for c in ("checkpoint", "unweighted", "weighted")
            )
            before = line["checkpoint" if self.mode == "direct" else "unweighted"]
            lines.append(f"{name:<{width}} {' '.join(cells)}  {100 * (line['weighted'] - before):+.1f}")
        lines.append("* target; accuracy in %, with 95% intervals, on the validation rows that the search used.")
        return "\n".join([*lines, *self.notes])

    def plot(self, path: str | AnyPath) -> AnyPath:
        """Draw the trade-off with its front, and accuracy by class.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).

        Returns:
            The path.
        """
        from rayinf.plots import trade_off

        return trade_off.plot(self.candidates, self.classes, path)


def candidates_table(
    state: Generations, chosen: Candidate, names: tuple[str, ...], confirmed: Mapping[str, Confirmed]
) -> pa.Table:
    """A line a candidate, in the order in which they came up."""
    order = sorted(state.found.values(), key=lambda c: (c.generation, c.slot))
    front = state.front
    lines = [_line(c, front, chosen, names) | _crossed(confirmed.get(c.key)) for c in (state.unweighted, *order)]
    text, whole = pa.string(), pa.int64()
    kinds = {"candidate": text, "generation": whole, "slot": whole, "front": pa.bool_(), "chosen": pa.bool_()}
    columns = [(n, kinds.get(n, pa.float64())) for n in _FIRST]
    columns += [("problem", text), ("conflict", pa.list_(text))]
    columns += [(f"{part}_{n}", pa.float64()) for part in ("alpha", "accuracy", "predicted") for n in names]
    return pa.Table.from_pylist(lines, pa.schema(columns))


def classes_table(state: Generations, weighted: Evaluation, names: tuple[str, ...], total: Array) -> pa.Table:
    """A line a class: accuracy before and after, with intervals."""
    columns: dict[str, Any] = {
        "class": list(names),
        "target": [k in state.targets for k in range(len(names))],
        "rows": state.checkpoint.rows,
        "total": total,
    }
    measured = {"checkpoint": state.checkpoint, "unweighted": state.plain, "weighted": weighted}
    for name, found in measured.items():
        low, high = wilson(np.asarray(found.right), np.asarray(found.rows))
        columns |= {name: found.accuracy, f"{name}_low": low, f"{name}_high": high}
    return pa.table(columns)


def _crossed(found: Confirmed | None) -> dict[str, float | None]:
    values = (None,) * 3 if found is None else (found.crossed.gain, found.crossed.others, found.error)
    return dict(zip(_CROSSED, values, strict=True))


def _line(c: Candidate, front: set[str], chosen: Candidate, names: tuple[str, ...]) -> dict[str, Any]:
    found, plain = c.evaluation, c.key == PLAIN
    parts = {"alpha": c.training.alpha, "predicted": found.predicted}
    parts["accuracy"] = None if found.problem is not None else tuple(found.accuracy.tolist())
    by_class = {
        f"{part}_{name}": value
        for part, values in parts.items()
        for name, value in zip(names, values or (), strict=values is not None)
    }
    return {
        "candidate": c.key,
        "generation": None if plain else c.generation,
        "slot": None if plain else c.slot,
        "front": c.key in front,
        "chosen": c.key == chosen.key,
        "fitness": c.fitness if np.isfinite(c.fitness) else None,
        "gain": c.gain if np.isfinite(c.gain) else None,
        "others": c.others if np.isfinite(c.others) else None,
        "radius": c.training.radius,
        "mean_weight": 1.0 if plain else found.mean_weight,
        "problem": found.problem,
        "conflict": list(found.conflict),
        **by_class,
    }
