"""The state of active-learning trajectories on disk: what each round picked, its labels, and its measures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.scores import to_numpy
from rayinf.store.places import AnyPath, open_place

if TYPE_CHECKING:
    pass

VERB = "active_learning"
Key = tuple[str, int]
_ASKED = ["row_id", "position", "value"]
SECONDS = ("loss", "seconds", "acquire_seconds", "oracle_seconds", "train_seconds")


@dataclass(frozen=True)
class TrajectoryState:
    """How one strategy fared under one seed.

    Attributes:
        rows: a line a round, from round 0, as in `History.table`.
        picked: ids of the rows that each round picked, from round 1.
        waiting: the file that it waits for.
    """

    rows: tuple[Mapping[str, Any], ...]
    picked: tuple[Array, ...]
    waiting: AnyPath | None

    def reaches(self, rounds: int) -> bool:
        """Whether all rounds are done."""
        return len(self.rows) == rounds + 1 and len(self.picked) == rounds


class TrajectoryFolder:
    """Where the state of one strategy under one seed lies, after every step of it.

    Args:
        run: the run's folder.
        owner: of the run's files; see `run_folder.owner_of`.
        key: the strategy and the seed.
        n: rows that a round picks.
    """

    def __init__(self, run: AnyPath, owner: str, key: Key, n: int) -> None:
        self._files = CheckedFolder(run / f"{key[0]}-seed{key[1]}", owner)
        self._n = n

    def labeled(self, r: int) -> pa.Table | None:
        """`row_id`, `position`, `label`, `value` of the rows that a round added, in picked order, if it is done."""
        return self._table(_labeled(r))

    def asked(self, r: int) -> pa.Table | None:
        """The same without labels, if they are awaited."""
        return self._table(_asked(r))

    def put_asked(self, r: int, rows: pa.Table) -> None:
        """Keep what a round picked."""
        self._files.put_table(_asked(r), rows.select(_ASKED))

    def put_labels(self, r: int, rows: pa.Table, labels: Array) -> pa.Table:
        """Keep the labels of what a round picked; what `labeled` gives from now on."""
        found = rows.select(_ASKED).add_column(2, "label", pa.array(labels))
        self._files.put_table(_labeled(r), found)
        self._files.remove(_asked(r))
        return found

    def told(self, r: int) -> dict[str, Any]:
        """What is known of a round: its measures, seconds, and what it waits for."""
        held: dict[str, Any] = self._files.json(_measures(r)) or {}
        return held

    def tell(self, r: int, **fields: Any) -> None:
        """Add to what is known of a round. `waiting=None`: for nothing any more."""
        held = {**self.told(r), **fields}
        if held.get("waiting") is None:
            held.pop("waiting", None)
        self._files.put_json(_measures(r), held)

    def clean(self) -> None:
        """Remove what a process that was killed had given up: files off the list, and questions that have labels."""
        self._files.clean()
        for r in itertools.takewhile(lambda r: self.labeled(r) is not None, itertools.count(1)):
            if self._files.entry(_asked(r)) is not None:
                self._files.remove(_asked(r))

    def close(self) -> None:
        """Leave the folder as it lies from now on, until the trajectory goes on."""
        self._files.join()

    def measured(self, r: int) -> dict[str, Any] | None:
        """A round's line of `History.table`, if it is there."""
        told = self.told(r)
        if "accuracy" not in told:
            return None
        parts = [told.get(name) for name in SECONDS[2:]]
        return {**told, "seconds": sum(p for p in parts if p is not None)}

    def trail(self) -> TrajectoryState:
        """All that is there, up to the first round that is not."""
        rows: list[dict[str, Any]] = []
        picked: list[Array] = []
        while True:
            r = len(rows)
            if r:
                added = self.labeled(r)
                if added is None:
                    break
                picked.append(to_numpy(added["row_id"]))
            line = self.measured(r)
            if line is None:
                break
            rows.append(line)
        awaited = self.told(len(rows)).get("waiting")
        return TrajectoryState(tuple(rows), tuple(picked), open_place(awaited) if awaited else None)

    def _table(self, name: str) -> pa.Table | None:
        entry = self._files.entry(name)
        return self._files.table(name) if entry is not None and entry.rows == self._n else None


def keys(strategies: Sequence[str], seeds: Sequence[int]) -> list[Key]:
    """Every strategy under every seed."""
    return [(strategy, seed) for strategy in strategies for seed in seeds]


def load_trajectories(run: AnyPath, owner: str, wanted: Sequence[Key], n: int) -> dict[Key, TrajectoryState]:
    """The state of trajectories in a run's folder."""
    return {key: TrajectoryFolder(run, owner, key, n).trail() for key in wanted}


def _labeled(r: int) -> str:
    return f"round-{r}.parquet"


def _asked(r: int) -> str:
    return f"asked-{r}.parquet"


def _measures(r: int) -> str:
    return f"round-{r}.json"
