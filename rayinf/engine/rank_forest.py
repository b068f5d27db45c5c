"""The ranks of all rows where a share of them is measured (Yu 2025, Algorithms 6 and 8), adaptively.

Half of the share is drawn by chance, and a random forest learns the ranks of these rows (`engine.subsample` says from
what). The other half are the rows that it puts on top: they are measured too. So the rows that are ranked highest in
the end have exact values. The rows that were never measured keep the forest's ranks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rayinf.data.batches import Batch, row_keys, uniforms
from rayinf.data.checked_folder import Entry
from rayinf.data.files import Arrays
from rayinf.data.part_files import PartPlace
from rayinf.data.run_folder import SCORES, TOP_ROWS, UNRANKED
from rayinf.data.shards import Shard
from rayinf.engine import pipeline
from rayinf.engine.curvature import join_payloads
from rayinf.engine.measure_spec import SampledSpec
from rayinf.engine.run import Run
from rayinf.engine.stages import Stage
from rayinf.engine.subsample import SUMMARY, Subsample
from rayinf.engine.worker import Worker
from rayinf.errors import InputError
from rayinf.select.forest import MOST_ROWS, RankForest, limit_of, rank_of

# Measured values that ranks are taken among: beyond so many, the ranks of a sample of them are as good.
_MOST_REFERENCES = 1 << 20
_READ_ROWS = 8192
# Rows not drawn that show where the top begins: so many give its share of the rows to within a percent or so.
_LIMIT_ROWS = 4096
# Under this out-of-bag rank correlation the forest's ranks are little better than chance.
_WEAK = 0.5

Array = np.ndarray[Any, Any]
# A shard with its `fi`: tables, or where its parts lie. The first has the rows that were drawn by chance.
Item = tuple[Shard, tuple[pa.Table | PartPlace, ...]]
Measure = Callable[[Arrays | None], list[pa.Table]]


class _Ranked:
    """A stage over shards whose `fi` is there already."""

    def __init__(self, worker: Worker, arrays: Arrays, into: PartPlace | None = None) -> None:
        self.worker, self.into, self.subsample = worker, into, Subsample(worker, arrays)

    def values(self, item: Item) -> pa.Table:
        """`row_id`, the label if there is one, and `fi`, null where a row was not measured."""
        shard, held = item
        table, *more = [h.read(shard.index) if isinstance(h, PartPlace) else h for h in held]
        for other in more:
            both = pc.coalesce(table["fi"].combine_chunks(), other["fi"].combine_chunks())
            table = table.set_column(table.schema.get_field_index("fi"), "fi", both)
            table = table.replace_schema_metadata(_joined(table.schema.metadata, other.schema.metadata))
        return table.drop_columns("fi_rank") if "fi_rank" in table.schema.names else table

    def batches(self, item: Item) -> list[tuple[Batch, Array]]:
        """Batches of a shard, each with its `fi`."""
        fi = self.values(item)["fi"].to_numpy()
        shard, job = item[0], self.worker.job
        found = list(self.worker.read_raw(job.scored, shard, _READ_ROWS))
        ends = np.cumsum([len(raw) for raw in found])
        return list(zip(found, np.split(fi, ends[:-1]), strict=True))


class Gather(_Ranked):
    """Shard -> what a forest learns from: measured rows, and others to see where the top begins.

    Both are a share of the rows, by their contents alone. Arrays: the two shares.
    """

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        super().__init__(worker, arrays)
        self.shares = [float(v) for v in arrays["shares"]]

    def __call__(self, item: Item) -> Arrays:
        """Features, labels, values and whether a row was drawn by chance; its values are then known."""
        parts: list[Arrays] = []
        for raw, fi in self.batches(item):
            first = np.zeros(len(raw), bool)
            first[self.subsample.first(raw)] = True
            draws = uniforms(row_keys(raw.x, raw.labels), self.worker.job.spec.seed + 4, 1)[:, 0]
            rows = np.flatnonzero(draws < np.where(first, *self.shares))
            rows = rows[first[rows] | np.isin(rows, self.subsample.left(raw))]
            if not len(rows):
                continue
            some, labels = raw.take(rows), self.subsample.labels(raw)
            part = {"x": self.subsample.features(some), "values": fi[rows], "first": first[rows]}
            part["keys"] = row_keys(some.x, some.labels)
            parts.append(part if labels is None else {**part, "labels": labels[rows]})
        return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


class References(_Ranked):
    """Shard -> `{"values": [m]}`, what was measured on top of the rows drawn by chance. Arrays: the share of it."""

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        super().__init__(worker, {})
        self.share = float(arrays["share"])

    def __call__(self, item: Item) -> Arrays:
        """Of a share of the rows, by their contents alone."""
        parts = []
        for raw, fi in self.batches(item):
            known = ~np.isnan(fi)
            known[self.subsample.first(raw)] = False
            draws = uniforms(row_keys(raw.x, raw.labels), self.worker.job.spec.seed + 4, 1)[:, 0]
            parts.append(fi[known & (draws < self.share)])
        return {"values": np.concatenate(parts)}


class RankRest(_Ranked):
    """Shard -> `fi_rank` in [0, 1] of all its rows: their own rank where they are measured, else the forest's."""

    def __init__(self, worker: Worker, arrays: Arrays, into: PartPlace | None) -> None:
        super().__init__(worker, {k: v for k, v in arrays.items() if k != "forest"}, into)
        self.forest = RankForest.from_array(arrays["forest"])
        self.reference, self.weights, self.most = arrays["reference"], arrays["weights"], float(arrays["limit"][0])

    def __call__(self, item: Item) -> pa.Table | Entry:
        """The table of a shard with `fi_rank`, or the entry of the file that it was written to."""
        parts = []
        for raw, fi in self.batches(item):
            ranks, rest = rank_of(fi, self.reference, self.weights), np.flatnonzero(np.isnan(fi))
            if len(rest):
                labels = self.subsample.labels(raw)
                features = self.subsample.features(raw.take(rest))
                found = self.forest.predict(features, None if labels is None else labels[rest])
                # Rows that may not be picked can lie above: no row that was not measured ranks above the limit.
                ranks[rest] = np.minimum(found, self.most)
            parts.append(ranks)
        table = self.values(item).append_column("fi_rank", pa.array(np.concatenate(parts)))
        return table if self.into is None else self.into.write(item[0].index, table)


