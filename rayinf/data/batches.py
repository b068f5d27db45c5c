"""Record batches as NumPy: features of every storage form, raw labels, ids, and keys that depend on a row alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayinf.data.pandas_index import called
from rayinf.data.shards import Shard
from rayinf.data.tables import Table
from rayinf.errors import InputError

Array = np.ndarray[Any, Any]
# The largest label, and the largest float up to which all whole numbers are floats.
_MOST_WHOLE, _MOST_EXACT = 2**63 - 1, 2.0**53


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read, by their use; a pool is without a label."""

    features: tuple[str, ...]
    single: bool
    label: str | None
    row_id: str | None
    extra: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """Every column once."""
        named = [*self.features, self.label, self.row_id, *self.extra]
        return list(dict.fromkeys(n for n in named if n is not None))


@dataclass(frozen=True)
class Batch:
    """Some rows, decoded: features `[B, ...]`, raw labels and ids `[B]`, extra columns, and the first position.

    Labels are zeros where the table has none. `is_part`: rows were left out, so that positions do not follow from it.
    """

    x: Array
    labels: Array
    ids: pa.Array
    extra: dict[str, Array]
    start: int
    is_part: bool = False

    def __len__(self) -> int:
        """Rows."""
        return len(self.labels)

    def take(self, rows: Array) -> Batch:
        """Some of the rows, by position; `start` stays that of the first row read."""
        extra = {k: v[rows] for k, v in self.extra.items()}
        return Batch(self.x[rows], self.labels[rows], self.ids.take(pa.array(rows)), extra, self.start, True)


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Batches of rows of one table as one; `start` is that of the first."""
    if len(parts) == 1:
        return parts[0]
    extra = {k: np.concatenate([p.extra[k] for p in parts]) for k in parts[0].extra}
    x, labels = (np.concatenate([getattr(p, name) for p in parts]) for name in ("x", "labels"))
    return Batch(x, labels, pa.concat_arrays([p.ids for p in parts]), extra, parts[0].start, True)


def check_columns(table: Table, columns: Columns) -> None:
    """Refuse a table that lacks a column.

    Raises:
        InputError: the missing column and those that are there, or a name that two columns have.
    """
    have = table.schema.names
    for name in columns.all:
        if have.count(name) > 1:
            raise InputError(
                f"{table.name} has {have.count(name)} columns called {name!r}.", "rename or drop all but one."
            )
        if name not in have:
            known = ", ".join(have[:12]) + (f" and {len(have) - 12} more" if len(have) > 12 else "")
            raise InputError(
                f"{table.name} has no column {name!r}; it has {known or 'no columns'}.",
                "correct the column's name in the Task (features, label, group, row_id) or in the objective.",
            )


class BatchReader:
    """Reads shards of a table as batches."""

    def __init__(self, table: Table, columns: Columns) -> None:
        self._table, self._columns = table, columns
        self._reader = table.open(columns.all)

    def read(self, shard: Shard, size: int) -> Iterator[Batch]:
        """The rows of a shard in order, at most `size` at a time.

        Raises:
            InputError: a null, an id that is NaN, features of mixed lengths, or a type that holds no features.
        """
        start = shard.start
        for record in self._reader.read(shard):
            for offset in range(0, record.num_rows, size):
                part = record.slice(offset, size)
                yield self._batch(part, start + offset)
            start += record.num_rows

    def _batch(self, record: pa.RecordBatch, start: int) -> Batch:
        c, name = self._columns, self._table.name
        x = [features(record.column(f), f, name, start) for f in c.features]
        ids = record.column(c.row_id) if c.row_id else pa.array(np.arange(start, start + record.num_rows))
        if c.row_id:
            _no_nulls(ids, c.row_id, name, start)
        return Batch(
            _join(x, c, name),
            np.zeros(len(ids), np.int64) if c.label is None else values(record.column(c.label), c.label, name, start),
            ids,
            {e: values(record.column(e), e, name, start) for e in c.extra},
            start,
        )


def _join(x: Sequence[Array], columns: Columns, table: str) -> Array:
    if columns.single:
        return x[0][:, None] if x[0].ndim == 1 and x[0].dtype != object else x[0]
    for name, held in zip(columns.features, x, strict=True):
        if held.ndim != 1 or held.dtype == object:
            what = "text or bytes" if held.dtype == object else f"{list(held.shape[1:])} values a row"
            raise InputError(
                f"{table}: features={list(columns.features)!r} are numeric columns, but {name!r} holds {what}.",
                'pass a list of numeric columns, or one column as features="...".',
            )
    return np.stack(x, axis=1)


def features(column: pa.Array, name: str, table: str, start: int) -> Array:
    """One column of features as NumPy: numbers `[B]`, lists `[B, d]`, tensors `[B, ...]`, bytes `[B, k]`, text `[B]`.

    Lists of lists give an axis each.

    Raises:
        InputError: nulls, lists of different lengths, or another type.
    """
    _no_nulls(column, name, table, start)
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        _no_nulls(column.storage.flatten(), name, table, start, kind.storage_type.list_size)
        return column.to_numpy_ndarray()
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        held = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
        return held.reshape(len(column), width)
    if _is_list(kind):
        return _lists(column, name, table, start)
    if pa.types.is_dictionary(kind):
        return features(column.dictionary_decode(), name, table, start)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)
    if is_text(kind):
        return np.asarray(column.to_pylist(), dtype=object)
    raise InputError(
        f"{table}: column {name!r} is of type {kind}, which holds no features.",
        "store numbers (a decimal or a time as float64), fixed-size lists, tensors, fixed-size binary or text.",
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, or bytes of any length."""
    return (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)) or (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _lists(column: pa.Array, name: str, table: str, start: int, above: int = 1) -> Array:
    """Lists `[B, d]`, or with more axes for lists of lists; `above` is how many of these lists make a row."""
    flat = column.flatten()
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    else:
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if len(lengths) else 0
        if (lengths != width).any():
            at = int(np.flatnonzero(lengths != width)[0])
            raise InputError(
                f"{table}: column {name!r} has lists of different lengths: {width} in row {start}, "
                f"{int(lengths[at])} in row {start + at // above}.",
                "pad or cut the lists to one length.",
            )
    inner = flat.type
    _no_nulls(flat, name, table, start, above * width)
    nested = _is_list(inner)
    held = _lists(flat, name, table, start, above * width) if nested else features(flat, name, table, start)
    return held.reshape(len(column), width, *held.shape[1:])


def values(column: pa.Array, name: str, table: str, start: int) -> Array:
    """A column of labels, groups or ids: integers as int64, text (also as bytes of UTF-8) as str.

    Raises:
        InputError: nulls, numbers that are not whole or too large, bytes that are not text, or another type.
    """
    _no_nulls(column, name, table, start)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if is_text(kind) or pa.types.is_fixed_size_binary(kind):
        return _texts(column.to_pylist(), name, table, start)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        whole = column.to_numpy(zero_copy_only=False)
        wrong = whole > _MOST_WHOLE if whole.dtype.kind == "u" else np.zeros(0, bool)
        if not wrong.any():
            return whole.astype(np.int64)
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{table}: column {name!r} holds {whole[row]} in row {start + row}: over 2^63 - 1.",
            "store such labels as text, or number the classes from 0.",
        )
    if pa.types.is_floating(kind):
        return _whole_floats(column.to_numpy(zero_copy_only=False), name, table, start)
    lists = pa.types.is_nested(kind)
    raise InputError(
        f"{table}: column {name!r} is of type {kind}.",
        "store labels, groups and ids as integers or text"
        + (": one value a row (y.ravel(), or y.argmax(1) of one-hot rows)." if lists else "."),
    )


