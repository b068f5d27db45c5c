"""What a plan says: seconds and bytes of every stage, beside what is free."""

from __future__ import annotations

from dataclasses import dataclass

# Processes that import torch and Ray, before any data.
_PROCESS_BYTES = 700 << 20


@dataclass(frozen=True)
class StageCost:
    """One stage.

    Attributes:
        name: of the stage.
        seconds: on all workers together.
        memory: bytes of one process.
        disk: bytes written.
        processes: that need the memory at once: the workers, or the store alone.
    """

    name: str
    seconds: float
    memory: int
    disk: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Cost:
    """A plan.

    Attributes:
        stages: in the order of the run.
        workers: processes that share the rows.
        free_memory: of this machine, now.
        free_disk: where `out` would lie, or None without one.
        misfit: why this machine cannot hold the workers of a Ray that is started on it; None where it can.
    """

    stages: tuple[StageCost, ...]
    workers: int
    free_memory: int
    free_disk: int | None
    misfit: str | None = None

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(s.seconds for s in self.stages)

    @property
    def memory(self) -> int:
        """Peak bytes of all processes together."""
        return max(s.memory * s.processes for s in self.stages) + self.workers * _PROCESS_BYTES

    @property
    def disk(self) -> int:
        """Bytes written, partial sums included."""
        return sum(s.disk for s in self.stages)

    @property
    def fits(self) -> bool:
        """Whether this machine has the memory, the disk and the processors."""
        enough = self.memory <= self.free_memory and (self.free_disk is None or self.disk <= self.free_disk)
        return enough and self.misfit is None

    def to_text(self) -> str:
        """A table for people, with what is free beside what is needed."""
        lines = [f"{'stage':<16}{'time':>12}{'memory/worker':>16}{'disk':>12}"]
        for s in self.stages:
            disk = _bytes(s.disk) if s.disk else "-"
            lines.append(f"{s.name:<16}{_time(s.seconds):>12}{_bytes(s.memory):>16}{disk:>12}")
        lines.append(f"{'total':<16}{_time(self.seconds):>12}{_bytes(self.memory):>16}{_bytes(self.disk):>12}")
        lines.append(
            f"memory: {_bytes(self.memory)} for {self.workers} process(es), {_bytes(self.free_memory)} free here"
        )
        if self.free_disk is not None:
            lines.append(f"disk: {_bytes(self.disk)}, {_bytes(self.free_disk)} free")
        if self.misfit is not None:
            lines.append(f"{self.misfit}.")
        if not self.fits:
            lines.append(
                "DOES NOT FIT. Fix: value fewer parameters (Task(parameters=...)), ask for fewer columns, take fewer "
                "workers on a machine, or a larger machine or disk."
            )
        return "\n".join(lines)


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.0f} {unit}" if unit in ("B", "KiB") else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
