"""The rest of a subsample's ranks, by a random forest: fitted once, mapped over shards.

See Yu 2025, Algorithms 6 and 8.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayinf.data.batches import row_keys, uniforms
from rayinf.data.checked_folder import Entry
from rayinf.data.files import Arrays
from rayinf.data.part_files import PartPlace
from rayinf.data.run_folder import SCORES, UNRANKED
from rayinf.data.shards import Shard
from rayinf.engine import pipeline
from rayinf.engine.run import Run
from rayinf.engine.worker import Worker
from rayinf.select.forest import MOST_ROWS, RankForest, rank_of

# Scored values that ranks are taken among: beyond so many, the ranks of a sample of them are as good.
_MOST_REFERENCES = 1 << 20
_READ_ROWS = 8192
# Under this out-of-bag rank correlation the forest's ranks are little better than chance.
_WEAK = 0.5


# A shard with its `fi`: the table, or where its part lies.
Item = tuple[Shard, pa.Table | PartPlace]


class _Ranked:
    """A stage over shards whose `fi` is there already."""

    def __init__(self, worker: Worker, arrays: Arrays, into: PartPlace | None = None) -> None:
        self.worker, self.into = worker, into

    def values(self, item: Item) -> pa.Table:
        """`row_id`, the label if there is one, and `fi`, null where a row was not scored."""
        shard, held = item
        return held.read(shard.index) if isinstance(held, PartPlace) else held

    def features(self, shard: Shard) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, np.ndarray[Any, Any]]:
        """Features `[n, d]`, classes `[n]` if they are known, and keys `[n]` of all rows of a shard."""
        job, x, labels, keys = self.worker.job, [], [], []
        for raw in self.worker.read_raw(job.scored, shard, _READ_ROWS):
            keys.append(row_keys(raw.x, raw.labels))
            x.append(raw.x if raw.x.dtype == object else raw.x.reshape(len(raw), -1))
            labels.append(raw.labels)
        known = job.columns[job.scored].label is not None
        return np.concatenate(x), job.classes.encode(np.concatenate(labels)) if known else None, np.concatenate(keys)


class Gather(_Ranked):
    """Shard -> its scored rows, as the forest learns from them: a share of them, by their contents alone."""

    def __init__(self, worker: Worker, arrays: Arrays) -> None:
        super().__init__(worker, arrays)
        self.share, self.reference_share = (float(v) for v in arrays["shares"])

    def __call__(self, item: Item) -> Arrays:
        """Features, labels and values, and the values that ranks are taken among."""
        fi = self.values(item)["fi"].to_numpy()
        x, labels, keys = self.features(item[0])
        draws = uniforms(keys, self.worker.job.spec.seed + 4, 1)[:, 0]
        known = ~np.isnan(fi)
        rows = known & (draws < self.share)
        out = {"x": x[rows], "values": fi[rows], "reference": fi[known & (draws < self.reference_share)]}
        return out if labels is None else {**out, "labels": labels[rows]}


class RankRest(_Ranked):
    """Shard -> `fi_rank` in [0, 1] of all its rows: their own rank where they are scored, else the forest's."""

    def __init__(self, worker: Worker, arrays: Arrays, into: PartPlace | None) -> None:
        super().__init__(worker, arrays, into)
        self.forest, self.reference = RankForest.from_array(arrays["forest"]), arrays["reference"]

    def __call__(self, item: Item) -> pa.Table | Entry:
        """The table of a shard with `fi_rank`, or the entry of the file that it was written to."""
        table = self.values(item)
        fi = table["fi"].to_numpy()
        x, labels, _ = self.features(item[0])
        ranks, rest = rank_of(fi, self.reference), np.isnan(fi)
        if rest.any():
            ranks[rest] = self.forest.predict(x[rest], None if labels is None else labels[rest])
        table = table.append_column("fi_rank", pa.array(ranks))
        return table if self.into is None else self.into.write(item[0].index, table)


def measured_into(run: Run) -> str:
    """The folder for values of FI: another one where a forest is to rank the rest."""
    return SCORES if run.job.spec.subsample == 1 else UNRANKED


def rank_rest(run: Run, tables: list[pa.Table]) -> tuple[list[pa.Table], dict[str, Any]]:
    """Add `fi_rank` to every shard.

    Args:
        run: whose shards have `fi`.
        tables: of the shards, or nothing where they are in the folder.

    Returns:
        The shards' tables (or nothing), and how well the forest ranks.
    """
    shards = run.job.tables[run.job.scored].shards
    items = {s.index: (s, tables[k] if tables else _source(run, s)) for k, s in enumerate(shards)}
    rows = run.scans[run.job.scored].rows
    scored = max(rows - len(run.job.spec.undrawn), 1) * run.job.spec.subsample
    shares = {"shares": np.array([min(1.0, MOST_ROWS / scored), min(1.0, _MOST_REFERENCES / scored)])}
    parts: dict[int, Arrays] = {}
    with run.timed("forest", rows) as advance:
        for key, part in run.runner.map(Gather, shares, items):
            parts[key] = part
            advance(items[key][0].rows)
        held = {name: np.concatenate([parts[k][name] for k in sorted(parts)]) for name in parts[shards[0].index]}
        seed = run.spec.seed
        forest = RankForest.fit(held["x"], held["values"], held.get("labels"), seed, torch.get_num_threads())
    quality = {"forest_rank_correlation": forest.oob_rank_correlation, "forest_rows": len(held["values"])}
    _report(run, quality)
    arrays = {"forest": forest.to_array(), "reference": np.sort(held["reference"])}
    todo = {k: item for k, item in items.items() if not run.has_part(SCORES, item[0])}
    done = run.runner.map(RankRest, arrays, todo, into=run.place(SCORES))
    return pipeline.collect(run, "ranks", done, {k: s for k, (s, _) in items.items()}, todo), quality


def _report(run: Run, quality: dict[str, Any]) -> None:
    """Print how well the forest ranks, and warn where it hardly does."""
    correlation = quality["forest_rank_correlation"]
    run.log("forest", **quality)
    print(
        f"rayinf forest: out-of-bag rank correlation {correlation:.3f} over {quality['forest_rows']:,} scored rows; "
        "most of a top selection comes from the scored share"
    )
    if correlation < _WEAK:
        warnings.warn(
            f"The random forest's out-of-bag rank correlation is {correlation:.3f}: ranks of rows that were not "
            "scored are little better than chance. Score a larger share (subsample=...), or all rows.",
            stacklevel=4,
        )


def _source(run: Run, shard: Shard) -> PartPlace:
    """Where a shard's `fi` lies: with its ranks where it has them already."""
    place = run.place(SCORES if run.has_part(SCORES, shard) else UNRANKED)
    assert place is not None
    return place
