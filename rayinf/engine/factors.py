"""The central store of a run's sums and factors: adds keyed partial sums in a fixed tree, keeps its state on disk.

On Ray it is one actor; in one process it is a plain object. The code is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.files import Arrays, remove_tree, sweep, try_to_remove
from rayinf.errors import RunError
from rayinf.store.places import AnyPath, relative

_SUFFIX = ".safetensors"
_PARTIAL, _PARTS, _HALVED = "partial", "parts", "halved"
Place = tuple[int, int]


class FactorStore:
    """Sums by stage and key, and artefacts by name. Every method may be called again after a crash, to the same end.

    The sums of a stage are the leaves of a binary tree over their keys. `add` puts a leaf; `merge_ready` adds up
    whatever has both its children, and may be interrupted anywhere: a node counts once it is whole, and what lies
    below it is dropped afterwards.

    Args:
        folder: where the state lies; None keeps it in memory.
        owner: digest of the run that the state belongs to: that of another run in the folder is not used.
    """

    def __init__(self, folder: AnyPath | None, owner: str = "") -> None:
        self._folder = None
        self._closed = False
        self._held: dict[str, Arrays] = {}
        if folder is not None:
            if folder.is_dir():
                sweep(folder)
            self._folder = CheckedFolder(folder, owner)
            self._remove_strays(folder)

    def pending(self, stage: str, count: int) -> list[int]:
        """The chunks whose sums have not come in. What can be merged without them is merged."""
        self.merge_ready(stage, count)
        tree = _Tree(stage, count)
        return [] if self._has(stage) else [k for k in range(count) if not self._contains(tree, (0, k))]

    def add(self, stage: str, count: int, key: int, sums: Arrays, level: int = 0) -> None:
        """Take in the sums of chunk `key`, once: a retried add changes nothing.

        Neighbours are merged in a binary tree over keys, so that the order of arrival never moves a bit.

        Args:
            stage: name of the sums.
            count: of the stage's chunks.
            key: of the chunk, or of a node of the tree above them.
            sums: of the chunk, or of all chunks below the node (`tree_sum`).
            level: of the node; 0 is a chunk.
        """
        if self._closed:  # the second call of an item that has been done elsewhere
            return
        tree, at = _Tree(stage, count), (level, key)
        if not self._contains(tree, at):
            self._put(tree.name(at), sums)
        if level:
            self._drop_below(tree, at)
        self._climb(tree, at)

    def _drop_below(self, tree: _Tree, at: Place) -> None:
        for name in [n for n in self._names() if n.startswith(tree.folder)]:
            level, index = tree.place(name)
            if level < at[0] and index >> (at[0] - level) == at[1]:
                self._drop(name)

    def merge_ready(self, stage: str, count: int) -> None:
        """Finish every merge of a stage whose inputs are there, and drop the inputs of those that are done."""
        tree = _Tree(stage, count)
        for name in sorted(n for n in self._names() if n.startswith(tree.folder)):
            self._climb(tree, tree.place(name))

    def _contains(self, tree: _Tree, at: Place) -> bool:
        """Whether a node's sums are there: its own, or within those of a node above."""
        return self._has(tree.name(at)) or any(self._has(tree.name(a)) for a in tree.above(at))

    def _climb(self, tree: _Tree, at: Place) -> None:
        """Merge from a node upwards, as far as the siblings are there."""
        while not tree.is_root(at):
            up, sibling = (at[0] + 1, at[1] // 2), (at[0], at[1] ^ 1)
            if not self._contains(tree, up):
                pair = [a for a in sorted((at, sibling)) if tree.first_leaf(a) < tree.count]
                if not all(self._has(tree.name(a)) for a in pair):
                    return
                self._put(tree.name(up), _sum([self._need(tree.name(a)) for a in pair]))
            for a in (at, sibling):  # contained in the one above now
                self._drop(tree.name(a))
            at = up

    def derive(self, name: str, function: Callable[..., Arrays], inputs: list[str], *args: Any) -> Arrays:
        """Artefact `name`: read if it is there, else computed once from other artefacts, saved and returned."""
        if not self._has(name):
            self._put(name, function(*[self._need(i) for i in inputs], *args))
        return self._need(name)

    def missing_parts(self, name: str, keys: Sequence[int]) -> list[int]:
        """The parts of artefact `name` that have not been put, in the order of `keys`."""
        return [] if self._has(name) else [k for k in keys if not self._has(_part(name, k))]

    def put_part(self, name: str, key: int, arrays: Arrays) -> None:
        """Keep a part of an artefact, once: a retried call changes nothing."""
        if not (self._closed or self._has(name)):
            self.put(_part(name, key), arrays)

    def join_parts(
        self, name: str, keys: Sequence[int], join: Callable[..., Arrays] | None = None, *args: Any
    ) -> Arrays:
        """Artefact `name`, made of all its parts, which are removed.

        Args:
            name: of the artefact.
            keys: of its parts.
            join: called with the parts in the order of the keys, and with args; else all their arrays are taken.
            args: of `join`.
        """
        found = self.derive(name, join or _union, [_part(name, k) for k in keys], *args)
        for key in keys:
            self._drop(_part(name, key))
        return found

    def summarise(self, function: Callable[..., Any], inputs: list[str], *args: Any) -> Any:
        """A small result computed from artefacts, where they lie."""
        return function(*[self._need(i) for i in inputs], *args)

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep an artefact from elsewhere (another run's factors)."""
        if not self._has(name):
            self._put(name, arrays)

    def note_halvings(self, halvings: Mapping[str, int]) -> None:
        """Keep how often batches were halved, by stage, before what was made in them is used."""
        for stage, times in halvings.items():
            self.put(f"{_HALVED}/{stage}/{times}", {"times": np.array([times])})

    def halvings(self) -> dict[str, int]:
        """How often batches were halved at most, by stage; empty where they never were."""
        held = sorted(n.split("/")[1:] for n in self._names() if n.startswith(f"{_HALVED}/"))
        return {stage: max(int(times) for name, times in held if name == stage) for stage, _ in held}

    def drop(self, name: str) -> None:
        """Remove an artefact that nothing needs any more."""
        self._drop(name)

    def close(self, lasting: Collection[str]) -> None:
        """Remove all else: what a finished run does not need, and what a crash has left; then the manifest in order."""
        self._closed = True
        for name in self._names():
            if name not in lasting and not name.startswith(f"{_HALVED}/"):
                self._drop(name)
        if self._folder is None:
            return
        for folder in (_PARTIAL, _PARTS):
            try_to_remove(self._folder.path / folder)  # empty folders
        if any(self._folder.names()):
            self._folder.close()

    def has(self, name: str) -> bool:
        """Whether an artefact is there and whole."""
        return self._has(name)

    def get(self, name: str) -> Arrays:
        """An artefact.

        Raises:
            RunError: it is not there, or damaged.
        """
        return self._need(name)

    def _names(self) -> list[str]:
        if self._folder is None:
            return list(self._held)
        return [n.removesuffix(_SUFFIX) for n in self._folder.names()]

    def _has(self, name: str) -> bool:
        return name in self._held if self._folder is None else self._folder.is_sound(name + _SUFFIX)

    def _put(self, name: str, arrays: Arrays) -> None:
        if self._folder is None:
            # In the order in which a file has them: the layout of a matrix moves the last bits of its products.
            self._held[name] = {k: np.asarray(arrays[k], order="C") for k in sorted(arrays)}
        else:
            self._folder.put_arrays(name + _SUFFIX, arrays)

    def _need(self, name: str) -> Arrays:
        found = self._held.get(name) if self._folder is None else self._folder.arrays(name + _SUFFIX)
        if found is None:
            where = name if self._folder is None else self._folder.path / (name + _SUFFIX)
            raise RunError(f"{where} is missing or damaged.", "run the same command again: it is computed anew.")
        return found

    def _drop(self, name: str) -> None:
        if self._folder is None:
            self._held.pop(name, None)
        elif self._folder.entry(name + _SUFFIX) is not None:
            self._folder.remove(name + _SUFFIX)

    def _remove_strays(self, folder: AnyPath) -> None:
        """Remove arrays that a crash left between writing and listing, or between delisting and removing."""
        assert self._folder is not None
        for path in folder.rglob(f"*{_SUFFIX}"):
            if self._folder.entry(relative(path, folder)) is None:
                remove_tree(path)


def merge(left: Arrays, right: Arrays) -> Arrays:
    """The sum of two sums: key by key, a missing key being zero."""
    return {
        k: left[k] + right[k] if k in left and k in right else (left[k] if k in left else right[k])
        for k in sorted({*left, *right})
    }


def _part(name: str, key: int) -> str:
    return f"{_PARTS}/{name}/{key}"


def _union(*parts: Arrays) -> Arrays:
    return {k: v for part in parts for k, v in part.items()}


def tree_sum(leaves: Iterable[Arrays]) -> Arrays:
    """The sum of consecutive leaves below one node of a stage's tree, with the additions of that tree."""
    held: list[tuple[int, Arrays]] = []  # (level, sums), the levels falling
    for sums in leaves:
        level = 0
        while held and held[-1][0] == level:
            sums = merge(held.pop()[1], sums)
            level += 1
        held.append((level, sums))
    total = held.pop()[1] if held else {}
    while held:
        total = merge(held.pop()[1], total)
    return total


def _sum(parts: Sequence[Arrays]) -> Arrays:
    return parts[0] if len(parts) == 1 else merge(*parts)


@dataclass(frozen=True)
class _Tree:
    """The binary tree over the keys of a stage: a node is (level, index), its sums those of `2 ** level` keys."""

    stage: str
    count: int

    @property
    def folder(self) -> str:
        return f"{_PARTIAL}/{self.stage}/"

    def name(self, at: Place) -> str:
        """Of a node's sums; the root's are the stage's."""
        return self.stage if self.is_root(at) else f"{self.folder}{at[0]}-{at[1]}"

    def place(self, name: str) -> Place:
        level, index = map(int, name.removeprefix(self.folder).split("-"))
        return level, index

    def is_root(self, at: Place) -> bool:
        return at[1] == 0 and self.first_leaf((at[0], 1)) >= self.count

    def above(self, at: Place) -> Iterator[Place]:
        """The nodes that contain a node, without itself."""
        while not self.is_root(at):
            at = (at[0] + 1, at[1] // 2)
            yield at

    @staticmethod
    def first_leaf(at: Place) -> int:
        return at[1] << at[0]