def _texts(found: list[str | bytes], name: str, table: str, start: int) -> Array:
    for row, value in enumerate(found):
        try:
            found[row] = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise InputError(
                f"{table}: column {name!r} holds the bytes {value[:16]!r} in row {start + row}, which are not text.",
                "store labels and groups as integers or text.",
            ) from error
    return np.asarray(found, dtype=str)


def _whole_floats(floats: Array, name: str, table: str, start: int) -> Array:
    floats = floats.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.floor(floats) == floats) | ~(np.abs(floats) <= _MOST_EXACT)
    if not wrong.any():
        return floats.astype(np.int64)
    row = int(np.flatnonzero(wrong)[0])
    raise InputError(
        f"{table}: column {name!r} holds {floats[row]} in row {start + row}, but labels must be integers or text.",
        "fill or drop such rows."
        if np.isnan(floats[row])
        else "store classes and groups as integers or text; regression targets are not supported yet.",
    )


def row_keys(x: Array, labels: Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit key a row from its contents alone: the same in any order, batch, shard or process.

    Drawn labels and halves are taken from it.
    """
    words = _words(x)
    with np.errstate(over="ignore"):
        key = (mix(words) * _odd(words.shape[1])).sum(axis=1, dtype=np.uint64)
    return mix(key ^ _hash_labels(labels))


def fast_keys(x: Array, labels: Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Keys of rows for drawing a few of very many: another such key at a tenth of the cost, multilinear in the words.

    Different rows have equal keys with a chance of about 2^-64 each pair, unless they are made to.
    """
    words = _words(x)
    return mix(np.einsum("bw,w->b", words, _odd(words.shape[1])) ^ _hash_labels(labels))


def _words(x: Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The contents of each row as words of 64 bits, `[B, words]`."""
    if x.dtype == object:
        import pandas as pd

        texts = np.asarray([str(v) for v in x.reshape(-1)], dtype=object)
        hashed: np.ndarray[Any, np.dtype[np.uint64]] = pd.util.hash_array(texts).reshape(len(x), -1)
        return hashed
    raw = np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8)
    if raw.shape[1] % 8 == 0:
        return raw.view(np.uint64)
    padded = np.zeros((len(x), -(-raw.shape[1] // 8) * 8), np.uint8)
    padded[:, : raw.shape[1]] = raw
    return padded.view(np.uint64)


def _odd(words: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Odd multipliers, one a word: words that change places give another sum, and no bit of a word is lost."""
    return mix(np.arange(1, words + 1, dtype=np.uint64)) | np.uint64(1)


def _hash_labels(labels: Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    import pandas as pd

    found: np.ndarray[Any, np.dtype[np.uint64]] = pd.util.hash_array(
        labels.astype(object) if labels.dtype.kind == "U" else labels
    )
    return found


def uniforms(keys: np.ndarray[Any, np.dtype[np.uint64]], seed: int, draws: int) -> Array:
    """Uniforms in [0, 1), `[B, draws]`, from keys and all 64 bits of a seed."""
    low, high = seed % 2**32, seed % 2**64 >> 32
    steps = mix(np.arange(draws, dtype=np.uint64) + np.uint64(low) * np.uint64(2**32))
    if high:
        steps = mix(steps ^ mix(np.array([high], np.uint64)))
    return (mix(keys[:, None] ^ steps) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def signs(keys: np.ndarray[Any, np.dtype[np.uint64]], seed: int, count: int) -> Array:
    """Random signs, 1 or -1 as int8, `[B, count]`, from keys and a seed."""
    words = (uniforms(keys, seed, -(-count // 32)) * 2**32).astype("<u4")  # the high bits
    bits = np.unpackbits(words.view(np.uint8).reshape(len(keys), -1), axis=1)[:, :count]
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)


def in_second_half(x: Array, labels: Array, seed: int) -> Array:
    """Whether each row is in the second half of the validation rows, `[B]`, from its contents and the run's seed."""
    held: Array = uniforms(row_keys(x, labels), seed + 1, 1)[:, 0] >= 0.5
    return held


def mix(z: Array) -> Array:
    """The finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _no_nulls(column: pa.Array, name: str, table: str, start: int, width: int = 1) -> None:
    """Refuse nulls, also in the values of a dictionary; `width` values of `column` make a row."""
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        column = column.dictionary_decode()
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        inside = f"[{at % width}]" if width > 1 else ""
        raise InputError(
            f"{table}: {called(name)}{inside} is null in row {start + at // width} (it has no value; pandas' "
            "NaN comes as a null too).",
            "fill or drop such rows.",
        )
