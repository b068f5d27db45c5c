"""Rows as many as wanted, without a download: scikit-learn's digits, drawn again and again with noise on the pixels."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from sklearn.datasets import load_digits
from task import FIT, L2, make_model
from torch import nn

NOISE = 0.05


def draw_rows(count: int, seed: int, first_id: int = 0, flip: float = 0.0) -> pa.Table:
    """Rows with row_id, 64 pixels, label and true_label.

    Args:
        count: of rows.
        seed: of what is drawn.
        first_id: the ids count from here.
        flip: share of the rows whose label is wrong.
    """
    rng = np.random.default_rng(seed)
    digits = load_digits()
    drawn = rng.integers(0, len(digits.target), count)
    pixels = (digits.data[drawn] / 16 + NOISE * rng.standard_normal((count, 64))).astype(np.float32)
    true = digits.target[drawn].astype(np.int64)
    wrong = rng.random(count) < flip
    label = np.where(wrong, (true + rng.integers(1, 10, count)) % 10, true)
    return pa.table(
        {
            "row_id": np.arange(first_id, first_id + count),
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 64),
            "label": label,
            "true_label": true,
        }
    )


def train_model(table: pa.Table) -> dict[str, torch.Tensor]:
    """The weights of the network, trained in plain PyTorch as `FIT` says."""
    torch.manual_seed(0)
    x = torch.tensor(table["pixels"].combine_chunks().flatten().to_numpy().reshape(-1, 64))
    y = torch.tensor(table["label"].to_numpy())
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=FIT.lr, weight_decay=L2)
    steps = FIT.epochs * -(-len(x) // FIT.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(FIT.epochs):
        for batch in torch.randperm(len(x)).split(FIT.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.state_dict()
