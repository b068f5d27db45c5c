"""Wrong arguments, damaged files and folders of something else: one error, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data.refusals import TRAIN, VALID, Refused, X, Y, linear, lists, task

import rayinf


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    return Refused(tmp_path)


# --- Arguments


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("curvature", "hessian"),
        ("fisher", "sampled"),
        ("damping", -0.1),
        ("damping", float("nan")),
        ("damping", float("inf")),
        ("precision", "fp8"),
        ("batch_size", 0),
        ("batch_size", -4),
        ("objective", "totl"),
        ("objective", "slice:"),
        ("objective", None),
        ("objective", []),
        ("objective", ["total", "total"]),
    ],
)
def test_arguments(key: str, wrong: Any, refused: Refused) -> None:
    shown = wrong[0] if isinstance(wrong, list) and wrong else wrong
    refused(key.replace("objective", "bjective"), str(shown), **{key: wrong})


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("l2", -1e-3),
        ("l2", float("nan")),
        ("l2", "0.1"),
        ("loss", "mse"),
        ("features", []),
        ("model", 7),
    ],
)
def test_arguments_of_the_task(key: str, wrong: Any) -> None:
    with pytest.raises(rayinf.InputError, match=rf"Task\({key}=.*Fix: "):
        rayinf.Task(**{"model": linear(), key: wrong})


def test_a_factory_that_gives_no_model(refused: Refused) -> None:
    refused("factory", "None", task=task(lambda: None))


def test_what_is_no_table(refused: Refused, tmp_path: Path) -> None:
    refused("train is a NoneType", train=None)
    refused("valid is a ndarray", valid=X)
    refused("train is a tuple of 1 arrays", train=(X,))
    refused("train is a tuple of 3 arrays", "group", train=(X, Y, Y))
    refused("train has arrays of [60, 59] rows", train=(X, Y[1:]))
    refused("train holds a single number", train=(5, Y))
    refused("'label' is of type fixed_size_list", train=(X, Y[:, None]))
    refused(f"train: no Parquet file at {tmp_path}/nowhere", train=tmp_path / "nowhere")
    refused("valid: no Parquet file at", "*.parquet", valid=str(tmp_path / "*.parquet"))
    refused("train: no Parquet file at file:///no/where", train="file:///no/where")
    refused("train: nowhere://", "scheme", train="nowhere://x")
    (tmp_path / "empty").mkdir()
    refused("train: no Parquet file at", train=tmp_path / "empty")


# --- Files and folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 20 rows, in pages with a checksum."""
    where = tmp_path / "table"
    where.mkdir()
    for k in range(3):
        pq.write_table(lists().slice(20 * k, 20), where / f"p{k}.parquet", write_page_checksum=True, compression="none")
    return where


def test_files_that_are_damaged(folder: Path, refused: Refused) -> None:
    """Cut short, emptied, no Parquet, or with a bit of a value changed: which file it is."""
    file = folder / "p1.parquet"
    whole = file.read_bytes()
    page = pq.read_metadata(file).row_group(0).column(0).data_page_offset
    for damage in (
        whole[:-9],
        whole[:100],
        b"",
        b"not Parquet at all",
        whole[: page + 60] + b"\x55" + whole[page + 61 :],
    ):
        assert damage != whole
        file.write_bytes(damage)
        refused(f"{file} (", "cannot be read as Parquet", train=folder)
        refused(f"{file} (", "cannot be read as Parquet", valid=folder)
    file.write_bytes(whole)
    rayinf.influence(task(), folder, folder)


def test_damage_anywhere_in_a_file_is_no_crash(folder: Path) -> None:
    """Each byte in turn (some of them): a file that is refused by its name, or read as it was."""
    file = folder / "p1.parquet"
    whole = file.read_bytes()
    true = rayinf.influence(task(), folder, VALID, curvature="identity").to_numpy()
    refused: list[str] = []
    for at in range(0, len(whole), 29):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            np.testing.assert_array_equal(
                rayinf.influence(task(), folder, VALID, curvature="identity").to_numpy(), true
            )
        except rayinf.InputError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all("p1.parquet" in message for message in refused)


