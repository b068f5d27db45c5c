"""The script of removal checks: what it reads and draws, and that it measures what it prints."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import rayinf

SCRIPT = Path(__file__).parents[2] / "examples" / "pareto_ceiling" / "removal.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def texts(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Two classes with words of their own, among common ones."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    words = [
        [f"common{w}" for w in rng.integers(0, 150, 12)] + [f"own{c}x{w}" for w in rng.integers(0, 40, 4)] for c in y
    ]
    return [" ".join(w) for w in words], y


def test_reads_images_and_texts(script: dict[str, Any], tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = pa.array([p.tobytes() for p in pixels], pa.binary(4))
    pq.write_table(pa.table({"image": image, "label": [2, 0, 1]}), tmp_path / "a.parquet")
    x, y = script["read"](tmp_path / "a.parquet")
    assert np.allclose(x, pixels / 255)
    assert y.tolist() == [2, 0, 1]
    pq.write_table(pa.table({"text": ["a b", "c"], "label": [1, 0]}), tmp_path / "b.parquet")
    x, y = script["read"](tmp_path / "b.parquet")
    assert (x, y.tolist()) == (["a b", "c"], [1, 0])
    pq.write_table(pa.table({"image": [1], "label": [1]}), tmp_path / "c.parquet")
    with pytest.raises(SystemExit, match=r"needs label, and image .* or text"):
        script["read"](tmp_path / "c.parquet")


def test_draws_rows_and_flips_labels(script: dict[str, Any]) -> None:
    data, test = script["digits"]()
    split = script["draw"](data, test, "network", 700, 0)
    assert [len(part[1]) for part in (split.train, split.valid, split.test)] == [700, 697, 400]
    known = {x.tobytes(): y for x, y in zip(*data, strict=True)}
    assert sum(known[x.tobytes()] != y for x, y in zip(*split.train, strict=True)) == 70
    assert all(known[x.tobytes()] == y for x, y in zip(*split.valid, strict=True))
    again = script["draw"](data, test, "network", 700, 0)
    assert (again.train[1] == split.train[1]).all()
    convex = script["draw"](data, test, "convex", 700, 0)
    assert convex.train[0].shape == (700, 40)
    assert convex.train[0][:, 0].std() == pytest.approx(1, rel=0.01)


def test_features_of_texts(script: dict[str, Any]) -> None:
    split = script["draw"](texts(600, 0), texts(50, 1), "network", 300, 0)
    assert [part[0].shape for part in (split.train, split.valid, split.test)] == [(300, 100), (300, 100), (50, 100)]
    task = script["fitted"]("convex", (split.train[0], split.train[1]))
    logits = split.test[0] @ task.build().weight.detach().numpy().T
    assert (logits.argmax(1) == split.test[1]).mean() > 0.8  # words are those of the training rows


def test_resnet9_gets_images_in_place(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import cifar

    raw = np.random.default_rng(0).integers(0, 256, (3, 3072)).astype(np.uint8)
    pixels = raw.astype(np.float32) / 255  # as `read` gives them
    task = script["residual"]()
    found = task.transform(pixels)
    np.testing.assert_allclose(found, cifar.to_images(raw), atol=1e-6)
    with torch.no_grad():
        assert task.model(torch.tensor(np.ascontiguousarray(found))).shape == (3, 10)
    assert (task.fit.lr, task.fit.epochs, task.fit.batch_size, task.fit.weight_decay) == (0.4, 25, 512, 1e-3)
    with pytest.raises(SystemExit):  # digits of 8 x 8
        script["main"](["--quick", "--model", "resnet9"])
    small = torch.nn.Sequential(torch.nn.MaxPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 10))
    monkeypatch.setattr(cifar, "resnet9", lambda: small)
    monkeypatch.setitem(script["fitted"].__globals__, "RESNET_FIT", replace(script["RESNET_FIT"], epochs=1))
    trained = script["fitted"]("resnet9", (pixels, np.array([0, 1, 2])))
    values = rayinf.influence(trained, (pixels, np.arange(3)), (pixels, np.arange(3)), curvature="identity")
    assert len(values) == 3
    sys.modules.pop("cifar", None)


@pytest.mark.slow
def test_quick(script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = script["main"](["--quick", "--rows", "300", "--out", str(tmp_path)])
    assert list(found) == ["convex"]
    shown = capsys.readouterr().out
    for side in ("helpful", "harmful"):
        summary = found["convex"].summary[side]
        assert summary["spearman_loss"] > 0.6
        assert summary["sign_loss"] >= 9
        assert f"{summary['spearman_loss']:.3f}" in shown
    assert "> 0.8" in shown
    assert (tmp_path / "removal-digits-convex.png").stat().st_size > 50_000
    with pytest.raises(SystemExit):
        script["main"](["--model", "convex"])
    with pytest.raises(SystemExit):
        script["main"](["--quick", "--rows", "5000"])
