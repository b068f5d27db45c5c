"""The figure of a search: the front as a line, the chosen candidate on it, one bar of points a class."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.axes import Axes

import rayinf
from rayinf.plots import trade_off

CANDIDATES = pa.table(
    {
        "candidate": ["unweighted", "a", "b", "c", "d"],
        "gain": [0.0, 0.05, 0.02, 0.09, None],
        "others": [0.0, -0.01, -0.03, -0.04, None],
        "front": [True, True, False, True, False],
        "chosen": [False, True, False, False, False],
    }
)
MEASURES = ("checkpoint", "unweighted", "weighted")
SHARES = {
    f"{name}{end}": np.array([0.3, 0.5, 0.7]) + shift
    for name in MEASURES
    for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.1))
}
CLASSES = pa.table({"class": ["cat", "ship", "aeroplane"], "target": [True, False, False], **SHARES})


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> list[Axes]:
    held = []
    save = trade_off.save
    monkeypatch.setattr(trade_off, "save", lambda figure, path: held.append(figure) or save(figure, path))
    assert trade_off.plot(CANDIDATES, CLASSES, tmp_path / "a.png") == tmp_path / "a.png"
    return held[0].axes


def test_the_front_is_a_line_in_points(drawn):
    line = next(x for x in drawn[0].lines if x.get_label() == "front")
    np.testing.assert_allclose(line.get_xydata(), [[-4, 9], [-1, 5], [0, 0]])


def test_points_are_where_they_belong(drawn):
    held = {c.get_label(): np.asarray(c.get_offsets()) for c in drawn[0].collections}
    np.testing.assert_allclose(held["chosen"], [[-1, 5]])
    np.testing.assert_allclose(held["candidates"], [[-3, 2]])
    np.testing.assert_allclose(held["unweighted epoch"], [[0, 0]])


def test_classes_are_named_and_targets_marked(drawn):
    assert [t.get_text() for t in drawn[1].get_xticklabels()] == ["cat *", "ship", "aeroplane"]
    assert len(drawn[1].containers) == 3


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(rayinf.InputError, match="cannot be drawn"):
        trade_off.plot(CANDIDATES, CLASSES, tmp_path / "a.nothing")
