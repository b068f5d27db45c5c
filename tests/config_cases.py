"""What tests of configs share: a folder with a task, ways to write a config, and to be refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayinf
from rayinf.config import read_config
from rayinf.config_keys import keys_of

TASK = """
import torch
import rayinf


def net():
    return torch.nn.Linear(4, 3)


def made():
    return rayinf.Task(net, l2=1e-3)


task = rayinf.Task(net)
module = net()
number = 3


def needs(x):
    return task


def gives_none():
    return None


def fails():
    raise KeyError("weights")


def refused():
    return rayinf.Task(net, l2=-1)


def margin(logits, labels):
    return logits.logsumexp(1)


gap = rayinf.Objective("gap", rows=margin)
"""


def make_config_folder(home: Path) -> Path:
    """A folder with a task and a config of influence; its tables are but names, apart from one of row ids."""
    home.mkdir()
    (home / "mytask.py").write_text(TASK)
    (home / "oracle.parquet").touch()
    pq.write_table(pa.table({"row_id": [1, 2]}), home / "rows.parquet")
    write(home)
    return home


def write(folder: Path, **values: object) -> Path:
    """A config of influence."""
    return write_for(folder, "influence", **values)


def write_for(folder: Path, verb: str, **values: object) -> Path:
    """A config with the required keys of a verb."""
    required = [k for k, argument in keys_of(verb).items() if argument.required and k != "task"]
    file = folder / "run.yaml"
    held = {"task": "mytask.py:task", **{k: f"{k}.parquet" for k in required}, **values}
    file.write_text("".join(f"{k}: {v}\n" for k, v in held.items()))
    return file


def refused(file: Path, *overrides: str, verb: str = "influence") -> str:
    """What is said of a config that is wrong, in one line."""
    with pytest.raises(rayinf.InputError) as caught:
        read_config(file, overrides, verb)
    assert "\n" not in str(caught.value)
    return str(caught.value)
