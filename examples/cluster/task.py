"""What the jobs value: a small network on digits. This file travels with every job; the weights are in the store."""

from __future__ import annotations

import io

import torch
from pyarrow import fs
from torch import nn

import rayinf

L2 = 1e-2
FIT = rayinf.Fit(optimizer="adam", lr=1e-2, schedule="cosine", epochs=20, batch_size=32, weight_decay=L2)


def make_model() -> nn.Module:
    """64 pixels to 10 digits, 2,410 parameters."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load_task(weights: str) -> rayinf.Task:
    """The network with weights from a file of the store.

    Args:
        weights: an absolute path or a URI.
    """
    files, path = fs.FileSystem.from_uri(weights)
    with files.open_input_file(path) as file:
        held = torch.load(io.BytesIO(file.read()), weights_only=True)
    model = make_model()
    model.load_state_dict(held)
    return rayinf.Task(model, features="pixels", label="label", classes=list(range(10)), l2=L2, fit=FIT)
