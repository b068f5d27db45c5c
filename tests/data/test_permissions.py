"""Files of a run get the user's umask, whoever writes them; names of columns and classes never become paths."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

import rayinf


def run(folder: Path, labels: list[str], column: str = "label") -> rayinf.Scores:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"x{k}": rng.normal(size=40).astype("float32") for k in range(3)})
    frame[column] = [labels[k % len(labels)] for k in range(40)]
    frame["split"] = [f"../{k % 2}/x" for k in range(40)]
    task = rayinf.Task(nn.Linear(3, len(labels)), features=["x0", "x1", "x2"], label=column, classes=labels)
    objectives = ["total", "category", "slice:split"]
    return rayinf.influence(task, frame, frame, objectives, curvature="ekfac", out=folder)


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_files_have_the_users_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        run(tmp_path / "run", ["a", "b"])
    finally:
        os.umask(before)
    made = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert any(f.suffix == ".safetensors" for f in made)
    for file in made:
        wanted = (0o777 if file.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(file.stat().st_mode) == wanted, file


def test_labels_and_names_never_become_paths(tmp_path):
    odd = ["../../escape", "/etc/passwd", "a/b", "..", "con\\x", "\N{SNOWMAN}"]
    (tmp_path / "inner").mkdir()
    scores = run(tmp_path / "inner" / "run", odd, "../label/..")
    assert {f"category_{name}" for name in odd} <= set(scores.columns)
    assert [f.name for f in tmp_path.iterdir()] == ["inner"]
    names = {f.relative_to(tmp_path / "inner" / "run").as_posix() for f in (tmp_path / "inner" / "run").rglob("*")}
    assert not [n for n in names if "escape" in n or "passwd" in n or "label" in n]
