"""The drawing of a removal check: values in cells, bold borders on the diagonal, gaps where nothing was removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from rayinf.errors import InputError
from rayinf.plots import removal
from rayinf.plots.removal import SideMaps, plot

LOSS = np.array([[0.5, -0.01], [0.002, 0.25]])


def sides(loss: np.ndarray = LOSS) -> list[SideMaps]:
    return [
        SideMaps("helpful", loss / 2, loss, -loss / 10, 0.8, 2.0),
        SideMaps("harmful", -loss / 2, -loss, loss / 10, None, None),
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(removal, "save", lambda figure, path: figures.append(figure) or Path(path))
    return figures


def test_maps_and_scatter(drawn: list[Figure]) -> None:
    plot(sides(), ["cat", "dog"], "x.png")
    panels = [a for a in drawn[0].axes if a.get_title()]
    assert [a.get_title() for a in panels[:4]] == [
        "Predicted change of mean test loss",
        "Measured change of mean test loss",
        "Measured change of accuracy (points)",
        "Helpful rows removed: Spearman 0.80, slope 2.00",
    ]
    assert panels[7].get_title() == "Harmful rows removed: Spearman undefined, slope undefined"
    assert panels[4].get_ylabel() == "Class whose harmful rows were removed"
    assert [t.get_text() for t in panels[0].texts] == [".250", "-.005", ".001", ".125"]
    assert [t.get_text() for t in panels[2].texts] == ["-5.00", ".10", "-.02", "-2.50"]
    bold = [p for p in panels[0].patches if p.get_linewidth() > 1]
    assert sorted(p.get_xy() for p in bold) == [(-0.5, -0.5), (0.5, 0.5)]
    image = panels[1].images[0]
    assert image.get_array().tolist() == LOSS.tolist()
    assert image.norm(0.0) == pytest.approx(0.5)  # no change has no colour
    points = sorted(tuple(p) for c in panels[3].collections for p in c.get_offsets().tolist())
    assert points == sorted(zip((LOSS / 2).ravel().tolist(), LOSS.ravel().tolist(), strict=True))


def test_gaps(drawn: list[Figure]) -> None:
    loss = LOSS.copy()
    loss[1] = np.nan
    plot(sides(loss), ["0", "1"], "x.png")
    panels = [a for a in drawn[0].axes if a.get_title()]
    assert len(panels[0].texts) == 2
    assert panels[0].images[0].get_array().mask.tolist() == [[False, False], [True, True]]
    assert sum(len(c.get_offsets()) for c in panels[3].collections) == 2


def test_many_classes_and_files(tmp_path: Path) -> None:
    loss = np.random.default_rng(0).normal(size=(25, 25))
    names = [f"class number {k}" for k in range(25)]
    assert plot(sides(loss), names, tmp_path / "a" / "many.png").stat().st_size > 10_000
    assert plot(sides(np.zeros((2, 2))), ["a", "b"], tmp_path / "none.svg").exists()
    with pytest.raises(InputError, match="cannot be drawn"):
        plot(sides(), ["a", "b"], tmp_path / "x.docx")