def test_files_of_different_schemas(folder: Path, refused: Refused) -> None:
    file = folder / "p2.parquet"
    others = {
        "column 'label' is missing instead of int64": lists().rename_columns(["features", "labels"]),
        "column 'label' is int32 instead of int64": lists(y=Y.astype(np.int32)),
        "column 'more' is int64 instead of missing": lists(more=Y),
        "columns ['label', 'features'] instead of": lists().select(["label", "features"]),
    }
    for message, t in others.items():
        pq.write_table(t, file)
        refused(f"{file} has other columns or types than {folder}/p0.parquet", message, train=folder)


def test_a_folder_of_something_else(tmp_path: Path, refused: Refused) -> None:
    refused.out.mkdir()
    (refused.out / "thesis.tex").write_text("years of work")
    refused(f"{refused.out} is not empty and holds no run", begun=True)
    assert [p.name for p in refused.out.iterdir()] == ["thesis.tex"]
    file = refused.out / "thesis.tex"
    refused(f"{file} is a file", out=file, begun=True)
    refused(f"{file} is a file", out=file / "run", begun=True)
    assert file.read_text() == "years of work"


def test_a_folder_of_another_config(refused: Refused) -> None:
    rayinf.influence(task(), TRAIN, VALID, out=refused.out)
    text = refused("damping: None -> 0.5; seed: 0 -> 3", "another folder", damping=0.5, seed=3, begun=True)
    assert str(refused.out) in text
    other = linear()
    other.weight.data[0, 0] += 1
    refused("another config: the model (its weights, code or attributes) differs", task=task(other), begun=True)


def test_factors_that_fit_no_run(tmp_path: Path, refused: Refused) -> None:
    first = tmp_path / "first"
    rayinf.influence(task(), TRAIN, VALID, out=first)
    other = linear()
    other.weight.data[0, 0] += 1
    for k, (key, change) in enumerate({"model": {"task": task(other)}, "curvature": {"curvature": "kfac"}}.items()):
        difference = {"model": "the model (its weights, code or attributes) differs", "curvature": "curvature: "}[key]
        message = f"{first} belong to another fit: {difference}"
        refused(message, factors=first, out=tmp_path / str(k), begun=None, **change)
    refused("no factors", curvature="identity", factors=first, out=tmp_path / "last", begun=None)
    (first / "factors" / "factors.safetensors").write_bytes(b"half")
    refused("no sound factors", factors=first, out=tmp_path / "damaged", begun=None)


def test_factors_that_fit_no_run_leave_no_folder(refused: Refused) -> None:
    refused("nowhere' is not a run folder", factors="nowhere")


def test_another_function_of_the_same_name_on_the_folder_of_a_run(refused: Refused) -> None:
    rayinf.influence(task(transform=lambda x: x), TRAIN, VALID, out=refused.out)
    refused("another config", "transform", task=task(transform=lambda x: 2 * x), begun=True)


# --- Known, and to be mended outside rayinf/data


def test_factors_of_another_model_leave_no_folder(tmp_path: Path, refused: Refused) -> None:
    rayinf.influence(task(), TRAIN, VALID, out=tmp_path / "first")
    refused("belong to another fit", factors=tmp_path / "first", curvature="kfac")


def test_an_objective_that_is_not_one_value_a_row_leaves_no_folder(refused: Refused) -> None:
    refused("returned ()", objective=lambda z, y: z.sum())


@pytest.mark.parametrize(
    ("key", "wrong"), [("damping", "0.1"), ("batch_size", 1.5), ("batch_size", "8"), ("seed", "one"), ("halves", "no")]
)
def test_arguments_of_another_type(key: str, wrong: Any, refused: Refused) -> None:
    refused(key, str(wrong), **{key: wrong})


@pytest.mark.parametrize(
    ("key", "change"), [("label", {"task": task(label="other")}), ("objective", {"objective": "slice:g"})]
)
def test_another_column_on_the_folder_of_a_run(key: str, change: Any, folder: Path, refused: Refused) -> None:
    t = lists(other=(Y + 1) % 3, g=Y)
    pq.write_table(t, folder / "t.parquet")
    rayinf.influence(task(), folder / "t.parquet", folder / "t.parquet", out=refused.out)
    refused("another config", f"{key}: ", train=folder / "t.parquet", valid=folder / "t.parquet", begun=True, **change)
