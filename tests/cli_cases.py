"""What tests of the command share: a folder with data, a task and configs, and ways to call and to be refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import Result
from typer.testing import CliRunner

from rayinf import cli

TASK = """
import torch
import rayinf


def net():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.add_(torch.eye(3, 4))  # the rows of class k have a large k-th feature
    return model


def task():
    return rayinf.Task(net, l2=1e-2)


def other_label():
    return rayinf.Task(net, label="y")
"""
CONFIG = """
task: mytask.py:task
train: train.parquet
valid: valid.parquet
objective: [total, category]
out: runs/a
"""
ROWS = {"train": 60, "valid": 20, "pool": 50, "test": 30}


@contextmanager
def imports_of(folder: Path) -> Iterator[None]:
    """Modules of a test's own folder must not shadow those of the next."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def make_folder(home: Path) -> Path:
    """A folder with tables, a task and a config of influence."""
    home.mkdir()
    rng = np.random.default_rng(0)
    for name, rows in ROWS.items():
        values = rng.normal(size=(rows, 4)) + 2 * np.eye(4)[np.arange(rows) % 3]
        x = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), 4)
        ids = [f"{name}-{k}" for k in range(rows)]
        table = pa.table({"row_id": ids, "features": x, "label": np.arange(rows) % 3})
        pq.write_table(table, home / f"{name}.parquet", row_group_size=25)
    (home / "mytask.py").write_text(TASK)
    (home / "run.yaml").write_text(CONFIG)
    return home


def call(*words: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(cli.app, [str(w) for w in words])


def refused(result: Result, code: int = 2) -> str:
    """The one line that says what is wrong."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "Fix: " in line
    return line
