"""A run's folder: run.json, manifest.jsonl, factors/, scores/part-*.parquet, log.jsonl. Resumable, with one writer."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from rayinf.data.appended import AppendedFile
from rayinf.data.checked_folder import MANIFEST, CheckedFolder
from rayinf.data.differences import differences
from rayinf.data.extent import COMPLETE, EXTENT, comparable, complete, covers, grown
from rayinf.data.files import file_sha256, files_below, is_temporary, sealed, sweep, try_to_remove, unsealed, write_json
from rayinf.data.lease import LEASE, Lease, clear_dead
from rayinf.errors import InputError, RayinfError
from rayinf.redaction import redact
from rayinf.store.places import AnyPath, StorePath, relative
from rayinf.store.retries import listeners

RECORD = "run.json"
LOG = "log.jsonl"
RUNNING, FINISHED = "running", "finished"
# The folder of the parts of the scored table, and that of pairs of rows.
SCORES, PAIRS = "scores", "pairs"
# Within a run over several models: a run folder for each.
MEMBERS = "members"
# Their folder before a forest has ranked them: rows drawn by chance, and those that it puts on top.
UNRANKED, TOP_ROWS = "unranked", "top-rows"


class RunFolder:
    """Paths and state of one run. A context manager that releases the folder at its end.

    Attributes:
        path: the folder.
        files: those that belong to the run, once it has begun.
        extent: how far it goes, once it has begun: what is asked for, and what earlier calls have finished.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.extent: dict[str, int] = {}
        self._grown: dict[str, Any] = {}
        self._log = AppendedFile(path / LOG)
        self._files: CheckedFolder | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> RunFolder:
        """The folder is taken by `begin`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the folder."""
        self.release()

    @property
    def factors(self) -> AnyPath:
        """Curvature factors, as safetensors."""
        return self.path / "factors"

    @property
    def files(self) -> CheckedFolder:
        """The files of the run, each with its checksum."""
        assert self._files is not None
        if self._lease is not None:
            self._lease.check()
        return self._files

    def read(self) -> dict[str, Any] | None:
        """`run.json`, or None where no run has begun.

        Raises:
            InputError: the file is damaged.
        """
        return read_record(self.path)

    def begin(self, record: Mapping[str, Any]) -> bool:
        """Take the folder for a config, or resume the run of the same config.

        Args:
            record: the content of `run.json`; its `identity` decides whether a run is the same, and its `extent` how
                far the run goes (see `rayinf.data.extent`).

        Returns:
            Whether the run has finished, this far or further, and all its files are sound. The folder is then only
            read; else this process alone may write to it, until `release`.

        Raises:
            InputError: the folder belongs to another config, holds other things, or another process writes to it.
            RunError: it cannot be written.
        """
        places: tuple[AnyPath, ...] = (self.path, *self.path.parents)
        there = next((p for p in places if p.exists()), None)
        if there is not None and not there.is_dir():
            raise InputError(f"{there} is a file, so {self.path} cannot be a folder.", "pass another folder as out.")
        if self._is_finished(record):
            clear_dead(self.path)
            return True
        self._lease = Lease.acquire(self.path)
        if isinstance(self.path, StorePath):
            listeners.append(self._log_store)
        try:
            finished = self._is_finished(record)  # by another process, meanwhile
            if not finished:
                self._check_empty()
                sweep(self.path)
                self.files.clean()
                self._write_begun(record)
        except BaseException:
            self.release()
            raise
        if finished:
            self.release()
        return finished

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the run as finished: manifests in order, then `run.json` with their checksums."""
        self.files.close()
        manifests = {relative(m, self.path): file_sha256(m)[1].hex() for m in self._manifests()}
        held = {**record, **self._grown, "status": FINISHED, "manifests": manifests}
        write_json(self.path / RECORD, sealed(held))

    def clear(self, folder: str) -> None:
        """Remove a folder of files that are not needed any more."""
        for name in [n for n in self.files.names() if n.startswith(f"{folder}/")]:
            self.files.remove(name)
        try_to_remove(self.path / folder)

    def release(self) -> None:
        """Give the folder up, so that another process can write to it."""
        if self._lease is None:
            return
        try:
            with suppress(OSError, RayinfError):
                if self._files is not None:
                    self._files.flush()
                self._log.join()
        finally:
            if self._log_store in listeners:
                listeners.remove(self._log_store)
            held, self._lease = self._lease, None
            held.release()

    def _log_store(self, line: str) -> None:
        """Log that the store does not answer, or answers again; the line is written once it does."""
        held = {"time": round(time.time(), 3), "event": "store", "told": line}
        self._log.hold((redact(json.dumps(held)) + "\n").encode())

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to `log.jsonl`. Nothing depends on it, so errors are ignored: other writes raise them."""
        line = redact(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str)) + "\n"
        with suppress(OSError):
            if isinstance(self.path, StorePath):
                self._log.append(line.encode(), soon=True)
                return
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / LOG).open("a") as file:
                file.write(line)

    def _is_finished(self, record: Mapping[str, Any]) -> bool:
        """Whether the same run has finished here and its files are sound; refuses another run."""
        self._files = CheckedFolder(self.path, owner_of(record))
        held = self.read()
        if held is None:
            self._check_empty()
            return False
        changed = differences(*comparable(held, record))
        if changed:
            raise InputError(
                f"{self.path} holds a run of another config: {'; '.join(changed[:6])}.",
                "pass another folder as out, or the same arguments and tables as before.",
            )
        if held.get("status") != FINISHED or not covers(complete(held, True), record) or damage(self.path, held):
            return False
        self.extent = complete(held, True)
        return True

    def _write_begun(self, record: Mapping[str, Any]) -> None:
        """Say in `run.json` that the run goes on, and how far it shall go."""
        held = self.read() or {}
        done = complete(held, held.get("status") == FINISHED)
        self._grown = grown(held, done, record)
        self.extent = self._grown.get(EXTENT, {})
        begun = {**record, **self._grown, **({COMPLETE: done} if done else {}), "status": RUNNING}
        if held.get("status") != RUNNING or any(held.get(k) != begun.get(k) for k in (*self._grown, COMPLETE)):
            write_json(self.path / RECORD, sealed(begun))

    def _check_empty(self) -> None:
        """Refuse a folder with other things than a run that was stopped before its first file was whole."""
        if (self.path / RECORD).exists() or not self.path.is_dir():
            return
        names = [f.name for f in self.path.iterdir()]
        others = [n for n in names if not n.startswith((LOG, LEASE)) and not is_temporary(n)]
        if others:
            raise InputError(
                f"{self.path} is not empty and holds no run: {', '.join(sorted(others)[:3])}.",
                "pass an empty or a new folder as out.",
            )

    def _manifests(self) -> Sequence[AnyPath]:
        return files_below(self.path, MANIFEST)


