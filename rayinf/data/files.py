"""Files that are either complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rayinf.data import disk, process
from rayinf.data.local_files import walk
from rayinf.errors import RayinfError, RunError
from rayinf.store.places import AnyPath, StorePath

Arrays = dict[str, np.ndarray[Any, Any]]
_TEMPORARY = re.compile(r"\.tmp\.([0-9a-f]{32})$")
_READ_BYTES = 1 << 20
# The prefix of local temporaries of files that go to a store.
_OF_STORES, _LONGEST_NAME = "rayinf-", 80
CHECKSUM = "checksum"


def write_whole(path: AnyPath, write: Callable[[Path], object]) -> tuple[int, bytes]:
    """Let `write` fill a temporary file beside `path` (of a store: a local one), then rename it there.

    Returns:
        Bytes and SHA-256 of the file.

    Raises:
        RunError: the file cannot be written (a full disk, say). The file that was at `path` before stays.
        RayinfError: a store refuses, or does not answer.
    """
    with temporary(path) as held:
        try:
            disk.used.make_folder(path.parent)
            disk.used.fill(held, write)
            content = file_sha256(held)
            disk.used.rename(held, path)
            return content
        except RayinfError:
            raise
        except (OSError, SafetensorError) as error:  # safetensors raises its own error on a full disk
            problem = unwritable(path, error)
            raise problem from error


def write_result(path: AnyPath, table: pa.Table) -> None:
    """Write a table for the user, outside a run's own files. What a killed process left beside it is removed."""
    if isinstance(path, StorePath) or path.parent.is_dir():
        sweep(path.parent, path.name, elsewhere=False)
    write_part(path, table)


def unwritable(path: AnyPath, error: Exception) -> RunError:
    """The one error for a file that cannot be written."""
    return RunError(
        f"{path} cannot be written: {str(error).rstrip('.')}.",
        "free space or mend the permissions, then run the same command again: what is finished is kept.",
    )


@contextmanager
def temporary(path: AnyPath) -> Generator[Path]:
    """A new name beside `path`, which identifies the process that made it. A file of that name is removed at the end.

    For a file of a store, a local name: in the folder for temporary files.
    """
    with process.mark() as mark:
        if isinstance(path, StorePath):
            held = Path(tempfile.gettempdir()) / f"{_OF_STORES}{path.name[-_LONGEST_NAME:]}.tmp.{mark}"
        else:
            held = path.with_name(f"{path.name}.tmp.{mark}")
        try:
            yield held
        finally:
            if held.exists():
                try_to_remove(held)


def is_temporary(name: str) -> bool:
    """Whether a file's name is that of a temporary of ours."""
    return _TEMPORARY.search(name) is not None


def sweep(folder: AnyPath, pattern: str = "*", *, elsewhere: bool = True) -> None:
    """Remove temporaries that a dead process left behind. Only names of the form of `temporary` are touched.

    Args:
        folder: looked through with all folders in it.
        pattern: of the names of the files that were being written.
        elsewhere: whether processes of other machines count as dead.
    """
    if isinstance(folder, StorePath):
        for file in Path(tempfile.gettempdir()).glob(f"{_OF_STORES}*.tmp.*"):
            found = _TEMPORARY.search(file.name)
            if found and process.is_left_behind(found[1], elsewhere=False):
                try_to_remove(file)
    lefts: list[AnyPath] = sorted(folder.rglob(f"{pattern}.tmp.*"), reverse=True)
    for left in lefts:
        found = _TEMPORARY.search(left.name)
        if found and process.is_left_behind(found[1], elsewhere=elsewhere):
            try_to_remove(left)


def try_to_remove(path: AnyPath) -> None:
    """Remove what nothing depends on. Tried twice, since shared folders fail occasionally; what stays is harmless."""
    for _ in range(2):
        with suppress(OSError):
            remove_tree(path)
            return


def remove_tree(path: AnyPath) -> None:
    """Remove a file, or a folder with all that is in it."""
    if isinstance(path, Path) and path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove_tree(inner)
    disk.used.remove(path)


