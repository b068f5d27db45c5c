"""The example on where influence vectors lie: its shares, and the whole of it on synthetic images."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rayinf

FOLDER = Path(__file__).parents[2] / "examples" / "pareto_ceiling"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    monkeypatch.syspath_prepend(FOLDER)
    yield runpy.run_path(str(FOLDER / "vectors.py"))
    sys.modules.pop("cifar", None)


def test_who_is_helped(script: dict) -> None:
    """Labels come in another order than the classes' columns."""
    p = np.array([[1, -1, 1.0], [-1, 2, -1], [1, 1, 3], [-1, -1, 1]])
    columns = [f"category_{k}" for k in range(3)]
    scores = rayinf.Scores.from_numpy(p, columns, labels=np.array([2, 1, 2, 0]))
    assert script["helped"](rayinf.ceiling(scores)) == pytest.approx((3 / 4, 4 / 8))


@pytest.mark.slow
def test_whole(script: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = script["TINY"]
    script["main"].__globals__["TINY"] = replace(tiny, rows=40, valid=80, first=replace(tiny.first, epochs=1))
    options = ["--quick", "--seeds", "1", "--damping", "layer_mean:0.1"]
    (ceiling,) = script["main"]([*options, "--out", str(tmp_path / "deep" / "maps.png")])
    printed = capsys.readouterr().out
    assert f"{ceiling.explained_variance[0]:.2f}" in printed and "first component" in printed
    regions = ceiling.regions
    assert regions.rows == regions.jointly_helpful + regions.jointly_harmful + regions.mixed == 40
    assert all(f"{share:.1%}" in printed for share in script["helped"](ceiling))
    assert (tmp_path / "deep" / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_data_is_needed(script: dict) -> None:
    with pytest.raises(SystemExit, match="--quick alone"):
        script["main"]([])
