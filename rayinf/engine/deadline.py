"""How long a run waits for calls that do not finish: as long as something in them moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class Deadline:
    """A clock that every sign of progress sets back.

    Args:
        seconds: without a sign of progress, after which waiting ends.
        now: the clock.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._now = now
        self._last = now()
        self._seen: dict[Hashable, tuple[str, float]] = {}
        self._lives: dict[Hashable, set[str]] = {}

    def renew(self) -> None:
        """Something was finished."""
        self._last = self._now()

    def note(self, who: Hashable, life: str, count: float) -> None:
        """A report of how far a process is. A higher count than before is progress; a new process alone is not."""
        before = self._seen.get(who)
        self._seen[who] = (life, count)
        self._lives.setdefault(who, set()).add(life)
        if before is not None and before[0] == life and count > before[1]:
            self.renew()

    def lives(self, who: Hashable) -> int:
        """How many processes of one actor have answered."""
        return len(self._lives.get(who, ()))

    @property
    def quiet(self) -> float:
        """Seconds since the last sign of progress."""
        return self._now() - self._last

    @property
    def passed(self) -> bool:
        """Whether waiting ends."""
        return self.quiet > self.seconds
