"""What `reweight_lp` found: the weights, and what they are predicted to do to every class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.api.row_program import Program, Terms, short_names
from rayinf.data.files import readable, write_result
from rayinf.data.vectors import Vectors
from rayinf.pareto.demands import Array
from rayinf.pareto.lp import Solution
from rayinf.store.places import AnyPath, open_place

if TYPE_CHECKING:
    import pandas as pd

# A class's summed influence this small beside `b_k` is as good as none.
_NEAR_ZERO = 0.01
_SHOWN = 20


@dataclass(frozen=True)
class RowWeights:
    """Row weights from the linear program, with what they cost.

    Attributes:
        labels: of the K classes.
        terms: alphas, bounds and targets.
        solution: of the linear program.
        classes: a line a class: `class`, `target`, `alpha`, `total` (S_k), `absolute` (b_k), `demand` (the least
            w'P^k), `predicted_change` (w'P^k - S_k: the fall of its summed validation loss, to first order), `price`
            (by how much the objective would fall for one more unit demanded, of either half where both have demands),
            `binding`; `crossed`, the same fall as
            rows predict that did not choose the weights, null without a cross-fit.
        crossed: `[2, K]`, what the second half of the validation rows predicts for weights that the first alone chose,
            and the other way round; None without a cross-fit. Their sum is comparable with `predicted_change`.
        path: the file of the weights, where `out` was given.
    """

    labels: tuple[Any, ...]
    terms: Terms
    solution: Solution = field(repr=False)
    classes: pa.Table = field(repr=False)
    crossed: Array | None = field(default=None, repr=False)
    path: AnyPath | None = None
    _vectors: Vectors | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, vectors: Vectors, program: Program, terms: Terms, solution: Solution, path: AnyPath | None = None
    ) -> RowWeights:
        """What a solution means to the classes."""
        every, crossed = range(len(vectors.columns)), program.crossed()
        classes = {
            "class": short_names(vectors),
            "target": [k in terms.targets for k in every],
            "alpha": terms.alpha,
            "total": program.total,
            "absolute": program.absolute,
            "demand": program.floor,
            "predicted_change": solution.predicted_change,
            "price": solution.prices,
            "binding": [k in solution.binding for k in every],
            "crossed": pa.nulls(len(every), pa.float64()) if crossed is None else crossed.sum(0),
        }
        return cls(vectors.labels, terms, solution, pa.table(classes), crossed, path, vectors)

    @property
    def weights(self) -> Array:
        """`[n]`, in row order; read from the file where `out` was given."""
        if self.path is None:
            return self.solution.weights
        held: Array = pq.read_table(readable(self.path), columns=["weight"])["weight"].to_numpy()
        return held

    @property
    def prices(self) -> Array:
        """`[K]`, by how much the objective would fall for one more unit of `w'P^k` demanded of each class."""
        return self.solution.prices

    @property
    def binding(self) -> tuple[Any, ...]:
        """Labels of the classes whose demand is met with equality."""
        return tuple(self.labels[k] for k in self.solution.binding)

    @property
    def objective(self) -> float:
        """`sum over targets of w'P^k`."""
        return self.solution.objective

    @property
    def total(self) -> Array:
        """`[K]`, `S_k`, what the rows are worth to each class with weights of 1."""
        return self.solution.total

    @property
    def predicted_change(self) -> Array:
        """`[K]`, `w'P^k - S_k`: by how much each class's summed validation loss is predicted to fall."""
        return self.solution.predicted_change

    @property
    def table(self) -> pa.Table:
        """`row_id` and `weight`, in row order."""
        if self.path is not None:
            return pq.read_table(readable(self.path))
        assert self._vectors is not None
        ids = self._vectors.scores.select(["row_id"])
        return ids.append_column("weight", pa.array(self.solution.weights))

    def to_pandas(self) -> pd.DataFrame:
        """A frame with `row_id` and `weight`."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def write(self, path: str | AnyPath) -> AnyPath:
        """Write `row_id` and `weight` as Parquet, whole.

        Returns:
            The path.

        Raises:
            RunError: it cannot be written.
        """
        file = open_place(path)
        write_result(file, self.table)
        return file

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of these classes."""
        notes, total, absolute = [], self.classes["total"].to_numpy(), self.classes["absolute"].to_numpy()
        names = self.classes["class"].to_pylist()
        if len(self.terms.targets) == len(names):
            notes.append("All classes are targets: what is maximised is their sum, the total influence.")
        idle = [n for n, b in zip(names, absolute, strict=True) if b == 0]
        if idle:
            notes.append(f"No row has any influence on {_list(idle)}.")
        notes += self._of_crossed()
        if self.terms.slack == "paper":
            gains = [n for n, s, a in zip(names, total, self.terms.alpha, strict=True) if s < 0 and a < 1]
            if gains:
                notes.append(
                    f"The summed influence S_k of {_list(gains)} is negative: an alpha under 1 demands a gain of "
                    '(1 - alpha) |S_k|. slack="scaled" measures alpha by sum |P| instead.'
                )
            faint = [n for n, s, b in zip(names, total, absolute, strict=True) if b > 0 and abs(s) < _NEAR_ZERO * b]
            if faint:
                notes.append(
                    f"S_k of {_list(faint)} is within {_NEAR_ZERO:.0%} of zero (beside sum |P|): alpha demands little "
                    "more of it than not to lose."
                )
        return tuple(notes)

    def _of_crossed(self) -> list[str]:
        """What the cross-fit says of the targets."""
        if self.crossed is None:
            return []
        names, targets = self.classes["class"].to_pylist(), list(self.terms.targets)
        said, seen = self.predicted_change[targets].sum(), self.crossed[:, targets].sum()
        notes = [f"Cross-fitted, the targets gain {seen:.4g} of the {said:.4g} that is predicted."]
        lost = [names[k] for k in targets if self.crossed[:, k].min() <= 0]
        if lost:
            notes.append(
                f"No evidence that {_list(lost)} gains: weights that one half of the validation rows chooses are not "
                "predicted to lower the loss on the other, in one direction at least."
            )
        return notes

    def to_text(self) -> str:
        """The result in words and figures."""
        radius, lines = self.terms.radius, self.classes.to_pylist()
        low, high = (0.0, self.terms.upper) if radius is None else (1 - radius, 1 + radius)
        before = float(self.total[list(self.terms.targets)].sum())
        text = [
            f"Weights from {low:.4g} to {high:.4g}, slack {self.terms.slack}: the targets' influence rises from "
            f"{before:.6g} to {self.objective:.6g}.",
        ]
        width = max(5, *(len(line["class"]) + 2 for line in lines))
        text.append(f"{'class':<{width}} {'alpha':>7} {'S_k':>11} {'demand':>11} {'change':>11} {'price':>9}")
        for line in lines[:_SHOWN]:
            name = line["class"] + (" *" if line["target"] else "")
            text.append(
                f"{name:<{width}} {line['alpha']:7.3f} {line['total']:11.4g} {line['demand']:11.4g} "
                f"{line['predicted_change']:+11.4g} {line['price']:9.3g}{'  binds' if line['binding'] else ''}"
            )
        if len(lines) > _SHOWN:
            text.append(f"... and {len(lines) - _SHOWN} more classes, in .classes")
        text.append("* target; change: predicted fall of the class's summed validation loss, to first order.")
        return "\n".join([*text, *self.notes])

    def __len__(self) -> int:
        """Training rows."""
        return len(self.solution.weights) if self.path is None else int(pq.read_metadata(self.path).num_rows)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
