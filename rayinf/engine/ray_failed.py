"""Items that fail on Ray: told from those that a bad machine or a neighbour's crash has hit.

A worker tries an item several times (`failed_shards`). One that fails every time, or that ends one process after the
other, is given to another worker, where it is the only call. If it fails there too, the fault is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rayinf.data.shards import Shard
from rayinf.engine.failed_shards import FailedShard, Failures, ShardError
from rayinf.engine.job import Chunk
from rayinf.engine.leaves import Group, ends
from rayinf.engine.ray_calls import DeathError, Watch, get, is_away, restarts_of
from rayinf.errors import RayinfError


class Outcomes:
    """The results of a pass, with the items that failed apart.

    Args:
        failed: what notes shards that fail; None: every error is raised.

    Attributes:
        errors: by key, of the items that failed.
        who: by key, the actor that an item was given to last.
    """

    def __init__(self, failed: Failures | None) -> None:
        self._failed = failed
        self.errors: dict[Any, RayinfError] = {}
        self.who: dict[Any, Any] = {}

    def ended(self) -> bool:
        """Whether nothing more is to be begun: what is under way still comes in."""
        return bool(self.errors) and self._failed is not None and not self._failed.goes_on

    def sent(self, actor: Any, key: Any) -> Any:
        """Note who gets an item; the actor."""
        if self._failed is not None:
            self.who[key] = actor
        return actor

    def results(self, finished: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Keys and values of finished references.

        Raises:
            ShardError: shards that failed, where nothing notes them.
            DeathError: likewise, an item that ended its processes.
            RayinfError: anything else that was raised on a worker.
        """
        for key, ref in finished:
            try:
                value = get(ref)
            except (ShardError, DeathError) as error:
                if self._failed is None:
                    raise
                self.errors[key] = error
                continue
            self.who.pop(key, None)
            yield key, value


class OnceMore:
    """Items that have failed are done once more, each as the only call of another actor, if there is one.

    Args:
        workers: all actors.
        work: the name of the pass, and what its calls share.
        patience: see `Cluster`.
        table: the name of the table that is read.
    """

    def __init__(self, workers: Sequence[Any], work: tuple[Any, ...], patience: float, table: str) -> None:
        self._workers, self._work, self._patience, self._table = workers, work, patience, table

    def results(self, first: Outcomes, items: Mapping[Any, Shard], failed: Failures) -> Iterator[tuple[Any, Any]]:
        """Keys and values of the shards that do not fail again; those that do are noted.

        Args:
            first: the pass in which they failed.
            items: the shards by key.
            failed: notes shards; where the run ends at them, nothing is done again.

        Raises:
            DeathError: the run ends at a shard that ended its processes.
        """
        if not failed.goes_on:
            _end(first, failed)
            return
        yield from self._tried(first.who, dict(items), failed, True)

    def find(self, first: Outcomes, groups: Mapping[int, Group], failed: Failures) -> None:
        """Note which shards of groups of chunks are at fault.

        Args:
            first: the pass in which groups failed.
            groups: by key, all of the pass.
            failed: as in `results`.

        Raises:
            DeathError: the run ends at a group that ended its processes, or no shard fails by itself.
        """
        if not failed.goes_on:
            _end(first, failed)
            return
        items: dict[Any, Shard] = {}
        for key, error in first.errors.items():
            named = {f.shard.index for f in error.failed} if isinstance(error, ShardError) else None
            shards = (s for chunk in groups[key].chunks for s in chunk.shards)
            items.update({(key, s.index): s for s in shards if named is None or s.index in named})
        who = {place: first.who[place[0]] for place in items}
        for _ in self._tried(who, {place: Chunk((s,)) for place, s in items.items()}, failed, False):
            pass
        deaths = [error for error in first.errors.values() if isinstance(error, DeathError)]
        if deaths and not failed.found:  # else their groups waited behind the shard that ended their process
            raise deaths[0]

    def _tried(
        self, who: Mapping[Any, Any], items: Mapping[Any, Shard | Chunk], failed: Failures, keep: bool
    ) -> Iterator[tuple[Any, Any]]:
        for key, ref in self._finished({k: who[k] for k in items}, items, keep):
            try:
                value = get(ref)
            except (ShardError, DeathError) as error:
                item = items[key]
                failed.note(_named(self._table, item if isinstance(item, Shard) else item.shards[0], error), error)
                continue
            yield key, value

    def _finished(self, who: Mapping[Any, Any], items: Mapping[Any, Any], keep: bool) -> Iterator[tuple[Any, Any]]:
        """Keys with finished references."""
        left = list(items)
        while left:
            living = [a for a in self._workers if not is_away(a)] or list(self._workers)
            free, flying = list(living), dict[Any, tuple[Any, Any]]()
            for key in list(left):
                actor = next((a for a in free if a is not who[key] or len(living) == 1), None)
                if actor is not None:
                    free.remove(actor)
                    left.remove(key)
                    ref = actor.run_alone.remote(*self._work, items[key], restarts_of(actor), keep)
                    flying[ref] = key, actor
            yield from self._waited(flying, items)

    def _waited(self, flying: dict[Any, tuple[Any, Any]], items: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
        watch = Watch(self._patience)

        def busy() -> dict[str, Any]:
            return {self._shown(items[key]): actor for key, actor in flying.values()}

        while flying:
            for ref in watch.wait(list(flying), busy):
                yield flying.pop(ref)[0], ref

    def _shown(self, item: Any) -> str:
        found = ends(item)
        return f"rows from {found[0].start if found else 0} on of {self._table}"


def _end(first: Outcomes, failed: Failures) -> None:
    """Note the shards that end a run.

    Raises:
        DeathError: one that ended its processes.
    """
    for error in first.errors.values():
        if not isinstance(error, ShardError):
            raise error
        failed.note(error.failed, error)


def _named(table: str, shard: Shard, error: RayinfError) -> tuple[FailedShard, ...]:
    """The shards that an error is about: of a death the one that was at work."""
    if isinstance(error, ShardError):
        return error.failed
    return (FailedShard(table, shard, error.what, error.fix),)
