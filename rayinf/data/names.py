"""A list of paths that takes little memory: a training folder may have 100,000 files and more."""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

# So many names are sorted at a time as Python strings.
_RUN = 4096


class Names(Sequence[str]):
    """Texts in order, held in one piece: each takes its own letters and 8 bytes. A `str` is made when one is asked for.

    Args:
        names: taken one by one.
        start: what all of them begin with; it is held once.

    Attributes:
        start: as given.

    Raises:
        ValueError: a name that does not begin with `start`, or that UTF-8 does not hold.
    """

    def __init__(self, names: Iterable[str], start: str = "") -> None:
        self.start = start
        self._text, self._ends = bytearray(), array("q", [0])
        for name in names:
            if not name.startswith(start):
                raise ValueError(f"{name!r} does not begin with {start!r}")
            self._text += name[len(start) :].encode()
            self._ends.append(len(self._text))

    @classmethod
    def sorted(cls, names: Iterable[str]) -> Names:
        """The same names in order, few of them as Python strings at any time."""
        left, runs = iter(names), []
        while run := sorted(itertools.islice(left, _RUN)):
            runs.append(cls(run, common_start(run)))
        return cls(heapq.merge(*runs), common_start([run.start for run in runs]))

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Names: ...
    def __getitem__(self, at: int | slice) -> str | Names:
        """A name, or some as a list of their own."""
        if isinstance(at, slice):
            return Names((self[k] for k in range(*at.indices(len(self)))), self.start)
        k = range(len(self))[at]
        return self.start + self._text[self._ends[k] : self._ends[k + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        """The names in order."""
        return (self.start + self._text[a:b].decode() for a, b in pairwise(self._ends))

    def __len__(self) -> int:
        """How many."""
        return len(self._ends) - 1

    def __eq__(self, other: object) -> bool:
        """Whether two lists hold the same names."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        """By the names."""
        return hash(tuple(self))


def common_start(names: Sequence[str]) -> str:
    """What all names begin with; empty where there are none."""
    first, last = min(names, default=""), max(names, default="")
    differ = (k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differ, len(first))]
