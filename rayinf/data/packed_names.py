"""A mapping for names that mostly end in a number, which are stored as positions instead of text."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping

_NUMBERED = re.compile(r"([^0-9]*)([0-9]+)([^0-9]*)")
_DIGITS = 5
# A number may be so much larger than the last one of its kind: memory for the places between is reserved.
_FARTHEST = 1 << 16


class PackedNames(MutableMapping[str, bytes]):
    """Values of one size in bytes, by name. `scores/part-00012.parquet` is at position 12 of the array of its kind.

    Names are iterated in order, numbers by their value.

    Args:
        size: of every value.
    """

    def __init__(self, size: int) -> None:
        self._step = 1 + size
        # Each value is preceded by a byte: 1 where it is set.
        self._arrays: dict[tuple[str, str], bytearray] = {}
        self._others: dict[str, bytes] = {}
        self._count = 0

    def __getitem__(self, name: str) -> bytes:
        """The value of a name."""
        array, at = self._find(name)
        if array is None:
            return self._others[name]
        if not array[at]:
            raise KeyError(name)
        return bytes(array[at + 1 : at + self._step])

    def __setitem__(self, name: str, value: bytes) -> None:
        """Set the value of a name."""
        self._count += name not in self
        kind = None if name in self._others else _kind(name)
        array = self._arrays.setdefault(kind[0], bytearray()) if kind else None
        if kind is None or array is None or kind[1] * self._step > len(array) + _FARTHEST * self._step:
            self._others[name] = value
            return
        at = kind[1] * self._step
        array.extend(bytes(max(0, at - len(array))))
        array[at : at + self._step] = b"\x01" + value

    def __delitem__(self, name: str) -> None:
        """Forget a name."""
        array, at = self._find(name)
        if array is None:
            del self._others[name]
        else:
            if not array[at]:
                raise KeyError(name)
            array[at] = 0
        self._count -= 1

    def __iter__(self) -> Iterator[str]:
        """The names in order; an array of numbered names is at the place of its first name."""
        heads: list[tuple[list[str | int], str, tuple[str, str] | None]]
        heads = [(in_order(name), name, None) for name in self._others]
        heads += [(in_order(f"{kind[0]}0{kind[1]}"), "", kind) for kind in self._arrays]
        for _, name, kind in sorted(heads, key=lambda head: head[0]):
            if kind is None:
                yield name
                continue
            array = self._arrays[kind]
            for k in range(len(array) // self._step):
                if array[k * self._step]:
                    yield f"{kind[0]}{k:0{_DIGITS}d}{kind[1]}"

    def __len__(self) -> int:
        """The number of names with a value."""
        return self._count

    def _find(self, name: str) -> tuple[bytearray | None, int]:
        """The array that holds a name, and its place there; None where none does."""
        kind = None if name in self._others else _kind(name)
        array = self._arrays.get(kind[0]) if kind else None
        if kind is None or array is None or kind[1] * self._step >= len(array):
            return None, 0
        return array, kind[1] * self._step


def _kind(name: str) -> tuple[tuple[str, str], int] | None:
    """The text before and after a name's one number, and the number; None for other names."""
    found = _NUMBERED.fullmatch(name)
    if found is None or f"{int(found[2]):0{_DIGITS}d}" != found[2]:
        return None
    return (found[1], found[3]), int(found[2])


def in_order(name: str) -> list[str | int]:
    """A key that sorts numbers within names as numbers."""
    return [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)]
