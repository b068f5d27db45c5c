"""As many workers as there is room for: how many nodes hold, and workers that join and leave while rows are scored."""

from __future__ import annotations

import time

import pytest
import torch
from engine import small_job as job
from engine.other_jobs import Hog

import rayinf
from rayinf.engine import machine, ray_runner, ray_spread, room
from rayinf.engine.parallel import side_by_side
from rayinf.engine.plan import Trial
from rayinf.engine.ray_pool import Pool

AUTO = rayinf.Cluster(workers="auto")
GIB = float(1 << 30)


def fits(free, there=0, starting=0, model=0, **cluster):
    return room.more_workers(free, room.request(rayinf.Cluster(workers="auto", **cluster), model), there, starting)


def test_a_node_holds_what_its_scarcest_resource_suffices_for():
    node = {"CPU": 8.0, "memory": 100 * GIB}
    assert fits(node) == 8
    assert fits(node, cpus_per_worker=3) == 2
    assert fits(node, cpus_per_worker=0.5) == 16
    assert fits({**node, "CPU": 7.99}) == 7
    assert fits(node, gpus_per_worker=1) == 0
    assert fits({**node, "GPU": 2.0}, gpus_per_worker=1) == 2
    assert fits({**node, "GPU": 2.0}, gpus_per_worker=0.4) == 4  # two a card
    assert fits({"memory": 100 * GIB}) == 0
    # 700 MiB a worker, and its model.
    assert fits({**node, "memory": 3.5 * GIB}) == 5
    assert fits({**node, "memory": 3.5 * GIB}, model=1 << 30) == 2
    assert fits({"CPU": 8.0}) == 8  # of memory nothing is known


def test_workers_of_the_run_are_counted():
    """Ray reserves their processors, and not their memory; of those that start, perhaps nothing yet."""
    assert fits({"CPU": 6.0, "memory": 3.5 * GIB}, there=2) == 3
    assert fits({"CPU": 6.0, "memory": 100 * GIB}, there=2, starting=2) == 4
    assert fits({"CPU": 1.0, "memory": GIB}, there=2) == 0


def test_this_machine_holds_one_worker_at_least(monkeypatch):
    monkeypatch.setattr(room, "cores", lambda: 6.0)
    monkeypatch.setattr(room, "free_memory", lambda: 4 << 30)
    assert room.workers_now(None) == 1
    assert room.workers_now(rayinf.Cluster(workers=64)) == 64
    assert room.workers_now(AUTO) == 5
    assert room.workers_now(AUTO, model_bytes=1 << 30) == 2
    assert room.workers_now(AUTO, model_bytes=1 << 40) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert room.workers_now(rayinf.Cluster(workers="auto", gpus_per_worker=1)) == 3
    monkeypatch.setattr(machine, "cores", lambda: 2.0)
    assert machine.misfit(AUTO) is None
    assert "asks for 16 CPUs" in str(machine.misfit(rayinf.Cluster(workers="auto", cpus_per_worker=16)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    train = job.write(folder / "train.parquet", 1200, 1, 50)
    return train, job.write(folder / "valid.parquet", job.VALID, 2, 40)


def test_a_plan_is_for_as_many_workers_as_there_is_room_for(tables, monkeypatch):
    monkeypatch.setattr(room, "cores", lambda: 3.0)
    monkeypatch.setattr(room, "free_memory", lambda: 64 << 30)
    seen = []
    plain = Trial.__init__
    monkeypatch.setattr(Trial, "__init__", lambda self, spec: (plain(self, spec), seen.append(self.workers))[0])
    cost = rayinf.plan(rayinf.Task(job.model()), *tables, cluster=AUTO)
    assert cost.workers == 3 and seen == [3]


class Slow:
    """A transform that takes half a second a batch where rows are scored, as long as a file is there."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, x):
        if job.stage_at_work(("Score",)) and self.mark.exists():
            time.sleep(0.5)
        return x


def test_places_are_counted_node_by_node():
    """Nothing of Ray is started."""
    nodes = {"a": {"CPU": 2.0, "memory": 10 * GIB}, "b": {"CPU": 1.5}, "head": {"memory": 10 * GIB}}
    assert Pool(AUTO, Hog, ())._room(nodes) == ["a", "a", "b"]
    few = Pool(AUTO, Hog, (), most=2)
    assert few._room(nodes) == ["a", "a"]
    few._starting, few._nodes = {0: ("x", 0.0)}, {"x": "a", "y": "b"}
    assert few._room(nodes) == ["a"]
    few.actors = ["y"]
    assert few._room(nodes) == []
    large = Pool(AUTO, Hog, (), model_bytes=64 << 30)
    assert large._room(nodes) == ["b"]  # of whose memory nothing is known
    assert large._room({"a": nodes["a"]}) == ["a"]  # one is tried
    large.actors, large._nodes = ["x"], {"x": "a"}
    assert large._room({"a": nodes["a"]}) == []


@pytest.mark.slow
def test_workers_join_where_another_job_ends_and_leave_for_good(tables, no_workers, tmp_path, monkeypatch):
    """One at first, beside the other job; then more; then the first one is lost with all that it was doing."""
    import ray

    job.run(*tables, tmp_path / "calm", batch_size=10)
    hog = ray.remote(num_cpus=2)(Hog).remote()
    ray.get(hog.ready.remote())
    monkeypatch.setattr(ray_spread, "_LOOK_SECONDS", 0.3)
    plain = ray_runner.RayRunner.map
    counts, lost, slow = [], [], Slow(tmp_path / "mark")
    slow.mark.touch()

    def scored(self, stage, arrays, items, **options):
        for key, result in plain(self, stage, arrays, items, **options):
            if stage.__name__ == "Score":
                counts.append((self.workers, len(self._pool.actors)))
                if len(counts) == 1:
                    ray.kill(hog)
                elif not lost and counts[-1][1] > 1:
                    lost.append(self._pool.actors[0])
                    ray.kill(lost[0])
                elif lost and lost[0] not in self._pool.actors:
                    slow.mark.unlink(missing_ok=True)
            yield key, result

    monkeypatch.setattr(ray_runner.RayRunner, "map", scored)
    job.run(*tables, tmp_path / "run", AUTO, slow, batch_size=10)
    assert counts[0] == (1, 1)
    assert lost and not slow.mark.exists(), counts
    assert max(running for _, running in counts) > 1
    assert max(held for held, _ in counts) <= 3
    assert job.digest(tmp_path / "run") == job.digest(tmp_path / "calm")


@pytest.mark.slow
def test_trainings_take_as_many_workers_as_there_is_room_for(no_workers):
    found = dict(side_by_side(abs, {k: -k for k in range(4)}, AUTO))
    assert found == {k: k for k in range(4)}
