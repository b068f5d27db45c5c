"""The leaves of a stage's sums, fixed by the table and the model alone, and groups of them that are sent as one.

A leaf is a chunk of consecutive shards that one worker sums in order. Leaves are added in a binary tree over their
keys, so that every sum in it is the same to the last bit wherever it was added: a worker may add the leaves below one
node and send that, and who sends which nodes may depend on the workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayinf.data.shards import Shard
from rayinf.engine.job import Chunk

# Multiply-adds of forward passes in a leaf: minutes of a CPU, about a second of a GPU. A row costs at least so many,
# since it has to be read.
_LEAF_WORK, _LEAST_WORK = 1 << 40, 1 << 16
# Sums that a stage sends, at least: what is lost with a worker is less than one of them.
FEWEST, _A_WORKER = 64, 8
# Multiply-adds in a sum that is sent, where fewer than these would be: seconds of a CPU. To keep a sum takes
# milliseconds, which is longer than little work does.
_SENT_WORK = 1 << 34


@dataclass(frozen=True)
class Group:
    """The leaves below one node of the tree, which are summed and sent together.

    Attributes:
        level: of the node; 0 is a leaf.
        index: of the node within its level.
        chunks: the leaves, in order.
    """

    level: int
    index: int
    chunks: tuple[Chunk, ...]

    @property
    def keys(self) -> range:
        """The keys of the leaves."""
        first = self.index << self.level
        return range(first, first + len(self.chunks))

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(c.rows for c in self.chunks)


def leaf_count(rows: int, work: int, least: int) -> int:
    """How many leaves a table has: as many as there is work, and not fewer than `least`.

    Args:
        rows: of the table.
        work: multiply-adds of a forward pass, a row.
        least: fewest.
    """
    return max(least, rows * max(work, _LEAST_WORK) // _LEAF_WORK)


def sums_sent(rows: float, work: int) -> int:
    """How many sums a stage sends at least, beside those that each worker should have; fewer where it takes seconds.

    Args:
        rows: that it passes over.
        work: multiply-adds of a forward pass, a row.
    """
    return min(FEWEST, int(rows * max(work, _LEAST_WORK) / _SENT_WORK))


def groups(leaves: Mapping[int, Chunk], left: Sequence[int], workers: int, fewest: int = FEWEST) -> dict[int, Group]:
    """Groups of the leaves that are left, by their first key.

    Args:
        leaves: of the stage, all of them.
        left: keys of those whose sums are missing.
        workers: that share them.
        fewest: groups of all leaves, where there are as many leaves.
    """
    count, level = len(leaves), 0
    while count >> (level + 1) >= max(fewest, _A_WORKER * workers):
        level += 1
    wanted, found = set(left), {}
    for first in range(0, count, 1 << level):
        keys = range(first, min(first + (1 << level), count))
        if wanted.issuperset(keys):
            found[first] = Group(level, first >> level, tuple(leaves[k] for k in keys))
        else:
            found.update({k: Group(0, k, (leaves[k],)) for k in keys if k in wanted})
    return found


def ends(item: object) -> tuple[Shard, Shard] | None:
    """The first and the last shard of an item; None where it is made of none."""
    if isinstance(item, Shard):
        return item, item
    some = [c.shards for c in _chunks_of(item) if len(c.shards)]
    return (some[0][0], some[-1][-1]) if some else None


def shards_of(item: object) -> list[Shard]:
    """The shards that an item is made of, in order."""
    return [item] if isinstance(item, Shard) else [s for c in _chunks_of(item) for s in c.shards]


def _chunks_of(item: object) -> Sequence[Chunk]:
    return item.chunks if isinstance(item, Group) else [item] if isinstance(item, Chunk) else []
