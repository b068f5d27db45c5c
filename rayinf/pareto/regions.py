"""Regions of influence vectors: rows that help every class, that harm every class, and the rest.

See Nahin 2025, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def jointly_helpful(p_bk: Array) -> Array:
    """Whether a row's values are all > 0, `[B]`."""
    return np.asarray((p_bk > 0).all(1))


def jointly_harmful(p_bk: Array) -> Array:
    """Whether a row's values are all <= 0, `[B]`; rows of zeros are among them, as in Nahin 2025."""
    return np.asarray((p_bk <= 0).all(1))


@dataclass(frozen=True)
class Regions:
    """Counts of rows by the signs of their values, over `n` rows, `K` classes and `L` labels. They add up over shards.

    Attributes:
        rows: n.
        jointly_helpful: all values > 0.
        jointly_harmful: all values <= 0, `zero` included.
        zero: all values 0: rows without any effect on the fit.
        helpful: `[K]`, rows whose value for a class is > 0.
        harmful: `[K]`, rows whose value for a class is < 0.
        both_helpful: `[K, K]`, rows whose values for both classes are > 0.
        both_harmful: `[K, K]`, rows whose values for both classes are <= 0.
        helpful_from: `[L, K]`, of the rows of each label those that help a class (Nahin 2025, Figure 8).
        harmful_from: `[L, K]`, of the rows of each label those that harm a class.
        joint_from: `[L, 3]`, of the rows of each label those that are jointly helpful, jointly harmful, mixed.
    """

    rows: int
    jointly_helpful: int
    jointly_harmful: int
    zero: int
    helpful: Array
    harmful: Array
    both_helpful: Array
    both_harmful: Array
    helpful_from: Array
    harmful_from: Array
    joint_from: Array

    @property
    def mixed(self) -> int:
        """Rows that help some classes and harm others."""
        return self.rows - self.jointly_helpful - self.jointly_harmful

    @classmethod
    def of(cls, p_bk: Array, codes: Array | None = None) -> Regions:
        """The counts of some rows.

        Args:
            p_bk: influence vectors.
            codes: `[B]`, the rows' labels as 0 to L - 1; None where they are unknown.
        """
        above, below = p_bk > 0, p_bk < 0
        up, down = above.astype(np.float32), (~above).astype(np.float32)  # sums of a block are exact in float32
        helps, harms = above.all(1), (~above).all(1)
        labels = 0 if codes is None or not len(codes) else int(codes.max()) + 1
        region = np.where(helps, 0, np.where(harms, 1, 2))
        return cls(
            rows=len(p_bk),
            jointly_helpful=int(helps.sum()),
            jointly_harmful=int(harms.sum()),
            zero=int((harms & ~below.any(1)).sum()),
            helpful=above.sum(0),
            harmful=below.sum(0),
            both_helpful=np.rint(up.T @ up).astype(np.int64),
            both_harmful=np.rint(down.T @ down).astype(np.int64),
            helpful_from=_by_label(above, codes, labels),
            harmful_from=_by_label(below, codes, labels),
            joint_from=_by_label(region[:, None] == np.arange(3), codes, labels),
        )

    def merge(self, other: Regions) -> Regions:
        """The counts of both."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        summed: dict[str, Any] = {k: _longer(*v) if k.endswith("_from") else v[0] + v[1] for k, v in pairs.items()}
        return Regions(**summed)


def _by_label(mask: Array, codes: Array | None, labels: int) -> Array:
    """How many rows of each label a mask `[B, K]` holds, `[L, K]`."""
    if codes is None:
        return np.zeros((0, mask.shape[1]), np.int64)
    width = mask.shape[1]
    places = (codes[:, None] * width + np.arange(width))[mask]
    return np.bincount(places, minlength=labels * width).reshape(labels, width)


def _longer(a: Array, b: Array) -> Array:
    """The sum of two tables `[L, K]`, one of which may lack the last labels."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    out = long.copy()
    out[: len(short)] += short
    return out


@dataclass(frozen=True)
class Moments:
    """Rows, mean `[K]` and centred sum of products `[K, K]`, merged without cancellation (Chan et al. 1983)."""

    rows: int
    mean: Array
    spread: Array

    @classmethod
    def of(cls, p_bk: Array) -> Moments:
        """The moments of one or more rows."""
        mean = p_bk.mean(0)
        centred = p_bk - mean
        return cls(len(p_bk), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """The moments of both."""
        rows, gap = self.rows + other.rows, other.mean - self.mean
        mean = self.mean + gap * (other.rows / rows)
        return Moments(rows, mean, self.spread + other.spread + np.outer(gap, gap) * (self.rows * other.rows / rows))

    @property
    def explained_variance(self) -> Array:
        """Shares of the variance along the principal components `[K]`, largest first; zeros where all rows agree."""
        values = np.linalg.eigvalsh(self.spread)[::-1].clip(min=0)
        total = values.sum()
        shares: Array = values / total if total > 0 else values
        return shares

    @property
    def correlation(self) -> Array:
        """Correlation of the classes over rows `[K, K]`; 0 where a class does not vary."""
        scale = np.sqrt(np.diag(self.spread))
        outer = np.outer(scale, scale)
        return np.divide(self.spread, outer, out=np.zeros_like(outer), where=outer > 0)
