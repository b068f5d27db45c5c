"""What the scripts on images share: reading them, and the small network of Yu 2025."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from common import Rows
from sklearn.datasets import load_digits
from torch import nn


def digits() -> Rows:
    """Scikit-learn's 1,797 digits, `[n, 1, 8, 8]`."""
    x, y = load_digits(return_X_y=True)
    return (x * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8), y


def read_images(path: Path) -> Rows:
    """Images `[n, channels, side, side]`, uint8, and labels of a Parquet file.

    Its column `image` holds raw bytes, row by row: a square in grey, or in RGB with the colours last.

    Raises:
        SystemExit: no such columns, or images that are not square.
    """
    names = pq.read_schema(path).names
    if not {"image", "label"} <= set(names):
        raise SystemExit(f"{path} needs the columns image (raw bytes) and label (integers); it has {names}.")
    frame = pq.read_table(path, columns=["image", "label"]).to_pandas()
    size = len(frame["image"].iloc[0])
    channels = next((c for c in (1, 3) if (size // c) == round((size / c) ** 0.5) ** 2 and size % c == 0), 0)
    if not channels or (frame["image"].map(len) != size).any():
        raise SystemExit(f"{path}: its first image is {size} bytes: pass squares of one size, in grey or RGB.")
    side = round((size / channels) ** 0.5)
    pixels = np.frombuffer(b"".join(frame["image"]), np.uint8).reshape(-1, side, side, channels)
    return pixels.transpose(0, 3, 1, 2), frame["label"].to_numpy(np.int64)


def scaled(rows: Rows, by: np.ndarray) -> Rows:
    """Images as the network has them: in units of the spread of all pixels of some others, from their mean."""
    x, y = rows
    return ((x - by.mean()) / by.std()).astype(np.float32), y


def cnn(shape: tuple[int, ...], classes: int, dropout: float = 0.5) -> nn.Sequential:
    """The network of Yu 2025, Table 6, untrained: 28 x 28 pixels give its 3,136 inputs of the first linear layer."""
    channels, height, width = shape
    inputs = 64 * -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(inputs, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )
