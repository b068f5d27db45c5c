"""What workers need to know of a run: its spec, its tables and what was found out about them; `Cluster`, chunks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayinf.arguments import number, optional, refuse, text, whole
from rayinf.core.objectives import Target
from rayinf.core.outputs import Outputs
from rayinf.data.batches import Columns
from rayinf.data.labels import Classes
from rayinf.data.shards import Shard
from rayinf.data.tables import Table
from rayinf.task import Task

# As many workers as there is room for.
AUTO = "auto"


@dataclass(frozen=True)
class Cluster:
    """Where a run's workers live on Ray. Never a part of a run's identity: results do not depend on it.

    Args:
        address: None starts Ray on this machine; "auto" or a head's address joins a cluster. A Ray that this process
            has started already is used as it is.
        workers: processes that each hold the model, >= 1. More than the machine or the cluster can hold are refused
            before any is started. "auto": as many as there is room for (CPUs, GPUs, memory) beside other jobs, at
            least one; one joins where a node joins or another job ends, and leaves with its node. No more nodes are
            asked for.
        cpus_per_worker: CPUs that Ray reserves for a worker, > 0, and the number of its threads.
        gpus_per_worker: GPUs (or a share of one) that Ray reserves for a worker, >= 0. Over 0, its model runs there.
        patience: seconds without progress (a finished shard, or rows that a worker has read), > 0, after which the run
            ends with an error; what is finished is kept.
        runtime_env: Ray's own, for the code that a cluster's machines lack.
    """

    address: str | None = None
    workers: int | str = 2
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    patience: float = 900.0
    runtime_env: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse a cluster that could do no work.

        Raises:
            InputError: an argument has the wrong type or is out of range.
        """
        optional(text, "Cluster.address", self.address, 'the address of a head, "auto", or None')
        held = {
            "workers": _count("Cluster.workers", self.workers),
            "cpus_per_worker": number("Cluster.cpus_per_worker", self.cpus_per_worker, "> 0"),
            "gpus_per_worker": number("Cluster.gpus_per_worker", self.gpus_per_worker),
        }
        if self.patience != float("inf"):
            held["patience"] = number("Cluster.patience", self.patience, "> 0")
        for name, value in held.items():
            object.__setattr__(self, name, value)
        if not (self.runtime_env is None or isinstance(self.runtime_env, dict)):
            expected = "a dict, Ray's runtime_env, or None"
            refuse("Cluster.runtime_env", self.runtime_env, expected, 'pass a dict, such as {"working_dir": "."}.')

    @property
    def fixed(self) -> int | None:
        """How many workers were asked for; None for as many as there is room for."""
        return None if isinstance(self.workers, str) else self.workers


def _count(name: str, value: Any) -> int | str:
    """A number of workers, or "auto"; refuses all else."""
    if isinstance(value, str) and not value.strip().isdigit():
        if value == AUTO:
            return value
        refuse(name, value, f'an integer >= 1 or "{AUTO}"', f'pass workers=2, or workers="{AUTO}".')
    return whole(name, value, 1)


@dataclass(frozen=True)
class Job:
    """What has been found out about a run's tables and model, with its spec; picklable: every worker gets it once.

    Attributes:
        task: that of the spec, or one that was made of it.
        tables: by name, opened.
        columns: what is read of each.
        classes: of the training table's labels, in the order of the logits; empty until they are known.
        spec: of the run (`engine.spec`), of the verb's own class.
        targets: the objectives with their groups.
        outputs: what the model returns.
        levels: the groups of every column of groups.
        fitted_share: of the training rows, the share that K-FAC and EKFAC are fitted on (`engine.curvature_rows`).
        random_signs: layers with many positions take Fisher columns that are combined with random signs.
        own_precision: the model's passes are in the precision that it came in, not in that of the spec.
        key: another for every job that a worker must set itself up for anew.
        state: digests of the driver's parameters and buffers by name, which a model that a factory builds must agree
            with.
    """

    task: Task
    tables: dict[str, Table]
    columns: dict[str, Columns]
    classes: Classes
    spec: Any
    targets: tuple[Target, ...] = ()
    outputs: Outputs = field(default_factory=Outputs)
    levels: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    fitted_share: float = 1.0
    random_signs: bool = False
    own_precision: bool = False
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: Mapping[str, str] | None = None

    @property
    def precision(self) -> str | None:
        """Of the model's passes: None is that of its parameters."""
        precision: str | None = None if self.own_precision and self.spec.precision == "fp64" else self.spec.precision
        return precision

    @property
    def scored(self) -> str:
        """The table whose rows get scores."""
        return "pool" if "pool" in self.tables else "train"


@dataclass(frozen=True)
class Chunk:
    """Consecutive shards that one worker sums up in order."""

    shards: Sequence[Shard]

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(s.rows for s in self.shards)


def chunks(shards: Sequence[Shard], most: int) -> dict[int, Chunk]:
    """Shards in at most `most` chunks of consecutive ones: fixed by the table, never by the workers."""
    count = min(len(shards), most)
    cuts = [len(shards) * k // count for k in range(count + 1)]
    return {k: Chunk(shards[cuts[k] : cuts[k + 1]]) for k in range(count)}
