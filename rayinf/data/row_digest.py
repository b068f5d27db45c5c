"""The digest of a column: of its rows in their order, the same however they are cut into files, shards and batches.

Each row has a 128-bit hash of its bytes, mixed with its position; a column's digest is the sum of these. A changed
value, a further row, and two swapped rows each give another digest, except with a probability of about 2^-64.
"""

from __future__ import annotations

import hashlib

import numpy as np

from rayinf.data.batches import Array, mix

_LANES = 2
# Rows are hashed as sums of 32-bit words times odd 64-bit numbers. With 64-bit words, two flipped sign bits may cancel.
_WORD = 4


class ColumnDigest:
    """A sum over rows: batches and shards may come in any order."""

    def __init__(self, held: str | None = None) -> None:
        """Start from nothing, or from an earlier sum."""
        raw = bytes(8 * _LANES) if held is None else bytes.fromhex(held)
        self._sum = np.frombuffer(raw, np.uint64).copy()

    def add(self, rows: Array, start: int) -> None:
        """Add rows `[B, ...]` whose first is at `start` in the table."""
        at = np.arange(start, start + len(rows), dtype=np.uint64)[:, None]
        lanes = np.arange(1, _LANES + 1, dtype=np.uint64) << np.uint64(56)
        with np.errstate(over="ignore"):
            self._sum += mix(_hashes(rows) ^ mix(at + lanes)).sum(0, dtype=np.uint64)

    def merge(self, other: str) -> None:
        """Add the digest of other rows of the column."""
        with np.errstate(over="ignore"):
            self._sum += np.frombuffer(bytes.fromhex(other), np.uint64)

    def hex(self) -> str:
        """The digest, as 32 hexadecimal digits."""
        return self._sum.tobytes().hex()


def _hashes(rows: Array) -> Array:
    """A hash of each row, `[B, lanes]`."""
    flat = rows.reshape(len(rows), -1)
    if flat.dtype.kind in "OU":
        return np.stack([_of_texts(line) for line in flat]) if len(flat) else np.zeros((0, _LANES), np.uint64)
    raw = np.ascontiguousarray(flat).view(np.uint8)
    short = -raw.shape[1] % _WORD
    words = np.pad(raw, ((0, 0), (0, short))) if short else raw
    wide = words.view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        return np.asarray(wide @ _multipliers(wide.shape[1]))


def _multipliers(width: int) -> Array:
    """An odd number for each word and lane, `[width, lanes]`."""
    return mix(np.arange(1, width * _LANES + 1, dtype=np.uint64)).reshape(width, _LANES) | np.uint64(1)


def _of_texts(line: Array) -> Array:
    found = hashlib.blake2b(digest_size=8 * _LANES)
    for value in line:
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        found.update(len(raw).to_bytes(8, "little") + raw)
    return np.frombuffer(found.digest(), np.uint64)
