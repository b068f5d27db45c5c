"""The top share of a column: of the rows of that sign, ties by the earlier row, at least one."""

from __future__ import annotations

import numpy as np
import pytest

from rayinf.select.top_share import top_share

VALUES = np.array([0.5, -2.0, 0.0, -0.5, 3.0, -2.0, 1.0, -1.0, 0.5])


@pytest.mark.parametrize(
    ("share", "side", "rows"),
    [
        (0.5, "helpful", [4, 6]),  # of the four that help
        (0.75, "helpful", [0, 4, 6]),  # of equal ones the earlier
        (0.74, "helpful", [4, 6]),
        (0.01, "helpful", [4]),  # a row at least
        (0.99, "helpful", [0, 4, 6]),
        (0.25, "harmful", [1]),
        (0.5, "harmful", [1, 5]),
        (0.76, "harmful", [1, 5, 7]),
    ],
)
def test_of_the_rows_of_that_sign(share: float, side: str, rows: list[int]) -> None:
    assert np.flatnonzero(top_share(VALUES, share, side)).tolist() == rows


def test_no_row_of_that_sign() -> None:
    assert not top_share(np.array([1.0, 0.0, 2.0]), 0.5, "harmful").any()
    assert not top_share(np.array([-1.0, 0.0]), 0.5, "helpful").any()
