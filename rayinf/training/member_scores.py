"""Scores of a task with several models: each member's own, their mean, and its standard error; shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.data.files import readable
from rayinf.data.part_files import PartFiles, PartPlace
from rayinf.data.run_folder import MEMBERS, SCORES, RunFolder, part_name
from rayinf.data.scores import ERROR, HALVES, LABEL_COLUMN, Scores
from rayinf.engine.model_digest import model_digest
from rayinf.engine.run import open_run
from rayinf.engine.spec import RunSpec
from rayinf.errors import InputError
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Task
from rayinf.training.members import members_of
from rayinf.training.steps import recall, run_folder

# What of a member's metadata is its own: it stands under "of_members", and in the member's own folder.
_OWN = ("layers", "contributes_nothing", "least_eigenvalue", "largest_eigenvalue", "drawn_labels_agreement", "seconds")
_AVERAGED = ("objective_values", "objective_details", "fit")
Array = np.ndarray[Any, Any]


def mean_of_members(spec: RunSpec, value: Callable[[Task, AnyPath | None], Scores]) -> Scores:
    """The mean of a verb's values over the members of its task, with standard errors.

    Args:
        spec: of the verb, with its task.
        value: the verb for one member: its task and its folder (`out/members/<k>`) or None -> its scores.

    Raises:
        InputError: factors of another run, which are of one model; or as the verb.

    Cost: a run a member. In memory two numbers a value; with a folder, a shard of every member at a time.
    """
    if spec.factors is not None:
        raise InputError(
            f"factors={str(spec.factors)!r} are of one model, and the task has {len(spec.task.members)}.",
            "leave factors out: those of every member are kept in its own folder, out/members/<k>.",
        )
    members = members_of(spec.task)
    digests = [model_digest(one.build(), one.version).whole for one in members]
    if spec.out is None:
        return _in_memory(spec.task, (value(one, None) for one in members), digests)
    home = open_place(spec.out, "out")
    recall(home)
    with open_run(replace(spec, task=members[0], out=None, cluster=None)) as run:
        record, tables = run.record({}), run.job.tables.values()
    kind = "ensemble" if spec.task.ensemble is not None else "checkpoints"
    record["identity"] = {**record["identity"], "model": _digest(digests), kind: digests}
    with run_folder(home, record, tables) as (folder, finished):
        if not finished:
            held = [value(one, home / MEMBERS / str(k)) for k, one in enumerate(members)]
            _merge(folder, held, record["parts"])
            metadata = _metadata(spec.task, [s.metadata for s in held], digests)
            folder.finish({**record, "metadata": metadata})
            folder.log("finish")
    return Scores.load(home)


def _in_memory(task: Task, members: Iterator[Scores], digests: Sequence[str]) -> Scores:
    """Running means and squared deviations, so that two tables are held, whatever the members."""
    first: pa.Table | None = None
    metadata, mean, squares = [], np.zeros(0), np.zeros(0)
    for k, scores in enumerate(members):
        assert isinstance(scores.source, pa.Table)
        metadata.append(scores.metadata)
        found = _values(scores.source)
        if first is None:
            first, mean, squares = scores.source, found, np.zeros_like(found)
            continue
        change = found - mean
        mean = mean + change / (k + 1)
        squares = squares + change * (found - mean)
    assert first is not None
    return Scores(_table(first, mean, squares, len(digests)), _metadata(task, metadata, digests))


def _merge(folder: RunFolder, members: Sequence[Scores], parts: int) -> None:
    """Write the parts of all shards that are not there."""
    place = PartPlace(folder.path, SCORES)
    entries = [s.source.entries() for s in members if isinstance(s.source, PartFiles)]
    for k, same in enumerate(zip(*entries, strict=True)):
        if folder.files.is_sound(part_name(SCORES, k), same[0].rows):
            continue
        homes = [s.source.run for s in members if isinstance(s.source, PartFiles)]
        tables = [pq.read_table(readable(home / e.file)) for home, e in zip(homes, same, strict=True)]
        values = np.stack([_values(t) for t in tables])
        mean = values.mean(0)
        table = _table(tables[0], mean, np.square(values - mean).sum(0), len(tables))
        folder.files.add(place.write(k, table.replace_schema_metadata(None)), soon=True)
    assert k + 1 == parts


def _values(table: pa.Table) -> Array:
    """All columns of values `[columns, n]`, float64."""
    return np.stack([table[name].to_numpy().astype(np.float64) for name in _names(table)])


def _names(table: pa.Table) -> list[str]:
    return [n for n in table.column_names if n not in ("row_id", LABEL_COLUMN)]


def _table(like: pa.Table, mean: Array, squares: Array, members: int) -> pa.Table:
    """A member's table with means, and the standard errors of all but the halves.

    Args:
        like: a member's table.
        mean: `[columns, n]`.
        squares: the sums of squared deviations, in the same shape.
        members: how many.
    """
    errors = np.sqrt(squares / (members - 1) / members)
    names = _names(like)
    held = {n: like[n] for n in like.column_names if n not in names}
    held |= {n: _column(mean[k], like.schema.field(n).type) for k, n in enumerate(names)}
    held |= {
        n + ERROR: _column(errors[k], like.schema.field(n).type)
        for k, n in enumerate(names)
        if not n.startswith(HALVES)
    }
    return pa.table(held)


def _column(values: Array, kind: pa.DataType) -> pa.Array:
    """Values as a column; null where a member has none."""
    missing = np.isnan(values)
    return pa.array(values, kind, mask=missing if missing.any() else None)


def _metadata(task: Task, members: Sequence[Mapping[str, Any]], digests: Sequence[str]) -> dict[str, Any]:
    """The metadata of all members, with what is of each apart."""
    first = {k: v for k, v in members[0].items() if k not in _OWN}
    apart = [{"model": d, **{k: m[k] for k in _AVERAGED if k in m}} for d, m in zip(digests, members, strict=True)]
    averaged = {k: _average([m[k] for m in members]) for k in _AVERAGED if k in first}
    of = {**first["of"], "model": _digest(digests), "members": list(digests)}
    kind = "ensemble" if task.ensemble is not None else "checkpoints"
    skipped = [s for m in members for s in m.get("skipped", ())]
    left_out = {"skipped": [s for k, s in enumerate(skipped) if s not in skipped[:k]]} if skipped else {}
    return {
        **first,
        **averaged,
        **left_out,
        "of": of,
        "members": len(digests),
        "members_are": kind,
        "of_members": apart,
    }


def _average(held: Sequence[Any]) -> Any:
    """The mean of numbers, within mappings; all different texts of lists; of anything else the first."""
    first = held[0]
    if isinstance(first, Mapping):
        return {k: _average([h[k] for h in held]) for k in first if all(k in h for h in held)}
    if isinstance(first, list):
        return list(dict.fromkeys(v for h in held for v in h))
    whole = isinstance(first, int) and all(h == first for h in held)
    return first if whole or not isinstance(first, int | float) else sum(held) / len(held)


def _digest(digests: Sequence[str]) -> str:
    """One digest of several models."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
