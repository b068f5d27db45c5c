"""Tables in memory of every accepted form as Arrow tables; errors with a fix for other forms."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pyarrow as pa

from rayinf.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_FAILED = (pa.ArrowException, ValueError, TypeError, NotImplementedError, OverflowError)
_FORMS = "pass a Parquet path, a pyarrow.Table, a pandas.DataFrame, or arrays (X, y)."
# Types of text and bytes that few kernels of Arrow support, and the types that they are converted to.
_VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}


def from_arrays(arrays: tuple[Any, ...], features: Sequence[str], others: Sequence[str], name: str) -> pa.Table:
    """A table from arrays (X, y) or (X, y, group).

    Args:
        arrays: of the user.
        features: names for X as a whole, or for each of its columns.
        others: names for the further arrays.
        name: how errors call the table.

    Raises:
        InputError: too few or too many arrays, of different lengths, or of values that cannot be stored in a column.
    """
    if arrays and all(isinstance(a, str) or hasattr(a, "__fspath__") for a in arrays):
        raise InputError(
            f"{name} is a tuple of paths, and a tuple holds arrays (X, y).",
            "pass one Parquet path, a folder or a glob; or a list of paths, to read them one after the other.",
        )
    held = [_array(a, name, "X" if k == 0 else others[k - 1] if k <= len(others) else "") for k, a in enumerate(arrays)]
    fewest = 1 if name == "pool" else 2
    if not fewest <= len(held) <= 1 + len(others):
        raise InputError(
            f"{name} is a tuple of {len(held)} arrays.", "pass (X, y), or (X, y, group) with Task(group=...)."
        )
    single = next((given for given, a in zip(arrays, held, strict=True) if not a.ndim), held)
    if single is not held:
        what = "a single number" if isinstance(single, Number) else f"a {type(single).__name__}"
        raise InputError(f"{name} holds {what} where an array is expected.", "pass arrays of rows: (X, y).")
    if len({len(a) for a in held}) != 1:
        raise InputError(f"{name} has arrays of {[len(a) for a in held]} rows.", "pass arrays of one length.")
    x = held[0]
    if not x.size and len(x):
        raise InputError(f"{name} has features of shape {x.shape}: no value a row.", "pass an X with columns.")
    if len(features) == 1:
        columns = {features[0]: _column(x, name, features[0])}
    elif x.ndim == 2 and x.shape[1] == len(features):
        columns = {feature: _column(x[:, k], name, feature) for k, feature in enumerate(features)}
    else:
        raise InputError(
            f"{name} has features of shape {x.shape}, and the Task names {len(features)} columns.",
            "pass one column of X for each name, or one name for all of X.",
        )
    return pa.table({**columns, **{c: _column(a, name, c) for c, a in zip(others, held[1:], strict=False)}})


def from_pandas(frame: pd.DataFrame, name: str) -> pa.Table:
    """A table from a frame, its index as pandas itself would store it.

    Raises:
        InputError: two columns of one name, or a column of several types.
    """
    if not len(frame.columns):
        raise InputError(f"{name} is a DataFrame without columns.", "pass one with features and labels.")
    twice = [str(c) for c, repeated in zip(frame.columns, frame.columns.duplicated(), strict=True) if repeated]
    if twice:
        raise InputError(
            f"{name} is a DataFrame with two columns called {twice[0]!r}.",
            "give every column one type and a name of its own.",
        )
    try:
        return pa.Table.from_pandas(frame)
    except _FAILED as error:
        reason = ": ".join(map(str, error.args)).replace("column None", "the index")
        mixed = next((m for c in frame.columns if (m := _mixed(frame[c].to_numpy()))), "")
        raise InputError(
            f"{name} is a DataFrame that cannot be made a table: {reason.rstrip('.')}{mixed}.",
            "give every column one type and a name of its own.",
        ) from error


def plain(table: pa.Table) -> pa.Table:
    """A table whose views of text and bytes are converted to plain text and bytes."""
    for k, field in enumerate(table.schema):
        kind = plain_type(field.type)
        if kind != field.type:
            table = table.set_column(k, field.with_type(kind), _plain_column(table.column(k), kind))
    return table


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The plain type for a view of text or bytes, also as the values of a dictionary; else the same type."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _VIEWS.get(str(inner), kind)


def plain_record(record: pa.RecordBatch) -> pa.RecordBatch:
    """A record batch whose views of text and bytes are converted."""
    kinds = [plain_type(f.type) for f in record.schema]
    if kinds == record.schema.types:
        return record
    columns = [_plain_column(c, k) if c.type != k else c for c, k in zip(record.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=record.schema.names)


def _plain_column(column: Any, kind: pa.DataType) -> Any:
    return pa.array(column.to_pylist(), kind)


def refuse(given: Any, name: str) -> NoReturn:
    """Refuse what is not a table, with a way to convert it.

    Raises:
        InputError: always.
    """
    kind, package = type(given).__name__, type(given).__module__.partition(".")[0]
    fix = _FORMS
    import pandas as pd

    if _is_sparse(given):
        fix = "pass arrays (X, y), with X.toarray() for a sparse X."
    elif package == "polars":
        fix = f"pass {'df.collect()' if kind == 'LazyFrame' else 'df'}.to_arrow()."
    elif package == "datasets":
        fix = "pass ds.with_format('arrow')[:]" + (" of one split." if kind.endswith("Dict") else ".")
    elif package == "ray":
        fix = "write it with ds.write_parquet(folder), and pass the folder."
    elif package == "dask":
        fix = "pass df.compute(), or write it with df.to_parquet(folder) and pass the folder."
    elif package == "pyspark":
        fix = "write it with df.write.parquet(folder), and pass the folder."
    elif package == "pyarrow":
        fix = (
            "pass a pyarrow.Table: " + (".read_all()" if hasattr(given, "read_all") else ".to_table()") + " makes one."
        )
    elif package == "torch" or (
        hasattr(given, "__getitem__") and hasattr(given, "__len__") and kind.endswith("Dataset")
    ):
        fix = "stack its rows into arrays, and pass (X, y)."
    elif isinstance(given, dict):
        fix = "pass pandas.DataFrame(...) or pyarrow.table(...) of it, or arrays (X, y)."
    elif hasattr(given, "__next__") or isinstance(given, list):
        fix = "stack its rows into arrays, and pass (X, y); or pass a list of Parquet paths."
    elif isinstance(given, pd.Series):
        fix = "pass the whole pandas.DataFrame, with features and labels."
    elif isinstance(given, np.ndarray) or hasattr(given, "detach"):
        fix = "pass arrays (X, y): features and labels."
    elif hasattr(given, "to_pandas"):
        fix = "pass .to_pandas() of it."
    raise InputError(f"{name} is a {kind}, which is not a table.", fix)


def _is_sparse(given: Any) -> bool:
    return hasattr(given, "toarray") and hasattr(given, "nnz")


def _array(given: Any, name: str, part: str) -> np.ndarray[Any, Any]:
    if _is_sparse(given):
        raise InputError(
            f"{name}: {part} is a sparse {type(given).__name__} of shape {given.shape}.", "pass X.toarray()."
        )
    if isinstance(given, dict | set) or hasattr(given, "__next__"):
        raise InputError(
            f"{name}: {part} is a {type(given).__name__}, and an array is expected.", "pass arrays of rows: (X, y)."
        )
    if hasattr(given, "detach"):  # a tensor, on any device
        if str(given.layout) != "torch.strided":
            raise InputError(f"{name}: {part} is a sparse tensor.", "pass X.to_dense().")
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given  # NumPy lacks bfloat16
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise InputError(f"{name}: {part} has masked values.", "fill or drop such rows.")
    try:
        held = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{name} holds lists that cannot be made an array: {error}.", "give every row features of one length."
        ) from error
    return held if held.dtype.isnative else held.astype(held.dtype.newbyteorder("="))


def _column(array: np.ndarray[Any, Any], name: str, column: str) -> pa.Array:
    # Only in arrays of objects NaN means a missing value; in numbers it is kept, and the scan refuses it as NaN.
    lost = array.dtype == object
    try:
        if array.ndim == 1:
            return pa.array(array, from_pandas=lost)
        array = np.ascontiguousarray(array)
        if array.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1), from_pandas=lost), array.shape[1])
        return pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    except _FAILED as error:
        raise InputError(
            f"{name}: column {column!r} of {array.dtype} values cannot be stored: {str(error).rstrip('.')}"
            f"{_mixed(array)}.",
            "give numbers (int64 or float64, say) or text, of one type.",
        ) from error


def _mixed(array: np.ndarray[Any, Any]) -> str:
    """The first two rows of an array of objects that differ in type, as text."""
    import pandas as pd

    if array.dtype != object or array.ndim != 1:
        return ""
    kinds = [
        (k, v)
        for k, v in enumerate(array.tolist())
        if not (v is None or v is pd.NA or (isinstance(v, float) and v != v))
    ]
    first = next(((k, v) for k, v in kinds if type(v) is not type(kinds[0][1])), None)
    if first is None:
        return ""
    (at, old), (row, new) = kinds[0], first
    return f": row {at} holds {old!r} ({type(old).__name__}), and row {row} {new!r} ({type(new).__name__})"
