"""What a trajectory of active learning has on disk: the rows that each round picked, their labels, and its measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayinf.data.batches import Array
from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.scores import to_numpy
from rayinf.store.places import AnyPath, open_place
from rayinf.training.steps import Steps

VERB = "active_learning"
# A strategy and a seed.
Key = tuple[str, int]
PARTS = ("acquire_seconds", "oracle_seconds", "train_seconds")
SECONDS = ("loss", "seconds", *PARTS)


@dataclass(frozen=True)
class TrajectoryState:
    """How one strategy fared under one seed.

    Attributes:
        rows: a line a round, from round 0, as in `History.table`.
        picked: ids of the rows that each round picked, from round 1.
        waiting: the file of labels that it waits for.
    """

    rows: tuple[Mapping[str, Any], ...]
    picked: tuple[Array, ...]
    waiting: AnyPath | None


def folder_name(key: Key) -> str:
    """The folder of a trajectory, inside that of the run."""
    return f"{key[0]}-seed{key[1]}"


def labelled(r: int) -> str:
    """The file of the rows that a round added: `row_id`, `position`, `label`, `value`, in picked order."""
    return f"round-{r}.parquet"


def measures(r: int) -> str:
    """The file of a round's measures and seconds."""
    return f"round-{r}.json"


def picked(r: int, suffix: str = "parquet") -> str:
    """The file of the rows that a round picked, before they have labels; as JSON: what is known of the picking."""
    return f"picked-{r}.{suffix}"


def read_state(files: CheckedFolder, rounds: int) -> TrajectoryState:
    """All that is there, up to the first round that is not."""
    steps = Steps(lambda: files)
    rows: list[dict[str, Any]] = []
    ids: list[Array] = []
    for r in range(rounds + 1):
        added = steps.read(labelled(r)) if r else None
        if added is not None:
            ids.append(to_numpy(added["row_id"]))
        elif r:
            awaited = (steps.read(picked(r, "json")) or {}).get("waiting")
            return TrajectoryState(tuple(rows), tuple(ids), open_place(awaited) if awaited else None)
        line = steps.read(measures(r))
        if line is None:
            break
        rows.append(with_sum(line))
    return TrajectoryState(tuple(rows), tuple(ids), None)


def with_sum(line: Mapping[str, Any]) -> dict[str, Any]:
    """A round's measures, with `seconds`: the sum of its parts."""
    return {**line, "seconds": sum(line[name] for name in PARTS if name in line)}


def read_states(run: AnyPath, owner: str, extent: Mapping[str, int]) -> dict[Key, TrajectoryState]:
    """The states of trajectories.

    Args:
        run: the run's folder.
        owner: of its files; see `run_folder.owner_of`.
        extent: how many rounds of each, by the name of its folder.
    """
    found = {}
    for name, rounds in extent.items():
        strategy, _, seed = name.rpartition("-seed")
        found[strategy, int(seed)] = read_state(CheckedFolder(run / name, owner), rounds)
    return found
