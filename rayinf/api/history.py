"""The result of active learning: a line a round, and the rows that were picked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from rayinf.data.batches import Array
from rayinf.data.extent import EXTENT
from rayinf.data.run_folder import RunFolder, owner_of
from rayinf.errors import InputError
from rayinf.store.places import AnyPath, open_place
from rayinf.training.trajectory_state import SECONDS, VERB, Key, TrajectoryState, read_states

if TYPE_CHECKING:
    import pandas as pd

_FIRST = ("strategy", "seed", "round", "labeled", "accuracy")


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
    waiting: tuple[AnyPath, ...] = ()

    @classmethod
    def of(cls, states: Mapping[Key, TrajectoryState]) -> History:
        """From the states of all strategies and seeds."""
        lines = [
            {**row, "strategy": key[0], "seed": key[1], "round": r}
            for key, state in states.items()
            for r, row in enumerate(state.rows)
        ]
        shares = [n for n in (lines[0] if lines else ()) if n.startswith("accuracy_")]
        schema = [(n, _kind(n)) for n in (*_FIRST, *shares, *SECONDS)]
        return cls(
            pa.Table.from_pylist(lines, pa.schema(schema)),
            {key: list(state.picked) for key, state in states.items()},
            tuple(state.waiting for state in states.values() if state.waiting is not None),
        )

    @classmethod
    def load(cls, path: str | AnyPath) -> History:
        """Read the state of a run of `active_learning`, finished or not.

        Args:
            path: the folder that was given as `out`.

        Raises:
            InputError: no such run there.
        """
        folder = RunFolder(open_place(path))
        held = folder.read()
        if held is None or held.get("verb") != VERB or not held.get(EXTENT):
            raise InputError(
                f"{folder.path} holds no run of active learning.", "pass the folder that was given as out=..."
            )
        states = read_states(folder.path, owner_of(held), held[EXTENT])
        strategies, seeds = (list(dict.fromkeys(part)) for part in zip(*states, strict=True))
        order = {key: (strategies.index(key[0]), seeds.index(key[1])) for key in states}
        return cls.of({key: states[key] for key in sorted(states, key=order.__getitem__)})

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

    def plot(self, path: str | AnyPath) -> AnyPath:
        """Draw accuracy against labelled rows: a line a strategy, with a band over seeds.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).

        Returns:
            The path.
        """
        from rayinf.plots import learning_curve

        return learning_curve.plot(self.table, path)


def _kind(name: str) -> pa.DataType:
    return {"strategy": pa.string(), "seed": pa.int64(), "round": pa.int64(), "labeled": pa.int64()}.get(
        name, pa.float64()
    )
