"""A small table in every form and storage, and the naive scores of its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import rayinf

WIDTH, CLASSES = 16, 3
NAMES = [f"f{k}" for k in range(WIDTH)]


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `[n, 16]` float32 and labels `[n]`, of every class."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, WIDTH)).astype(np.float32), rng.permutation(np.arange(n) % CLASSES)


X, Y = rows(90, 0)
VALID = rows(30, 1)


def model(classes: int = CLASSES) -> nn.Module:
    """A linear classifier of 16 numbers, or of an image [1, 4, 4]."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, classes)).eval()


def task(**arguments: Any) -> rayinf.Task:
    """A task around `model()`, or another one."""
    return rayinf.Task(arguments.pop("model", None) or model(), **arguments)


def naive(
    x: np.ndarray, y: np.ndarray, valid: tuple[np.ndarray, np.ndarray], of: nn.Module | None = None
) -> np.ndarray:
    """Influence `[n]` under curvature "identity", by its definition, in float64."""
    linear = (of or model())[1]
    weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))

    def gradients(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), -1).astype(np.float64)
        z = np.exp(x @ weight.T + bias)
        left = z / z.sum(1, keepdims=True) - np.eye(len(bias))[y]
        return (left[:, :, None] * np.c_[x, np.ones(len(x))][:, None]).reshape(len(x), -1)

    return gradients(x, y) @ gradients(*valid).sum(0) / len(x)


def values(of: rayinf.Task, train: Any, valid: Any = VALID, **arguments: Any) -> np.ndarray:
    """The first column of the scores `[n]`, under curvature "identity" by default."""
    return rayinf.influence(of, train, valid, **{"curvature": "identity", **arguments}).to_numpy()[:, 0]


def close(found: np.ndarray, true: np.ndarray) -> bool:
    """Equal to 1e-5 of the largest."""
    return found.shape == true.shape and bool(np.abs(found - true).max() <= 1e-5 * np.abs(true).max())


def as_text(x: np.ndarray) -> list[str]:
    """Rows as text that holds every bit of them."""
    return [" ".join(map(repr, row.tolist())) for row in x]


def from_text(text: Any) -> np.ndarray:
    """`as_text` undone."""
    return np.array([[float(v) for v in row.split()] for row in text], dtype=np.float32)


def from_bytes(raw: Any) -> np.ndarray:
    """float32 from fixed-size binary, `[B, 64]` bytes."""
    assert raw.dtype == np.uint8
    assert raw.shape[1:] == (4 * WIDTH,)
    return np.ascontiguousarray(raw).view(np.float32)


def from_strings(raw: Any) -> np.ndarray:
    """float32 from binary of any length."""
    return np.stack([np.frombuffer(v, np.float32) for v in raw])


def _fixed(x: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)


def _images(x: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(x.reshape(-1, 1, 4, 4)))


STORAGE: dict[str, tuple[Callable[[np.ndarray], pa.Array], Any]] = {
    "fixed lists": (_fixed, None),
    "lists": (lambda x: pa.array(x.tolist(), pa.list_(pa.float32())), None),
    "large lists": (lambda x: pa.array(x.tolist(), pa.large_list(pa.float32())), None),
    "lists of lists": (lambda x: pa.array(x.reshape(-1, 4, 4).tolist(), pa.list_(pa.list_(pa.float32()))), None),
    "fixed lists of lists": (
        lambda x: pa.array(x.reshape(-1, 4, 4).tolist(), pa.list_(pa.list_(pa.float32()), 4)),
        None,
    ),
    "tensors": (_images, None),
    "fixed binary": (lambda x: pa.array([r.tobytes() for r in x], pa.binary(4 * WIDTH)), from_bytes),
    "binary": (lambda x: pa.array([r.tobytes() for r in x], pa.binary()), from_strings),
    "text": (lambda x: pa.array(as_text(x)), from_text),
    "large text": (lambda x: pa.array(as_text(x), pa.large_string()), from_text),
    "dictionary of text": (lambda x: pa.array(as_text(x)).dictionary_encode(), from_text),
}


def table(x: np.ndarray, y: Any, storage: str = "fixed lists", **more: Any) -> pa.Table:
    """Features in one of `STORAGE` (or "scalars"), labels, and more columns."""
    if storage == "scalars":
        return pa.table({**{name: x[:, k] for k, name in enumerate(NAMES)}, "label": y, **more})
    return pa.table({"features": STORAGE[storage][0](x), "label": y, **more})


def stored_task(storage: str, **arguments: Any) -> rayinf.Task:
    """The task that reads `table(..., storage)`."""
    if storage == "scalars":
        return task(features=NAMES, **arguments)
    return task(transform=STORAGE[storage][1], **arguments)


def _parquet(t: pa.Table, folder: Path) -> Path:
    pq.write_table(t, folder / "t.parquet")
    return folder / "t.parquet"


def _folder(t: pa.Table, folder: Path) -> Path:
    """Three files, in deeper folders too, of row groups of 13, beside a file that is none of the table's."""
    where = folder / "many"
    (where / "b").mkdir(parents=True)
    (where / "_SUCCESS").write_text("")
    for name, start, stop in (("a.parquet", 0, 40), ("b/0.pq", 40, 41), ("c.parquet", 41, t.num_rows)):
        pq.write_table(t.slice(start, stop - start), where / name, row_group_size=13)
    return where


def _glob(t: pa.Table, folder: Path) -> str:
    pq.write_table(t.slice(0, 50), folder / "p0.parquet")
    pq.write_table(t.slice(50), folder / "p1.parquet")
    pq.write_table(t.slice(0, 5), folder / "q0.parquet")
    return str(folder / "p*.parquet")


def _slice(t: pa.Table, folder: Path) -> pa.Table:
    """The table from the middle of a longer one."""
    return pa.concat_tables([t.slice(80), t, t.slice(3, 9)]).combine_chunks().slice(t.num_rows - 80, t.num_rows)


def _chunks(t: pa.Table, folder: Path) -> pa.Table:
    return pa.concat_tables([t.slice(0, 7), t.slice(7, 0), t.slice(7, 50), t.slice(57)])


def _frame(t: pa.Table, folder: Path) -> pd.DataFrame:
    return t.to_pandas()


FORMS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "pyarrow.Table": lambda t, folder: t,
    "slice": _slice,
    "chunks": _chunks,
    "file": _parquet,
    "text path": lambda t, folder: str(_parquet(t, folder)),
    "folder": _folder,
    "glob": _glob,
    "URI": lambda t, folder: _parquet(t, folder).as_uri(),
    "URI of a folder": lambda t, folder: _folder(t, folder).as_uri(),
    "pandas.DataFrame": _frame,
}
