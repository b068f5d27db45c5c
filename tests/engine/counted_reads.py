"""Processes of a run that count the rows that they decode, and readers that die or stand still."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq

from rayinf.engine.ray_reader import ReaderActor

_PLAIN = pq.ParquetFile.iter_batches


def count_into(file: Path) -> None:
    """Have every batch that this process decodes counted in a file, a line each."""

    def counted(self, *args, **options):
        for batch in _PLAIN(self, *args, **options):
            with file.open("a") as lines:
                lines.write(f"{batch.num_rows}\n")
            yield batch

    pq.ParquetFile.iter_batches = counted


def decoded(folder: Path, kind: str) -> int:
    """Rows that all processes of a kind have decoded."""
    return sum(int(line) for file in folder.glob(f"{kind}-*") for line in file.read_text().split())


def worker_of(folder: Path) -> type:
    """A worker that counts."""
    from rayinf.engine.ray_actors import WorkerActor  # imports torch, which readers start without

    class CountingWorker(WorkerActor):
        def __init__(self, *args):
            count_into(folder / f"worker-{os.getpid()}")
            super().__init__(*args)

    return CountingWorker


def reader_of(folder: Path, trouble: str = "") -> type[ReaderActor]:
    """A reader that counts, and meets some trouble at the fifth shard of a process.

    Args:
        folder: for counts.
        trouble: "dies" or "stands still"; empty: none.
    """

    class CountingReader(ReaderActor):
        def __init__(self):
            count_into(folder / f"reader-{os.getpid()}")
            self.calls = 0
            super().__init__()

        def read(self, name, source, shard):
            self.calls += 1
            if self.calls == 5 and trouble:
                (folder / "trouble").touch()
                if trouble == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(1000)
            return super().read(name, source, shard)

    return CountingReader
