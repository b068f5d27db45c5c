"""Every form and storage of a table gives the scores of the same rows, in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data.samples import (
    CLASSES,
    FORMS,
    STORAGE,
    VALID,
    WIDTH,
    X,
    Y,
    close,
    model,
    naive,
    stored_task,
    table,
    task,
    values,
)
from torch import nn

import rayinf
from rayinf.data.batches import features

# A frame cannot hold these.
NOT_PANDAS = ("tensors", "fixed lists of lists", "lists of lists", "fixed binary")


@pytest.fixture(scope="module")
def true() -> np.ndarray:
    return naive(X, Y, VALID)


@pytest.mark.parametrize("storage", ["scalars", *STORAGE])
@pytest.mark.parametrize("form", FORMS)
def test_forms_and_storages(form: str, storage: str, tmp_path: Path, true: np.ndarray) -> None:
    if form == "pandas.DataFrame" and storage in NOT_PANDAS:
        pytest.skip("a frame holds no such column")
    train = FORMS[form](table(X, Y, storage), tmp_path)
    valid = table(*VALID, storage)
    assert close(values(stored_task(storage), train, valid), true)


@pytest.mark.parametrize("shape", [(WIDTH,), (1, 4, 4), (4, 4)])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, np.asfortranarray, np.ndarray.tolist, "strided"])
def test_arrays(kind: Any, shape: tuple[int, ...], true: np.ndarray) -> None:
    x = X.reshape(-1, *shape)
    if kind == "strided":
        x, kind = np.repeat(x, 2, axis=0)[::2], np.asarray
    valid = (VALID[0].reshape(-1, *shape), VALID[1])
    assert close(values(task(), (kind(x), kind(Y)), valid), true)
    assert close(values(task(), (kind(x), kind(Y)), tuple(map(torch.tensor, valid))), true)


def test_tensors_that_need_gradients_and_bfloat16(true: np.ndarray) -> None:
    x = torch.tensor(X, requires_grad=True)
    assert close(values(task(), (x, torch.tensor(Y))), true)
    half = x.detach().bfloat16()
    assert close(values(task(), (half, torch.tensor(Y))), naive(half.float().numpy(), Y, VALID))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "uint16", "float16", "float64", "bool"])
def test_numbers_of_any_type(kind: str) -> None:
    x = np.round(3 * X).clip(0).astype(kind)
    true = naive(x, Y, VALID)
    assert close(values(task(), (x, Y)), true)
    t = pa.table({**{f"c{k}": x[:, k] for k in range(WIDTH)}, "label": Y})
    v = pa.table({**{f"c{k}": VALID[0][:, k] for k in range(WIDTH)}, "label": VALID[1]})
    assert close(values(task(features=[f"c{k}" for k in range(WIDTH)]), t, v), true)


def test_scalar_columns_of_mixed_types(tmp_path: Path) -> None:
    x = X.copy()
    x[:, 0] = np.round(x[:, 0])
    x[:, 1] = x[:, 1] > 0
    t = table(x, Y, "scalars")
    t = t.set_column(0, "f0", pa.array(x[:, 0].astype(np.int16))).set_column(1, "f1", pa.array(x[:, 1].astype(bool)))
    pq.write_table(t, tmp_path / "t.parquet")
    for form in (t, tmp_path / "t.parquet", t.to_pandas()):
        assert close(values(stored_task("scalars"), form, table(*VALID, "scalars")), naive(x, Y, VALID))


def test_order_of_the_named_columns_counts_and_not_that_of_the_table() -> None:
    t = table(X, Y, "scalars")
    t = t.select(t.schema.names[::-1])
    assert close(values(stored_task("scalars"), t, table(*VALID, "scalars")), naive(X, Y, VALID))


def test_one_scalar_column() -> None:
    one = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, CLASSES))
    true = naive(X[:, :1], Y, (VALID[0][:, :1], VALID[1]), one)
    valid = {"features": VALID[0][:, 0], "label": VALID[1]}
    for features_ in ("features", ["features"]):
        found = values(
            task(model=one, features=features_), pd.DataFrame({"features": X[:, 0], "label": Y}), pa.table(valid)
        )
        assert close(found, true)


def test_a_permuted_tensor_is_read_in_its_logical_order() -> None:
    stored = pa.array(np.arange(24.0).reshape(4, 6).tolist(), pa.list_(pa.float64(), 6))
    kind = pa.fixed_shape_tensor(pa.float64(), [2, 3], permutation=[1, 0])
    column = pa.ExtensionArray.from_storage(kind, stored)
    expected = np.arange(24.0).reshape(4, 2, 3).transpose(0, 2, 1)
    np.testing.assert_array_equal(features(column, "f", "t", 0), expected)
    np.testing.assert_array_equal(features(column.slice(1, 2), "f", "t", 0), expected[1:3])


@pytest.mark.parametrize("storage", STORAGE)
def test_a_slice_is_read_at_its_offset(storage: str) -> None:
    column = STORAGE[storage][0](X)
    whole = features(column, "f", "t", 0)
    for start, stop in ((0, 90), (7, 9), (89, 90)):
        np.testing.assert_array_equal(features(column.slice(start, stop - start), "f", "t", 0), whole[start:stop])
    joined = pa.concat_arrays([column.slice(60, 5), column.slice(3, 4)])
    np.testing.assert_array_equal(features(joined, "f", "t", 0), whole[[60, 61, 62, 63, 64, 3, 4, 5, 6]])


def test_fixed_binary_in_a_padded_buffer() -> None:
    """A buffer may be longer than its values: IPC pads them to 8 or 64 bytes."""
    padded = pa.Array.from_buffers(pa.binary(3), 5, [None, pa.py_buffer(bytes(range(16)))])
    np.testing.assert_array_equal(features(padded, "f", "t", 0), np.arange(15).reshape(5, 3))
    np.testing.assert_array_equal(features(padded.slice(2), "f", "t", 0), np.arange(6, 15).reshape(3, 3))


def test_valid_in_every_form(tmp_path: Path, true: np.ndarray) -> None:
    for name, form in FORMS.items():
        (tmp_path / name).mkdir()
        valid = form(table(*[np.concatenate([v] * 3) for v in VALID]), tmp_path / name)
        assert close(values(task(), (X, Y), valid), 3 * true), name


def test_all_forms_agree_under_ekfac(tmp_path: Path) -> None:
    """The curvature sees every row of every form too. Beside it: rows in another order are not a small change."""
    true = values(task(), (X, Y), curvature="ekfac", damping=1e-3)
    for name, form in FORMS.items():
        (tmp_path / name).mkdir()
        train = form(table(X, Y), tmp_path / name)
        assert close(values(task(), train, curvature="ekfac", damping=1e-3), true), name
    assert not close(np.roll(true, 1), true)


def test_a_path_with_the_signs_of_a_glob(tmp_path: Path, true: np.ndarray) -> None:
    where = tmp_path / "run[1]"
    where.mkdir()
    pq.write_table(table(X, Y), where / "t*.parquet")
    assert close(values(task(), where / "t*.parquet"), true)
    assert close(values(task(), where), true)
    assert close(values(task(), str(tmp_path / "run*" / "t*.parquet")), true)


def test_a_path_in_the_home_folder_or_relative(
    tmp_path: Path, true: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table(X, Y), tmp_path / "t.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert close(values(task(), "~/t.parquet"), true)
    assert close(values(task(), "t.parquet"), true)


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for k in (2, 0, 1):
        pq.write_table(table(X[30 * k : 30 * k + 30], Y[30 * k : 30 * k + 30]), tmp_path / f"p{k}.parquet")
    assert close(values(task(), tmp_path), naive(X, Y, VALID))


def test_groups_as_a_third_array() -> None:
    groups = np.where(np.arange(30) < 10, "a", "b")
    scores = rayinf.influence(task(group="g"), (X, Y, Y), (*VALID, groups), objective="slice:g", curvature="identity")
    assert scores.columns == ["slice_g_a", "slice_g_b"]
    first = naive(X, Y, (VALID[0][:10], VALID[1][:10]), model())
    assert close(scores.to_numpy()[:, 0], first)


def test_columns_of_an_array_may_have_names_of_their_own() -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    model = nn.Linear(3, 2).double()
    whole = rayinf.influence(rayinf.Task(model), (x, y), (x, y)).to_numpy()
    named = rayinf.influence(rayinf.Task(model, features=["a", "b", "c"]), (x, y), (x, y)).to_numpy()
    np.testing.assert_allclose(named, whole, rtol=1e-12)
    with pytest.raises(rayinf.InputError, match="names 2 columns"):
        rayinf.influence(rayinf.Task(model, features=["a", "b"]), (x, y), (x, y))
