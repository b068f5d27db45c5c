"""The oracle of the reweighting LP: scipy on the whole program, and instances to try it on."""

import numpy as np
from scipy.optimize import linprog


def demanded(p, alpha, radius=None, slack="paper"):
    """The least w'P^k of every class, as written."""
    total, absolute = p.sum(0), np.abs(p).sum(0)
    if slack == "paper":
        return alpha * total
    return total - (1 - alpha) * (1 if radius is None else radius) * absolute


def oracle(p, targets, alpha, upper=2.0, radius=None, slack="paper"):
    """The optimum of the program in units in which scipy's tolerances mean something; None: infeasible."""
    n, unit = len(p), np.abs(p).mean(0)
    unit = np.where(unit > 0, unit, 1)
    cost = p[:, targets].sum(1)
    scale = unit[targets].sum()
    bounds = (0, upper) if radius is None else (1 - radius, 1 + radius)
    found = linprog(
        -cost / scale,
        A_ub=-(p / unit).T,
        b_ub=-demanded(p, alpha, radius, slack) / unit,
        bounds=bounds,
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.status in (0, 2), (found.message, n)
    return -found.fun * scale if found.status == 0 else None


def largest_common(p, upper=2.0):
    """The largest alpha that all classes can have in common, with the paper's slack."""
    unit = np.where(np.abs(p).mean(0) > 0, np.abs(p).mean(0), 1)
    matrix = np.vstack([-(p / unit).T])
    found = linprog(
        np.r_[np.zeros(len(p)), -1.0],
        A_ub=np.c_[matrix, p.sum(0) / unit],
        b_ub=np.zeros(p.shape[1]),
        bounds=[(0, upper)] * len(p) + [(None, None)],
        method="highs",
    )
    return float(found.x[-1]) if found.status == 0 else np.inf


def influences(seed, n, k, shift=0.3):
    """Heavy tails, a class each row belongs to and helps, scales from 1e-3 to 1e3."""
    rng = np.random.default_rng(seed)
    p = rng.standard_t(3, (n, k))
    p[np.arange(n), rng.integers(0, k, n)] += 1.0
    return (p + shift) * 10.0 ** rng.uniform(-3, 3, k)
