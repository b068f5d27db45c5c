"""The script on the synthetic sets of Nahin 2025: the rows it makes, what it prints and draws."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "pareto_ceiling" / "synthetic.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_sets_are_those_of_the_paper(script: dict[str, Any]) -> None:
    a, b = script["make"]("A", 0), script["make"]("B", 0)
    assert a.train[0].shape == a.valid[0].shape == a.test[0].shape == (600, 2)
    assert b.train[0].shape == (700, 2) and not b.flipped.any()
    true = np.repeat([0, 1], 300)
    np.testing.assert_array_equal(a.train[1] != true, a.flipped)
    assert (a.flipped & (true == 0)).sum() == 50 and (a.flipped & (true == 1)).sum() == 20
    np.testing.assert_array_equal(a.valid[1], true)
    # A line separates the true classes of A, not those of B.
    assert a.train[0][true == 0, 0].max() < a.train[0][true == 1, 0].min()
    assert b.train[0][:350, 0].max() > b.train[0][350:, 0].min() + 0.3
    assert not np.array_equal(a.train[0], script["make"]("A", 1).train[0])
    np.testing.assert_array_equal(a.train[0], script["make"]("A", 0).train[0])


@pytest.mark.slow
def test_the_goals_of_both_sets_are_met(
    script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room on A, none on B; rounds remove half of the flipped rows at least, hardly a clean one, at no class's cost."""
    (seed, *printed), (_, rounds, flipped, clean, *change) = script["run"](1, None)
    a_gain, a_cross, b_gain, b_cross = (float(printed[k]) for k in (0, 1, 3, 4))
    assert seed == "1" and (printed[2], printed[5]) == ("room", "none")
    assert a_gain > 0.6 and a_cross > 0.5
    assert b_gain < 0.2 and b_cross < 0.2
    assert int(rounds) >= 1 and int(flipped.split()[0]) >= 35 and int(clean) <= 3
    for printed_change in change:
        before, after = (float(v.rstrip("%")) for v in printed_change.split("->"))
        assert after >= before
    script["main"](["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "There is room" in printed and "No evidence of room" in printed and "of 70" in printed
    assert {p.name for p in tmp_path.iterdir()} == {
        "figure_2_seed0.png",
        "figure_5_seed0.png",
        "plane_A_seed0.png",
    }
    assert all(p.stat().st_size > 20_000 for p in tmp_path.iterdir())
