"""Runs hand their workers and their store to the next one while a session is open."""

from __future__ import annotations

import os
import signal
import time

import pyarrow as pa
import pytest
from engine import small_job as job
from engine.other_jobs import minus

import rayinf
from rayinf.engine import ray_session as held
from rayinf.engine.parallel import session, side_by_side

pytestmark = pytest.mark.ray
CLUSTER = rayinf.Cluster(workers=1)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    train = job.write(folder / "train.parquet", 120, 1, 40)
    return train, job.write(folder / "valid.parquet", 40, 2, 40)


def idle() -> dict[str, list[int]]:
    """Processes of the idle actors, by what they are."""
    import ray

    return {
        kind.name: sorted(ray.get([a.ready.remote() for a in actors])) for kind, actors in held._Session.idle.items()
    }


def pid(_: None) -> int:
    """Which process this is."""
    return os.getpid()


def test_the_same_processes_serve_run_after_run(tables, no_workers):
    calm = job.run(*tables)
    first = job.run(*tables, cluster=CLUSTER)
    processes = idle()
    assert {name: len(pids) for name, pids in processes.items()} == {"WorkerActor": 1, "StoreActor on this node": 1}
    assert first.table.equals(calm.table)
    # Trainings take the worker that has valued rows, and give it back.
    assert list(side_by_side(pid, {0: None}, CLUSTER)) == [(0, processes["WorkerActor"][0])]
    assert idle() == processes
    # One that was killed meanwhile is started again.
    os.kill(processes["WorkerActor"][0], signal.SIGKILL)
    assert job.run(*tables, cluster=CLUSTER, transform=job.slow).table.equals(calm.table)
    now = idle()
    assert now["StoreActor on this node"] == processes["StoreActor on this node"]
    assert now["WorkerActor"] != processes["WorkerActor"]
    assert job.run(*tables, cluster=CLUSTER).table.equals(calm.table)
    assert idle() == now
    # There are three CPUs: idle workers must not stand in the way of trainings.
    assert list(side_by_side(abs, {0: -1}, rayinf.Cluster(workers=1, cpus_per_worker=3))) == [(0, 1)]
    assert {kind.cpus for kind in held._Session.idle if kind.name == "WorkerActor"} == {3}


def test_one_that_is_still_at_work_is_not_handed_on(no_workers, monkeypatch):
    monkeypatch.setattr(held, "_REST_SECONDS", 0.2)
    results = side_by_side(time.sleep, {0: 0.0, 1: 60.0}, CLUSTER)
    next(results)
    results.close()
    assert not sum(map(len, held._Session.idle.values()))


def test_they_leave_a_joined_cluster_before_something_that_takes_its_own_time(no_workers):
    """The user's own code may need their CPUs: here an oracle that runs a task of Ray on all of them."""
    import ray

    x, y, ids, _ = job.arrays(60, 1)
    known = dict(zip(ids.tolist(), y.tolist(), strict=True))

    def oracle(asked):
        assert ray.get(ray.remote(num_cpus=3)(minus).remote(1), timeout=60) == -1
        return [known[i] for i in asked.tolist()]

    pool = pa.table({"features": list(x[:40]), "row_id": ids[:40]})
    task = rayinf.Task(job.model(), fit=rayinf.Fit("sgd", lr=0.05, epochs=1, batch_size=20))
    given = {"rounds": 1, "n": 4, "strategy": "entropy", "cluster": CLUSTER}
    history = rayinf.active_learning(task, (x[40:], y[40:]), pool, oracle, (x, y), **given)
    assert len(history.table) == 2


def test_without_a_session_they_end(tables, no_workers, monkeypatch):
    monkeypatch.setattr(held._Session, "depth", 0)
    job.run(*tables, cluster=rayinf.Cluster(workers=1))
    assert not held._Session.idle
    with session(CLUSTER):
        assert list(side_by_side(abs, {0: -1}, CLUSTER)) == [(0, 1)]
        assert held._Session.idle
    assert not held._Session.idle
