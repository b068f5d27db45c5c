"""The example on CIFAR-10: its split, its comparison at equal loss, and the whole of it on synthetic images."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "pareto_ceiling" / "cifar.py"


@pytest.fixture(scope="module")
def cifar() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("cifar_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar_example"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cifar_example"]


def lines(lp: list[tuple[float, float]], chosen: tuple[float, float]) -> pd.DataFrame:
    """Class weights on the line gain = -2 others, up to 4 points lost."""
    rows = [("unweighted", 0.0, 0.0), *(("class weights", -2.0 * o, o) for o in (-1.0, -2.0, -4.0))]
    rows += [("LP", gain, others) for gain, others in lp] + [("chosen", *chosen)]
    return pd.DataFrame(rows, columns=["way", "gain", "others"])


def test_above_compares_at_equal_loss(cifar):
    assert cifar.above(lines([(3.0, -1.0), (6.5, -3.0)], (0, 0))) == pytest.approx((1.0 + 0.5) / 2)
    assert cifar.above(lines([(3.0, -1.0), (99.0, -5.0)], (0, 0))) == pytest.approx(1.0)  # past their end
    assert cifar.above(lines([(1.0, 0.5)], (0, 0))) == pytest.approx(1.0)  # where nobody loses: against 0
    assert cifar.above(lines([(1.0, -1.0)], (0, 0))) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("chosen", "beaten"),
    [((3.0, -1.5), False), ((2.0, -1.5), True), ((2.0, -1.0), False), ((-1.0, -0.5), True), ((-0.1, 0.2), False)],
)
def test_dominated(cifar, chosen, beaten):
    assert cifar.dominated(lines([], chosen)) is beaten


def test_rows_are_used_once(cifar):
    data, test = cifar.synthetic(120), cifar.synthetic(40, seed=5)
    size = cifar.replace(cifar.TINY, rows=50, valid=100)
    split = cifar.partition(data, test, size, 0)
    held = [r for part in (split.train, split.search, split.judge) for r in part["image"].to_pylist()]
    assert [p.num_rows for p in (split.train, split.search, split.judge)] == [50, 50, 50]
    assert len(set(held)) == 150 and set(held) <= {*data["image"].to_pylist(), *test["image"].to_pylist()}
    with pytest.raises(SystemExit, match="are needed"):
        cifar.partition(data, None, size, 0)


def test_images(cifar):
    pixels = np.arange(3072, dtype=np.uint32).astype(np.uint8)[None]
    image = cifar.to_images(pixels)
    assert image.shape == (1, 3, 32, 32) and image.dtype == np.float32
    assert image[0, 1, 2, 3] * 0.251 + 0.473 == pytest.approx(pixels[0, (2 * 32 + 3) * 3 + 1] / 255, abs=1e-6)


@pytest.mark.slow
def test_whole(cifar, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cifar, "RADII", (0.3, 1.0))
    monkeypatch.setattr(cifar, "CLASS_WEIGHTS", (1.4, 3.0))
    cifar.main(["--quick", "--seeds", "1", "--shuffles", "1", "--out", str(tmp_path / "deep" / "front.png")])
    printed = capsys.readouterr().out
    for text in ("direct, seed 0", "correct, seed 0", "points above", "class weights", "Table 1", "+16.02 *", "of 1"):
        assert text in printed
    assert (tmp_path / "deep" / "front.png").stat().st_size > 10_000


def test_data_is_needed(cifar):
    with pytest.raises(SystemExit, match="--quick alone"):
        cifar.main([])
    with pytest.raises(SystemExit):
        cifar.main(["--modes", "sideways"])


def test_the_network_of_the_full_run(cifar):
    import torch

    assert cifar.resnet9()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert cifar.small_cnn()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
