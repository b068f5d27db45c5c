"""Files that are either whole or not there: write under a temporary name, then rename."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rayinf.errors import RunError

Arrays = dict[str, np.ndarray[Any, Any]]
_TEMPORARY = ".tmp."


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it there.

    Raises:
        RunError: the file cannot be written (a full disk, say). What stood at `path` still does.
    """
    held = path.with_name(f"{path.name}{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(held)
        os.replace(held, path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        with suppress(OSError):
            held.unlink(missing_ok=True)
        raise RunError(
            f"{path} cannot be written: {error}.",
            "free space or mend the permissions, then run the same command again: finished shards are kept.",
        ) from error
    except BaseException:
        held.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove temporaries that a killed process left behind."""
    for pattern in (f"*{_TEMPORARY}*", ".tmp*"):  # the second: safetensors' own
        for left in folder.rglob(pattern):
            left.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, whole."""
    text = json.dumps(value, indent=2, default=str) + "\n"
    write_whole(path, lambda p: p.write_text(text))


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write named arrays as safetensors, whole; keys are sorted, so that equal arrays give equal bytes."""
    # Not ascontiguousarray, which gives a number an axis.
    held = {k: np.asarray(arrays[k], order="C") for k in sorted(arrays)}

    def save(file: Path) -> None:
        file.touch()
        mode = file.stat().st_mode
        save_file(held, file)
        file.chmod(mode)  # safetensors makes it the owner's alone

    write_whole(path, save)


def read_arrays(path: Path) -> Arrays | None:
    """Named arrays from safetensors, or None where there is no such file or it is damaged."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError, ValueError):
        return None


def write_part(path: Path, table: pa.Table) -> None:
    """Write one shard of scores as Parquet: no time, no host, so that equal scores give equal bytes."""
    split = [f.name for f in table.schema if pa.types.is_floating(f.type)]
    write_whole(
        path,
        lambda p: pq.write_table(
            table,
            p,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            use_byte_stream_split=split,
            write_page_checksum=True,
        ),
    )


def sound_part(path: Path, rows: int, columns: list[str]) -> bool:
    """Whether a shard of scores is there, whole and unharmed (checksums of all pages)."""
    try:
        held = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return held.num_rows == rows and held.schema.names == columns
