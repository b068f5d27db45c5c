"""Items that failed on an actor are done once more on another; actors are simulated, and answer at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rayinf.data.shards import Shard
from rayinf.engine import ray_failed
from rayinf.engine.failed_shards import FailedShard, Failures, ShardError
from rayinf.engine.job import Chunk
from rayinf.engine.leaves import Group
from rayinf.engine.ray_calls import DeathError
from rayinf.engine.ray_failed import OnceMore, Outcomes

SHARDS = [Shard(k, 10 * k, 10, "a.parquet") for k in range(6)]


def error_of(shard: Shard) -> ShardError:
    return ShardError.of((FailedShard("train", shard, "The model raised.", "mend it."),))


class Actors:
    """Actors that fail at some shards: at those of `bad`, or (by the actor) at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, bad: set[int], broken: frozenset[int]) -> None:
        self.calls: list[tuple[int, int]] = []
        self.bad, self.broken = bad, broken
        self.all = [self._actor(k) for k in range(count)]
        watch = SimpleNamespace(wait=lambda refs, busy: refs[:1] if busy() else [])
        monkeypatch.setattr(ray_failed, "Watch", lambda patience: watch)
        monkeypatch.setattr(ray_failed, "get", self.get)
        monkeypatch.setattr(ray_failed, "is_away", lambda actor: False)
        monkeypatch.setattr(ray_failed, "restarts_of", lambda actor: 0)

    def _actor(self, who: int) -> Any:
        def remote(name: str, work: Any, item: Any, before: int, keep: bool) -> tuple[int, int]:
            shard = item if isinstance(item, Shard) else item.shards[0]
            self.calls.append((who, shard.index))
            return who, shard.index

        return SimpleNamespace(_actor_id=who, run_alone=SimpleNamespace(remote=remote))

    def get(self, ref: tuple[int, int]) -> Any:
        who, index = ref
        if who in self.broken or index in self.bad:
            raise error_of(SHARDS[index])
        return f"value {index}"


@pytest.mark.parametrize("count", [1, 3])
def test_what_fails_elsewhere_too_is_at_fault(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Actor 0 is broken: what failed there is done by the others, each with one call at a time."""
    actors = Actors(monkeypatch, count, {2}, frozenset({0} if count > 1 else ()))
    failed = Failures(goes_on=True)
    first = Outcomes(failed)
    for key in range(5):
        first.sent(actors.all[0], key)
        first.errors[key] = error_of(SHARDS[key]) if key != 4 else DeathError("It ended its process.", "find why.")
    once_more = OnceMore(actors.all, ("pass", []), 1.0, "train")
    found = dict(once_more.results(first, {k: SHARDS[k] for k in first.errors}, failed))
    assert found == {k: f"value {k}" for k in (0, 1, 3, 4)}
    assert [f.shard.index for f in failed.found] == [2]
    assert count == 1 or 0 not in {who for who, _ in actors.calls}


def test_groups_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group that raised, the shards that it names; of one that ended processes, all; the guilty are noted."""
    groups = {0: Group(1, 0, (Chunk(SHARDS[:2]), Chunk(SHARDS[2:3]))), 2: Group(0, 2, (Chunk(SHARDS[3:]),))}
    for bad, guilty in (({1, 5}, [1, 5]), ({1}, [1]), (set[int](), None)):
        actors = Actors(monkeypatch, 2, bad, frozenset())
        failed = Failures(goes_on=True)
        first = Outcomes(failed)
        first.errors = {0: error_of(SHARDS[1]), 2: DeathError("It ended its process.", "find why.")}
        first.who = {0: actors.all[0], 2: actors.all[1]}
        once_more = OnceMore(actors.all, ("pass", []), 1.0, "train")
        if guilty is None:  # no shard fails by itself: a group as a whole ends processes
            with pytest.raises(DeathError):
                once_more.find(first, groups, failed)
        else:
            once_more.find(first, groups, failed)
            assert sorted(f.shard.index for f in failed.found) == guilty
        assert sorted(index for _, index in actors.calls) == [1, 3, 4, 5]


def test_a_run_that_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done again."""
    actors = Actors(monkeypatch, 2, set(), frozenset())
    failed = Failures(goes_on=False)
    first = Outcomes(failed)
    first.errors = {3: error_of(SHARDS[3])}
    assert first.ended()
    assert not list(OnceMore(actors.all, ("pass", []), 1.0, "train").results(first, {3: SHARDS[3]}, failed))
    assert failed.ended and not actors.calls
    first.errors = {4: DeathError("It ended its process.", "find why.")}
    with pytest.raises(DeathError):
        list(OnceMore(actors.all, ("pass", []), 1.0, "train").results(first, {4: SHARDS[4]}, failed))
