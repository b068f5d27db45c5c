"""The shards of a table, held as an array of numbers, since there may be 100,000 of them and more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of a table: one task, one file of scores."""

    index: int
    start: int
    rows: int
    file: str = ""
    group: int = 0
    offset: int = 0


class Shards(Sequence[Shard]):
    """Shards in order. Held as numbers, 48 bytes each; a `Shard` is made on access.

    Args:
        shards: of a table, of any length; they are taken one by one.
        files: in which they lie, in the same order; some may have no shard.
    """

    def __init__(self, shards: Iterable[Shard], files: Sequence[str] = ("",)) -> None:
        def numbers() -> Iterator[tuple[int, ...]]:
            names = enumerate(files)
            at, file = next(names, (0, ""))
            for s in shards:
                while file != s.file:
                    at, file = next(names)
                yield s.index, s.start, s.rows, at, s.group, s.offset

        kind = np.dtype([(n, np.int64) for n in ("index", "start", "rows", "file", "group", "offset")])
        self._held: np.ndarray[Any, Any] = np.fromiter(numbers(), kind)
        self._files = files

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> Shards: ...
    def __getitem__(self, at: int | slice) -> Shard | Shards:
        """A shard, or some as a list of their own."""
        if isinstance(at, slice):
            found = Shards(())
            found._held, found._files = self._held[at], self._files
            return found
        index, start, rows, file, group, offset = self._held[at].item()
        return Shard(index, start, rows, self._files[file], group, offset)

    def __len__(self) -> int:
        """The number of shards."""
        return len(self._held)

    def __eq__(self, other: object) -> bool:
        """Whether two lists hold equal shards."""
        return isinstance(other, Sequence) and len(other) == len(self) and all(a == b for a, b in zip(self, other))  # noqa: B905

    def __hash__(self) -> int:
        """The hash of the numbers."""
        return hash(self._held.tobytes())


class ByIndex(Mapping[int, Shard]):
    """Some shards of a table by their index, without holding them.

    Args:
        shards: of the table, the k-th of which has the index k.
        keys: their indices, in order; None: all.
    """

    def __init__(self, shards: Sequence[Shard], keys: Sequence[int] | np.ndarray[Any, Any] | None = None) -> None:
        self._shards = shards
        self._keys = range(len(shards)) if keys is None else np.asarray(keys, np.int64)

    def __getitem__(self, key: int) -> Shard:
        """The shard of an index."""
        return self._shards[key]

    def __iter__(self) -> Iterator[int]:
        """The indices in order."""
        return (int(k) for k in self._keys)

    def __len__(self) -> int:
        """The number of shards."""
        return len(self._keys)
