"""What the loaders of this folder share: fetching an original file, checking it, and writing Parquet.

An original is taken from `--original FILE`, where that is given, else from the folder `originals` under `--out`; what
is not there is downloaded to it. Where a checksum is published, the file must have it. Where none is known, the SHA-256
that was seen is printed and kept in `originals/<name>.sha256`, and a later run must see the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import wrap_file

TIMEOUT = 60  # seconds without an answer
PIECE = 1 << 20
IMAGES_A_GROUP = 1000


@dataclass(frozen=True)
class Original:
    """A public file.

    Attributes:
        name: what the file is called.
        url: where it is.
        md5: its published checksum, in hexadecimal; None where none is known.
        from_: who publishes that checksum.
    """

    name: str
    url: str
    md5: str | None = None
    from_: str = ""


def arguments(doc: str | None, originals: int = 1) -> argparse.ArgumentParser:
    """A parser of what every loader takes; so many originals are needed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the Parquet files (default: data)")
    what = "the original file, where you have it" if originals == 1 else f"the {originals} original files, in order"
    parser.add_argument("--original", type=Path, nargs=originals, metavar="FILE", help=f"{what}; else it is downloaded")
    return parser


def obtain(originals: list[Original], args: argparse.Namespace) -> list[Path]:
    """Where the originals are on this machine, checked.

    Raises:
        SystemExit: a file is not there, could not be downloaded, or has another checksum.
    """
    given = args.original or [None] * len(originals)
    return [_obtain(original, args.out / "originals", path) for original, path in zip(originals, given, strict=True)]


def _obtain(original: Original, folder: Path, given: Path | None) -> Path:
    path = given or folder / original.name
    if given and not given.is_file():
        raise SystemExit(f"{given} is not there. Fix: pass --original the path of {original.name}, or leave it out.")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _download(original, path)
    _check(original, path, folder)
    return path


def _download(original: Original, path: Path) -> None:
    """Download to a name of its own, and rename when all is there.

    Raises:
        SystemExit: the host did not answer, or refused.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with urllib.request.urlopen(original.url, timeout=TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with wrap_file(answer, size, description=original.name) as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink, PIECE)
        if size and part.stat().st_size != size:
            raise OSError(f"{part.stat().st_size:,} of {size:,} bytes came")
        os.replace(part, path)
    except (OSError, HTTPException, ValueError) as error:
        part.unlink(missing_ok=True)
        raise SystemExit(
            f"{original.url} could not be downloaded: {error}. Fix: get {original.name} on a machine that reaches it, "
            f"and pass --original {original.name}."
        ) from None


def _check(original: Original, path: Path, folder: Path) -> None:
    """Compare with the published checksum, or with the one that was seen at first.

    Raises:
        SystemExit: it is another.
    """
    if original.md5:
        seen = digest(path, "md5")
        if seen != original.md5:
            raise SystemExit(
                f"{path} has the MD5 {seen}, and {original.from_} gives {original.md5} for {original.name}. "
                "Fix: delete the file and download it again."
            )
        return
    seen, beside = digest(path, "sha256"), folder / f"{path.name}.sha256"
    if not beside.exists():
        print(f"{path.name}: no published checksum is known; SHA-256 {seen}, kept in {beside}")
        folder.mkdir(parents=True, exist_ok=True)
        beside.write_text(f"{seen}  {path.name}\n")
    elif (kept := beside.read_text().split()[0]) != seen:
        raise SystemExit(
            f"{path} has the SHA-256 {seen}, and the one that was read before had {kept}. Fix: delete {beside} if this "
            "file is the right one, else the file."
        )


def digest(path: Path, kind: str) -> str:
    """A file's checksum in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, kind).hexdigest()


def unexpected(path: Path, found: object, wanted: object) -> SystemExit:
    """The error for a file of another form."""
    return SystemExit(
        f"{path}: found {found}, expected {wanted}. Fix: pass --original the file that this script names; delete a "
        "wrong one that was downloaded."
    )


def codes(path: Path, found: pd.Series, labels: dict[str, int]) -> np.ndarray:
    """Words as the integers that `labels` has for them.

    Raises:
        SystemExit: a word that is not among them.
    """
    if others := sorted({str(v) for v in found.unique()} - set(labels)):
        raise unexpected(path, f"labels {others[:5]}", sorted(labels))
    return found.map(labels).to_numpy(np.int64)


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, and print its rows and how many each label has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _finish(pa.Table.from_pandas(frame, preserve_index=False), path)
    _report(path, frame["label"].to_numpy())


def write_images(images: Iterator[np.ndarray], labels: np.ndarray, path: Path) -> None:
    """Write pieces `[n, ...]` of uint8 images as raw bytes a row, with their labels: as many as there are images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, done, temporary = None, 0, path.with_name(f".{path.name}.tmp")
    for piece in images:
        flat = np.ascontiguousarray(piece, np.uint8).reshape(len(piece), -1)
        size = pa.binary(flat.shape[1])
        rows = {"image": pa.array([row.tobytes() for row in flat], size), "label": labels[done : done + len(piece)]}
        table = pa.table(rows)
        writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
        writer.write_table(table)
        done += len(piece)
    if writer is not None:
        writer.close()
    os.replace(temporary, path)
    _report(path, labels)


def _finish(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def _report(path: Path, labels: np.ndarray) -> None:
    counts = ", ".join(
        f"{label}: {count:,}" for label, count in zip(*np.unique(labels, return_counts=True), strict=True)
    )
    print(f"{path}: {len(labels):,} rows; labels {counts}; {path.stat().st_size / 1e6:.1f} MB")
