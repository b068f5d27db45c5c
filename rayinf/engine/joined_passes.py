"""Values that come in several passes over all rows: what each gives is kept, and joined shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.checked_folder import Entry
from rayinf.data.files import Arrays
from rayinf.data.part_files import PartPlace
from rayinf.data.run_folder import SCORES
from rayinf.data.scores import LABEL_COLUMN
from rayinf.data.shards import Shard
from rayinf.engine import pipeline
from rayinf.engine.blank_parts import fill_gaps
from rayinf.engine.fit_quality import KEY, FitSums
from rayinf.engine.run import Run
from rayinf.engine.scoring import Scoring
from rayinf.engine.worker import Worker

# A shard, and where the table of each pass is.
Item = tuple[Shard, Sequence[pa.Table | PartPlace]]
# The tables of all passes -> the columns of all of them, by name.
Join = Callable[[Sequence[pa.Table]], dict[str, Any]]


class JoinPasses:
    """Shard -> its values by all passes. Options: `join`, `names` of the joined columns, `into`."""

    def __init__(self, worker: Worker, arrays: Arrays, join: Join, names: list[str], into: PartPlace | None) -> None:
        self.join, self.names, self.into = join, names, into

    def __call__(self, item: Item) -> pa.Table | Entry:
        """The shard's table, or the entry of the file that it was written to."""
        shard, sources = item
        tables = [s.read(shard.index) if isinstance(s, PartPlace) else s for s in sources]
        columns = self.join(tables)
        kept = [n for n in ("row_id", LABEL_COLUMN) if n in tables[-1].schema.names]
        table = pa.table({**{n: tables[-1][n] for n in kept}, **{n: columns[n] for n in self.names}})
        fit = FitSums.from_json(tables[-1].schema.metadata[KEY])
        fit.value = max((float(np.abs(table[n].to_numpy()).max(initial=0.0)) for n in self.names), default=0.0)
        table = table.replace_schema_metadata({KEY: fit.to_json()})
        return table if self.into is None else self.into.write(shard.index, table)


def values_of(table: pa.Table) -> dict[str, Any]:
    """The columns of values of a pass's table, by name."""
    return {n: table[n] for n in table.schema.names if n not in ("row_id", LABEL_COLUMN)}


def is_done(run: Run, folder: str) -> bool:
    """Whether every shard has its part of a pass, or its scores."""
    shards = run.job.tables["train"].shards
    return all(run.has_part(SCORES, s) or run.has_part(folder, s) for s in shards)


def join_passes(
    run: Run,
    found: Sequence[list[pa.Table]],
    folders: Sequence[str],
    join: Join,
    names: list[str],
) -> list[pa.Table]:
    """The values of every shard, from those of its passes. With a folder, shards that are finished are kept.

    Args:
        run: open.
        found: the shards' tables by pass, or nothing where they were written.
        folders: of the run's, for the parts of each pass; they are removed.
        join: picklable.
        names: of the joined columns.

    Returns:
        The shards' tables in order, or nothing where they were written to the folder.
    """
    shards, out = run.job.tables["train"].shards, run.left_out.of_values
    places = [run.place(folder) for folder in folders]
    items = {
        s.index: (s, [place or found[k][i] for k, place in enumerate(places)])
        for i, s in enumerate(shards)
        if s.index not in out
    }
    todo = {k: item for k, item in items.items() if not run.has_part(SCORES, item[0])}
    joined = run.runner.map(JoinPasses, {}, todo, join=join, names=names, into=run.place(SCORES))
    tables = pipeline.take_in(run, "join", joined, {k: s for k, (s, _) in items.items()}, todo)
    fill_gaps(run, Scoring, tables, SCORES)
    if run.folder is not None:
        for folder in folders:
            run.folder.clear(folder)
    return [tables[k] for k in sorted(tables)]
