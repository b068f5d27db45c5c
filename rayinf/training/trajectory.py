"""One trajectory of active learning: a strategy under a seed, round by round, with its state on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.core.fisher import FisherKind
from rayinf.data.batches import Array, BatchReader, Columns
from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.scores import to_numpy
from rayinf.data.selection import Selection
from rayinf.data.tables import READ_ROWS, MemoryTable, Table, as_table
from rayinf.engine.entry import BY_MEASURE
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import rest
from rayinf.store.places import AnyPath, StorePath
from rayinf.task import Task
from rayinf.training.evaluation import measure_model
from rayinf.training.open_table import check_unchanged
from rayinf.training.oracle import Oracle, Query
from rayinf.training.retraining import train_anew
from rayinf.training.steps import Steps
from rayinf.training.trajectory_state import (
    Key,
    TrajectoryState,
    folder_name,
    labelled,
    measures,
    picked,
    read_state,
    with_sum,
)


@dataclass(frozen=True)
class AcquireOptions:
    """The arguments of `acquire` that every round passes on."""

    curvature: str
    aggregate: str | float
    rank: int | None
    subsample: float
    fisher: FisherKind
    damping: float | str | None
    samples: int
    scale: str
    perturb: str

    def of(self, strategy: str) -> dict[str, Any]:
        """The arguments of one strategy among several: those of FI at their defaults where it does not take FI."""
        defaults: dict[str, Any] = (
            {"rank": None, "scale": "mean", "perturb": "input"} if strategy not in BY_MEASURE else {}
        )
        return {**asdict(self), **defaults, **({"subsample": 1.0} if strategy != "fi" else {})}


@dataclass
class Labeled:
    """The labelled rows, in memory: those given, and rows of the pool that were labelled since.

    Attributes:
        x: features `[n, ...]`.
        y: labels `[n]`.
        pool: where the others come from.
        columns: of the pool, as it is read.
    """

    x: Array
    y: Array
    pool: Table
    columns: Columns
    _unread: list[tuple[Array, Array]] = field(default_factory=list)

    def add(self, positions: Array, labels: Array) -> None:
        """Add rows of the pool; their features are read with the next `table`."""
        self._unread.append((positions, labels))

    def __len__(self) -> int:
        """Rows."""
        return len(self.y) + sum(len(labels) for _, labels in self._unread)

    def table(self, task: Task) -> pa.Table:
        """All rows, in the order in which they came."""
        if self._unread:
            positions, labels = (np.concatenate(parts) for parts in zip(*self._unread, strict=True))
            self.x = np.concatenate([self.x, read_features(self.pool, self.columns, positions)])
            self.y = np.concatenate([self.y, labels])
            self._unread = []
        found = as_table((self.x, self.y), task.feature_columns, [task.label], "labeled")
        assert isinstance(found, MemoryTable)
        return found.table


def read_features(table: Table, columns: Columns, positions: Array) -> Array:
    """Features of some rows in the order of their positions; other rows pass by."""
    order = np.argsort(positions)
    wanted, reader = positions[order], BatchReader(table, columns)
    shards = [s for s in table.shards if _inside(wanted, s.start, s.rows).size]
    batches = (batch for shard in shards for batch in reader.read(shard, READ_ROWS))
    found = np.concatenate([b.x[_inside(wanted, b.start, len(b)) - b.start] for b in batches])
    out = np.empty_like(found)
    out[order] = found
    return out


def _inside(wanted: Array, start: int, rows: int) -> Array:
    first, last = np.searchsorted(wanted, [start, start + rows])
    return wanted[first:last]


@dataclass(frozen=True)
class Learning:
    """What all trajectories of a call share; called with a strategy and a seed, it runs theirs. Picklable.

    Attributes:
        task: with its classes.
        labeled: features and labels of the first labelled rows.
        tables: "pool", "test", and "valid" or None.
        paths: of those that lie on disk, to see whether they change.
        columns: of the pool.
        oracle: gives labels; picklable.
        rounds: how many.
        n: rows a round.
        acquire: `rayinf.acquire`.
        options: of `acquire`.
        left_out: ids of the pool's rows that are labelled from the first.
        folder: the run's.
        owner: of the files in it.
        cluster: for `acquire`; None where trajectories run side by side.
        prints: whether rounds are printed on stderr.
    """

    task: Task
    labeled: tuple[Array, Array]
    tables: Mapping[str, Table | None]
    paths: Mapping[str, str | Path]
    columns: Columns
    oracle: Oracle
    rounds: int
    n: int
    acquire: Callable[..., Selection]
    options: AcquireOptions
    left_out: Array
    folder: AnyPath = Path()
    owner: str = ""
    cluster: Cluster | None = None
    prints: bool = False

    def __call__(self, key: Key) -> TrajectoryState:
        """Run a trajectory to its end, or until it must wait for labels; what is on disk is not done again."""
        return Trajectory(self, key).run()

    def files(self, key: Key) -> CheckedFolder:
        """The files of a trajectory."""
        return CheckedFolder(self.folder / folder_name(key), self.owner)

    def check_unchanged(self) -> None:
        """Refuse to go on over a table that was rewritten meanwhile.

        Raises:
            RunError: a Parquet file changed since the run began.
        """
        for name, path in self.paths.items():
            table = self.tables[name]
            if table is not None:
                check_unchanged(table, path, name)


class Trajectory:
    """A strategy under a seed."""

    def __init__(self, learning: Learning, key: Key) -> None:
        self._shared, (self._strategy, self._seed) = learning, key
        pool = learning.tables["pool"]
        assert pool is not None
        self._pool = pool
        self._files = learning.files(key)
        self._steps = Steps(lambda: self._files)
        self._labeled = Labeled(*learning.labeled, pool, learning.columns)
        self._picked: list[Array] = []
        self._trained: Task | None = None
        self._seconds: dict[str, float] = {}

    def run(self) -> TrajectoryState:
        """All rounds, or those up to the first whose labels are awaited."""
        self._files.clean()
        for r in range(self._shared.rounds + 1):
            self._seconds = {}
            if r:
                added = self._steps.step(labelled(r), partial(self._label, r))
                if added is None:
                    break
                self._picked.append(to_numpy(added["row_id"]))
                self._labeled.add(added["position"].to_numpy(), to_numpy(added["label"]))
                self._trained = None
            self._steps.step(measures(r), partial(self._measure, r))
        self._files.join()
        return read_state(self._files, self._shared.rounds)

    def _label(self, r: int) -> pa.Table | None:
        """The rows that a round adds, with labels; None where these are awaited."""
        rows = self._steps.step(picked(r), partial(self._pick, r))
        rest(self._shared.cluster)
        begin = time.perf_counter()
        answer = self._shared.oracle(Query(self._strategy, self._seed, r, rows))
        if isinstance(answer, Path | StorePath):
            name = picked(r, "json")
            self._steps.write(name, {**(self._steps.read(name) or {}), "waiting": str(answer)})
            return None
        self._seconds["oracle_seconds"] = time.perf_counter() - begin
        return rows.add_column(2, "label", pa.array(answer))

    def _pick(self, r: int) -> pa.Table:
        """`row_id`, `position` and `value` of the rows that a round picks, best first."""
        shared = self._shared
        task, labeled = self._model(), self._labeled.table(shared.task)
        begin = time.perf_counter()
        places = {"valid": shared.tables["valid"], "cluster": shared.cluster}
        exclude = [i for ids in (shared.left_out, *self._picked) for i in ids.tolist()] or None
        how = {**shared.options.of(self._strategy), **places, "seed": self._seed, "exclude": exclude}
        selection = shared.acquire(task, labeled, self._pool, shared.n, self._strategy, **how)
        shared.check_unchanged()
        self._steps.write(picked(r, "json"), {"acquire_seconds": time.perf_counter() - begin})
        return selection.source.filter(selection.source["kept"]).select(["row_id", "position", "value"])

    def _model(self) -> Task:
        """The task, trained on all rows that are labelled so far."""
        if self._trained is None:
            self._trained = train_anew(self._shared.task, self._labeled.table(self._shared.task), seed=self._seed)
        return self._trained

    def _measure(self, r: int) -> dict[str, Any]:
        """A round's measures and seconds; without those of steps that a process did which ended before this one."""
        begin = time.perf_counter()
        found = measure_model(self._model(), self._shared.tables["test"])
        found.pop("rows")
        self._seconds["train_seconds"] = time.perf_counter() - begin
        acquired = (self._steps.read(picked(r, "json")) or {}) if r else {}
        seconds = {name: value for name, value in acquired.items() if name == "acquire_seconds"}
        line = {"labeled": len(self._labeled), **found, **seconds, **self._seconds}
        if self._shared.prints:
            print_round((self._strategy, self._seed), r, self._shared.rounds, with_sum(line))
        return line


def print_round(key: Key, r: int, rounds: int, line: Mapping[str, Any]) -> None:
    """Print how a round went."""
    print(
        f"rayinf active_learning {key[0]}, seed {key[1]}: round {r} of {rounds}, {line['labeled']:,} labelled, "
        f"accuracy {line['accuracy']:.2%}, {line['seconds']:.1f} s",
        file=sys.stderr,
        flush=True,
    )