def files_below(folder: AnyPath, name: str) -> list[AnyPath]:
    """The files of a name in a folder, at any depth, in order. `Path.rglob` holds all entries of a folder at once."""
    if isinstance(folder, StorePath):
        return sorted(folder.rglob(name))
    found = walk(str(folder), links=False, ignore=OSError)
    return sorted(Path(f) for f in found if os.path.basename(f) == name)


def file_sha256(path: AnyPath) -> tuple[int, bytes]:
    """Bytes and SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.digest()


def write_json(path: AnyPath, value: Mapping[str, Any]) -> tuple[int, bytes]:
    """Write JSON, whole, a piece of its text at a time; bytes and SHA-256 of the file."""

    def write(held: Path) -> None:
        with held.open("w") as file:
            file.writelines(json.JSONEncoder(indent=2, default=str).iterencode(value))
            file.write("\n")

    return write_whole(path, write)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON with a checksum of itself, for a file whose checksum is in no other file."""
    plain = {_key(k): _plain(v) for k, v in value.items()}
    return {**plain, CHECKSUM: _digest(plain)}


def unsealed(held: Any) -> dict[str, Any] | None:
    """The argument of `sealed`, from its result; None where the checksum is missing or wrong."""
    if not isinstance(held, dict):
        return None
    plain = {k: v for k, v in held.items() if k != CHECKSUM}
    return plain if held.get(CHECKSUM) == _digest(plain) else None


def _plain(value: Any) -> Any:
    """What reading the JSON of a value would give, without its text: `run.json` names every file of the table."""
    if isinstance(value, dict):
        return {_key(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str) else json.loads(json.dumps(value, default=str))


def _key(key: Any) -> str:
    """A key as JSON has it."""
    return key if isinstance(key, str) else next(iter(json.loads(json.dumps({key: 0}))))


def _digest(plain: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for text in json.JSONEncoder(sort_keys=True).iterencode(plain):  # run.json names every file of the training table
        digest.update(text.encode())
    return digest.hexdigest()


def write_arrays(path: AnyPath, arrays: Arrays) -> tuple[int, bytes]:
    """Write named arrays as safetensors, whole; keys are sorted, so that equal arrays give equal bytes.

    Returns:
        Bytes and SHA-256 of the file.
    """
    # Not ascontiguousarray, which makes a 0-d array 1-d.
    held = {k: np.asarray(arrays[k], order="C") for k in sorted(arrays)}
    return write_whole(path, lambda file: fill_safetensors(file, lambda inner: save_file(held, inner)))


def fill_safetensors(file: Path, save: Callable[[Path], object]) -> None:
    """Let safetensors write a file in a folder of its own, then put it at `file`.

    safetensors makes a temporary of a name that `sweep` does not match, and a file that only its owner can read.
    """
    with temporary(file) as folder:
        folder.mkdir()
        save(folder / "tensors")
        (folder / "tensors").chmod(folder.stat().st_mode & 0o666)
        (folder / "tensors").rename(file)


@contextmanager
def fetched(path: AnyPath) -> Generator[Path]:
    """A local file with the content of a file: itself, or of a store a copy for as long as the context lasts."""
    if isinstance(path, Path):
        yield path
        return
    with temporary(path) as held:
        path.download(held)
        yield held


def readable(path: AnyPath) -> Any:
    """The argument for pyarrow to read a Parquet file from: a local path, or an open file of a store.

    Raises:
        OSError: it is missing in the store.
    """
    return path if isinstance(path, Path) else path.open()


def read_arrays(path: AnyPath) -> Arrays | None:
    """Named arrays from safetensors, or None where there is no such file or it is damaged.

    Raises:
        RayinfError: a store does not answer, or refuses.
    """
    try:
        with fetched(path) as held:
            return load_file(held)
    except RayinfError:
        raise
    except (OSError, SafetensorError, ValueError):
        return None


def write_part(path: AnyPath, table: pa.Table) -> tuple[int, bytes]:
    """Write a table as Parquet, whole: no time, no host, so that equal tables give equal bytes.

    Returns:
        Bytes and SHA-256 of the file.
    """
    split = [f.name for f in table.schema if pa.types.is_floating(f.type)]
    return write_whole(
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
