"""TypiClust (Hacohen et al. 2022): the most typical row of each cluster that has no label, the largest first."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayinf.errors import InputError
from rayinf.select.k_center import squared_distance
from rayinf.select.seeding import spread_out

Array = np.ndarray[Any, Any]

# As in the paper: clusters, neighbours that typicality is taken over, and rows under which a cluster is left for last.
MOST_CLUSTERS, NEIGHBOURS, SMALL = 500, 20, 5
_ITERATIONS = 50
# Rows of a cluster that the neighbours of each are looked for among.
_MOST_AMONG = 5_000
_TILE = 1 << 20


def pick_typical(embedding_nd: Array, labeled_ld: Array, n: int, seed: int) -> Array:
    """N rows, each the most typical one of a cluster.

    Embeddings are scaled to unit length and clustered together with those of the labelled rows by k-means, into as many
    clusters as there are labelled rows and rows to pick (at most 500). Clusters come in the order of the fewest
    labelled rows, then of the most rows; those of 5 rows or fewer come last. Each gives the row of highest typicality,
    `1 / mean distance to its 20 nearest neighbours in the cluster` (of a small one: to half of it), and then the next
    round of clusters follows.

    Cost: up to 50 passes of `N K d` operations, and `d` operations for each pair of a cluster that is picked from (at
    most 5,000 a row). Memory: the input twice, and 8 MB.

    Args:
        embedding_nd: `[N, d]`.
        labeled_ld: `[L, d]`.
        n: rows to pick.
        seed: of the first centres.

    Returns:
        Places `[n]` in the order of picking.

    Raises:
        InputError: fewer rows than n.
    """
    rows = len(embedding_nd)
    if n > rows:
        raise InputError(f"A batch of {n} rows cannot be picked from {rows} candidates.", f"pass n <= {rows}.")
    x_nd = _unit(np.concatenate([embedding_nd, labeled_ld]))
    k = min(len(labeled_ld) + n, MOST_CLUSTERS, len(x_nd))
    cluster_n, labeled_k = np.split(k_means(x_nd, k, seed), [rows])
    known, size = np.bincount(labeled_k, minlength=k), np.bincount(np.concatenate([cluster_n, labeled_k]), minlength=k)
    order = np.lexsort((np.arange(k), -size, known, size <= SMALL))
    free_n = np.ones(rows, bool)
    picked: list[int] = []
    while len(picked) < n:
        for cluster in order:
            members = np.flatnonzero((cluster_n == cluster) & free_n)
            if len(members):
                picked.append(int(members[np.argmax(typicality(x_nd[members]))]))
                free_n[picked[-1]] = False
            if len(picked) == n:
                break
    return np.array(picked)


def typicality(x_nd: Array) -> Array:
    """`1 / mean distance` of every row to its nearest neighbours, `[N]`: 20 of them, or half of the rows."""
    rows = len(x_nd)
    among = np.unique(np.linspace(0, rows - 1, min(rows, _MOST_AMONG)).astype(np.int64))
    count = min(NEIGHBOURS, rows // 2)
    if count == 0:
        return np.ones(rows)
    out = np.empty(rows)
    step = max(1, _TILE // len(among))
    for at in range(0, rows, step):
        square_nm = _squared_distances(x_nd[at : at + step], x_nd[among])
        # The nearest of all is the row itself, or (where it is not among the others) none at all.
        itself = np.isin(np.arange(at, min(at + step, rows)), among)
        square_nm.partition(min(count, len(among) - 1), axis=1)
        nearest = np.sqrt(np.sort(square_nm[:, : count + 1], axis=1))
        mean = np.where(itself, nearest[:, 1:].mean(1), nearest[:, :count].mean(1))
        out[at : at + step] = 1 / np.maximum(mean, np.finfo(np.float64).tiny)
    return out


def k_means(x_nd: Array, k: int, seed: int) -> Array:
    """The cluster of every row, `[N]`, by Lloyd's iterations from the draws of k-means++: at most 50.

    A cluster that loses all its rows keeps its centre.
    """
    generator = np.random.default_rng(seed)
    first = int(generator.integers(len(x_nd)))
    centers_kd = x_nd[spread_out(lambda j: squared_distance(x_nd, x_nd[j]), first, k, generator)].astype(np.float64)
    cluster_n = np.full(len(x_nd), -1)
    for _ in range(_ITERATIONS):
        before, cluster_n = cluster_n, _nearest(x_nd, centers_kd)
        if np.array_equal(before, cluster_n):
            break
        count_k = np.bincount(cluster_n, minlength=k)
        sums_kd = np.zeros_like(centers_kd)
        np.add.at(sums_kd, cluster_n, x_nd)
        centers_kd = np.where(count_k[:, None] > 0, sums_kd / np.maximum(count_k, 1)[:, None], centers_kd)
    return cluster_n


def _nearest(x_nd: Array, centers_kd: Array) -> Array:
    step = max(1, _TILE // len(centers_kd))
    parts = [_squared_distances(x_nd[at : at + step], centers_kd).argmin(1) for at in range(0, len(x_nd), step)]
    return np.concatenate(parts)


def _squared_distances(a_nd: Array, b_md: Array) -> Array:
    a_nd, b_md = a_nd.astype(np.float64), b_md.astype(np.float64)
    square = np.einsum("nd,nd->n", a_nd, a_nd)[:, None] + np.einsum("md,md->m", b_md, b_md) - 2 * (a_nd @ b_md.T)
    out: Array = np.maximum(square, 0.0)
    return out


def _unit(x_nd: Array) -> Array:
    out: Array = x_nd / np.maximum(np.linalg.norm(x_nd, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return out
