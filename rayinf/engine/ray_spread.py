"""Items spread over actors: who gets which, and what happens to those of an actor that is away or far too slow."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray

from rayinf.data.shards import Shard
from rayinf.engine.leaves import ends
from rayinf.engine.ray_calls import MOST_DEATHS, Watch, is_away
from rayinf.engine.ray_pool import Slots

# An actor that was without a process at so many looks in a row, so many seconds apart, gives its items up.
_LOOK_SECONDS, _LOOKS = 2.0, 3
# A call is far too slow that takes so many times the median, and at least so many seconds.
_SLOW, _SLOW_SECONDS = 4.0, 5.0
_DURATIONS = 101
_NONE: deque[Any] = deque()


def spread(
    slots: Slots,
    waiting: Waiting | InTurn,
    send: Callable[[Any, Any], Any],
    watch: Watch,
    label: Callable[[Any], str],
    again: bool = False,
    ended: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Any, Any]]:
    """Keep every slot busy with a call, a slot an actor; keys with their finished references.

    The calls of an actor whose process is gone and does not come back (its node was lost, and no other has room) are
    cancelled and sent to others. The same item is moved a few times at most: it may be what ends processes.

    Args:
        slots: actors, each as often as it may have calls. One may join, or leave for good: its items are sent again.
        waiting: the keys of the items, as they are dealt out.
        send: an actor and a key -> a reference.
        watch: ends the wait.
        label: what the call of a key does.
        again: whether an item may be done twice at a time. One that takes far longer than others is then sent to an
            idle actor too, and the first result counts.
        ended: whether no further item is to be sent; those under way are waited for.
    """
    yield from _Spread(slots, waiting, send, label, again, ended).results(watch)


class Waiting:
    """Keys of items that are to be sent. Consecutive shards of one row group go to one actor, as far as that goes.

    Args:
        items: by key, in order; they are taken one by one, since there may be 100,000 and more.

    Attributes:
        count: of all items.
    """

    def __init__(self, items: Mapping[Any, Any]) -> None:
        self.count = len(items)
        self._runs = _runs(items)
        self._own: dict[Any, deque[Any]] = {}
        self._back: deque[Any] = deque()

    def take(self, who: Any) -> Any:
        """The next key of an actor; None where none is left."""
        if self._back:
            return self._back.popleft()
        if not self._own.get(who):
            self._own[who] = next(self._runs, _NONE) or self._half()
        return self._own[who].popleft() if self._own[who] else None

    def put_back(self, key: Any) -> None:
        """Have a key sent again, before all others."""
        self._back.append(key)

    def _half(self) -> deque[Any]:
        """The second half of the longest run: whoever reads it decodes what lies before it once more."""
        longest = max(self._own.values(), key=len, default=deque())
        taken = [longest.pop() for _ in range((len(longest) + 1) // 2)]
        return deque(reversed(taken))


class InTurn:
    """Keys of items that are dealt out to whoever asks, the next one of each run in turn.

    Args:
        runs: of consecutive items.

    Attributes:
        count: of all items.
    """

    def __init__(self, runs: Iterable[Sequence[Any]]) -> None:
        self._runs = deque(deque(run) for run in runs if run)
        self.count = sum(map(len, self._runs))
        self._back: deque[Any] = deque()

    def take(self, who: Any) -> Any:
        """The next key of an actor; None where none is left."""
        if self._back:
            return self._back.popleft()
        if not self._runs:
            return None
        run = self._runs.popleft()
        key = run.popleft()
        if run:
            self._runs.append(run)
        return key

    def put_back(self, key: Any) -> None:
        """Have a key sent again, before all others."""
        self._back.append(key)


def few_runs(items: Mapping[Any, Any], most: int) -> list[deque[Any]] | None:
    """The runs of consecutive items that one reader decodes in one go; None where there are more than `most`."""
    found = list(itertools.islice(_runs(items), most + 1))
    return found if found and len(found) <= most else None


def _runs(items: Mapping[Any, Any]) -> Iterator[deque[Any]]:
    """Keys of items that one reader decodes in one go."""
    run: deque[Any] = deque()
    before: Shard | None = None
    for key, item in items.items():
        found = ends(item)
        if run and not (before and found and _continues(before, found[0])):
            yield run
            run = deque()
        run.append(key)
        before = found and found[1]
    if run:
        yield run


def _continues(before: Shard, shard: Shard) -> bool:
    """Whether a shard begins within the row group that the one before it lies in."""
    return shard.offset > 0 and (shard.file, shard.group) == (before.file, before.group)


class _Spread:
    """The state of `spread`."""

    def __init__(
        self,
        slots: Slots,
        waiting: Waiting | InTurn,
        send: Callable[[Any, Any], Any],
        label: Callable[[Any], str],
        again: bool,
        ended: Callable[[], bool],
    ) -> None:
        self._slots, self._send, self._label, self._again, self._ended = slots, send, label, again, ended
        self._waiting, self._left = waiting, waiting.count
        self._flying: dict[Any, tuple[Any, Any]] = {}
        # By actor: its calls, and when the one that is under way can have begun.
        self._calls: Counter[Any] = Counter()
        self._since: dict[Any, float] = {}
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._idle: list[Any] = []  # slots for which no item was left
        self._resting: list[Any] = []  # slots of actors that are away
        self._away: Counter[Any] = Counter()  # by actor: looks in a row at which it was
        self._moved: Counter[Any] = Counter()
        self._cancelled: set[Any] = set()
        self._twice: dict[Any, bool] = {}  # keys that were sent twice: whether a result is there
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def results(self, watch: Watch) -> Iterator[tuple[Any, Any]]:
        """Keys with their finished references."""
        self._launch_living(self._slots.now)
        watch.deadline.renew()
        while self._left and (self._flying or not self._ended()):
            for ref in watch.poll(list(self._flying), self._working):
                key = self._finished(ref)
                if key is not None:
                    self._left -= 1
                    yield key[0], ref
                    watch.deadline.renew()  # what the caller did meanwhile is not the workers' time
            self._look()
        self._cancel(list(self._flying))  # a second call of an item that has its result

    def _launch(self, actor: Any) -> None:
        key = None if self._ended() else self._waiting.take(actor._actor_id)
        if key is None:
            self._idle.append(actor)
        else:
            self._call(actor, key)

    def _launch_living(self, slots: Sequence[Any]) -> None:
        """Give items to the slots of actors that have a process; the others rest."""
        away = {who: is_away(actor) for who, actor in {a._actor_id: a for a in slots}.items()}
        for actor in slots:
            if away[actor._actor_id]:
                self._resting.append(actor)
            else:
                self._launch(actor)

    def _call(self, actor: Any, key: Any) -> None:
        who = actor._actor_id
        if not self._calls[who]:
            self._since[who] = time.monotonic()
        self._calls[who] += 1
        self._flying[self._send(actor, key)] = (key, actor)

    def _finished(self, ref: Any) -> tuple[Any] | None:
        """Note that a call has ended, and give its actor another; its key, where this is the key's first result."""
        key, actor = self._flying.pop(ref)
        who, now = actor._actor_id, time.monotonic()
        self._calls[who] -= 1
        if (ref in self._cancelled and _is_cancelled(ref)) or self._is_lost(ref, key, actor):
            self._resting.append(actor)
            if not self._twice.get(key) and key not in {k for k, _ in self._flying.values()}:
                self._waiting.put_back(key)
                self._wake()
            return None
        self._durations.append(now - self._since[who])
        self._since[who] = now
        self._launch(actor)
        if self._twice.get(key):
            return None
        if key in self._twice:
            self._twice[key] = True
        return (key,)

    def _is_lost(self, ref: Any, key: Any, actor: Any) -> bool:
        """Whether a call ended without a result, since its actor has left, and its item is to be moved."""
        if self._moved[key] >= MOST_DEATHS or not self._slots.is_lost(ref, actor):
            return False
        self._moved[key] += 1
        return True

    def _look(self) -> None:
        """From time to time: which actors have joined, which are away, and which are far too slow."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        resting, self._resting = self._resting, []
        self._launch_living([*resting, *self._slots.joined()])
        silent = self._silent(now - _LOOK_SECONDS)
        for who, refs in silent.items():
            self._away[who] = self._away[who] + 1 if is_away(self._flying[refs[0]][1]) else 0
            if self._away[who] >= _LOOKS:
                self._hand_over(refs)
        if self._again and self._idle:
            self._send_twice(now)

    def _silent(self, since: float) -> dict[Any, list[Any]]:
        """The calls of the actors from which nothing has come for a while, by actor."""
        held: dict[Any, list[Any]] = {}
        for ref, (_, actor) in self._flying.items():
            if self._since[actor._actor_id] < since:
                held.setdefault(actor._actor_id, []).append(ref)
        return held

    def _hand_over(self, refs: Sequence[Any]) -> None:
        """Cancel the calls of an actor that is away: their items are sent again when that is confirmed."""
        for ref in refs:
            key = self._flying[ref][0]
            if ref not in self._cancelled and self._moved[key] < MOST_DEATHS:
                self._moved[key] += 1
                self._cancelled.add(ref)
                self._cancel([ref])

    def _wake(self) -> None:
        """Give items that came back to actors that had nothing to do."""
        idle, self._idle = self._idle, []
        self._launch_living(idle)

    def _send_twice(self, now: float) -> None:
        """Send calls that are far too slow to actors that have nothing at all to do."""
        if not self._durations:
            return
        slow = self._silent(now - max(_SLOW * statistics.median(self._durations), _SLOW_SECONDS))
        for ref in [ref for refs in slow.values() for ref in refs]:
            key = self._flying[ref][0]
            actor = next((a for a in self._idle if not self._calls[a._actor_id] and not is_away(a)), None)
            if actor is not None and key not in self._twice:
                self._idle.remove(actor)
                self._twice[key] = False
                self._call(actor, key)

    @staticmethod
    def _cancel(refs: Sequence[Any]) -> None:
        for ref in refs:
            with suppress(Exception):  # a call that runs cannot be cancelled
                ray.cancel(ref, recursive=False)

    def _working(self) -> dict[str, Any]:
        """The actors at work, by what they do: of an actor's calls the first is under way, and the next one waits."""
        if not self._flying:
            return {"a worker without a process": self._resting[0]} if self._resting else {}
        first: dict[Any, tuple[Any, Any]] = {}
        for key, actor in self._flying.values():
            first.setdefault(actor._actor_id, (key, actor))
        return {self._label(key): actor for key, actor in first.values()}


def _is_cancelled(ref: Any) -> bool:
    try:
        ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return True
    except ray.exceptions.RayError:
        return False
    return False