def owner_of(record: Mapping[str, Any]) -> str:
    """The digest of a run's identity, which its files carry."""
    return hashlib.sha256(json.dumps(record["identity"], sort_keys=True, default=str).encode()).hexdigest()


def read_record(folder: AnyPath) -> dict[str, Any] | None:
    """`run.json` of a folder; None without one.

    Raises:
        InputError: it cannot be read, is damaged, or was edited.
        RayinfError: a store does not answer.
    """
    file = folder / RECORD
    try:
        held = unsealed(json.loads(file.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RayinfError:
        raise
    except ValueError:
        held = None
    except OSError as error:
        raise InputError(
            f"{str(file)[:200]} cannot be read: {error.strerror}.", "check the path, and that this user may read it."
        ) from error
    if held is None or not isinstance(held.get("identity"), dict):
        raise InputError(
            f"{file} is damaged, was edited, or is not the record of a run.",
            "restore the file, or give the run another folder with out=...",
        )
    return held


def damage(folder: AnyPath, held: Mapping[str, Any]) -> list[str]:
    """The damaged or missing files of a finished run, a line each; all files are read.

    Args:
        folder: of the run.
        held: its record.
    """
    found: list[str] = []
    for name, digest in held.get("manifests", {}).items():
        file = folder / name
        if not file.is_file() or file_sha256(file)[1].hex() != digest:
            found.append(f"{name} is missing, or differs from what run.json says.")
            continue
        inner = CheckedFolder(file.parent, owner_of(held))
        found += [f"{file.parent / n} is damaged." for n in list(inner.names()) if not inner.is_sound(n)]
    return found


def part_name(folder: str, index: int) -> str:
    """The file of a shard's part. From 100,000 on names are longer: they sort by the number."""
    return f"{folder}/part-{index:05d}.parquet"
