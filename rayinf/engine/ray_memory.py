"""Whether former processes of an actor were ended for want of memory.

Ray says so of those that its memory monitor ended. One that the kernel ended looks to Ray like any process that is
killed; but the kernel counts such ends in every control group. An actor notes that count in a file of its machine, and
its next process compares: where it has risen, the kernel is taken to have ended the former one. Two things cannot be
told apart: the end of another process of the same group at that time, and that of a whole container, a lost node.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from rayinf.data.files import write_json
from rayinf.engine.ray_calls import OUT_OF_MEMORY, UNKNOWN_END, exit_type

_CGROUP = Path("/sys/fs/cgroup")


class MemoryDeaths:
    """Kept by each process of an actor, and made in it. In another version of Ray, in which nothing is known, none."""

    def __init__(self) -> None:
        self._own, self._process = _names()
        self._former, self._file = _former(self._own), _file(self._own)
        self._kills = kernel_kills()
        self._by_kernel = self._count_kernel()
        self.count = self._by_kernel + sum(kind == OUT_OF_MEMORY for _, kind in self._former)
        self._put()

    def note(self) -> None:
        """Called where an item begins: what the kernel has ended before was not this process."""
        kills = kernel_kills()
        if kills != self._kills:
            self._kills = kills
            self._put()

    def _count_kernel(self) -> int:
        """Former processes that the kernel has ended: those of which that is known, and perhaps the last one."""
        with suppress(Exception):
            held = json.loads(self._file.read_text())
            is_last = self._former[-1] == (held["process"], UNKNOWN_END)
            return int(held["deaths"]) + bool(is_last and self._kills is not None and self._kills > held["kills"])
        return 0

    def _put(self) -> None:
        held = {"process": self._process, "kills": self._kills, "deaths": self._by_kernel}
        if self._kills is not None:
            with suppress(Exception):  # the note is lost, and no more
                write_json(self._file, held)


def kernel_kills() -> int | None:
    """Processes of this control group that the kernel has ended for want of memory; None where it does not say."""
    for name in ("memory.events", "memory/memory.oom_control"):
        with suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in (_CGROUP / name).read_text().splitlines())["oom_kill"])
    return None


def _names() -> tuple[str, str]:
    """Of this actor and of its process."""
    context = ray.get_runtime_context()
    return str(context.get_actor_id()), str(context.get_worker_id())


def _file(own: str) -> Path:
    """In the folder of Ray's session on this machine, which Ray removes."""
    with suppress(Exception):
        node: Any = ray._private.worker._global_node
        return Path(node.get_session_dir_path()) / f"rayinf-{own}.json"
    return Path(tempfile.gettempdir()) / f"rayinf-{own}.json"


def _former(own: str) -> list[tuple[str, str]]:
    """The actor's former processes, and how Ray says that each ended."""
    with suppress(Exception):
        gcs: Any = importlib.import_module("ray.core.generated.gcs_pb2")
        accessor = ray._private.state.state._connect_and_get_accessor()
        held = gcs.ActorTableData.FromString(accessor.get_actor_info(ray.ActorID.from_hex(own))).previous_incarnations
        return [(p.worker_id.hex(), _end(gcs, accessor, p.worker_id)) for p in held]
    return []


def _end(gcs: Any, accessor: Any, process: bytes) -> str:
    raw = accessor.get_worker_info(ray.WorkerID(process))
    return exit_type(gcs.WorkerTableData.FromString(raw)) if raw else ""
