"""Ordinary situations of tables: each is read right, by an expectation of its own, or refused with one clear error.

The expectation is the naive influence of `data.samples`, on rows and ids that are written down here.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from data.samples import NAMES, VALID, WIDTH, X, Y, close, model, naive, table, task

import rayinf
from rayinf.data.batches import features, values
from rayinf.data.tables import as_table

TRUE = naive(X, Y, VALID)
ORDER = np.random.default_rng(7).permutation(len(X))
LETTERS = np.array(["a", "b", "c"])


def frame(x: np.ndarray = X, y: Any = Y) -> pd.DataFrame:
    return pd.DataFrame(x, columns=NAMES).assign(label=y)


def scored(train: Any, valid: Any = None, **arguments: Any) -> pa.Table:
    of = rayinf.Task(arguments.pop("model", None) or model(), **{"features": NAMES, **arguments})
    return rayinf.influence(of, train, frame(*VALID) if valid is None else valid, curvature="identity").table


# --- The index of a pandas frame: (frame, its ids, and the rows of X that it holds)

NAMED = pd.Index([f"c{k}" for k in range(90)], name="customer")
INDEXES: dict[str, tuple[Callable[[], pd.DataFrame], list[Any], Any]] = {
    "default": (frame, list(range(90)), np.arange(90)),
    "reset": (lambda: frame().iloc[ORDER].reset_index(drop=True), list(range(90)), ORDER),
    "shuffled": (lambda: frame().iloc[ORDER], ORDER.tolist(), ORDER),
    "filtered": (lambda: frame()[Y < 2], np.flatnonzero(Y < 2).tolist(), np.flatnonzero(Y < 2)),
    "the second half": (lambda: frame().iloc[45:], list(range(45, 90)), np.arange(45, 90)),
    "every other row": (lambda: frame().iloc[::2], list(range(0, 90, 2)), np.arange(0, 90, 2)),
    "reversed": (lambda: frame().iloc[::-1], list(range(89, -1, -1)), np.arange(89, -1, -1)),
    "text": (lambda: frame().set_index(NAMED.rename(None)), list(NAMED), np.arange(90)),
    "named": (lambda: frame().set_index(NAMED), list(NAMED), np.arange(90)),
    "named row_id": (lambda: frame().set_index(NAMED.rename("row_id")), list(NAMED), np.arange(90)),
    "named and counted": (lambda: frame().rename_axis("n").iloc[10:], list(range(10, 90)), np.arange(10, 90)),
    "beside row_id": (lambda: frame().iloc[ORDER].assign(row_id=range(90)), list(range(90)), ORDER),
    "a category": (lambda: frame().set_index(pd.CategoricalIndex(NAMED)), list(NAMED), np.arange(90)),
    "days": (
        lambda: frame().set_index(pd.date_range("2020-01-01", periods=90)),
        [datetime.datetime(2020, 1, 1) + datetime.timedelta(k) for k in range(90)],
        np.arange(90),
    ),
    "two levels": (lambda: frame().set_index([NAMED, pd.Index(ORDER, name="n")]), list(range(90)), np.arange(90)),
}


@pytest.mark.parametrize("form", ["frame", "Parquet", "Arrow", "folder"])
@pytest.mark.parametrize("name", INDEXES)
def test_the_index_of_a_frame(name: str, form: str, tmp_path: Path) -> None:
    make, ids, rows = INDEXES[name]
    given: Any = make()
    if form == "Parquet":
        given.to_parquet(tmp_path / "t.parquet")
        given = tmp_path / "t.parquet"
    elif form == "Arrow":
        given = pa.Table.from_pandas(given)
    elif form == "folder":
        cut = len(given) // 3
        for k, part in enumerate((given.iloc[:cut], given.iloc[cut:])):
            part.to_parquet(tmp_path / f"p{k}.parquet", row_group_size=7)
        given = tmp_path
    found = scored(given)
    assert found["row_id"].to_pylist() == ids
    expected = naive(X[rows], Y[rows], VALID)
    assert close(found["total"].to_numpy(), expected)
    if form == "frame":
        assert not close(np.roll(expected, 1), expected)  # rows in another order are no small change


@pytest.mark.parametrize("form", ["frame", "Parquet"])
def test_an_index_may_be_named_as_a_column(form: str, tmp_path: Path) -> None:
    several = [NAMED, pd.RangeIndex(500, 590, name="n")]
    unnamed = [pd.RangeIndex(90), several[1]]
    for column, index in (
        ("customer", NAMED),
        ("n", several),
        ("customer", several),
        ("n", several[1]),
        ("n", unnamed),
    ):
        given: Any = frame().set_index(index)
        if form == "Parquet":
            given.to_parquet(tmp_path / "t.parquet", row_group_size=20)
            given = tmp_path / "t.parquet"
        found = scored(given, row_id=column)["row_id"].to_pylist()
        assert found == (list(NAMED) if column == "customer" else list(range(500, 590)))


def test_files_that_were_written_one_by_one_count_on(tmp_path: Path) -> None:
    """Each from 0: positions. Parts of one frame: its numbers, in whatever order the files are read."""
    for k, part in enumerate(np.split(np.arange(90), 3)):
        (tmp_path / "each").mkdir(exist_ok=True)
        (tmp_path / "parts").mkdir(exist_ok=True)
        frame().iloc[part].reset_index(drop=True).to_parquet(tmp_path / "each" / f"p{k}.parquet")
        frame().iloc[part].to_parquet(tmp_path / "parts" / f"p{2 - k}.parquet")
    assert scored(tmp_path / "each")["row_id"].to_pylist() == list(range(90))
    found = scored(tmp_path / "parts")
    assert found["row_id"].to_pylist() == [*range(60, 90), *range(30, 60), *range(30)]
    assert close(found["total"].to_numpy(), TRUE[found["row_id"].to_numpy()])


def test_a_slice_of_an_arrow_table_has_lost_its_numbers() -> None:
    """Its metadata still counts the whole frame: pandas gives the slice a default index, and so is it here."""
    whole = pa.Table.from_pandas(frame().iloc[::-1])
    assert whole.slice(10).to_pandas().index.tolist() == list(range(80))
    assert scored(whole.slice(10))["row_id"].to_pylist() == list(range(80))


def test_pairs_tell_the_ids_of_both_tables() -> None:
    valid = frame(*VALID).set_index(pd.Index([f"v{k}" for k in range(30)]))
    of = rayinf.Task(model(), features=NAMES)
    found = rayinf.pairs(of, frame().set_index(NAMED), valid, top=1, curvature="identity").table
    assert set(found["valid_row_id"].to_pylist()) == set(valid.index)
    assert set(found["row_id"].to_pylist()) <= set(NAMED)


def test_an_index_that_repeats_is_refused_where_ids_are_told(tmp_path: Path) -> None:
    twice = pd.concat([frame().iloc[:50], frame().iloc[:40]])
    twice.to_parquet(tmp_path / "t.parquet")
    for given in (twice, tmp_path / "t.parquet"):
        with pytest.raises(rayinf.InputError, match=r"the index of the DataFrame has the id 0 .*40 rows.*reset_index"):
            scored(given)
    with pytest.raises(rayinf.InputError, match=r"the index 'class' of the DataFrame has the id"):
        scored(frame().set_index(pd.Index(Y, name="class")))
    assert len(scored(twice.reset_index(drop=True))) == 90
    assert scored(twice.assign(key=range(90)), row_id="key")["row_id"].to_pylist() == list(range(90))
    # Of validation rows no id is told: there the same frame does no harm.
    found = scored(frame(), valid=pd.concat([frame(*VALID)] * 2))
    assert close(found["total"].to_numpy(), 2 * TRUE)


# --- Labels: (column, its text as classes a, b, c, or what the error says)

DAY = datetime.date(2020, 1, 1)
TEXTS: dict[str, pa.DataType] = {
    str(kind): kind
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
}


def text(kind: pa.DataType, found: Any) -> pa.Array:
    plain = [v.encode() if "binary" in str(kind) else v for v in found.tolist()]
    return pa.array(plain, kind)


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("form", ["Arrow", "Parquet"])
@pytest.mark.parametrize("kind", TEXTS)
def test_text_of_every_kind(kind: str, form: str, encoded: bool, tmp_path: Path) -> None:
    """As labels, and as ids of the rows."""
    labels, ids = text(TEXTS[kind], LETTERS[Y]), text(TEXTS[kind], np.array(NAMED))
    if encoded:
        labels = pa.DictionaryArray.from_arrays(pa.array(Y), text(TEXTS[kind], LETTERS))
    given: Any = table(X, labels, "scalars", row_id=ids)
    if form == "Parquet":
        if encoded and "view" in kind:
            given = as_table(given, NAMES, ["label"], "train").table  # pyarrow cannot write it
        pq.write_table(given, tmp_path / "t.parquet", row_group_size=20)
        given = tmp_path / "t.parquet"
    found = scored(given, valid=frame(VALID[0], LETTERS[VALID[1]]))
    assert close(found["total"].to_numpy(), TRUE)
    assert [v.decode() if isinstance(v, bytes) else v for v in found["row_id"].to_pylist()] == list(NAMED)


@pytest.mark.parametrize("kind", ["string_view", "binary_view", "large_binary"])
def test_features_of_text_of_every_kind(kind: str) -> None:
    column = features(
        as_table(pa.table({"f": text(TEXTS[kind], LETTERS)}), ["f"], [], "t").table["f"].chunk(0), "f", "t", 0
    )
    assert [v.decode() if isinstance(v, bytes) else v for v in column.tolist()] == ["a", "b", "c"]


OTHER_LABELS: dict[str, Any] = {
    "whole floats": pa.array(Y.astype(float)),
    "uint64": pa.array(Y.astype(np.uint64)),
    "int8": pa.array(Y.astype(np.int8)),
    "halffloat": pa.array(Y.astype(np.float16)),
    "dictionary of integers": pa.array(Y).dictionary_encode(),
}


@pytest.mark.parametrize("name", OTHER_LABELS)
def test_labels_of_numbers(name: str) -> None:
    assert close(scored(table(X, OTHER_LABELS[name], "scalars"))["total"].to_numpy(), TRUE)


WRONG_LABELS: dict[str, tuple[Any, str]] = {
    "NaN among text": (np.array(["a", "b", np.nan] * 30, dtype=object), "column 'label' is null in row 2 "),
    "None among text": (np.array(["a", None, "b"] * 30, dtype=object), "'label' (is null|holds nan) in row 1"),
    "NaN among numbers": (
        np.where(np.arange(90) == 4, np.nan, Y),
        "'label' (holds nan|is null) in row 4.*fill or drop",
    ),
    "pandas' NA": (pd.array([0, pd.NA, 1] * 30, dtype="Int64"), "'label' (is null|holds nan) in row 1"),
    "a null in a dictionary": (
        pa.DictionaryArray.from_arrays(pa.array(Y), pa.array(["a", "b", None])),
        rf"column 'label' is null in row {np.flatnonzero(Y == 2)[0]} ",
    ),
    "text and numbers": (np.array(["a", 1, "b"] * 30, dtype=object), "row 0 holds 'a'.*row 1 1 "),
    "a regression target": (Y + 0.25, r"column 'label' holds \d.25 in row 0.*regression targets are not supported"),
    "floats too large": (Y + 2.0**60, "must be integers or text"),
    "over 2^63": (Y.astype(np.uint64) + np.uint64(2**63), r"column 'label' holds 9223\d+ in row 0: over 2\^63"),
    "decimals": (pa.array([decimal.Decimal(int(v)) for v in Y]), "'label' is of type decimal128.*integers or text"),
    "dates": (pa.array([DAY] * 90), "'label' is of type date32.*integers or text"),
    "times with a zone": (pa.array([0] * 90, pa.timestamp("s", "Europe/Berlin")), "'label' is of type timestamp.*text"),
    "all null": (pa.nulls(90), "column 'label' is null in row 0 "),
    "structs": (pa.array([{"a": 1}] * 90), "'label' is of type struct.*one value a row"),
    "one-hot": (pa.array(np.eye(3)[Y].tolist()), r"'label' is of type list.*y.argmax\(1\)"),
    "bytes that are no text": (pa.array([b"\xff\xfe"] * 90), r"the bytes b'\\xff\\xfe' in row 0"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_labels_that_are_none(name: str) -> None:
    column, message = WRONG_LABELS[name]
    forms = [] if isinstance(column, pa.Array) else [(X, column), frame(y=column)]
    if not (isinstance(column, np.ndarray) and column.dtype == object):
        forms.append(table(X, column, "scalars"))
    for form in forms:
        of = task() if isinstance(form, tuple) else task(features=NAMES)
        valid = VALID if isinstance(form, tuple) else frame(*VALID)
        with pytest.raises(rayinf.InputError, match=f"^train.*{message}") as caught:
            rayinf.influence(of, form, valid, curvature="identity")
        assert str(caught.value).count("Fix: ") == 1


def test_rows_are_counted_from_the_start_of_the_table() -> None:
    with pytest.raises(rayinf.InputError, match=r"over 2\^63"):
        values(pa.array([2**63], pa.uint64()), "c", "t", 100)
    with pytest.raises(rayinf.InputError, match="in row 101"):
        values(pa.array([b"a", b"\xff"]), "c", "t", 100)


# --- Ids


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_ids_that_are_not_finite(wrong: float) -> None:
    ids = np.where(np.arange(90) == 30, wrong, np.arange(90) + 0.5)
    with pytest.raises(rayinf.InputError, match=rf"'key' holds the id {wrong}.*Fix: "):
        scored(table(X, Y, "scalars", key=ids), row_id="key")
    assert scored(table(X, Y, "scalars", key=np.arange(90) + 0.5), row_id="key")["row_id"].to_pylist()[1] == 1.5


def test_a_null_in_the_dictionary_of_ids() -> None:
    ids = pa.DictionaryArray.from_arrays(pa.array(range(90)), pa.array([*NAMED[:89], None]))
    with pytest.raises(rayinf.InputError, match="'row_id' is null in row 89"):
        scored(table(X, Y, "scalars", row_id=ids))


# --- Columns


def test_columns_called_by_integers() -> None:
    given, valid = pd.DataFrame(np.c_[X, Y]), pd.DataFrame(np.c_[VALID[0], VALID[1]])
    found = scored(given, valid=valid, features=list(range(WIDTH)), label=WIDTH)
    assert close(found["total"].to_numpy(), TRUE)
    assert scored(given.assign(i=1).rename(columns={"i": 99}), valid, features=range(WIDTH), label=16).num_rows == 90
    with pytest.raises(rayinf.InputError, match="no column '17'; it has 0, 1"):
        scored(given, valid=valid, features=list(range(WIDTH)), label=17)


def test_columns_with_dots_in_their_names(tmp_path: Path) -> None:
    """As pandas calls a repeated column of a CSV file: `f`, `f.1`."""
    names = ["f", *(f"f.{k}" for k in range(1, WIDTH))]
    pq.write_table(pa.table({**{n: X[:, k] for k, n in enumerate(names)}, "label": Y}), tmp_path / "t.parquet")
    valid = pa.table({**{n: VALID[0][:, k] for k, n in enumerate(names)}, "label": VALID[1]})
    assert close(scored(tmp_path / "t.parquet", valid, features=names)["total"].to_numpy(), TRUE)


def test_one_row_and_no_column(tmp_path: Path) -> None:
    one = frame().iloc[:1]
    assert close(scored(one)["total"].to_numpy(), naive(X[:1], Y[:1], VALID))
    with pytest.raises(rayinf.InputError, match="train has no column 'f0'; it has other"):
        scored(pa.table({"other": Y}))
    with pytest.raises(rayinf.InputError, match="train is a DataFrame without columns"):
        scored(frame()[[]])
    pq.write_table(pa.table({}), tmp_path / "t.parquet")
    with pytest.raises(rayinf.InputError, match="train has no rows"):
        scored(tmp_path / "t.parquet")


# --- Forms that are no table, and what to do with them


class Dataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Rows one by one."""

    def __getitem__(self, k: int) -> Any:
        return X[k], Y[k]

    def __len__(self) -> int:
        return len(X)


