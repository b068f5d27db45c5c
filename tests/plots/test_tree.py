"""Drawings of trees and regions: files, their text and colours, and errors."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from rayinf import InfluenceTree
from rayinf.errors import InputError
from rayinf.plots import tree as plots


def grown(depth: int | None = 3) -> tuple[InfluenceTree, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 2)), rng.integers(0, 2, 200)
    return InfluenceTree(max_depth=depth).fit(x, y, np.where(y == 1, x[:, 0] > 0, -x[:, 1])), x, y


def colours(path: Path) -> int:
    return len(np.unique((imread(path)[..., :3] * 255).astype(int) @ [1, 256, 65536]))


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_tree_is_drawn(tmp_path: Path, depth: int) -> None:
    tree, _, _ = grown(depth)
    path = tree.plot(tmp_path / "deep" / "tree.png", title="What helps")
    assert colours(path) > 20
    svg = tree.plot(tmp_path / "tree.svg").read_text()
    assert svg.count('id="patch_') >= tree.tree_.tree_.node_count


def test_every_box_has_its_rule_value_and_rows_in_the_colour_of_its_sign(tmp_path: Path, monkeypatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    tree, _, _ = grown(2)
    tree.plot(tmp_path / "tree.png")
    boxes = [a for a in figures[0].axes[0].texts if a.get_bbox_patch() is not None]
    held = tree.tree_.tree_
    assert len(boxes) == held.node_count == 7
    for k, box in enumerate(boxes):
        *rule, value, rows = box.get_text().split("\n")
        assert value == f"{tree.values_[k]:+.3g}"
        assert rows == f"{held.n_node_samples[k]:,} rows"
        assert bool(rule) == (held.children_left[k] >= 0)
        red, _, blue, _ = box.get_bbox_patch().get_facecolor()
        assert (blue > red) == (tree.values_[k] > 0)
    names = tree.feature_names_
    for k in np.flatnonzero(held.children_left >= 0):
        name, threshold = names[held.feature[k]], round(held.threshold[k], 3)
        rule = "label = 0" if name == "label" else f"{name} <= {threshold}"
        assert boxes[k].get_text().startswith(rule + "\n")
    assert "label" in {names[f] for f in held.feature if f >= 0}
    assert tree.values_.min() < 0 < tree.values_.max()


def test_a_lone_root_is_drawn(tmp_path: Path) -> None:
    x = np.arange(10.0).reshape(5, 2)
    assert colours(InfluenceTree().fit(x, None, np.zeros(5)).plot(tmp_path / "root.png", "")) > 2


def test_a_tree_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    tree, _, _ = grown(None)
    with pytest.raises(InputError, match="leaves cannot be read"):
        tree.plot(tmp_path / "wide.png")
    assert not list(tmp_path.iterdir())


def test_regions_are_those_of_the_tree(tmp_path: Path) -> None:
    """A panel a class; the share of green is the share of positive predictions."""
    tree, x, y = grown(2)
    gone = np.arange(200) < 10
    path = tree.plot_regions(
        tmp_path / "regions.png", x, y, groups=y ^ 1, removed=gone, boundary=([1.0, 2.0], 0.3), title="Utility"
    )
    assert colours(path) > 20
    one = InfluenceTree(max_depth=1, shrinkage=0.0).fit(x, None, np.where(x[:, 0] > 0, 1.0, -1.0))
    pixels = imread(one.plot_regions(tmp_path / "half.png", x))[..., :3]
    green = (np.abs(pixels - np.array([0xCD, 0xEB, 0xC9]) / 255) < 0.02).all(-1)
    red = (np.abs(pixels - np.array([0xF6, 0xC9, 0xC5]) / 255) < 0.02).all(-1)
    assert green.any()
    assert red.any()
    assert np.nonzero(green)[1].min() >= np.nonzero(red)[1].max() - 1


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    tree, x, y = grown()
    wide = np.column_stack([x, x])
    with pytest.raises(InputError, match="over two features, and there are 4"):
        InfluenceTree().fit(wide, y, x[:, 0]).plot_regions(tmp_path / "a.png", wide, y)
    with pytest.raises(InputError, match="cannot be drawn"):
        tree.plot(tmp_path / "tree.docx")
    marked = {"groups": y[:5], "removed": np.arange(10), "boundary": ([0.0, 0.0], 1.0)}
    for name, given in marked.items():
        with pytest.raises(InputError, match=name):
            tree.plot_regions(tmp_path / "a.png", x, y, **{name: given})
    assert not list(tmp_path.iterdir())


def drawn_text(path: Path) -> str:
    """All that is written in an SVG: matplotlib puts each text in a comment."""
    return unescape(" ".join(re.findall(r"<!-- (.*?) -->", path.read_text(), re.S)))


def test_the_text_of_a_drawing_is_complete(tmp_path: Path) -> None:
    """A long name loses its middle, never its threshold; a dollar does not start a formula."""
    x = np.r_[np.zeros((1200, 1)), np.full((1, 1), 2.5)]
    name = "the share of the income of the whole household that goes into $rent$ and heating and light"
    tree = InfluenceTree(max_depth=1, shrinkage=0.0).fit(x, None, x[:, 0] - 0.5, feature_names=[name])
    text = drawn_text(tree.plot(tmp_path / "a.svg", "A")).replace("\n", " ")
    assert "and light <= 1.25" in text
    assert "\u2026" in text
    assert "+2" in text
    assert "1,200 rows" in text
    assert "1 row" in text
    _, x, y = grown(1)
    price = InfluenceTree(max_depth=1).fit(x, y, x[:, 0], feature_names=[r"a $ and $ \frac", "b"])
    assert r"a $ and $ \frac" in drawn_text(price.plot(tmp_path / "b.svg"))


def test_the_legend_names_what_is_marked(tmp_path: Path) -> None:
    tree, x, y = grown(2)
    text = drawn_text(tree.plot_regions(tmp_path / "a.svg", x, y, groups=np.array(["m", "f"])[y]))
    assert "group m" in text
    assert "label = 1" in text
    assert "trimmed" not in text
    text = drawn_text(tree.plot_regions(tmp_path / "b.svg", x, y, removed=y == 1, boundary=([1.0, 0.0], 0.0)))
    assert "trimmed" in text
    assert "boundary" in text
    assert "group" not in text
