"""What became of active learning: a line a round, the rows that were picked, and the state of it on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.data.batches import Array
from rayinf.data.files import sound_part, write_json, write_part
from rayinf.data.run_folder import RunFolder
from rayinf.data.scores import to_numpy
from rayinf.errors import InputError

VERB = "active_learning"
Key = tuple[str, int]
_ASKED = ["row_id", "position", "value"]
_LABELED = ["row_id", "position", "label", "value"]
_FIRST = ("strategy", "seed", "round", "labeled", "accuracy")
_LAST = ("loss", "seconds", "acquire_seconds", "oracle_seconds", "train_seconds")


@dataclass(frozen=True)
class Trail:
    """How one strategy fared under one seed.

    Attributes:
        rows: a line a round, from round 0, as in `History.table`.
        picked: ids of the rows that each round picked, from round 1.
        waiting: the file that it waits for.
    """

    rows: tuple[Mapping[str, Any], ...]
    picked: tuple[Array, ...]
    waiting: Path | None

    def reaches(self, rounds: int) -> bool:
        """Whether all rounds are done."""
        return len(self.rows) == rounds + 1 and len(self.picked) == rounds


@dataclass(frozen=True)
class TrailFolder:
    """Where the state of one strategy under one seed lies, after every step of it.

    Attributes:
        path: the folder.
        n: rows that a round picks.
    """

    path: Path
    n: int

    @classmethod
    def of(cls, run: Path, key: Key, n: int) -> TrailFolder:
        """The folder of a strategy and a seed, in that of the run."""
        return cls(run / f"{key[0]}-seed{key[1]}", n)

    def labeled(self, r: int) -> pa.Table | None:
        """`row_id`, `position`, `label`, `value` of the rows that a round added, in picked order, if it is done."""
        return self._sound(self._labeled(r), _LABELED)

    def asked(self, r: int) -> pa.Table | None:
        """The same without labels, if they are awaited."""
        return self._sound(self._asked(r), _ASKED)

    def put_asked(self, r: int, rows: pa.Table) -> None:
        """Keep what a round picked."""
        write_part(self._asked(r), rows.select(_ASKED))

    def put_labels(self, r: int, rows: pa.Table, labels: Array) -> pa.Table:
        """Keep the labels of what a round picked; what `labeled` gives from now on."""
        found = rows.select(_ASKED).add_column(2, "label", pa.array(labels))
        write_part(self._labeled(r), found)
        self._asked(r).unlink(missing_ok=True)
        return found

    def told(self, r: int) -> dict[str, Any]:
        """What is known of a round: its measures, seconds, and what it waits for."""
        try:
            held: dict[str, Any] = json.loads(self._told(r).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return held

    def tell(self, r: int, **fields: Any) -> None:
        """Add to what is known of a round."""
        write_json(self._told(r), {**self.told(r), **fields})

    def measured(self, r: int) -> dict[str, Any] | None:
        """A round's line of `History.table`, if it is there."""
        told = self.told(r)
        if "accuracy" not in told:
            return None
        parts = [told.get(name) for name in _LAST[2:]]
        return {**told, "seconds": sum(p for p in parts if p is not None)}

    def trail(self) -> Trail:
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
        return Trail(tuple(rows), tuple(picked), Path(awaited) if awaited else None)

    def _labeled(self, r: int) -> Path:
        return self.path / f"round-{r}.parquet"

    def _asked(self, r: int) -> Path:
        return self.path / f"asked-{r}.parquet"

    def _told(self, r: int) -> Path:
        return self.path / f"round-{r}.json"

    def _sound(self, path: Path, columns: list[str]) -> pa.Table | None:
        return pq.read_table(path) if sound_part(path, self.n, columns) else None


@dataclass(frozen=True)
class History:
    """What active learning did.

    Attributes:
        table: a line for each strategy, seed and round: `strategy`, `seed`, `round`, `labeled` (rows), `accuracy`,
            `accuracy_<label>`, `loss` (mean), `seconds`, and of these `acquire_seconds`, `oracle_seconds` and
            `train_seconds` (training and measuring). Round 0 is the model of the first labelled rows; round r that
            after r picks. Null where a class has no test row, or an interrupted run took the time along.
        picked: (strategy, seed) -> ids of the rows that each round picked, best first.
        waiting: the files that are awaited, where the oracle is a folder. Empty: all rounds are done.
    """

    table: pa.Table = field(repr=False)
    picked: Mapping[Key, list[Array]] = field(repr=False)
    waiting: tuple[Path, ...] = ()

    @classmethod
    def of(cls, trails: Mapping[Key, Trail]) -> History:
        """The trails of all strategies and seeds."""
        lines = [
            {**row, "strategy": key[0], "seed": key[1], "round": r}
            for key, trail in trails.items()
            for r, row in enumerate(trail.rows)
        ]
        shares = [n for n in (lines[0] if lines else ()) if n.startswith("accuracy_")]
        schema = [(n, _kind(n)) for n in (*_FIRST, *shares, *_LAST)]
        return cls(
            pa.Table.from_pylist(lines, pa.schema(schema)),
            {key: list(trail.picked) for key, trail in trails.items()},
            tuple(trail.waiting for trail in trails.values() if trail.waiting is not None),
        )

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read the state of a run of `active_learning`, finished or not.

        Args:
            path: the folder that was given as `out`.

        Raises:
            InputError: no such run there.
        """
        folder = RunFolder(Path(path).expanduser())
        held = folder.read()
        if held is None or held.get("verb") != VERB:
            raise InputError(
                f"{folder.path} holds no run of active learning.", "pass the folder that was given as out=..."
            )
        asked = held["identity"]
        return cls.of(load_trails(folder.path, keys(asked["strategy"], asked["seed"]), asked["n"]))

    def to_pandas(self) -> pd.DataFrame:
        """The table as a frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def mean(self) -> pd.DataFrame:
        """Accuracy averaged over rounds: of every strategy, its mean and standard deviation over seeds.

        Round 0, in which no strategy had a hand, is left out, and so are rounds that some trajectory has not reached.

        Returns:
            A frame with `strategy`, `seeds`, `accuracy` and `std` (NaN for one seed).
        """
        frame = self.to_pandas()
        last = frame.groupby(["strategy", "seed"])["round"].max().min()
        counted = frame[(frame["round"] > 0) & (frame["round"] <= last)]
        runs = counted.groupby(["strategy", "seed"], sort=False)["accuracy"].mean()
        found = runs.groupby("strategy", sort=False).agg(seeds="count", accuracy="mean", std="std")
        return found.reset_index()

    def plot(self, path: str | Path) -> Path:
        """Draw accuracy against labelled rows: a line a strategy, with a band over seeds.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).

        Returns:
            The path.
        """
        from rayinf.report import learning_curve

        return learning_curve.plot(self.table, path)


def keys(strategies: Sequence[str], seeds: Sequence[int]) -> list[Key]:
    """Every strategy under every seed."""
    return [(strategy, seed) for strategy in strategies for seed in seeds]


def load_trails(run: Path, wanted: Sequence[Key], n: int) -> dict[Key, Trail]:
    """The state of trajectories in a run's folder."""
    return {key: TrailFolder.of(run, key, n).trail() for key in wanted}


def _kind(name: str) -> pa.DataType:
    return {"strategy": pa.string(), "seed": pa.int64(), "round": pa.int64(), "labeled": pa.int64()}.get(
        name, pa.float64()
    )
