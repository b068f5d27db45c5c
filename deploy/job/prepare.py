"""Write the tables of the job in this folder to a place, and train its model.

    python deploy/job/prepare.py                            # to deploy/job/store/
    python deploy/job/prepare.py --store s3://BUCKET/rayinf

Writes STORE/train/part-*.parquet and STORE/valid.parquet, scikit-learn's digits (nothing to download), and
STORE/model.pt.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs
from sklearn.datasets import load_digits
from task import HERE, make_model
from torch import nn

VALID_ROWS = 500
PARTS = 8
EPOCHS = 60


def write_file(store: str, name: str, content: bytes) -> None:
    """A file of the store, which is a folder or a URI."""
    files, root = fs.FileSystem.from_uri(store if "://" in store else str(Path(store).absolute()))
    files.create_dir(f"{root}/{name}".rpartition("/")[0])
    with files.open_output_stream(f"{root}/{name}") as file:
        file.write(content)


def table_of(rows: np.ndarray) -> bytes:
    """Digits as Parquet: row_id, 64 pixels in [0, 1], label."""
    digits = load_digits()
    pixels = pa.array((digits.data[rows] / 16).astype(np.float32).reshape(-1))
    table = pa.table(
        {
            "row_id": rows,
            "pixels": pa.FixedSizeListArray.from_arrays(pixels, 64),
            "label": digits.target[rows].astype(np.int64),
        }
    )
    held = io.BytesIO()
    pq.write_table(table, held)
    return held.getvalue()


def train(rows: np.ndarray) -> nn.Module:
    """Train the network in plain PyTorch, with the ridge that the task names."""
    digits = load_digits()
    x = torch.tensor(digits.data[rows] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target[rows])
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Tables and the model to the store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=HERE, help="a folder, or a URI")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ids = np.random.default_rng(0).permutation(len(load_digits().target))
    valid, rows = np.sort(ids[:VALID_ROWS]), np.sort(ids[VALID_ROWS:])
    write_file(args.store, "valid.parquet", table_of(valid))
    for k, part in enumerate(np.array_split(rows, PARTS)):
        write_file(args.store, f"train/part-{k}.parquet", table_of(part))
    weights = io.BytesIO()
    torch.save(train(rows).state_dict(), weights)
    write_file(args.store, "model.pt", weights.getvalue())
    print(f"{len(rows):,} training rows, {len(valid):,} validation rows and a model: {args.store}")


if __name__ == "__main__":
    main()
