"""The inputs of `pareto_reweight`, checked before any work: arguments, tables, scores and targets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from rayinf.arguments import refuse
from rayinf.data.batches import Array
from rayinf.data.scan import TableScan
from rayinf.data.vectors import InfluenceRows, Vectors
from rayinf.engine.job import Job
from rayinf.engine.model_digest import model_digest
from rayinf.errors import InputError
from rayinf.pareto.halved_lp import by_class
from rayinf.task import Fit, Task
from rayinf.training.checked_inputs import check_tables, fit_name
from rayinf.training.scored_table import check_model, check_scored, check_table
from rayinf.training.search import Search

VERB = "pareto_reweight"
# Influence vectors that every worker holds; larger ones on disk are read at every pass of a linear program.
_HELD_BYTES = 256 << 20
# Of the search: how far it goes, and the sum of its parts.
_VARIABLE = ("iterations", "population")
_AFTER = (
    "The scores are not of the checkpoint, but of other weights of the same model: in course correction, those after "
    "the unweighted epoch."
)


@dataclass(frozen=True)
class SearchArguments:
    """Arguments of the verb, checked by themselves."""

    task: Task
    vectors: Vectors
    mode: str
    search: Search
    seed: int


@dataclass(frozen=True)
class SearchInputs:
    """The same with the tables, checked against each other.

    Attributes:
        arguments: of the verb.
        job: the task with its classes, and both tables.
        influence: `[n, K]`, classes in the order of the logits; `[n, 2 K]`, of both halves, where the scores have them.
            Of many rows on disk, what reads them.
        halves_seed: of the scores' run, which says what rows are in which half; None: that is not known.
        targets: positions of the classes to lift.
        identity: of the run.
        notes: what a reader should know.
    """

    arguments: SearchArguments
    job: Job
    influence: Array | InfluenceRows
    halves_seed: int | None
    targets: tuple[int, ...]
    identity: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, in the order of the logits."""
        return self.job.classes.names

    @property
    def total(self) -> Array:
        """`S_k = sum_i P_i^k`, `[K]`."""
        total = self.influence.total if isinstance(self.influence, InfluenceRows) else self.influence.sum(0)
        return total if len(total) == len(self.names) else by_class(total)


def check_search(task: Task, search: Search) -> None:
    """Refuse a search that no scores and no table could make right.

    Raises:
        InputError: what is wrong.
    """
    if not isinstance(search, Search):
        refuse("search", search, "a rayinf.Search or None", "pass rayinf.Search(...), or leave search out.")
    if task.fit is None:
        raise InputError(
            "The Task does not say how its model is trained for one more epoch.",
            "pass Task(fit=rayinf.Fit(optimizer=..., lr=...)), or a function (task, train, weights, seed) -> module.",
        )
    if search.lr is not None and not isinstance(task.fit, Fit):
        raise InputError(f"Search(lr={search.lr}) has no say in a fit that is a function.", "set it there.")


def check_inputs(arguments: SearchArguments, tables: Mapping[str, Any], targets: Any) -> SearchInputs:
    """Open the tables, and match classes and rows with the scores.

    Raises:
        InputError: what does not fit.
    """
    checked = check_tables(arguments.task, tables)
    job = checked.job
    notes = _check_scored(arguments, job, checked.scans)
    classes, order = job.classes.names, _columns(arguments.vectors, job)
    rows = InfluenceRows(arguments.vectors, tuple(order))
    halved = arguments.vectors.has_halves
    chosen = tuple(sorted(order.index(k) for k in arguments.vectors.find(targets)))
    names = [str(job.classes.labels[k]) for k in chosen]
    search = arguments.search
    identity = {
        **checked.identity,
        "seed": arguments.seed,
        "scores": _digest(rows),
        "targets": names,
        "mode": arguments.mode,
        **{f"search.{name}": value for name, value in asdict(search).items() if name not in _VARIABLE},
        "fit": fit_name(arguments.task),
    }
    seed = arguments.vectors.scores.metadata.get("seed") if halved else None
    found = SearchInputs(arguments, job, _influence(rows), seed, chosen, identity, notes)
    return replace(found, notes=(*notes, *_notes(found.total, chosen, classes, search), *_of_halves(halved, seed)))


