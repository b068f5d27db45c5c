"""Influence vectors to test on, and the certificate's LP as scipy solves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.optimize import linprog

from rayinf.pareto.ceiling import Options

Array = np.ndarray[Any, Any]


def drawn(kind: str, rows: int, classes: int, seed: int = 0) -> Array:
    """Vectors: pure noise, of heavy tails, mostly good for one class and bad for the others, or near a hyperplane."""
    rng = np.random.default_rng(seed)
    p = rng.standard_normal((rows, classes))
    if kind == "heavy":
        p *= np.exp(1.5 * rng.standard_normal((rows, 1)))
    elif kind == "own":
        p = -0.3 * np.abs(p)
        p[np.arange(rows), rng.integers(0, classes, rows)] += 2 * np.abs(rng.standard_normal(rows))
        p = (p + 0.3 * rng.standard_normal(p.shape)) * np.exp(rng.standard_normal((rows, 1)))
    elif kind == "plane":
        p = on_plane(p, rng.random(classes) + 0.1) + 0.02 * rng.standard_normal(p.shape)
    return p


def on_plane(p: Array, normal: Array) -> Array:
    """The same vectors, moved onto the hyperplane through 0 with this normal."""
    return p - np.outer(p @ normal, normal) / (normal @ normal)


def scipy_gain(p: Array) -> float:
    """`max t : sum_i delta_i P_i^k >= t b_k, |delta_i| <= 1`."""
    rows, classes = p.shape
    unit = p / np.abs(p).sum(0)
    found = linprog(
        np.r_[np.zeros(rows), -1.0],
        A_ub=np.c_[-unit.T * rows, np.full(classes, rows)],
        b_ub=np.zeros(classes),
        bounds=[(-1, 1)] * rows + [(None, None)],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.status == 0
    return float(-found.fun)


def source(*parts: Array, batch: int = 1000, codes: Array | None = None) -> Callable[[bool], Iterator[tuple[Any, ...]]]:
    """Batches of these rows, as often as they are requested."""

    def read(labels: bool) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(parts[0]), batch):
            held = tuple(p[start : start + batch] for p in parts)
            known = np.full(len(held[0]), -1) if codes is None else codes[start : start + batch]
            yield (*held, known) if labels else held

    return read


def options(**changed: Any) -> Options:
    return Options(**{"sample": 10**6, "near": 2000, "gap": 1e-9, "passes": 60, "resamples": 200, "seed": 0, **changed})