def measured_into(run: Run, top: Arrays | None) -> str:
    """The folder for values of FI: another one where a forest is to rank the rest."""
    if run.job.spec.subsample == 1:
        return SCORES
    return UNRANKED if top is None else TOP_ROWS


def rank_rest(run: Run, tables: list[pa.Table], measure: Measure) -> tuple[list[pa.Table], dict[str, Any]]:
    """Measure the rows that a forest puts on top, and add `fi_rank` to every shard.

    Args:
        run: whose shards have the `fi` of the rows drawn by chance.
        tables: of the shards, or nothing where they are in the folder.
        measure: the stage of the verb, for rows on top: the forest and its limit -> tables like `tables`.

    Returns:
        The shards' tables (or nothing), and how well the forest ranks.

    Raises:
        InputError: the subsample has too few rows for a forest.
    """
    shards = run.job.tables[run.job.scored].shards
    rows = run.scans[run.job.scored].rows
    spec: SampledSpec = run.job.spec
    free, share = max(rows - len(spec.undrawn), 1), spec.first_share(rows)
    shares = np.array([min(1.0, MOST_ROWS / (share * free)), min(1.0, _LIMIT_ROWS / free)])
    held = _gather(run, Gather, _with_queries(run, "to-learn-from", {"shares": shares}), _items(run, (tables,)))
    # By their contents: the forest is then the same whatever the order of the rows.
    order = np.argsort(held.pop("keys"), kind="stable")
    held = {name: value[order] for name, value in held.items()}
    first, labels = held["first"], held.get("labels")
    known = None if labels is None else labels[first]
    seed, threads = spec.seed, torch.get_num_threads()
    forest = RankForest.fit(held["x"][first], held["values"][first], known, seed, threads)
    others = forest.predict(held["x"][~first], None if labels is None else labels[~first])
    measured = first.sum() / shares[0]
    more = max(spec.subsample * free - measured, 0.0) if share < spec.subsample else 0.0
    limit = np.array(limit_of(others, min(1.0, more / max(free - measured, 1.0))))
    top = {"forest": forest.to_array(), "limit": limit}
    items = _items(run, (tables, measure(top)))
    extra = {"share": np.array(min(1.0, _MOST_REFERENCES / max(more, 1.0)))}
    on_top = _gather(run, References, extra, items)["values"]
    stands = np.repeat([1 / shares[0], 1 / extra["share"]], [first.sum(), len(on_top)])
    values = np.concatenate([held["values"][first], on_top])
    order, weights = _weigh(values, stands, forest.oob_ranks > limit[0], free)
    reference, weights = values[order], weights[order]
    above = rank_of(reference, reference, weights) > limit[0]
    quality = {
        "forest_rank_correlation": forest.oob_rank_correlation,
        "forest_rows": int(first.sum()),
        "exact_top_rows": int(stands[order][above].sum()),
    }
    _report(run, quality)
    arrays = {**top, "reference": reference, "weights": weights}
    todo = {k: item for k, item in items.items() if not run.has_part(SCORES, item[0])}
    done = run.runner.map(RankRest, _with_queries(run, "ranks", arrays), todo, into=run.place(SCORES))
    return pipeline.collect(run, "ranks", done, {s.index: s for s in shards}, todo), quality


