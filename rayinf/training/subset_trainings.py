"""A task's model trained anew on random subsets, each with several seeds, and what it then gives on validation rows.

Each training is kept: its losses of all validation rows, from which the loss of every class and slice follows for any
scores that come later; and the values of the objectives that cannot be made of these (gaps, attacks, functions of your
own), a file for each of them. A training is done again where one of its files is missing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.core.objectives import LABEL, Objective, Target
from rayinf.data.batches import Array
from rayinf.data.run_folder import RunFolder
from rayinf.data.scan import OTHER, TableScan
from rayinf.engine import progress
from rayinf.engine.digest import digest
from rayinf.engine.job import Cluster
from rayinf.engine.model_digest import model_digest
from rayinf.engine.parallel import side_by_side
from rayinf.errors import InputError, RunError
from rayinf.task import Task
from rayinf.training.evaluation import Measurement
from rayinf.training.open_table import check_unchanged
from rayinf.training.retraining import Retraining
from rayinf.training.steps import Steps
from rayinf.training.subsets import Subsets

# The number of the subset, and of the seed.
Key = tuple[int, int]
_LOSS = "loss"
# Names in the extent of a run; of other measures with their keys behind.
SUBSETS, SEEDS = "subsets", "seeds"
_OF = " of "


def is_sum_of_losses(objective: Objective) -> bool:
    """Whether an objective's columns are sums of the rows' losses, over all rows or over groups of them."""
    return all(getattr(objective, name) is None for name in ("rows", "combine", "where", "attack"))


def measure_key(objective: Objective, task: Task, valid: TableScan) -> str:
    """A short name for what is measured: the objective, its groups, and for an attack the model that it is aimed at.

    Raises:
        InputError: code that cannot be digested, without `Task(version=...)`.
    """
    groups = valid.digests.get(OTHER + str(objective.split)) if objective.split not in (None, LABEL) else None
    aim = model_digest(task.build(), task.version).whole if objective.attack is not None else None
    held = digest((objective, groups, aim), f"Objective {objective.name!r}", task.version)
    return f"{re.sub(r'[^A-Za-z0-9_.]', '_', objective.name)}-{held[:12]}"  # of a folder


@dataclass
class TrainOnSubsets:
    """Trains on a subset and measures; picklable, for workers. Tables are opened once in each process.

    Attributes:
        task: with its classes.
        train: the training table as it was given.
        valid: the validation table as it was given.
        subsets: of the training rows.
        measures: further objectives with their groups, by their keys.
    """

    task: Task
    train: Any
    valid: Any
    subsets: Subsets
    measures: Mapping[str, Target]
    _opened: tuple[Retraining, Measurement] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was opened."""
        return {**self.__dict__, "_opened": None}

    def __call__(self, key: Key) -> dict[str, Any]:
        """The losses of all validation rows `[V]`, the values of the measures by key and column, and the seconds."""
        begin = time.perf_counter()
        if self._opened is None:
            wanted = tuple(target.objective for target in self.measures.values())
            measurement = Measurement(self.task, self.valid, wanted, self.task, several=True)
            self._opened = Retraining(self.task, self.train, several=True), measurement
        retraining, measurement = self._opened
        subset, seed = key
        trained = retraining.train(self.subsets.keep(subset), seed=seed, rows=self.subsets.rows)
        losses: list[Array] = []
        found = measurement.of(trained, losses)
        values = {key: {column: found[column] for column in t.columns} for key, t in self.measures.items()}
        return {_LOSS: np.concatenate(losses), "values": values, "seconds": time.perf_counter() - begin}


