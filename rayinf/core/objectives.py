"""What a row is worth it for: an objective is a sum over validation rows of a function with a gradient.

Each objective asks for group sums `S_k = sum of rows(logits, labels) over the validation rows of group k`, which
merge over shards, and either takes each group as a column of its own or combines them into one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayinf.core.blocks import Block
from rayinf.core.influence import Queries
from rayinf.errors import InputError
from rayinf.task import RowLoss

LABEL = "<label>"
KNOWN = '"total", "category", "slice:<column>", an Objective, or a function (logits, labels) -> [B]'


@dataclass(frozen=True)
class Objective:
    """A cost over the validation rows, the lower the better.

    Args:
        name: of the column; with `split` and no `combine`, the prefix of the columns `<name>_<value>`.
        rows: `(logits [B, C], labels [B]) -> [B]`, summed over rows; picklable. None: the task's loss.
        split: a column of the validation table whose values group the rows.
        combine: `(sums [k], counts [k]) -> a number`, differentiable in the sums, groups in sorted order: a gap
            of group means, say. None: each group is a column.
    """

    name: str
    rows: RowLoss | None = None
    split: str | None = None
    combine: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Target:
    """An objective whose groups are known: `levels` in sorted order, one column each or one in all."""

    objective: Objective
    levels: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of scores."""
        if self.objective.split is None or self.objective.combine is not None:
            return (self.objective.name,)
        return tuple(f"{self.objective.name}_{level}" for level in self.levels)

    @property
    def width(self) -> int:
        """Group sums that the objective is made of."""
        return max(1, len(self.levels))


def parse(objective: object) -> tuple[Objective, ...]:
    """Objectives from what a user passes: a name, an `Objective`, a function, or a list of these.

    Raises:
        InputError: something else, or two objectives of one name.
    """
    given = list(objective) if isinstance(objective, list | tuple) else [objective]
    if not given:
        raise InputError("objective=[] asks for nothing.", f"pass {KNOWN}, or a list of these.")
    found = tuple(_parse_one(item) for item in given)
    names = [o.name for o in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"Objective {twice[0]!r} is asked for twice.", "give every objective a name of its own.")
    return found


def _parse_one(item: object) -> Objective:
    if isinstance(item, Objective):
        return item
    if item == "total":
        return Objective("total")
    if item == "category":
        return Objective("category", split=LABEL)
    if isinstance(item, str) and item.startswith("slice:") and len(item) > len("slice:"):
        column = item.removeprefix("slice:")
        return Objective(f"slice_{column}", split=column)
    if callable(item):
        return Objective(getattr(item, "__name__", type(item).__name__), rows=item)
    raise InputError(f"objective={item!r} is unknown.", f"use {KNOWN}.")


def mean_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """The mean over all rows, from group sums and counts."""
    return sums.sum() / counts.sum()


def row_functions(targets: Sequence[Target]) -> list[RowLoss | None]:
    """The distinct functions of rows: one backward pass each serves all objectives that share it."""
    out: list[RowLoss | None] = []
    for target in targets:
        if target.objective.rows not in out:
            out.append(target.objective.rows)
    return out


def weights(targets: Sequence[Target], codes: Mapping[str, Tensor], half: Tensor | None, labels: Tensor) -> Tensor:
    """Which rows enter which group sum, `[B, W]`; with halves, `[B, 2 W]`: first half, then second.

    Args:
        targets: those that share a row function.
        codes: per split column, the group of each row.
        half: 0 or 1 for each row, or None.
        labels: `[B]`, for the size and the device.
    """
    parts = []
    for target in targets:
        if target.objective.split is None:
            parts.append(torch.ones(len(labels), 1, device=labels.device))
        else:
            parts.append(torch.nn.functional.one_hot(codes[target.objective.split], target.width).float())
    w = torch.cat(parts, dim=1)
    if half is None:
        return w
    second = half.to(w.dtype)[:, None]
    return torch.cat([w * (1 - second), w * second], dim=1)


def query_vectors(
    sums: Mapping[str, Tensor], targets: Sequence[Target], blocks: Sequence[Block], halves: bool
) -> tuple[Queries, Tensor]:
    """Query vectors of all columns from the merged group sums.

    Args:
        sums: `V<j>/<block>` `[W, r, o, i]`, `S<j>` and `C<j>` `[W]` for row function j (`2 W` with halves).
        targets: the objectives.
        blocks: what is valued.
        halves: append, after all columns, each column of the first half, then of the second.

    Returns:
        `{block: [Q, r, o, i]}` in float64, columns in the order of the targets, and the value of each column.

    Raises:
        InputError: `combine` returns no differentiable number, or one that is not finite.
    """
    functions = row_functions(targets)
    # Full set, then the halves; each view is a way to read the W group sums of a row function.
    views: list[Callable[[Tensor], Tensor]] = [lambda v: v]
    if halves:
        views = [lambda v: v[: len(v) // 2] + v[len(v) // 2 :], lambda v: v[: len(v) // 2], lambda v: v[len(v) // 2 :]]
    values: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {b.name: [] for b in blocks}
    for k, view in enumerate(views):
        start = dict.fromkeys(range(len(functions)), 0)
        for target in targets:
            j = functions.index(target.objective.rows)
            where = slice(start[j], start[j] + target.width)
            start[j] = where.stop
            totals, counts = view(sums[f"S{j}"])[where], view(sums[f"C{j}"])[where]
            mix, value = _mixture(target, totals, counts)
            if k == 0:
                values.append(value)
            for b in blocks:
                v = view(sums[f"V{j}/{b.name}"])[where]
                parts[b.name].append(v if mix is None else torch.tensordot(mix, v, dims=1))
    return {name: torch.cat(p) for name, p in parts.items()}, torch.cat(values)


def _mixture(target: Target, totals: Tensor, counts: Tensor) -> tuple[Tensor | None, Tensor]:
    """How a target mixes its group sums, `[1, W]` (the gradient of `combine`; None: not at all), and its values."""
    combine = target.objective.combine
    if combine is None:
        return None, totals
    leaf = totals.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        value = combine(leaf, counts)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise InputError(
                f"Objective {target.objective.name!r}: combine returned {value!r}.",
                "return one number as a tensor, made of the sums by differentiable operations.",
            )
        (mix,) = torch.autograd.grad(value.reshape(()), leaf)
    if not bool(torch.isfinite(mix).all() and torch.isfinite(value).all()):
        shown = ", ".join(f"{int(n)} of {level}" for level, n in zip(target.levels or ("all",), counts, strict=True))
        raise InputError(
            f"Objective {target.objective.name!r}: combine gives {value.item():.3g}, or a gradient that is not finite, "
            f"over rows: {shown}.",
            "give every group validation rows (in both halves, with halves=True), and combine a finite slope there.",
        )
    return mix[None], value.detach().reshape(1)
