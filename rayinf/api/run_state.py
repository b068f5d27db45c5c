"""Looking at a run's folder from outside: whether all of it is whole (`verify`), and where it stands (`status`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import pyarrow.parquet as pq

from rayinf.arguments import path
from rayinf.data.appended import last_bytes
from rayinf.data.checked_folder import MANIFEST, CheckedFolder, Entry, differs, read_lines
from rayinf.data.extent import EXTENT
from rayinf.data.files import file_sha256, files_below, readable
from rayinf.data.lease import holder
from rayinf.data.part_files import PartFiles
from rayinf.data.repeated_ids import repeated_ids
from rayinf.data.run_folder import FINISHED, LOG, MEMBERS, PAIRS, SCORES, owner_of, read_record
from rayinf.data.scores import to_numpy
from rayinf.errors import InputError
from rayinf.store.places import AnyPath, open_place, relative

# Without a sign of life for so long, a process of another machine is taken for dead.
_QUIET_SECONDS = 60.0
_SHOWN = 100


@dataclass(frozen=True)
class Verification:
    """What is wrong with a run's folder.

    Attributes:
        path: the folder.
        problems: a line each; none where all is well.
        notes: what a reader may want to know besides.
        files: how many files were checked.
    """

    path: AnyPath
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    files: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_text(self) -> str:
        """A line for every problem and note, and a last one for all."""
        shown = list(self.problems[:_SHOWN])
        if len(self.problems) > _SHOWN:
            shown.append(f"... and {len(self.problems) - _SHOWN:,} more problems.")
        last = f"{self.path}: {self.files:,} files checked, " + ("all whole." if self.ok else "damaged.")
        return "\n".join([*shown, *self.notes, last])


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        path: the folder.
        verb: what is run.
        state: "finished"; "running", a process writes there; or "stopped", the same command goes on.
        done: parts that are written.
        parts: how many there will be; None where that is not known.
        event: the last line of the log.
        holder: `host`, `pid`, `since` and `age` of the process that writes there, if one does.
    """

    path: AnyPath
    verb: str
    state: str
    done: int
    parts: int | None
    event: dict[str, Any]
    holder: dict[str, Any] | None

    def to_text(self) -> str:
        """The status in words."""
        count = f"{self.done:,}" + ("" if self.parts is None else f" of {self.parts:,}")
        lines = [f"{self.path}: {self.verb}, {self.state}, {count} parts written."]
        if self.holder is not None:
            h = self.holder
            lines.append(
                f"Process {h.get('pid')} on {h.get('host')} has been writing since {h.get('since')}; "
                f"last sign of life {h['age']:,.0f} s ago."
            )
        if self.event:
            when = datetime.fromtimestamp(float(self.event.get("time", 0)), UTC).isoformat(timespec="seconds")
            fields = ", ".join(f"{k}={v}" for k, v in self.event.items() if k not in ("time", "event"))
            lines.append(f"Last event, {when}: {self.event.get('event')}" + (f" ({fields})" if fields else "") + ".")
        if self.state == "stopped":
            lines.append("The same command again goes on from there.")
        return "\n".join(lines)


def verify(run: str | Path) -> Verification:
    """Check a run's folder: its record, its manifests, every file's checksum, and that rows and ids are whole.

    Args:
        run: the folder that was given as `out`.

    Returns:
        A Verification: `.ok`, `.problems` (a line each), `.notes`, `.to_text()`.

    Raises:
        InputError: the folder holds no run.

    Cost: every file is read once, and the ids a second time; memory does not grow with the rows.
    """
    folder = _folder(run)
    try:
        record = read_record(folder)
    except InputError as error:
        return Verification(folder, (str(error),), (), 0)
    if record is None:
        raise InputError(f"{folder} holds no run (no run.json).", "pass the folder that was given as out=...")
    problems = [] if record.get("status") == FINISHED else ["The run is not finished: the same command goes on."]
    for name, digest in record.get("manifests", {}).items():
        file = folder / name
        if not file.is_file() or file_sha256(file)[1].hex() != digest:
            problems.append(f"{name} is missing, or differs from what run.json says.")
    count = 0
    inner = sorted(p for p in (folder / MEMBERS).iterdir() if p.is_dir()) if (folder / MEMBERS).is_dir() else []
    members = [verify(str(one)) for one in inner]
    problems += [f"{MEMBERS}/{one.path.name}: {text}" for one in members for text in one.problems]
    manifests: list[AnyPath] = [
        m for m in files_below(folder, MANIFEST) if not relative(m, folder).startswith(f"{MEMBERS}/")
    ]
    for manifest in manifests:
        listed, found = _check_files(folder, manifest.parent, owner_of(record))
        problems += found
        count += listed
    if not problems:
        problems += _check_rows(folder, record)
    return Verification(folder, tuple(problems), tuple(_notes(record)), count + sum(one.files for one in members))


