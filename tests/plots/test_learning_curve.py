"""The learning curve as it is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

import rayinf
from rayinf.plots import learning_curve


def table(seeds: int = 3, strategies: tuple[str, ...] = ("fi", "random")) -> pa.Table:
    rows = [
        {"strategy": s, "seed": k, "labeled": 100 + 50 * r, "accuracy": 0.7 + 0.02 * r + 0.01 * k + 0.03 * j}
        for j, s in enumerate(strategies)
        for k in range(seeds)
        for r in range(4)
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    held: list[Figure] = []
    plain = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: held.append(self) or plain(self, *a, **o))
    return held


def test_a_line_a_strategy_with_a_band_over_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    assert learning_curve.plot(table(), tmp_path / "new" / "curve.png") == tmp_path / "new" / "curve.png"
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "Labelled rows" and "Accuracy" in axes.get_ylabel()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["fi", "random"]
    assert "3 seeds" in axes.get_legend().get_title().get_text()
    fi = axes.lines[0]
    assert fi.get_xdata().tolist() == [100, 150, 200, 250]
    assert np.allclose(fi.get_ydata(), [0.71, 0.73, 0.75, 0.77])
    band = axes.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].min(), 0.70) and np.isclose(band[:, 1].max(), 0.78)


def test_one_seed_has_no_band(tmp_path: Path, drawn: list[Figure]) -> None:
    learning_curve.plot(table(seeds=1), tmp_path / "curve.svg")
    assert not drawn[0].axes[0].collections


def test_many_strategies_are_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    learning_curve.plot(table(strategies=tuple("abcdefghi")), tmp_path / "curve.pdf")
    assert len({(line.get_color(), line.get_marker()) for line in drawn[0].axes[0].lines}) == 9


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rayinf.InputError, match="cannot be drawn"):
        learning_curve.plot(table(), tmp_path / "curve.xyz")
