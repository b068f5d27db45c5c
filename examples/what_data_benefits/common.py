"""What the scripts of this folder share: tables split three ways and standardised, a parser, a printed table, a figure.

`--data` is a folder with the Parquet files that a script names, or one Parquet file with the columns `label` (0 or 1),
`sensitive` (the group, 0 or 1), numeric features (all other columns but `row_id`), and perhaps `split` (train, valid or
val, test); without `split`, 60, 20 and 20 per cent of the rows at random. With `--quick` and no `--data`, a small
synthetic table stands in. Features are standardised by the training rows (float32).

    adult    adult_train.parquet, adult_test.parquet: the test rows are halved at random into test and validation, as in
             the paper's code
    celeba   celeba_attr.parquet: its own split; `Smiling` is the label and is dropped
    toy      toy_train.parquet, toy_test.parquet: Chhabra 2024 measures on the validation rows, so these are the test
             rows too
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split

NOT_FEATURES = ("label", "sensitive", "split", "row_id")
HALVES_SEED = 42000  # of the paper's code


@dataclass(frozen=True)
class Split:
    """Rows to train on, to value on, and to test on: columns `features`, `label` and `sensitive`."""

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame
    features: list[str]


def arguments(doc: str | None, out: str) -> argparse.ArgumentParser:
    """A parser of what every script takes; `out` says what `--out` names."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of the Parquet files, or one file of the documented form")
    parser.add_argument("--quick", action="store_true", help="a small run; without --data on synthetic rows")
    parser.add_argument("--out", type=Path, help=out)
    return parser


def splits(names: Sequence[str], data: Path | None, quick: bool = False) -> Iterator[tuple[str, Split]]:
    """The tables a script works on, unscaled: those named of a folder, or the one file, or synthetic rows.

    Raises:
        SystemExit: there is nothing to read, or it has another form.
    """
    if data is None and quick:
        yield "synthetic", partition(synthetic())
    elif data is not None and data.is_file():
        yield data.stem, partition(_checked(pd.read_parquet(data), data))
    else:
        for name in names:
            yield name, load(name, data)


def load(name: str, data: Path | None) -> Split:
    """One of the tables `adult`, `celeba` and `toy` of a folder, unscaled.

    Raises:
        SystemExit: a file is not there, or has another form.
    """
    return READERS[name](data)


def table_of(data: Path | None, file: str, drop: Sequence[str] = ()) -> pd.DataFrame:
    """A file of the folder.

    Raises:
        SystemExit: it is not there, or has another form.
    """
    if data is None or not (data / file).is_file():
        where = "--data is missing" if data is None else f"{data} does not hold it"
        raise SystemExit(f"{file} is needed, and {where}: pass --data FOLDER, or --quick alone for synthetic rows.")
    return _checked(pd.read_parquet(data / file).drop(columns=list(drop)), data / file)


def partition(frame: pd.DataFrame, seed: int = 0) -> Split:
    """The frame's own split, or 60, 20 and 20 per cent of its rows at random.

    Raises:
        SystemExit: a split without one of the parts.
    """
    if "split" in frame:
        found = {name: part.drop(columns="split") for name, part in frame.groupby("split")}
        found["valid"] = found.get("valid", found.get("val"))
        if missing := [n for n in ("train", "valid", "test") if found.get(n) is None]:
            raise SystemExit(f"The column split has no rows of {', '.join(missing)}: give them, or leave it out.")
        return of_parts(found["train"], found["valid"], found["test"])
    order, n = np.random.default_rng(seed).permutation(len(frame)), len(frame)
    train, valid, test = (frame.iloc[rows] for rows in np.split(order, [n * 6 // 10, n * 8 // 10]))
    return of_parts(train, valid, test)


def of_parts(train: pd.DataFrame, valid: pd.DataFrame, test: pd.DataFrame) -> Split:
    """A split of these rows, numbered anew; every column but label, sensitive and row_id is a feature."""
    features = [c for c in train if c not in NOT_FEATURES]
    columns = [*features, *(c for c in ("label", "sensitive") if c in train)]
    return Split(*(part[columns].reset_index(drop=True) for part in (train, valid, test)), features)


def standardise(split: Split) -> Split:
    """Every feature in units of its spread over the training rows, from their mean, in float32."""
    x = split.train[split.features].to_numpy(np.float64)
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, 1.0)

    def scaled(part: pd.DataFrame) -> pd.DataFrame:
        values = ((part[split.features].to_numpy(np.float64) - mean) / spread).astype(np.float32)
        rest = part.drop(columns=split.features)
        return pd.concat([pd.DataFrame(values, columns=split.features, index=part.index), rest], axis=1)

    return replace(split, train=scaled(split.train), valid=scaled(split.valid), test=scaled(split.test))


def synthetic(rows: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Two overlapping classes in ten features; the group shifts some of these, and how often the label is 1."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, rows)
    x = rng.normal(size=(rows, 10))
    x[:, :3] += 0.8 * group[:, None]
    margin = x @ rng.normal(scale=0.7, size=10) + 0.8 * (group - 0.5) + 0.5 * rng.logistic(size=rows)
    frame = pd.DataFrame(x, columns=[f"f{k}" for k in range(10)])
    return frame.assign(label=(margin > np.median(margin)).astype(int), sensitive=group)


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Print a table whose first column is text and whose others are figures."""
    table = Table(title=title, title_justify="left")
    for k, name in enumerate(columns):
        table.add_column(name, justify="right" if k else "left")
    for line in lines:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in line))
    Console().print(table)


def _checked(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with integer labels.

    Raises:
        SystemExit: label or group are not 0 and 1, or a feature is not a number.
    """
    words = frame.drop(columns=list(NOT_FEATURES), errors="ignore").select_dtypes(exclude=["number", "bool"])
    flags = [c for c in ("label", "sensitive") if c not in frame or not set(frame[c].unique()) <= {0, 1}]
    if flags or len(words.columns):
        raise SystemExit(
            f"{path} needs label and sensitive of 0 and 1 and numeric features: "
            f"{', '.join([*flags, *words.columns])} is missing or of another kind."
        )
    return frame.astype({"label": int, "sensitive": int})


def _adult(data: Path | None) -> Split:
    held = table_of(data, "adult_test.parquet")
    test, valid = train_test_split(held, test_size=0.5, random_state=HALVES_SEED)
    return of_parts(table_of(data, "adult_train.parquet"), valid, test)


def _celeba(data: Path | None) -> Split:
    return partition(table_of(data, "celeba_attr.parquet", drop=["Smiling"]))


def _toy(data: Path | None) -> Split:
    held = table_of(data, "toy_test.parquet")
    return of_parts(table_of(data, "toy_train.parquet"), held, held)


READERS: dict[str, Callable[[Path | None], Split]] = {"adult": _adult, "celeba": _celeba, "toy": _toy}
