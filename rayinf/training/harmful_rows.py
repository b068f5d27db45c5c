"""Which rows a round of trimming removes, and what says whether the round is undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.arguments import whole
from rayinf.core.objectives import LABEL, Objective
from rayinf.data.batches import Array
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.vectors import Vectors
from rayinf.engine.digest import digest
from rayinf.errors import InputError
from rayinf.select.trim import candidates, pick, use_up, worst_first


@dataclass(frozen=True)
class HarmRule:
    """Which rows a round removes, and what says whether it is undone.

    Attributes:
        objectives: parsed.
        budget: the most rows a round.
        judge: the table that is measured on for it.
    """

    objectives: tuple[Objective, ...]
    budget: int | None
    judge: str

    @classmethod
    def of(cls, objectives: tuple[Objective, ...], budget: Any, judge: str) -> HarmRule:
        """The rule, checked.

        Raises:
            InputError: a budget below 1, or none for an objective of one column.
        """
        rule = cls(objectives, None if budget is None else whole("budget", budget, 1), judge)
        if rule.column is not None and rule.budget is None:
            raise InputError(
                f"objective={rule.column!r} is one column: about half of all rows have a negative value of it.",
                "pass budget=..., the most rows that a round removes, such as a hundredth of them.",
            )
        return rule

    @property
    def column(self) -> str | None:
        """The column of the objective; None where there are several."""
        first = self.objectives[0]
        several = len(self.objectives) > 1 or (first.split is not None and first.combine is None)
        return None if several else first.name

    @property
    def by_class(self) -> bool:
        """Whether the columns are those of the classes."""
        return len(self.objectives) == 1 and self.objectives[0].split == LABEL

    @property
    def measured(self) -> tuple[Objective, ...]:
        """What is measured beside loss and accuracy."""
        return () if self.column is None else self.objectives

    def identity(self, version: str | None) -> dict[str, Any]:
        """What makes two runs the same."""
        known = {o.name: digest(o, f"Objective {o.name!r}", version) for o in self.objectives}
        return {"objective": known, "budget": self.budget}

    def harmful(self, scores: Scores) -> Array:
        """Whether each row goes, `[n]`."""
        removed = np.zeros(len(scores), bool)
        if self.column is None:
            at = jointly_harmful(scores, None if self.by_class else scores.value_columns)
            if self.budget is not None:
                at = at[np.argsort(_sums(scores)[at], kind="stable")[: self.budget]]
            removed[at] = True
            return removed
        values = to_numpy(scores.select([self.column])[self.column]).astype(float)
        order = worst_first(values, signed=True)
        removed = pick(order, candidates(values, signed=True), int(self.budget or 0))
        gap = scores.metadata.get("objective_details", {}).get(self.column, {}).get("signed")
        return removed if gap is None else use_up(order, removed, values, abs(gap))

    def cost(self, line: Mapping[str, Any]) -> float:
        """What must not rise from a round's line to the next."""
        return float(line[f"{self.judge}_{self.column}"] if self.column else -line[f"{self.judge}_accuracy"])

    def rise(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        """By how much it rose, in words."""
        old, new = self.cost(before), self.cost(now)
        if self.column is None:
            return f"accuracy on {self.judge} fell from {-old:.2%} to {-new:.2%}"
        return f"{self.column} on {self.judge} rose from {old:.4g} to {new:.4g}"


def jointly_harmful(scores: Scores, columns: Sequence[str] | None = None) -> Array:
    """Which rows harm at least one class and help none: positions in row order (Nahin 2025, section 3.3).

    Args:
        scores: with a column for each class.
        columns: the columns to take instead.

    Raises:
        InputError: no such columns, or a value that is not finite.
    """
    masks = [(p <= 0).all(1) & (p < 0).any(1) for p in Vectors.of(scores, columns).batches()]
    return np.flatnonzero(np.concatenate(masks))


def _sums(scores: Scores) -> Array:
    """The sum of a row's values over all columns, `[n]`."""
    return np.concatenate([p.sum(1) for p in Vectors.of(scores, scores.value_columns).batches()])
