"""What is valued: a small network on scikit-learn's digits. Put your own model and columns here.

This file travels with a job. Tables and weights do not: the job reads them from the store.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from pyarrow import fs
from torch import nn

import rayinf

HERE = str(Path(__file__).absolute().with_name("store"))


def make_model() -> nn.Module:
    """64 pixels to 10 digits, 2,410 parameters."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def make_task(store: str = HERE) -> rayinf.Task:
    """The network that prepare.py has trained, and the columns that it reads.

    Args:
        store: an absolute path or a URI.
    """
    files, path = fs.FileSystem.from_uri(f"{store}/model.pt")
    with files.open_input_file(path) as file:
        weights = torch.load(io.BytesIO(file.read()), weights_only=True)
    model = make_model()
    model.load_state_dict(weights)
    return rayinf.Task(model, features="pixels", label="label", l2=1e-2)


def make_cluster_task() -> rayinf.Task:
    """The same, from the store of cluster.yaml."""
    return make_task("s3://BUCKET/rayinf")
