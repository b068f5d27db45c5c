"""Write the tables of the job in this folder to a place, and train its model.

    python deploy/job/prepare.py                            # to deploy/job/store/
    python deploy/job/prepare.py --store s3://BUCKET/rayinf

Writes STORE/train/part-*.parquet and STORE/valid.parquet, scikit-learn's digits (nothing to download), and model.pt
beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs
from sklearn.datasets import load_digits
from task import MODEL, make_model
from torch import nn

VALID_ROWS = 500
PARTS = 8
EPOCHS = 60


def write_table(store: str, name: str, rows: np.ndarray) -> None:
    """One Parquet file of digits: row_id, 64 pixels in [0, 1], label."""
    digits = load_digits()
    pixels = pa.array((digits.data[rows] / 16).astype(np.float32).reshape(-1))
    table = pa.table(
        {
            "row_id": rows,
            "pixels": pa.FixedSizeListArray.from_arrays(pixels, 64),
            "label": digits.target[rows].astype(np.int64),
        }
    )
    place = store if "://" in store else str(Path(store).absolute())
    files, root = fs.FileSystem.from_uri(place)
    files.create_dir(f"{root}/{name}".rpartition("/")[0])
    pq.write_table(table, f"{root}/{name}", filesystem=files)


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
    """Tables to the store, the model beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=str(Path(__file__).with_name("store")), help="a folder, or a URI")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ids = np.random.default_rng(0).permutation(len(load_digits().target))
    valid, rows = np.sort(ids[:VALID_ROWS]), np.sort(ids[VALID_ROWS:])
    write_table(args.store, "valid.parquet", valid)
    for k, part in enumerate(np.array_split(rows, PARTS)):
        write_table(args.store, f"train/part-{k}.parquet", part)
    torch.save(train(rows).state_dict(), MODEL)
    print(f"{len(rows):,} training and {len(valid):,} validation rows: {args.store}; model: {MODEL}")


if __name__ == "__main__":
    main()
