"""What is valued: a small network on scikit-learn's digits. Put your own model and columns here.

The machine that runs the command imports this file. Workers get the model from there; they import the file only if the
model's class is defined in it, and then find it at the same path, or in the job's working directory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import rayinf

MODEL = Path(__file__).with_name("model.pt")


def make_model() -> nn.Module:
    """64 pixels to 10 digits, 2,410 parameters."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def make_task() -> rayinf.Task:
    """The network that prepare.py has trained, and the columns that it reads."""
    model = make_model()
    model.load_state_dict(torch.load(MODEL, weights_only=True))
    return rayinf.Task(model, features="pixels", label="label", l2=1e-2)