def foreign(package: str, name: str, **held: Any) -> Any:
    """An object of a library that is not installed here, as far as its class tells."""
    return type(name, (), {"__module__": f"{package}.frame", **held})()


NO_TABLES: dict[str, tuple[Any, str]] = {
    "sparse X": ((scipy.sparse.csr_array(X), Y), r"X is a sparse csr_array of shape \(90, 16\).*X.toarray\(\)"),
    "sparse alone": (scipy.sparse.csr_matrix(X), r"X.toarray\(\)"),
    "sparse tensor": ((torch.tensor(X).to_sparse(), Y), r"sparse tensor.*X.to_dense\(\)"),
    "a tuple of paths": (("a.parquet", Path("b.parquet")), "is a tuple of paths.*a folder or a glob; or a list"),
    "a name for y": ((X, "label"), "holds a str where an array"),
    "no y": ((X, None), "holds a NoneType where an array"),
    "polars": (foreign("polars", "DataFrame", columns=["a"]), r"pass df.to_arrow\(\)"),
    "polars, lazy": (foreign("polars", "LazyFrame"), r"pass df.collect\(\).to_arrow\(\)"),
    "Hugging Face": (foreign("datasets", "Dataset"), r"with_format\('arrow'\)\[:\]\."),
    "Hugging Face, splits": (foreign("datasets", "DatasetDict"), "of one split"),
    "Ray": (foreign("ray", "Dataset"), "ds.write_parquet"),
    "dask": (foreign("dask", "DataFrame", columns=[], iloc=None), r"df.compute\(\)"),
    "Spark": (foreign("pyspark", "DataFrame"), "df.write.parquet"),
    "another frame": (foreign("cudf", "DataFrame", to_pandas=None), r"\.to_pandas\(\)"),
    "a torch Dataset": (Dataset(), r"stack its rows into arrays, and pass \(X, y\)"),
    "a DataLoader": (torch.utils.data.DataLoader(Dataset()), r"stack its rows into arrays, and pass \(X, y\)"),
    "a dict": ({"features": X, "label": Y}, r"pandas.DataFrame\(\.\.\.\)"),
    "a generator": ((row for row in X), r"stack its rows into arrays, and pass \(X, y\)"),
    "rows": (list(zip(X, Y, strict=True)), r"stack its rows into arrays, and pass \(X, y\)"),
    "a Series": (pd.Series(Y), "the whole pandas.DataFrame"),
    "a reader": (pa.table({"a": [1]}).to_reader(), r"\.read_all\(\)"),
    "masked values": ((np.ma.masked_array(X, X > 1), Y), "X has masked values"),
    "complex numbers": ((X + 1j, Y), "'features' of complex64 values.*int64 or float64"),
    "named fields": ((np.zeros(90, [("a", "f4")]), Y), "int64 or float64"),
    "huge integers": ((X, np.array([2**70] * 90, dtype=object)), "'label' of object values.*int64 or float64"),
    "no values": ((X[:, :0], Y), r"features of shape \(90, 0\)"),
    "mixed columns": (
        pd.DataFrame({"features": [1, "b"] * 45, "label": Y}),
        "cannot be made a table.*row 0 holds 1 .*'b'",
    ),
    "repeated columns": (pd.concat([frame(), frame()], axis=1), "two columns called 'f0'"),
    "an empty path": ("", "empty path"),
    "a path that cannot be": ("a\0b", "cannot be opened"),
    "a home folder of no one": ("~nobody-of-this-name/t.parquet", "cannot be opened"),
    "a web address": ("https://user:SECRET@example.org/t.parquet", "web server.*download"),
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_what_is_no_table(name: str) -> None:
    given, message = NO_TABLES[name]
    for where in ("train", "valid"):
        with pytest.raises(rayinf.InputError, match=rf"(?s)^{where}.*{message}") as caught:
            rayinf.influence(task(), **{"train": (X, Y), "valid": VALID, where: given}, curvature="identity")
        assert str(caught.value).count("Fix: ") == 1
        assert "SECRET" not in str(caught.value)
        assert "a single number" not in str(caught.value)


FORMS: dict[str, Any] = {
    "a record batch": table(X, Y).to_batches()[0],
    "other byte order": (X.astype(">f4"), Y.astype(">i8")),
    "objects": (X.astype(object), Y.astype(object)),
    "a frame and a Series": (pd.DataFrame(X), pd.Series(Y)),
    "a Fortran array": (np.asfortranarray(X), Y),
    "tensors": (torch.tensor(X, requires_grad=True), torch.tensor(Y)),
    "lists": (X.tolist(), Y.tolist()),
    "a masked array without a mask": (np.ma.masked_array(X), Y),
}


@pytest.mark.parametrize("name", FORMS)
def test_other_forms_are_read(name: str) -> None:
    found = rayinf.influence(task(), FORMS[name], VALID, curvature="identity")
    assert close(found.to_numpy()[:, 0], TRUE)
    assert found.metadata["files"] == []


# --- A transform that was written for one row


def test_a_transform_for_one_row() -> None:
    def per_row(row: np.ndarray) -> torch.Tensor:
        if row.ndim != 1:
            raise ValueError(f"pic should be 1 dimensional, got {row.ndim}")
        return torch.tensor(row)

    def batched(batch: np.ndarray) -> torch.Tensor:
        return torch.stack([per_row(row) for row in batch])

    with pytest.raises(
        rayinf.InputError, match=r"works on one row, and gives \[16\], but it gets a batch.*torch.stack"
    ):
        rayinf.influence(task(transform=per_row), (X, Y), VALID, curvature="identity")
    found = rayinf.influence(task(transform=batched), (X, Y), VALID, curvature="identity")
    assert close(found.to_numpy()[:, 0], TRUE)


def test_a_transform_that_fails_on_one_row_too() -> None:
    def broken(batch: np.ndarray) -> torch.Tensor:
        raise ValueError("no codebook")

    with pytest.raises(rayinf.InputError, match=r"no codebook.*mend the transform"):
        rayinf.influence(task(transform=broken), (X, Y), VALID, curvature="identity")