@dataclass(frozen=True)
class SubsetTrainings:
    """The trainings of a run's folder: done now, or read.

    Attributes:
        function: trains and measures.
        tables: "train" and "valid", opened.
        first: the first of the seeds.
        title: of the progress bar.
    """

    function: TrainOnSubsets
    tables: Mapping[str, Any]
    first: int
    title: str

    def extent(self, subsets: int, seeds: int) -> dict[str, int]:
        """What a run with so many subsets and seeds has: a later one may ask for more, or for further measures."""
        names = ["", *(f"{_OF}{key}" for key in self.function.measures)]
        return {f"{what}{name}": n for name in names for what, n in ((SUBSETS, subsets), (SEEDS, seeds))}

    def complete(self, run: RunFolder, cluster: Cluster | None) -> None:
        """Do every training of the run's extent of which a file is missing.

        Raises:
            InputError: files of measures that an earlier call had, and this one cannot make again.
            RunError: training diverged, or a table changed on the way.
        """
        self._check_others(run)
        keys = [
            (j, self.first + r) for j in range(run.extent[SUBSETS]) for r in range(run.extent[SEEDS])
        ]  # fmt: skip
        missing = {key: key for key in keys if not all(map(run.files.is_sound, self._files_of(key, run.extent)))}
        if not missing:
            return
        steps = Steps(lambda: run.files)
        calls = partial(side_by_side, self.function, cluster=cluster)
        with progress.bar(self.title, len(keys), len(keys) - len(missing), "trainings") as advance:
            for key, found in calls(missing):
                self._keep(key, found, steps, run)
                advance(1)

    def read(self, run: RunFolder, keys: Sequence[Key]) -> Iterator[tuple[Array, dict[str, float]]]:
        """What each training gave, one at a time: the losses of the validation rows `[V]`, and values by column.

        Raises:
            RunError: a file that was there has gone.
        """
        steps = Steps(lambda: run.files)

        def read(name: str) -> Any:
            found = steps.read(name)
            if found is None:
                raise RunError(f"{run.path / name} was removed or damaged meanwhile.", "give the same call again.")
            return found

        for key in keys:
            values: dict[str, float] = {}
            for name in self.function.measures:
                values |= read(_values_file(name, key))
            yield read(_losses_file(key))[_LOSS].to_numpy(), values

    def _keep(self, key: Key, found: Mapping[str, Any], steps: Steps, run: RunFolder) -> None:
        """Write what a training gave.

        Raises:
            RunError: losses that are not finite, or a table that changed.
        """
        measured = {"a loss": found[_LOSS], **{c: v for values in found["values"].values() for c, v in values.items()}}
        for what, value in measured.items():
            if not np.isfinite(value).all():
                raise RunError(
                    f"The model that was trained on subset {key[0]} with seed {key[1]} gives {what} that is NaN or "
                    "infinite on the validation rows.",
                    "pass a lower learning rate in Task(fit=rayinf.Fit(lr=...)), if training diverges.",
                )
        given = {"train": self.function.train, "valid": self.function.valid}
        for name, table in self.tables.items():
            check_unchanged(table, given[name], name)
        run.log("training", subset=key[0], seed=key[1], seconds=round(found["seconds"], 3))
        for name, values in found["values"].items():
            steps.write(_values_file(name, key), values)
        steps.write(_losses_file(key), pa.table({_LOSS: found[_LOSS]}))

    def _files_of(self, key: Key, extent: Mapping[str, int]) -> list[str]:
        """The files that a training of a run has."""
        subset, seed = key[0], key[1] - self.first
        more = [
            _values_file(name, key)
            for name in self.function.measures
            if subset < extent[f"{SUBSETS}{_OF}{name}"] and seed < extent[f"{SEEDS}{_OF}{name}"]
        ]
        return [*more, _losses_file(key)]

    def _check_others(self, run: RunFolder) -> None:
        """Refuse to finish a folder in which files of another call's measures are damaged.

        Raises:
            InputError: one is.
        """
        prefix = f"{SUBSETS}{_OF}"
        for name in [n.removeprefix(prefix) for n in run.extent if n.startswith(prefix)]:
            subsets, seeds = run.extent[f"{prefix}{name}"], run.extent[f"{SEEDS}{_OF}{name}"]
            keys = [(j, self.first + r) for j in range(subsets) for r in range(seeds)]
            lost = [k for k in keys if not run.files.is_sound(_values_file(name, k))]
            if name not in self.function.measures and lost:
                raise InputError(
                    f"{len(lost)} files of an earlier call are damaged or missing in the folder: its values of "
                    f"{name.rpartition('-')[0]!r}, which this call does not measure.",
                    "give that call again first, with its scores, or pass another folder as out.",
                )


def _losses_file(key: Key) -> str:
    return f"trainings/subset{key[0]}-seed{key[1]}.parquet"


def _values_file(name: str, key: Key) -> str:
    return f"measures/{name}/subset{key[0]}-seed{key[1]}.json"