def status(run: str | Path) -> Status:
    """Where a run stands, from any process that sees its folder. Nothing is changed, and few bytes are read.

    Args:
        run: the folder that was given as `out`.

    Raises:
        InputError: the folder holds no run.
    """
    folder = _folder(run)
    record, held = read_record(folder), holder(folder)
    if record is None and held is None:
        raise InputError(f"{folder} holds no run (no run.json).", "pass the folder that was given as out=...")
    record = record or {}
    alive = held is not None and held["age"] < _QUIET_SECONDS
    state = FINISHED if record.get("status") == FINISHED else "running" if alive else "stopped"
    if EXTENT in record:  # of a run in rounds every step is a file
        written = sum(line.get("file") is not None for m in folder.rglob(MANIFEST) for line in read_lines(m))
        return Status(folder, str(record["verb"]), state, written, None, _last_event(folder), held)
    done = {line["file"] for line in read_lines(folder / MANIFEST) if "/part-" in str(line.get("file", ""))}
    place = f"{PAIRS if record.get('verb') == PAIRS else SCORES}/"
    parts = record.get("parts") if place.startswith(SCORES) else None
    written = sum(name.startswith(place) for name in done)
    return Status(folder, str(record.get("verb", "a run")), state, written, parts, _last_event(folder), held)


def _folder(run: str | Path) -> AnyPath:
    path("run", run)
    folder = open_place(run, "run")
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist.", "pass the folder that was given as out=...")
    return folder


def _check_files(run: AnyPath, folder: AnyPath, owner: str) -> tuple[int, list[str]]:
    """How many files a manifest lists, and what is wrong with them."""
    inside = PurePath(relative(folder, run))
    header = next(read_lines(folder / MANIFEST), {})
    if header.get("owner") != owner:
        return 0, [f"{inside / MANIFEST} belongs to another run, or is damaged."]
    files = CheckedFolder(folder, owner)
    problems, count = [], 0
    for name in files.names():
        count += 1
        entry = files.entry(name)
        wrong = differs(folder, entry) if isinstance(entry, Entry) else None
        if wrong is not None:
            problems.append(f"{inside / name} {wrong}.")
    strays = [f"{d}/{p.name}" for d in (SCORES, PAIRS) for p in (folder / d).glob("*")]
    strays = [name for name in strays if files.entry(name) is None]
    problems += [f"{inside / name} is not in the manifest: it is not read." for name in strays]
    return count, problems


def _check_rows(folder: AnyPath, record: dict[str, Any]) -> Iterator[str]:
    """Whether every row has its scores once."""
    parts = PartFiles(folder, SCORES)
    if record.get("parts") is None or record.get("verb") == PAIRS:
        return
    names = [entry.file for entry in parts.entries()]
    wanted = [f"{SCORES}/part-{k:05d}.parquet" for k in range(record["parts"])]
    if names != wanted:
        yield f"The manifest lists {len(names):,} parts, or in another order; the run has {len(wanted):,}."
        return
    for entry in parts.entries():
        rows = pq.read_metadata(readable(folder / entry.file)).num_rows
        if rows != entry.rows:
            yield f"{entry.file} has {rows:,} rows instead of {entry.rows:,}."
    expected = record.get("metadata", {}).get("rows", {})
    rows = expected.get("pool", expected.get("train"))
    if rows is not None and parts.num_rows != rows:
        yield f"The parts hold {parts.num_rows:,} rows, and the table had {rows:,}."
    twice = repeated_ids(lambda: (to_numpy(b.column(0)) for b in parts.batches(["row_id"], 1 << 16)), parts.num_rows)
    if twice:
        yield f"{len(twice):,} rows repeat a row_id; the first: {twice[0]!r}."


def _notes(record: dict[str, Any]) -> Iterator[str]:
    for left in record.get("metadata", {}).get("skipped", ()):
        rows = f"rows {left['rows'][0]} to {left['rows'][1]} of {left['table']}"
        yield f"Note: {left['stage']} went on without {rows}: {left['error']}"
    for package, version in record.get("versions", {}).items():
        with suppress(metadata.PackageNotFoundError):
            here = metadata.version(package) if package != "python" else version
            if version is not None and here != version:
                yield f"Note: computed with {package} {version}; {here} is installed here."


def _last_event(folder: AnyPath) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        lines = last_bytes(folder / LOG, 65536).splitlines()
        held = json.loads(lines[-1])
        return held if isinstance(held, dict) else {}
    return {}
