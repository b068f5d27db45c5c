"""Whatever is killed, wherever: the scores are the same to the last byte."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from engine import small_job as job

import rayinf
from rayinf.data.checked_folder import read_lines
from rayinf.data.known_scans import KnownScans
from rayinf.engine import ray_runner, stages

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    train = job.write(folder / "train.parquet", job.ROWS, 1, 100)
    return train, job.write(folder / "valid.parquet", job.VALID, 2, 40)


@pytest.fixture(scope="module")
def calm(tables, ray_session, tmp_path_factory):
    """The digest of an undisturbed run in this process."""
    out = tmp_path_factory.mktemp("calm") / "run"
    job.run(*tables, out)
    return job.digest(out)


def pid_of_store() -> int:
    """Run inside the store."""
    return os.getpid()


def test_a_worker_killed_in_every_stage_and_the_store_between_partial_sums(tables, calm, tmp_path, monkeypatch):
    """The store in two stages of sums."""
    marks, scans, killed = tmp_path / "marks", [], {}
    marks.mkdir()
    plain_map, plain_fold = ray_runner.RayRunner.map, ray_runner.RayRunner.fold

    def deadly_map(self, stage, arrays, items, **options):
        for key, result in plain_map(self, stage, arrays, items, **options):
            if stage is stages.Scan and not scans:  # it reads raw features
                import ray

                scans.append(ray.get(self._pool.actors[0].ready.remote()))
                os.kill(scans[0], signal.SIGKILL)
            yield key, result

    def deadly_fold(self, work, arrays, items, name, *more):
        for key in plain_fold(self, work, arrays, items, name, *more):
            if name in ("covariance", "queries") and name not in killed:
                killed[name] = self.store("summarise", pid_of_store, [])
                os.kill(killed[name], signal.SIGKILL)
            yield key

    monkeypatch.setattr("rayinf.engine.run.known", KnownScans())  # the calm run has scanned the tables
    monkeypatch.setattr(ray_runner.RayRunner, "map", deadly_map)
    monkeypatch.setattr(ray_runner.RayRunner, "fold", deadly_fold)
    job.run(*tables, tmp_path / "run", rayinf.Cluster(workers=2), transform=job.Killer(marks))
    assert scans
    assert sorted(m.name for m in marks.iterdir()) == sorted(job.STAGES)  # each stage did lose a worker
    assert len(set(killed.values())) == len(killed) == 2
    assert job.digest(tmp_path / "run") == calm


def test_the_driver_of_a_cluster_killed(tables, calm, tmp_path):
    """It joins the Ray of these tests, which ends its workers."""
    import ray

    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from engine import small_job as job\n"
        "import rayinf\n"
        "if __name__ == '__main__':\n"
        "    path = {'env_vars': {'PYTHONPATH': sys.argv[1]}}\n"
        "    cluster = rayinf.Cluster(address='auto', workers=1, runtime_env=path)\n"
        "    job.run(*sys.argv[2:5], cluster, transform=job.slow)\n"
    )
    out = tmp_path / "run"
    arguments = [str(HERE.parent), *map(str, tables), str(out)]
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL, env=env)
    wait_for(lambda: len(list(out.glob("scores/part-*.parquet"))) >= 2, process)
    process.kill()
    process.wait()
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    listed = [line.get("file", "") for line in read_lines(out / "manifest.jsonl")]
    before = {out / name: (out / name).stat().st_mtime_ns for name in listed if "/part-" in name}
    assert before
    job.run(*tables, out, rayinf.Cluster(workers=1), transform=job.slow)
    assert job.digest(out) == calm
    assert {f: f.stat().st_mtime_ns for f in before} == before  # finished shards were kept, not made again


def test_ctrl_c_leaves_a_run_that_continues(tables, tmp_path):
    out = tmp_path / "run"
    config = tmp_path / "job.yaml"
    held = {
        "task": f"{HERE / 'small_job.py'}:slow_task",
        "train": str(tables[0]),
        "valid": str(tables[1]),
        "out": str(out),
    }
    config.write_text(json.dumps({**held, "objective": ["total", "category", "slice:group"], "batch_size": 20}))
    command = [sys.executable, "-m", "rayinf", "influence", str(config)]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    # A shell has what it starts in the background ignore Ctrl-C.
    process = subprocess.Popen(
        command, **pipes, text=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    )
    wait_for(lambda: len(list(out.glob("scores/part-*.parquet"))) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "Traceback" not in told
    assert "same command again" in told
    assert not list(out.rglob("*.tmp.*"))
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 0, again.stderr
    calm = tmp_path / "calm"
    options = {"transform": job.slow, "batch_size": 20}
    assert job.run(*tables, calm, **options).columns == rayinf.Scores.load(out).columns
    assert job.digest(out) == job.digest(calm)


def wait_for(condition, process, seconds=120.0):
    """Until a condition holds while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)
