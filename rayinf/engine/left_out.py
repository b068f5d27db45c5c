"""The shards that a run goes on without (`on_error="skip"`), written down before anything rests on it.

Each set of them is a file of its own in the run's folder, so that a run that was stopped goes on without the same ones:
what was added up without a shard stays, and no shard that was given up is tried again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rayinf.data.run_folder import PAIRS, SCORES, RunFolder
from rayinf.engine.failed_shards import FailedShard, Failures, ShardError
from rayinf.engine.job import Chunk
from rayinf.engine.training_time import NORMS
from rayinf.errors import InputError, RunError, SkippedWarning

FOLDER = "left-out"
# What the stages of a fit leave, of which each rests on those before.
FITTED = ("squares", "covariance", "basis", "lambda", "hessian")
# Stages whose rows get values; in all others rows are summed up for the curvature.
VALUED = (SCORES, PAIRS)
_SHOWN = 3


class LeftOut:
    """What a run has left out so far.

    Args:
        folder: of the run, once it has begun; None: held in memory.
        goes_on: whether the run may leave shards out.
        asked: whether the verb has an argument `on_error`, which says so.

    Attributes:
        again: how often the fit of the curvature was begun anew, since a later stage of it left a shard out.

    Raises:
        InputError: an earlier call of the run has left shards out, and this one may not.
        RunError: what was written down is damaged.
    """

    def __init__(self, folder: RunFolder | None, goes_on: bool, asked: bool) -> None:
        self._folder, self._goes_on, self._asked, self._sets = folder, goes_on, asked, 0
        self.shards: list[dict[str, Any]] = []
        self.again = 0
        names = [] if folder is None else [n for n in folder.files.names() if n.startswith(f"{FOLDER}/")]
        for name in names:
            assert folder is not None
            held = folder.files.json(name)
            if held is None:
                raise RunError(
                    f"{folder.path / name}, the list of shards that this run goes on without, is damaged.",
                    "restore the file, or give the run another folder with out=...",
                )
            self._hold(held)
        if self.shards and not goes_on:
            first = self.shards[0]
            raise InputError(
                f"This run has gone on without {len(self.shards)} shard(s) of its tables, the first of them rows "
                f"{first['rows'][0]} to {first['rows'][1]} of {first['table']}: {first['error'].rstrip('.')}.",
                'pass on_error="skip", as before, or another out folder.',
            )

    def failures(self) -> Failures:
        """What notes the shards that fail in a pass."""
        return Failures(self._goes_on)

    def take(self, failed: Failures, stage: str, shards: int, again: bool = False) -> None:
        """Go on without the shards that failed in a stage, if the run may; nothing where none did.

        Args:
            failed: they.
            stage: "scores", "pairs", or what sums up the rows for the curvature.
            shards: of the table.
            again: whether the fit begins anew.

        Raises:
            InputError: the run may not go on without them, or no shard is left.
            RunError: it cannot be written down.
        """
        if not failed.found:
            return
        before = self.of_values if stage in VALUED else self.of_fit
        if not self._goes_on or len(before | {f.shard.index for f in failed.found}) == shards:
            raise self._stop(failed.found) from failed.first
        held = {"again": self.again + again, "shards": [_entry(f, stage) for f in failed.found]}
        if self._folder is not None:
            self._folder.files.put_json(f"{FOLDER}/{self._sets}.json", held)
            self._folder.log("left out", stage=stage, shards=[f.where for f in failed.found])
        self._hold(held)

    def name(self, name: str) -> str:
        """The name of what a fit leaves: another after every new start, since a late call may still add to the old."""
        return f"{name}-again-{self.again}" if self.again and name in FITTED else name

    def _stop(self, failed: Sequence[FailedShard]) -> InputError:
        error = ShardError.of(tuple(failed))
        asked = self._asked and not self._goes_on
        skip = ' Or pass on_error="skip": the run goes on without these rows, and lists them.' if asked else ""
        return InputError(error.what, f"{error.fix}{skip}")

    def _hold(self, held: dict[str, Any]) -> None:
        self._sets += 1
        self.again = max(self.again, held["again"])
        self.shards += held["shards"]

    @property
    def of_fit(self) -> frozenset[int]:
        """Indices of training shards that the curvature is fitted without."""
        return frozenset(s["index"] for s in self.shards if s["stage"] not in VALUED)

    @property
    def of_values(self) -> frozenset[int]:
        """Indices of shards whose rows have no value."""
        return frozenset(s["index"] for s in self.shards if s["stage"] in VALUED)

    @property
    def rows_without_value(self) -> int:
        """How many rows have none."""
        return sum(s["count"] for s in self.shards if s["stage"] in VALUED)

    def metadata(self) -> dict[str, Any]:
        """`{"skipped": [...]}`, in the order of rows; nothing where no shard was left out."""
        if not self.shards:
            return {}
        ordered = sorted(self.shards, key=lambda s: (s["rows"], s["stage"]))
        return {"skipped": [{k: v for k, v in s.items() if k != "index"} for s in ordered]}

    def warn(self) -> None:
        """Warn of rows without a value, and of those that the curvature is fitted without."""
        if not self.shards:
            return
        fitted = sum(s["count"] for s in self.shards if s["stage"] not in VALUED)
        parts = [f"{self.rows_without_value:,} rows have no value"] if self.rows_without_value else []
        parts += [f"the curvature is fitted without {fitted:,} rows"] if fitted else []
        lines = [f"rows {s['rows'][0]} to {s['rows'][1]} of {s['table']}: {s['error']}" for s in self.shards[:_SHOWN]]
        more = f" And {len(self.shards) - _SHOWN} more." if len(self.shards) > _SHOWN else ""
        warnings.warn(
            f'on_error="skip": {" and ".join(parts)}; metadata["skipped"] lists them. {" ".join(lines)}{more}',
            SkippedWarning,
            stacklevel=4,
        )


class FitAgain(Exception):  # noqa: N818
    """The fit of the curvature left shards out, and goes on from its first stage."""


def without(items: Mapping[int, Chunk], shards: frozenset[int]) -> dict[int, Chunk]:
    """Chunks without some shards; a chunk of which none is left stays, with nothing in it.

    Args:
        items: by key.
        shards: indices of those to leave out.
    """
    if not shards:
        return dict(items)
    touched = {k for k, c in items.items() if any(s.index in shards for s in c.shards)}
    return {
        k: Chunk(tuple(s for s in c.shards if s.index not in shards)) if k in touched else c for k, c in items.items()
    }


def fit_without(run: Any, failed: Failures, stage: str) -> None:
    """Leave shards out of the fit of the curvature; where an earlier stage rests on them, it begins anew.

    Args:
        run: open.
        failed: at least one.
        stage: in which.

    Raises:
        FitAgain: the fit is to go on from its first stage.
        InputError: the run may not go on without them.
    """
    store, names = run.runner.store, [run.left_out.name(n) for n in (NORMS, "covariance", "basis")]
    earlier = [n for n in names if store("has", n)]
    if not failed.ended:
        for name in earlier:  # before it is written down: a run that is stopped in between finds the shards again
            store("drop", name)
    run.left_out.take(failed, stage, len(run.job.tables["train"].shards), bool(earlier))
    raise FitAgain


def _entry(failed: FailedShard, stage: str) -> dict[str, Any]:
    place = {"table": failed.table, "file": failed.shard.file or None, "rows": list(failed.rows)}
    return {"index": failed.shard.index, **place, "count": failed.shard.rows, "stage": stage, "error": failed.what}