def _influence(rows: InfluenceRows) -> Array | InfluenceRows:
    """The rows in memory, or where they lie: rows of scores on disk that take more than `_HELD_BYTES`."""
    on_disk = not isinstance(rows.vectors.scores.source, pa.Table)
    large = 8 * len(rows.vectors) * len(rows.columns) > _HELD_BYTES
    return rows if on_disk and large else rows.held()


def _digest(rows: InfluenceRows) -> str:
    digest = hashlib.sha256()
    for batch in rows():
        digest.update(batch.data)
    return digest.hexdigest()


def _of_halves(halved: bool, seed: int | None) -> tuple[str, ...]:
    if not halved:
        return (
            "Not cross-fitted: the scores have no halves of the validation rows, so that the rows that choose the "
            "weights also judge them. Compute the scores with halves=True.",
        )
    if seed is None:
        return (
            "Not cross-fitted: the scores' metadata do not say which validation rows are in which half. Those of "
            "rayinf.influence(..., halves=True) do.",
        )
    return ()


def _check_scored(arguments: SearchArguments, job: Job, scans: Mapping[str, TableScan]) -> tuple[str, ...]:
    """Refuse scores of another model, or of other rows; and say where they are of the unweighted epoch.

    Course correction may value the checkpoint, or the model after the unweighted epoch.

    Raises:
        InputError: what differs.
    """
    scores, tables = arguments.vectors.scores, {name: scans[name] for name in ("train", "valid")}
    of = scores.metadata.get("of")
    if arguments.mode == "correct" and of is not None and of["model"] != model_digest(arguments.task.build()).whole:
        check_model(of, arguments.task, same_weights=False)
        for name, scan in tables.items():
            check_table(of, name, scan)
        scores = replace(scores, metadata={})
        check_scored(scores, arguments.task, job.tables["train"], tables)
        return (_AFTER,)
    check_scored(scores, arguments.task, job.tables["train"], tables)
    return ()


def _columns(vectors: Vectors, job: Job) -> list[int]:
    """For every class, in the order of the logits, the position of its column.

    Raises:
        InputError: a class without a column, or a column of no class.
    """
    names = job.classes.names
    held = [name.removeprefix("category_") for name in vectors.names]
    if sorted(held) != sorted(names):
        missing, unknown = sorted(set(names) - set(held)), sorted(set(held) - set(names))
        raise InputError(
            "The scores' columns are not the model's classes: "
            + "; ".join(
                f"{what} {', '.join(map(repr, who[:6]))}"
                for what, who in (("no column for class", missing), ("no class for column", unknown))
                if who
            )
            + ".",
            'compute them with rayinf.influence(..., objective="category"), or name the columns "category_<label>".',
        )
    return [held.index(name) for name in names]


def _notes(total: Array, targets: Sequence[int], names: Sequence[str], search: Search) -> tuple[str, ...]:
    """What the user should know of these targets and scores."""
    notes = []
    if len(targets) == len(names):
        notes.append(
            "All classes are targets: there is no other class to spare, so line 7 is 0 wherever all of them gain and "
            "the mean gain alone decides."
        )
    low = [f"{name} ({value:.4g})" for name, value in zip(names, total, strict=True) if value <= 0]
    if low:
        meaning = (
            "there alpha < 1 demands that the class gains, and alpha > 1 lets it lose"
            if search.demand == "paper"
            else "the scaled slack does not hang on its sign"
        )
        notes.append(f"The summed influence S_k is zero or negative for class {', '.join(low)}: {meaning}.")
    return tuple(notes)
