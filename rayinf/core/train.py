"""Fitting a softmax regression to convergence, over batches that may not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core.exact import add_head_hessian
from rayinf.core.kfac import Sums
from rayinf.errors import RunError

# X [B, d], y [B], and a weight >= 0 for each row [B], or None where every row counts once.
Batches = Callable[[], Iterable[tuple[Tensor, Tensor, Tensor | None]]]

# Up to here Newton's method with the whole Hessian; above, Newton steps by conjugate gradients.
MOST_NEWTON = 3000
GRADIENT_NORM = 1e-8
_MOST_STEPS = 200


def fit_softmax(batches: Batches, classes: int, rows: int, width: int, l2: float) -> Tensor:
    """Weights and bias `[K, d + 1]` that minimise `sum_i w_i l_i / n + l2/2 ||theta||^2` (cross-entropy l), in float64.

    Args:
        batches: gives `(X [B, d] float64, y [B], w [B] or None)` over all rows, as often as it is called.
        classes: K.
        rows: n, what the sum is divided by: the rows of the batches, or of the fit that a refit is compared with.
        width: d.
        l2: over weights and bias.

    Raises:
        RunError: the gradient's norm does not fall to 1e-8, as on separable classes without a ridge.

    Cost: about ten passes over the rows, of `K (K + 1) / 2 d^2` multiply-adds a row (Newton), or two products of
    `K d` a row and step (above `MOST_NEWTON` parameters).
    """
    problem = _Softmax(batches, classes, rows, width, l2)
    theta = np.zeros(classes * (width + 1))
    if theta.size <= MOST_NEWTON:
        theta = _newton(problem, theta)
    else:
        from scipy.optimize import minimize

        solve: Any = minimize  # whose stubs lack overloads for arrays of any shape
        options = {"gtol": GRADIENT_NORM / 2, "maxiter": _MOST_STEPS}
        slope, product = problem.gradient, problem.product
        theta = solve(problem.value, theta, jac=slope, hessp=product, method="trust-ncg", options=options).x
    norm = float(np.linalg.norm(problem.gradient(theta)))
    if not norm <= GRADIENT_NORM:
        raise RunError(
            f"The logistic regression did not converge: its gradient has norm {norm:.1e}, not {GRADIENT_NORM:.0e}.",
            "pass l2 > 0 (without it classes that can be separated have no optimum), and features of similar scales.",
        )
    return torch.from_numpy(theta).reshape(classes, width + 1)


class _Softmax:
    """Value, gradient and Hessian of the objective; value and gradient of the last point are cached."""

    def __init__(self, batches: Batches, classes: int, rows: int, width: int, l2: float) -> None:
        self._batches, self._rows, self._l2 = batches, rows, l2
        self._shape = (classes, width + 1)
        self._last: tuple[np.ndarray, float, np.ndarray] | None = None

    def value(self, theta: np.ndarray) -> float:
        """Mean loss with the ridge."""
        return self._both(theta)[0]

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """Its gradient."""
        return self._both(theta)[1]

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """Its Hessian `[p, p]`."""
        w, sums = torch.from_numpy(theta).reshape(self._shape), Sums()
        for x, _, weights in self._batches():
            a = _ones(x)
            add_head_hessian(sums, a if weights is None else a * weights.sqrt()[:, None], a @ w.T)
        h: np.ndarray = sums["H"][0].numpy() / self._rows
        return h + self._l2 * np.eye(len(h))

    def product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The Hessian times a vector."""
        w, u = (torch.from_numpy(t).reshape(self._shape) for t in (theta, v))
        total = torch.zeros(self._shape, dtype=torch.float64)
        for x, _, weights in self._batches():
            a = _ones(x)
            p, t = (a @ w.T).softmax(1), a @ u.T
            curved = p * (t - (p * t).sum(1, keepdim=True))
            total += (curved if weights is None else curved * weights[:, None]).T @ a
        out: np.ndarray = total.numpy().reshape(-1) / self._rows + self._l2 * v
        return out

    def _both(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        if self._last is not None and np.array_equal(self._last[0], theta):
            return self._last[1], self._last[2]
        w = torch.from_numpy(theta).reshape(self._shape)
        loss, gradient = 0.0, torch.zeros(self._shape, dtype=torch.float64)
        for x, y, weights in self._batches():
            a = _ones(x)
            logits = a @ w.T
            losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
            error = logits.softmax(1)
            error[torch.arange(len(y)), y] -= 1.0
            if weights is not None:
                losses, error = losses * weights, error * weights[:, None]
            loss += float(losses.sum())
            gradient += error.T @ a
        value = loss / self._rows + self._l2 / 2 * float(theta @ theta)
        slope: np.ndarray = gradient.numpy().reshape(-1) / self._rows + self._l2 * theta
        self._last = (theta.copy(), value, slope)
        return value, slope


def _newton(problem: _Softmax, theta: np.ndarray) -> np.ndarray:
    """Newton steps, halved until the value falls; directions without curvature (a shift of classes) are left out."""
    for _ in range(_MOST_STEPS):
        slope = problem.gradient(theta)
        if np.linalg.norm(slope) <= GRADIENT_NORM / 10:
            break
        values, vectors = np.linalg.eigh(problem.hessian(theta))
        keep = values > len(values) * np.finfo(float).eps * values.max()
        step = vectors[:, keep] @ ((vectors[:, keep].T @ slope) / values[keep])
        size, value = 1.0, problem.value(theta)
        while size > 1e-6 and problem.value(theta - size * step) > value - 1e-4 * size * float(slope @ step):
            size /= 2
        if size <= 1e-6:  # rounding hides any fall of the value: the last full step may still lower the gradient
            if np.linalg.norm(problem.gradient(theta - step)) < np.linalg.norm(slope):
                theta = theta - step
                continue
            break
        theta = theta - size * step
    return theta


def _ones(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 1), value=1.0)