def _weigh(values: Array, measured: Array, is_top: Array, rows: int) -> tuple[Array, Array]:
    """The rising order of measured values, and how many rows of the table each stands for.

    All rows that the forest puts on top are measured: each of them stands for itself. Of the others only those drawn by
    chance are measured, and stand for all.

    Args:
        values: of the rows drawn by chance, then of those on top.
        measured: how many measured rows each stands for, where only a share of these is here.
        is_top: whether the forest puts rows drawn by chance on top (it has not seen them).
        rows: of the table.
    """
    low = np.zeros(len(values), bool)
    low[: len(is_top)] = ~is_top
    left = max(rows - float(measured[~low].sum()), 1.0)
    weights = np.where(low, left / max(int(low.sum()), 1), measured)
    return np.argsort(values, kind="stable"), weights


def _with_queries(run: Run, name: str, arrays: Arrays) -> Any:
    """Arrays beside the preconditioned validation gradient, if the verb has one, as a payload."""
    store = run.runner.store
    if not store("has", "solved"):
        return arrays
    store("drop", name)
    return run.runner.publish("derive", name, join_payloads, ["solved"], arrays)


def _gather(run: Run, stage: type[Stage], arrays: Any, items: dict[int, Item]) -> Arrays:
    """Results of a stage over all shards, one after the other; those that have none are left out.

    Raises:
        InputError: none of them has any.
    """
    parts: dict[int, Arrays] = {}
    with run.timed("forest", sum(item[0].rows for item in items.values())) as advance:
        for key, part in run.runner.map(stage, arrays, items):
            parts[key] = part
            advance(items[key][0].rows)
    some = [parts[k] for k in sorted(parts) if parts[k]]
    if not some:
        raise InputError("The subsample holds no row of the table.", "pass a larger subsample, or subsample=1.0.")
    return {name: np.concatenate([part[name] for part in some]) for name in some[0]}


def _items(run: Run, passes: tuple[list[pa.Table], ...]) -> dict[int, Item]:
    """Every shard with its `fi` of each pass: the tables, or where its parts lie."""
    shards = run.job.tables[run.job.scored].shards
    if passes[0]:
        return {s.index: (s, tuple(tables[k] for tables in passes)) for k, s in enumerate(shards)}
    folders = (UNRANKED, TOP_ROWS)[: len(passes)]
    return {s.index: (s, _places(run, s, folders)) for s in shards}


def _places(run: Run, shard: Shard, folders: tuple[str, ...]) -> tuple[PartPlace, ...]:
    """Where a shard's `fi` lies: with its ranks where it has them already."""
    found = [run.place(f) for f in ((SCORES,) if run.has_part(SCORES, shard) else folders)]
    return tuple(place for place in found if place is not None)


def _joined(first: dict[bytes, bytes] | None, second: dict[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    """The metadata of the first pass, with the counts of both."""
    if not first or not second or SUMMARY not in first:
        return first
    a, b = (json.loads(held[SUMMARY]) for held in (first, second))
    least = min(a["least_share"], b["least_share"])
    return {**first, SUMMARY: json.dumps({**{k: a[k] + b[k] for k in a}, "least_share": least}).encode()}


def _report(run: Run, quality: dict[str, Any]) -> None:
    """Print how well the forest ranks, and warn where it hardly does."""
    correlation = quality["forest_rank_correlation"]
    run.log("forest", **quality)
    print(
        f"rayinf forest: out-of-bag rank correlation {correlation:.3f} over {quality['forest_rows']:,} scored rows; "
        f"the {quality['exact_top_rows']:,} rows of highest rank are all measured"
    )
    if correlation < _WEAK:
        warnings.warn(
            f"The random forest's out-of-bag rank correlation is {correlation:.3f}: ranks of rows that were not "
            "scored are little better than chance. Score a larger share (subsample=...), or all rows.",
            stacklevel=4,
        )
