"""Errors for files that cannot be read as Parquet: damaged, of another format, unreachable, or not permitted."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.fs as pafs

from rayinf.errors import InputError, RayinfError, ReadError, RowsError
from rayinf.redaction import redact
from rayinf.store.failures import lasting, may_pass, short

# What pyarrow raises for damaged files (a ValueError where a column's name is not text any more).
UNREADABLE = (pa.ArrowException, OSError, ValueError)
_LOAD = "pass arrays (X, y) that numpy.load(...) gives."
_CONVERT = "convert it first: {}, then .to_parquet(...); or pass a pandas.DataFrame, or arrays (X, y)."
# The part of a file without which none of its rows can be read.
FOOTER = "footer"
_RESTORE = "restore or rewrite the file."
# The first bytes of files of other formats, the format's name, and what reads it.
_FORMATS = (
    (b"ARROW1", "an Arrow (Feather) file", "pyarrow.feather.read_table(...)"),
    (b"\x93NUMPY", "a NumPy file", _LOAD),
    (b"\x89HDF", "an HDF5 file", "pandas.read_hdf(...)"),
    (b"Obj\x01", "an Avro file", "fastavro"),
    (b"ORC", "an ORC file", "pyarrow.orc.read_table(...)"),
    (b"\x80\x04", "a pickle", "pandas.read_pickle(...)"),
    (b"\x80\x05", "a pickle", "pandas.read_pickle(...)"),
    (b"\x1f\x8b", "a gzip archive", "pandas.read_csv(...)"),
)


def shown(path: str) -> str:
    """A path or URI, shortened and without secrets."""
    path = redact(path)
    return path if len(path) <= 300 else f"{path[:200]}...{path[-80:]}"


def corrupt(file: str, where: str, error: object, ends: tuple[bytes, bytes] | None = None) -> RayinfError:
    """The one error for a Parquet file that cannot be read.

    Args:
        file: its path.
        where: the part of the file: `FOOTER`, or the row group whose rows cannot be read.
        error: what was raised.
        ends: its first bytes and its last four, where they could be read.
    """
    far = unreachable(file, error)
    if far is not None:
        return far
    what, fix = str(error).rstrip("."), _RESTORE
    if ends is not None and not (ends[0].startswith(b"PAR1") and ends[1] == b"PAR1"):
        what, fix = _other_format(file, *ends)
    # What decodes a damaged page raises without a number of the system's.
    kind = InputError if where == FOOTER else ReadError if getattr(error, "errno", None) else RowsError
    return kind(f"{file} ({where}) cannot be read as Parquet: {what}.", fix)


def unreachable(path: str, error: object) -> RayinfError | None:
    """The error for a file that is unreachable or not permitted; None for other causes."""
    if isinstance(error, RayinfError):  # already the error of a store
        return error
    place = shown(path)
    if isinstance(error, FileNotFoundError):
        return InputError(f"{place} is not there any more, or is a broken link.", "restore it, or pass other files.")
    if isinstance(error, PermissionError):
        return InputError(f"{place} cannot be read: permission denied.", "give this user the right to read it.")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{place} is a folder, not a file.", "pass the folder, or the files in it.")
    if not isinstance(error, OSError):
        return None
    if (known := lasting(path, error)) is not None:
        return known
    remote = re.search("AWS Error|google::cloud|Azure|HDFS", str(error))
    if remote and (may_pass(error) or re.search("resolve host|connect", str(error))):
        return InputError(
            f"{place} cannot be reached ({short(error)}).",
            "check the network, the endpoint and the region, or copy the table to a local folder.",
        )
    if remote:
        return InputError(
            f"{place} cannot be read ({short(error)}).",
            "check the bucket, the region (`?region=...` at the end of the URI) and the credentials.",
        )
    return None


def _other_format(file: str, head: bytes, tail: bytes) -> tuple[str, str]:
    """What a file is that does not begin and end as Parquet does, and the fix."""
    suffix = file.rpartition(".")[2].lower()
    if not head:
        return "the file is empty (0 bytes)", "write it again: whatever wrote it was stopped."
    if head.startswith(b"PAR1"):
        return "it begins as Parquet and does not end so: the file is cut short", _RESTORE
    if b"PARE" in (head[:4], tail):
        return "it is encrypted", "decrypt it first."
    for magic, kind, reader in _FORMATS:
        if head.startswith(magic):
            return f"it is {kind}", reader if reader == _LOAD else _CONVERT.format(reader)
    if head.startswith(b"PK\x03\x04"):
        reader = "pandas.read_excel(...)" if suffix == "xlsx" else "unpack it"
        return "it is a zip archive", _LOAD if suffix == "npz" else _CONVERT.format(reader)
    text = head.decode("utf-8", "ignore")
    if len(text) < len(head) - 4 or not all(c.isprintable() or c.isspace() for c in text):
        return "it neither begins nor ends as Parquet does", _RESTORE
    line = text.strip().splitlines()[0][:40] if text.strip() else ""
    if line.startswith("version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself", "run git lfs pull."
    if line.lower().startswith(("<!doctype", "<html", "<?xml")):
        return "it is a page of HTML or XML", "download the file again: an error page was saved in its place."
    if suffix in ("json", "jsonl", "ndjson") or line.startswith(("{", "[")):
        lines = "" if suffix == "json" else ", lines=True"
        return f"it is JSON or other text (it begins {line!r})", _CONVERT.format(f"pandas.read_json(...{lines})")
    return f"it is CSV or other text (it begins {line!r})", _CONVERT.format("pandas.read_csv(...)")


def ends_of(filesystem: pafs.FileSystem, file: str) -> tuple[bytes, bytes] | None:
    """The first bytes of a file, and its last four."""
    try:
        with filesystem.open_input_file(file) as source:
            head, size = source.read(256), source.size()
            source.seek(max(size - 4, 0))
            return head, source.read(4)
    except UNREADABLE:
        return None
