"""The demands of the reweighting LP: right-hand sides for every class and the box of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayinf.arguments import number, optional, refuse, shown
from rayinf.errors import InputError
from rayinf.pareto.decomposition import Survey

Array = np.ndarray[Any, Any]
SLACKS = ("paper", "scaled")


@dataclass(frozen=True)
class Demands:
    """`w = centre + half v` with `|v_i| <= 1`, and `w'P^k >= floor_k`.

    Attributes:
        alpha: `[K]`.
        centre: the middle of the box.
        half: half its width.
        floor: `[K]`, the least `w'P^k`.
        slope: `[K]`, how fast it rises where all alphas rise together.
    """

    alpha: Array
    centre: float
    half: float
    floor: Array
    slope: Array

    @classmethod
    def of(cls, survey: Survey, alpha: Any, upper: float, radius: float | None, slack: str) -> Demands:
        """The demands of one candidate.

        Args:
            survey: of the influence vectors.
            alpha: one number, or one a class.
            upper: `0 <= w <= upper`, where there is no radius.
            radius: `|w - 1| <= radius`.
            slack: "paper" (Nahin 2025, Algorithm 1, line 4): `floor_k = alpha_k S_k`, which for a class with `S_k < 0`
                and alpha < 1 is above `S_k`: it demands a gain. "scaled": `S_k - (1 - alpha_k) b_k`, and with a radius
                `S_k - (1 - alpha_k) radius b_k`: alpha < 1 allows a loss to every class, whatever the sign of S_k.

        Raises:
            InputError: as `checked`.
        """
        held = checked(alpha, len(survey.total), upper, radius, slack)
        centre, half = (upper / 2, upper / 2) if radius is None else (1.0, float(radius))
        slope = survey.total if slack == "paper" else survey.absolute * (1.0 if radius is None else radius)
        floor = held * survey.total if slack == "paper" else survey.total - (1 - held) * slope
        return cls(held, centre, half, floor, slope)

    def of_v(self, floor: Array, total: Array, unit: Array) -> Array:
        """The floor of `sum_i v_i P_i^k / unit_k` that a floor of `w'P^k` implies."""
        of_v: Array = (floor - self.centre * total) / (self.half * unit)
        return of_v


def checked(alpha: Any, classes: int, upper: float, radius: float | None, slack: str) -> Array:
    """Alphas `[K]`, once all of a candidate's numbers are checked.

    Raises:
        InputError: an alpha that is not finite, or not one a class; upper <= 0; a radius outside (0, 1]; another slack.
    """
    check_slack(slack)
    try:
        held = np.asarray(alpha, float)
    except (TypeError, ValueError):
        refuse("alpha", alpha, "a number, or one a class", "pass alpha=0.95, say.")
    if held.ndim > 1 or (held.ndim == 1 and len(held) != classes):
        raise InputError(f"alpha has shape {list(held.shape)} for {classes} classes.", "pass a number, or one a class.")
    if not np.isfinite(held).all():
        raise InputError(f"alpha={alpha!r} is not finite.", "pass finite numbers, such as 0.95.")
    number("upper", upper, "> 0")
    optional(number, "radius", radius, "in (0, 1]")
    return np.broadcast_to(held, classes).copy()


def check_slack(slack: str) -> None:
    """Refuse an unknown slack.

    Raises:
        InputError: it is neither "paper" nor "scaled".
    """
    if not isinstance(slack, str) or slack not in SLACKS:
        raise InputError(f"slack={shown(slack)} is unknown.", 'pass "paper" or "scaled".')
