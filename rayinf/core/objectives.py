"""Objectives: differentiable functions of the validation rows, by which the training rows are valued.

Each objective needs group sums `S_k = sum of rows(logits, labels) over the validation rows of group k`, which
merge over shards, and either takes each group as a column of its own or combines them into one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rayinf.arguments import function, optional, text
from rayinf.core.blocks import Block
from rayinf.core.influence import Queries
from rayinf.core.kfac import Sums, add
from rayinf.errors import InputError
from rayinf.task import RowLoss
from rayinf.user_code import user_code

LABEL = "<label>"
# An attack on the inputs or none, and a function of rows or None for the loss.
Source = tuple[Callable[..., Any] | None, RowLoss | None]


@dataclass(frozen=True)
class Objective:
    """A cost over the validation rows, the lower the better.

    Args:
        name: of the column; with `split` and no `combine`, the prefix of the columns `<name>_<value>`.
        rows: `(outputs [B, C], labels [B]) -> [B]` of what the model returns (logits), summed over rows; picklable.
            None: the task's loss.
        split: a column of the validation table whose values group the rows.
        combine: `(sums [k], counts [k]) -> a number`, differentiable in the sums, groups in sorted order: a gap
            of group means, say. None: each group is a column.
        where: `labels [B] -> bool [B]`, the rows that enter sums and counts; None: all.
        attack: what is done to the validation rows' inputs before; see `robustness`.
        hard: `(logits, labels) -> [B]`, whose mean is reported beside the value and never differentiated: predictions,
            say, where `rows` takes probabilities.

    Labels are positions among the logits in all of these.
    """

    name: str
    rows: RowLoss | None = None
    split: str | None = None
    combine: Callable[[Tensor, Tensor], Tensor] | None = None
    where: Callable[[Tensor], Tensor] | None = None
    attack: Callable[..., Any] | None = None
    hard: RowLoss | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a name or not a function.

        Raises:
            InputError: which argument.
        """
        text("Objective.name", self.name, "the name of a column of scores")
        optional(text, "Objective.split", self.split, "the name of a column of the validation table, or None")
        optional(function, "Objective.rows", self.rows, "a function (logits [B, C], labels [B]) -> [B]")
        optional(function, "Objective.combine", self.combine, "a function (sums [k], counts [k]) -> a number")
        optional(function, "Objective.where", self.where, "a function labels [B] -> bool [B]")
        optional(function, "Objective.attack", self.attack, "a function (predict, x, labels, loss) -> x")
        optional(function, "Objective.hard", self.hard, "a function (logits [B, C], labels [B]) -> [B]")

    def named(self, name: str) -> Objective:
        """The same objective under another column name: what it computes never depends on its name.

        Args:
            name: of the column; with groups that are a column each, the prefix of the columns `<name>_<value>`.

        Raises:
            InputError: a name that is not a text.
        """
        if not isinstance(name, str) or not name:
            raise InputError(f"An objective cannot be named {name!r}.", "pass a text, such as 'dp_sex'.")
        return replace(self, name=name)

    def columns(self, levels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the columns of scores, for the groups of the validation rows."""
        if self.split is None or self.combine is not None:
            return (self.name,)
        return tuple(f"{self.name}_{level}" for level in levels)

    def settle(self, labels: tuple[Any, ...]) -> Objective:
        """The same objective, once the labels are known in the order of the logits."""
        return self

    def check(self, labels: tuple[Any, ...], counts: Mapping[Any, Mapping[Any, int]]) -> None:
        """Refuse groups for which the objective is undefined; `counts` are each group's rows of every label."""

    def details(self, totals: Tensor, counts: Tensor, hard: Tensor) -> dict[str, Tensor]:
        """What is reported beside the value, `[columns]` each: the mean of `hard`, where there is one."""
        return {} if self.hard is None or self.combine is not None else {"accuracy": hard / counts}


@dataclass(frozen=True)
class Target:
    """An objective whose groups are known: `levels` in sorted order, one column each or one in all.

    Of a target that stands for some of its columns, `first` is the place of its first group among all of them.
    """

    objective: Objective
    levels: tuple[str, ...]
    first: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of scores."""
        return self.objective.columns(self.levels)

    @property
    def width(self) -> int:
        """Group sums that the objective is made of."""
        return max(1, len(self.levels))

    @property
    def divides(self) -> bool:
        """Whether every group is a column of its own, so that some of them can be taken without the others."""
        return bool(self.levels) and self.objective.combine is None and len(self.columns) == self.width

    def some(self, start: int, stop: int) -> Target:
        """The same for its groups from `start` to `stop`."""
        return replace(self, levels=self.levels[start:stop], first=self.first + start)

    @property
    def source(self) -> Source:
        """The attack and the function of rows: objectives that agree in both share a backward pass."""
        return self.objective.attack, self.objective.rows


def make_targets(
    objectives: Sequence[Objective], labels: tuple[Any, ...], levels: Mapping[str, tuple[Any, ...]]
) -> tuple[Target, ...]:
    """Objectives with their groups, once labels (in the order of the logits) and values of split columns are known."""
    return tuple(
        Target(o.settle(labels), tuple(str(v) for v in levels[o.split]) if o.split is not None else ())
        for o in objectives
    )


def in_tile(targets: Sequence[Target], groups: Sequence[Sequence[int]]) -> tuple[Target, ...]:
    """The targets of a tile of columns.

    Args:
        targets: of all columns.
        groups: for each of them, the first and the last of its groups that belong to the tile, and one more; a target
            of which none does has the same number twice. One that does not divide is there whole, or not at all.
    """
    pairs = zip(targets, groups, strict=True)
    return tuple(
        t if (start, stop) == (0, t.width) else t.some(start, stop) for t, (start, stop) in pairs if stop > start
    )


def mean_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """The mean over all rows, from group sums and counts."""
    return sums.sum() / counts.sum()


def sources(targets: Sequence[Target]) -> list[Source]:
    """The distinct attacks and functions of rows: objectives that share one share its backward pass."""
    out: list[Source] = []
    for target in targets:
        if target.source not in out:
            out.append(target.source)
    return out


def weights(targets: Sequence[Target], codes: Mapping[str, Tensor], half: Tensor | None, labels: Tensor) -> Tensor:
    """Which rows enter which group sum, `[B, W]`; with halves, `[B, 2 W]`: first half, then second.

    Args:
        targets: those that share a source.
        codes: per split column, the group of each row.
        half: 0 or 1 for each row, or None.
        labels: `[B]`, positions among the logits.
    """
    parts = []
    for target in targets:
        if target.objective.split is None:
            part = torch.ones(len(labels), 1, device=labels.device)
        else:
            groups = torch.arange(target.first, target.first + target.width, device=labels.device)
            part = (codes[target.objective.split][:, None] == groups).float()
        if target.objective.where is not None:
            part = part * _chosen(target.objective, labels)[:, None]
        parts.append(part)
    w = torch.cat(parts, dim=1)
    if half is None:
        return w
    second = half.to(w.dtype)[:, None]
    return torch.cat([w * (1 - second), w * second], dim=1)


def _chosen(objective: Objective, labels: Tensor) -> Tensor:
    """Whether each row enters an objective, `[B]`.

    Raises:
        InputError: `where` raises, or does not return one value a row.
    """
    assert objective.where is not None
    with user_code(f"where of objective {objective.name!r}", "mend it: labels [B] -> whether each row counts [B]."):
        found = objective.where(labels)
    if not isinstance(found, Tensor) or found.shape != labels.shape:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"where of objective {objective.name!r} returned {got} for {len(labels)} rows.",
            "return a boolean tensor [B]: whether each row counts.",
        )
    return found


def add_values(
    sums: Sums, j: int, targets: Sequence[Target], values: Tensor, weights_bw: Tensor, outputs: tuple[Tensor, Tensor]
) -> None:
    """Add a batch's group sums `S<j>` of a source's values, `C<j>` of its rows, and `H<j>` of `hard`.

    Args:
        sums: where to add, float64 `[W]` each.
        j: the source's place among `sources`.
        targets: those that share it.
        values: `[B]`.
        weights_bw: `weights` of these targets.
        outputs: logits `[B, C]` and labels `[B]`.
    """
    w = weights_bw.double()
    hard = [
        (torch.zeros_like(values) if t.objective.hard is None else t.objective.hard(*outputs))[:, None].expand(
            -1, t.width
        )
        for t in targets
    ]
    hard_bw = torch.cat(hard, dim=1).double()
    add(sums, f"S{j}", w.T @ values.double())
    add(sums, f"C{j}", w.sum(0))
    add(sums, f"H{j}", (w * hard_bw.repeat(1, w.shape[1] // hard_bw.shape[1])).sum(0))


def objective_details(sums: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, dict[str, float]]:
    """The value of every column's objective: `value`, and beside it `signed`, `hard` or `accuracy`.

    Args:
        sums: of `add_values`, merged; of both halves where these were taken apart.
        targets: the objectives.
    """
    out: dict[str, dict[str, float]] = {}
    for target, j, where in _places(targets):
        s, c, h = (_whole(sums[f"{key}{j}"], targets, j)[where] for key in "SCH")
        found = {"value": _mixture(target, s, c)[1], **target.objective.details(s, c, h)}
        for k, column in enumerate(target.columns):
            out[column] = {name: float(v[k]) for name, v in found.items()}
    return out


def _places(targets: Sequence[Target]) -> Iterator[tuple[Target, int, slice]]:
    """Each target with its source's place, and the place of its group sums among that source's."""
    known = sources(targets)
    start = dict.fromkeys(range(len(known)), 0)
    for target in targets:
        j = known.index(target.source)
        yield target, j, slice(start[j], start[j] + target.width)
        start[j] += target.width


def _whole(held: Tensor, targets: Sequence[Target], j: int) -> Tensor:
    """Sums over all rows, from those of the halves where these were taken apart."""
    source = sources(targets)[j]
    width = sum(t.width for t in targets if t.source == source)
    return held if len(held) == width else held[:width] + held[width:]


def query_vectors(
    sums: Mapping[str, Tensor], targets: Sequence[Target], blocks: Sequence[Block], halves: bool
) -> Queries:
    """Query vectors of all columns from the merged group sums.

    Args:
        sums: `V<j>/<block>` `[W, r, o, i]`, `S<j>` and `C<j>` `[W]` for source j (`2 W` with halves).
        targets: the objectives.
        blocks: what is valued.
        halves: append, after all columns, each column of the first half, then of the second.

    Returns:
        `{block: [Q, r, o, i]}` in the precision of the sums, columns in the order of the targets.

    Raises:
        InputError: `combine` returns no differentiable number, or one that is not finite.
    """
    # The full set, then the halves: each view gives the W group sums of a source.
    views: list[Callable[[Tensor], Tensor]] = [lambda v: v]
    if halves:
        views = [lambda v: v[: len(v) // 2] + v[len(v) // 2 :], lambda v: v[: len(v) // 2], lambda v: v[len(v) // 2 :]]
    parts: dict[str, list[Tensor]] = {b.name: [] for b in blocks}
    for view in views:
        for target, j, where in _places(targets):
            mix, _ = _mixture(target, view(sums[f"S{j}"])[where], view(sums[f"C{j}"])[where])
            for b in blocks:
                v = view(sums[f"V{j}/{b.name}"])[where]
                parts[b.name].append(v if mix is None else torch.tensordot(mix.to(v.dtype), v, dims=1))
    return {name: p[0] if len(p) == 1 else torch.cat(p) for name, p in parts.items()}


def _mixture(target: Target, totals: Tensor, counts: Tensor) -> tuple[Tensor | None, Tensor]:
    """The weights of a target's group sums, `[columns, W]` (the slope of `combine`; None without), and its values."""
    combine = target.objective.combine
    if combine is None:
        return None, totals
    # `combine` is linearised at the sums: its slopes are the weights with which group queries add up.
    leaf = totals.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        with user_code(
            f"combine of objective {target.objective.name!r}", "mend it: (sums [k], counts [k]) -> a number."
        ):
            value = combine(leaf, counts)
        if not isinstance(value, Tensor) or value.numel() != len(target.columns) or not value.requires_grad:
            raise InputError(
                f"Objective {target.objective.name!r}: combine returned {value!r}.",
                "return one number as a tensor, made of the sums by differentiable operations.",
            )
        mix = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in value.reshape(-1)])
    if not bool(torch.isfinite(mix).all() and torch.isfinite(value).all()):
        shown = ", ".join(f"{int(n)} of {level}" for level, n in zip(target.levels or ("all",), counts, strict=True))
        raise InputError(
            f"Objective {target.objective.name!r}: combine gives {value.tolist()}, or a gradient that is not finite, "
            f"over rows: {shown}.",
            "give every group validation rows (in both halves, with halves=True), and combine a finite slope there.",
        )
    return mix, value.detach().reshape(-1)
