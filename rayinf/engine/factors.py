"""The central store of a run's sums and factors: adds keyed partial sums in a fixed tree, keeps its state on disk.

On Ray it is one actor; in one process it is a plain object. It knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayinf.data.files import Arrays, read_arrays, sweep, write_arrays
from rayinf.errors import RunError


class FactorStore:
    """Sums by stage and key, and artefacts by name. Every method may be called again after a crash, to the same end.

    Args:
        folder: where the state lies; None keeps it in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Arrays] = {}
        if folder is not None and folder.is_dir():
            sweep(folder)

    def pending(self, stage: str, count: int) -> list[int]:
        """The chunks whose sums have not come in."""
        if self._has(stage):
            return []
        return [k for k in range(count) if not any(self._has(_node(stage, at)) for at in _ancestors(k, count))]

    def add(self, stage: str, count: int, key: int, sums: Arrays) -> None:
        """Take in the sums of chunk `key`, once: a retried add changes nothing.

        Neighbours are merged in a binary tree over keys, so that the order of arrival never moves a bit.
        """
        if key not in self.pending(stage, count):
            return
        at = (0, key)
        self._put(_node(stage, at), sums)
        while not _is_root(at, count):
            level, index = at
            up = (level + 1, index // 2)
            sibling = (level, index ^ 1)
            if _first_leaf(sibling) >= count:
                self._put(_node(stage, up), self._need(_node(stage, at)))
            elif self._has(_node(stage, sibling)):
                left, right = sorted((at, sibling))
                self._put(_node(stage, up), merge(self._need(_node(stage, left)), self._need(_node(stage, right))))
                self._drop(_node(stage, sibling))
            else:
                return
            self._drop(_node(stage, at))
            at = up
        self._put(stage, self._need(_node(stage, at)))
        self._drop(_node(stage, at))

    def derive(self, name: str, function: Callable[..., Arrays], inputs: list[str], *args: Any) -> Arrays:
        """Artefact `name`: read if it is there, else computed once from other artefacts, saved and returned."""
        if not self._has(name):
            self._put(name, function(*[self._need(i) for i in inputs], *args))
        return self._need(name)

    def tell(self, function: Callable[..., Any], inputs: list[str], *args: Any) -> Any:
        """A small answer computed from artefacts, where they lie."""
        return function(*[self._need(i) for i in inputs], *args)

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep an artefact from elsewhere (another run's factors)."""
        if not self._has(name):
            self._put(name, arrays)

    def drop(self, name: str) -> None:
        """Forget an artefact that nothing needs any more."""
        self._drop(name)

    def has(self, name: str) -> bool:
        """Whether an artefact is there and whole."""
        return self._has(name)

    def get(self, name: str) -> Arrays:
        """An artefact.

        Raises:
            RunError: it is not there, or damaged.
        """
        return self._need(name)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"

    def _has(self, name: str) -> bool:
        return name in self._held if self._folder is None else self._path(name).exists()

    def _put(self, name: str, arrays: Arrays) -> None:
        if self._folder is None:
            self._held[name] = arrays
        else:
            write_arrays(self._path(name), arrays)

    def _need(self, name: str) -> Arrays:
        found = self._held.get(name) if self._folder is None else read_arrays(self._path(name))
        if found is None:
            where = name if self._folder is None else self._path(name)
            raise RunError(f"{where} is missing or damaged.", "delete it and run the same command again.")
        return found

    def _drop(self, name: str) -> None:
        if self._folder is None:
            self._held.pop(name, None)
        else:
            self._path(name).unlink(missing_ok=True)


def merge(left: Arrays, right: Arrays) -> Arrays:
    """The sum of two sums: key by key, a missing key being zero."""
    return {
        k: left[k] + right[k] if k in left and k in right else (left[k] if k in left else right[k])
        for k in sorted({*left, *right})
    }


def _node(stage: str, at: tuple[int, int]) -> str:
    return f"partial/{stage}/{at[0]}-{at[1]}"


def _first_leaf(at: tuple[int, int]) -> int:
    return at[1] << at[0]


def _is_root(at: tuple[int, int], count: int) -> bool:
    return at[1] == 0 and (1 << at[0]) >= count


def _ancestors(key: int, count: int) -> Iterator[tuple[int, int]]:
    level = 0
    yield level, key
    while not _is_root((level, key >> level), count):
        level += 1
        yield level, key >> level


def nbytes(arrays: Arrays) -> int:
    """Bytes of all arrays."""
    return sum(int(np.asarray(a).nbytes) for a in arrays.values())
