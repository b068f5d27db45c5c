"""A worker that is killed for memory goes on in smaller batches, and the metadata says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine import small_job as job

import rayinf
from rayinf.engine import ray_calls, ray_memory
from rayinf.engine.factors import FactorStore
from rayinf.engine.worker import Worker

ROWS = 20


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    train = job.write(folder / "train.parquet", 120, 1, 40)
    return train, job.write(folder / "valid.parquet", 40, 2, 40)


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A device that holds so many rows of a batch."""
    import torch

    predict = Worker.predict

    def limited(self: Worker, x: Any) -> torch.Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return predict(self, x)

    monkeypatch.setattr(Worker, "predict", limited)


def test_halvings_stand_in_the_metadata(tables, tmp_path, monkeypatch):
    calm = job.run(*tables, batch_size=ROWS)
    assert "smaller_batches" not in calm.metadata
    with monkeypatch.context() as patch:
        limit(patch, 6)
        found = job.run(*tables, tmp_path / "run", batch_size=ROWS)
    noted = found.metadata["smaller_batches"]
    assert set(noted.values()) == {2} and {"Covariance", "Lambda", "Queries", "Score"} <= set(noted)
    assert "Decompose" not in noted
    assert np.abs(found.to_numpy() - calm.to_numpy()).max() < 1e-5 * np.abs(calm.to_numpy()).max()
    assert rayinf.Scores.load(tmp_path / "run").metadata["smaller_batches"] == noted
    assert rayinf.verify(tmp_path / "run").ok


def test_fi_takes_smaller_batches_too(tables, monkeypatch):
    calm = job.measure(*tables, batch_size=ROWS).to_numpy()
    limit(monkeypatch, 6)
    found = job.measure(*tables, batch_size=ROWS)
    assert found.metadata["smaller_batches"]["Measure"] == 2
    assert np.abs(found.to_numpy() - calm).max() < 1e-5 * np.abs(calm).max()


def test_a_resumed_run_keeps_the_note(tables, tmp_path, monkeypatch):
    """It stops where rows are scored; what was fitted in smaller batches stays."""
    from rayinf.engine import pipeline

    def stop(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        limit(patch, 6)
        patch.setattr(pipeline, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            job.run(*tables, tmp_path / "run", batch_size=ROWS)
    found = job.run(*tables, tmp_path / "run", batch_size=ROWS)
    noted = found.metadata["smaller_batches"]
    assert noted["Lambda"] == 2 and "Score" not in noted
    taken = tmp_path / "run" / "scores" / "part-00000.parquet"
    taken.unlink()
    assert job.run(*tables, tmp_path / "run", batch_size=ROWS).metadata["smaller_batches"] == noted


def test_the_store_keeps_the_most_halvings_of_a_stage(tmp_path):
    store = FactorStore(tmp_path / "f", "run")
    assert store.halvings() == {}
    for times in ({"Score": 1}, {"Score": 10, "Lambda": 1}, {"Score": 2}):
        store.note_halvings(times)
    store.close(())
    assert FactorStore(tmp_path / "f", "run").halvings() == {"Lambda": 1, "Score": 10}
    assert FactorStore(tmp_path / "f", "other").halvings() == {}


@pytest.mark.parametrize(
    ("deaths", "for_memory", "most"), [(2, 0, 3), (3, 0, None), (3, 1, 3), (5, 3, 3), (6, 9, None), (6, 9, 4)]
)
def test_deaths_for_memory_are_excused_a_few_times(monkeypatch, deaths, for_memory, most):
    class Process:
        def get_current_task_attempt_number(self):
            return deaths

    monkeypatch.setattr(ray_calls, "_own_restarts", lambda otherwise: otherwise)
    monkeypatch.setattr(ray_calls, "_begun_before", lambda otherwise: otherwise)
    monkeypatch.setattr(ray_calls.ray._private.worker.global_worker, "core_worker", Process(), raising=False)
    if most is not None:
        ray_calls.check_deaths("This", most, lambda: for_memory)
        return
    with pytest.raises(ray_calls.RepeatedDeathError):
        ray_calls.check_deaths("This", 3, lambda: for_memory)


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """Starts processes of one actor: names of the former ones with their ends, and the kernel's count."""
    kills = [0]

    def start(name: str, *former: tuple[str, str], on: str = "node") -> ray_memory.MemoryDeaths:
        monkeypatch.setattr(ray_memory, "_names", lambda: ("actor", name))
        monkeypatch.setattr(ray_memory, "_former", lambda own: list(former))
        monkeypatch.setattr(ray_memory, "_file", lambda own: tmp_path / f"{on}.json")
        return ray_memory.MemoryDeaths()

    monkeypatch.setattr(ray_memory, "kernel_kills", lambda: kills[0])
    return start, kills


def test_ends_by_the_kernel_are_known_by_its_count(processes):
    start, kills = processes
    ended = [(name, "SYSTEM_ERROR") for name in "abcde"]
    assert start("a").count == 0
    assert start("b", *ended[:1]).count == 0  # a plain SIGKILL
    kills[0] += 1
    third = start("c", *ended[:2])
    assert third.count == 1
    kills[0] += 1
    third.note()  # another process of the group, while this one lived
    assert start("d", *ended[:3]).count == 1
    kills[0] += 1
    assert start("e", *ended[:3], ("d", "NODE_OUT_OF_MEMORY")).count == 2  # the monitor's, and the one before
    kills[0] += 1
    assert start("f", *ended[:3], ("d", "NODE_OUT_OF_MEMORY"), ended[4]).count == 3
    assert start("f", *ended, on="other").count == 0


def test_the_count_of_either_kind_of_control_group_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_memory, "_CGROUP", tmp_path)
    assert ray_memory.kernel_kills() is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert ray_memory.kernel_kills() == 4
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert ray_memory.kernel_kills() == 2


class Hungry:
    """A transform that kills the worker in a stage, where it is given more than so many rows.

    Where it arrives in a worker, deaths are taken to be for memory: that is Ray's answer after its memory monitor.

    Args:
        marks: a file for every death is left there.
        most: rows.
    """

    def __init__(self, marks: Path, most: int) -> None:
        self.marks, self.most, self.driver = marks, most, os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if os.getpid() != self.driver:
            from rayinf.engine import ray_actors

            ray_actors.MemoryDeaths = lambda: SimpleNamespace(count=len(list(self.marks.iterdir())), note=bool)

    def __call__(self, x):
        if os.getpid() != self.driver and job.stage_at_work(("Covariance",)) and len(x) > self.most:
            (self.marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x


@pytest.mark.slow
def test_a_worker_killed_for_memory_takes_smaller_batches(tables, no_workers, tmp_path):
    (tmp_path / "marks").mkdir()
    calm = job.run(*tables, batch_size=ROWS).to_numpy()
    hungry = Hungry(tmp_path / "marks", 5)
    found = job.run(*tables, tmp_path / "run", rayinf.Cluster(workers=1), hungry, batch_size=ROWS)
    assert len(list(hungry.marks.iterdir())) == 2
    noted = found.metadata["smaller_batches"]
    assert noted["Covariance"] == noted["Score"] == 2
    assert np.abs(found.to_numpy() - calm).max() < 1e-5 * np.abs(calm).max()
