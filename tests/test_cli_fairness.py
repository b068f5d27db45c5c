"""Fairness and robustness on the command line: valued by names and by objects of the user's file, and trimmed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_cases import call, imports_of, refused

from rayinf.data.scores import Scores

TASK = """
import torch
import rayinf

pgd = rayinf.robustness("pgd", epsilon=0.1)


def task():
    torch.manual_seed(0)
    return rayinf.Task(torch.nn.Linear(3, 2), features=["a", "b", "c"], group="sex", l2=1e-2)


def groupless():
    return rayinf.Task(torch.nn.Linear(3, 2), features=["a", "b", "c"])
"""
CONFIG = """
task: mytask.py:task
train: train.parquet
valid: valid.parquet
objective: [total, demographic_parity, equal_opportunity, "mytask.py:pgd"]
curvature: ggn
out: runs/fair
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, rows in (("train", 90), ("valid", 60)):
        sex = rng.integers(0, 2, rows)
        frame = pd.DataFrame(rng.normal(size=(rows, 3)) + sex[:, None], columns=["a", "b", "c"])
        frame.assign(label=rng.integers(0, 2, rows), sex=sex).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "mytask.py").write_text(TASK)
    (tmp_path / "fair.yaml").write_text(CONFIG)
    with imports_of(tmp_path):
        yield tmp_path


def test_values_gaps_and_attacks_and_trims_by_a_gap(folder: Path) -> None:
    result = call("influence", folder / "fair.yaml")
    assert result.exit_code == 0, result.output
    scores = Scores.load(folder / "runs" / "fair")
    assert scores.columns == ["total", "demographic_parity", "equal_opportunity", "robustness"]
    details = scores.metadata["objective_details"]
    assert f"demographic_parity: a gap of {details['demographic_parity']['signed']:+.4f}" in result.stdout
    assert f"robustness: {details['robustness']['accuracy']:.1%} of the attacked" in result.stdout
    trimmed = call("trim", folder / "runs" / "fair", "--budget", 2, "--by", "demographic_parity")
    assert trimmed.exit_code == 0, trimmed.output
    gap = abs(details["demographic_parity"]["signed"])
    assert f"demographic_parity: {gap:.4f}, predicted without these rows: " in trimmed.stdout
    assert len(pd.read_parquet(folder / "runs" / "fair" / "trim" / "removed.parquet")) == 2


def test_refusals_are_one_line(folder: Path) -> None:
    for change, part in (
        ("task=mytask.py:groupless", "names no column of them"),
        ("objective=robustnes", "objective=robustnes is unknown"),
    ):
        assert part in refused(call("influence", folder / "fair.yaml", "--set", change))
        assert not (folder / "runs").exists()
