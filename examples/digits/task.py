"""What is valued in this example: a small convolutional network on 8 x 8 digits, as `run.py` has trained it.

Kept in a file of its own, so that run.py, `rayinf influence influence.yaml` and workers on Ray all import the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import rayinf

OUT = Path(__file__).parent / "out"
FIT = rayinf.Fit(optimizer="adam", lr=4e-3, schedule="cosine", epochs=30, batch_size=64, weight_decay=1e-2)


def make_model() -> nn.Module:
    """Two convolutions and a linear layer, 18,346 parameters; takes the 64 pixels as they lie in Parquet."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 24, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 10),
    )


def make_task(out: Path = OUT) -> rayinf.Task:
    """The trained network and the columns that feed it.

    Args:
        out: the folder in which run.py has left model.pt.

    Raises:
        FileNotFoundError: it is not there yet.
    """
    file = out / "model.pt"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is not there: run `python {Path(__file__).with_name('run.py')}` first, which trains it"
        )
    held = torch.load(file, weights_only=True)
    model = make_model()
    model.load_state_dict(held["weights"])
    fit = replace(FIT, epochs=held["settings"]["epochs"])
    return rayinf.Task(model, features="pixels", label="label", l2=fit.weight_decay, fit=fit)
