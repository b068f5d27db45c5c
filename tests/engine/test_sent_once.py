"""What the calls of a stage share reaches a process once, not with every call."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from engine import small_job as job

import rayinf


class Counted:
    """A transform that notes every process which unpickles it."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def __setstate__(self, state):
        self.__dict__.update(state)
        with self.marks.open("a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, x):
        return x


@pytest.mark.slow
def test_the_job_is_unpickled_once_for_each_of_its_states(ray_session, tmp_path):
    train = job.write(tmp_path / "train.parquet", job.ROWS, 1, 20)
    valid = job.write(tmp_path / "valid.parquet", job.VALID, 2, 20)
    marks = tmp_path / "marks"
    alone = job.run(train, valid, transform=Counted(marks))
    assert not marks.exists()
    found = job.run(train, valid, cluster=rayinf.Cluster(workers=1), transform=Counted(marks))
    assert found.table.equals(alone.table)
    times = Counter(marks.read_text().split())
    # The job as the scan has it and as the run has it, and no more, with 30 shards in each of five stages.
    assert set(times) - {str(os.getpid())} != set()
    assert max(times.values()) <= 3
