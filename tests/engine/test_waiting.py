"""Waiting ends: with a process that dies again and again, with one that stands still, with workers that do not fit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from engine import small_job as job
from engine.other_jobs import Hog

import rayinf
from rayinf.engine import leftovers, machine, ray_calls
from rayinf.engine.deadline import Deadline
from rayinf.engine.parallel import side_by_side
from rayinf.engine.spec import SelfInfluenceSpec


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    train = job.write(folder / "train.parquet", 240, 1, 80)
    return train, job.write(folder / "valid.parquet", 40, 2, 40)


# The clock alone.


def test_a_count_that_rises_renews_and_a_new_process_alone_does_not():
    now = [0.0]
    deadline = Deadline(10.0, lambda: now[0])
    deadline.note("a", "first", 5)
    now[0] = 8.0
    deadline.note("a", "first", 5)
    assert deadline.quiet == 8.0
    deadline.note("a", "first", 6)
    assert deadline.quiet == 0.0
    now[0] = 17.0
    deadline.note("a", "second", 7)  # it lost what the first had done
    assert deadline.quiet == 9.0 and not deadline.passed
    assert deadline.lives("a") == 2 and deadline.lives("b") == 0
    now[0] = 18.1
    assert deadline.passed
    deadline.renew()
    assert not deadline.passed


# What a run does with processes that die or stand still.


class Deadly:
    """A transform that kills every worker that reads one row, whichever process it is."""

    def __init__(self, value: float) -> None:
        self.value, self.driver = value, os.getpid()

    def __call__(self, x):
        if os.getpid() != self.driver and (x[:, 0] == self.value).any() and _in_stage("Covariance"):
            os.kill(os.getpid(), signal.SIGKILL)
        return x


class Pausing:
    """A transform that pauses in workers in a stage, with the batches that begin with some rows."""

    def __init__(self, seconds: float, only: list[float]) -> None:
        self.seconds, self.only, self.driver = seconds, only, os.getpid()

    def __call__(self, x):
        if os.getpid() != self.driver and _in_stage("Covariance") and float(x[0, 0]) in self.only:
            time.sleep(self.seconds)
        return x


def _in_stage(name: str) -> bool:
    frame = sys._getframe()
    while frame is not None:
        if type(frame.f_locals.get("self")).__name__ == name:
            return True
        frame = frame.f_back
    return False


def first_feature(row: int) -> float:
    return float(job.arrays(240, 1)[0][row, 0])


@pytest.fixture
def fewer(monkeypatch):
    """Two deaths are enough, since each is a process to start: the constants are three and five."""
    assert (ray_calls.MOST_DEATHS, ray_calls.MOST_DEATHS_OF_TRAININGS) == (3, 5)
    monkeypatch.setattr(ray_calls, "MOST_DEATHS", 2)
    monkeypatch.setattr(ray_calls, "MOST_DEATHS_OF_TRAININGS", 2)


def test_a_call_that_waits_behind_the_one_that_kills_is_not_named(monkeypatch):
    """Both are tried again each time, and Ray may begin with the one that only waited."""
    noted: dict[tuple[str, str], bytes] = {}
    now = {"task": "", "tries": 0}

    class Process:
        def get_current_task_attempt_number(self):
            return now["tries"]

    class Context:
        def get_task_id(self):
            return now["task"]

    monkeypatch.setattr(ray_calls, "_own_restarts", lambda otherwise: otherwise)
    monkeypatch.setattr(ray_calls, "_internal_kv_get", lambda key, namespace: noted.get((namespace, key)))
    monkeypatch.setattr(
        ray_calls, "_internal_kv_put", lambda key, value, namespace: noted.update({(namespace, key): value.encode()})
    )
    monkeypatch.setattr(ray_calls.ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray_calls.ray._private.worker.global_worker, "core_worker", Process(), raising=False)

    def begin(task, tries):
        now.update(task=task, tries=tries)
        ray_calls.check_deaths(task, 3)

    for tries in range(3):
        begin("kills", tries)
    begin("waits", 3)  # it had not begun in any of its tries
    with pytest.raises(ray_calls.RepeatedDeathError) as e:
        begin("kills", 3)
    assert (e.value.what, e.value.deaths) == ("kills", 3)


@pytest.mark.chaos
def test_a_chunk_that_kills_its_worker_again_and_again_is_named(tables, ray_session, fewer):
    begin = time.monotonic()
    with pytest.raises(
        rayinf.RunError, match=r"Covariance on rows 80 to 160 of train \(.*\) ended its process 2 times"
    ) as e:
        job.run(*tables, cluster=rayinf.Cluster(workers=1), transform=Deadly(first_feature(100)))
    assert "killed or crashed" in str(e.value)  # Ray's own note of it
    assert time.monotonic() - begin < 200


@pytest.mark.slow
def test_a_chunk_slower_than_the_deadline_that_moves_is_not_given_up(tables, ray_session):
    # One chunk takes 8 batches of 2 s, longer than the deadline.
    slow = Pausing(2.0, [first_feature(row) for row in range(80, 160, 10)])
    cluster = rayinf.Cluster(workers=1, patience=12.0)
    found = job.run(*tables, cluster=cluster, transform=slow, batch_size=10, curvature="kfac")
    assert found.table.num_rows == 240


@pytest.mark.slow
def test_a_worker_that_stands_still_is_given_up_and_named(tables, ray_session):
    begin = time.monotonic()
    hanging = Pausing(600.0, [first_feature(80)])
    with pytest.raises(
        rayinf.RunError, match=r"Nothing moved in 15 s: Covariance on rows 80 to 160 of train \(.*\) stands"
    ):
        job.run(*tables, cluster=rayinf.Cluster(workers=1, patience=15.0), transform=hanging)
    assert time.monotonic() - begin < 200


def kill_store() -> None:
    """Run inside the store, as a decomposition that the machine kills for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def rest(seconds: float) -> str:
    """Run inside the store; takes no processor time."""
    time.sleep(seconds)
    return "rested"


def work(seconds: float) -> str:
    """Run inside the store, as a decomposition does that takes its time on a busy machine."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.thread_time()
        while time.thread_time() - begin < 0.05:
            pass
        time.sleep(0.2)
    return "worked"


@pytest.fixture
def runner(ray_session):
    from rayinf.engine.ray_runner import RayRunner

    made = []

    def make(**options):
        task = rayinf.Task(job.model())
        made.append(RayRunner(_Job(task), rayinf.Cluster(workers=1, **options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


class _Job:
    """As much of a job as the store asks for."""

    key, scored = "k", "train"

    def __init__(self, task) -> None:
        self.task = task


@pytest.mark.chaos
def test_a_store_that_dies_in_one_call_again_and_again_is_named(runner, fewer):
    begin = time.monotonic()
    with pytest.raises(rayinf.RunError, match=r"'summarise' in the store .* ended its process 2 times") as found:
        runner().store("summarise", kill_store, [])
    assert "memory" in str(found.value) and "Fix:" in str(found.value)
    assert time.monotonic() - begin < 200


@pytest.mark.slow
def test_a_store_that_works_is_waited_for_and_one_that_stands_still_is_not(runner):
    held = runner(patience=8.0)  # on a busy machine an answer can take seconds
    assert held.store("summarise", work, [], 18.0) == "worked"
    with pytest.raises(rayinf.RunError, match=r"Nothing moved in 8 s: 'summarise' in the store .* stands still"):
        held.store("summarise", rest, [], 600.0)


@pytest.mark.chaos
def test_a_training_that_kills_its_process_again_and_again_is_named(ray_session, fewer):
    with pytest.raises(rayinf.RunError, match=r"Item 'seed 1' ended its process 2 times"):
        list(side_by_side(die, {"seed 1": 1}, rayinf.Cluster(workers=1)))


def die(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


# Workers that do not fit, addresses that nobody answers.


def test_more_workers_than_the_machine_holds_are_refused_before_ray_starts(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2.0)
    monkeypatch.setattr(machine, "free_memory", lambda: 8 << 30)
    assert machine.misfit(rayinf.Cluster(workers=8)) is None
    assert "asks for 64 CPUs, and this machine has 2" in str(machine.misfit(rayinf.Cluster(workers=64)))
    assert "8 such workers" in str(machine.misfit(rayinf.Cluster(workers=64)))
    assert machine.misfit(rayinf.Cluster(workers=8, cpus_per_worker=2)) is not None
    assert machine.misfit(rayinf.Cluster(workers=16, cpus_per_worker=0.5)) is None
    # 4 x (350 MiB + 1.7 GiB) is just above 8 GiB; 3 x is under it.
    model = int(1.7 * 2**30)
    assert machine.misfit(rayinf.Cluster(workers=3), model) is None
    assert "room for 3 workers" in str(machine.misfit(rayinf.Cluster(workers=4), model))


def test_a_quota_of_the_control_group_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(str(3 << 20))
    (tmp_path / "memory.current").write_text(str(2 << 20))
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 19}\nactive_file 0\n")
    assert machine.cores() == 0.5
    assert machine.free_memory() == (1 << 20) + (1 << 19)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cores() >= 1
    assert machine.free_memory() > 1 << 20


@pytest.mark.slow
def test_sixty_four_workers_on_this_machine(tables, monkeypatch):
    """In a process without Ray: refused by a verb and by a training, foreseen by the plan."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import rayinf, time\n"
        "from engine import small_job as job\n"
        "from rayinf.engine import machine\n"
        "from rayinf.engine.parallel import side_by_side\n"
        "machine.cores = lambda: 2.0\n"
        "many = rayinf.Cluster(workers=64)\n"
        "for call in (lambda: job.run(*sys.argv[2:4], cluster=many), lambda: list(side_by_side(abs, {0: 1}, many))):\n"
        "    try:\n"
        "        call()\n"
        "        raise SystemExit('it ran')\n"
        "    except rayinf.InputError as error:\n"
        "        assert 'asks for 64 CPUs' in str(error), error\n"
        "plan = rayinf.plan(rayinf.Task(job.model()), *sys.argv[2:4], cluster=many)\n"
        "assert not plan.fits and 'asks for 64 CPUs' in plan.to_text()\n"
        "few = rayinf.plan(rayinf.Task(job.model()), *sys.argv[2:4], cluster=rayinf.Cluster(workers=2))\n"
        "assert 'asks for' not in few.to_text()\n"
        "import ray\n"
        "assert not ray.is_initialized()\n"
    )
    arguments = [str(Path(__file__).parent.parent), *map(str, tables)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"workers": 40}, r"1 CPUs a worker, and Ray has 3 CPUs on its 1 node\(s\): room for 3 workers"),
        ({"workers": 2, "cpus_per_worker": 2}, r"2 CPUs a worker, .* room for 1 workers"),
        (
            {"workers": 1, "gpus_per_worker": 99},
            r"99 GPUs a worker, and Ray has .* GPUs on its 1 node\(s\): room for 0",
        ),
    ],
)
def test_workers_that_a_cluster_lacks_are_refused_within_seconds(tables, no_workers, options, what):
    begin = time.monotonic()
    with pytest.raises(rayinf.InputError, match=what):
        list(side_by_side(abs, dict.fromkeys(range(50), -1), rayinf.Cluster(address="auto", **options)))
    assert time.monotonic() - begin < 30


@pytest.mark.slow
def test_workers_that_wait_for_others_are_told_apart_from_slow_ones(no_workers, monkeypatch, capfd):
    from rayinf.engine import ray_cluster

    monkeypatch.setattr(ray_cluster, "_START_SECONDS", 3.0)
    import ray

    hog = ray.remote(num_cpus=3)(Hog).remote()
    ray.get(hog.ready.remote())
    try:
        with pytest.raises(rayinf.RunError, match=r"1 of 1 workers did not start in 3 s: .* 0 of the cluster's 3 are"):
            list(side_by_side(abs, {0: -1}, rayinf.Cluster(workers=1)))
    finally:
        ray.kill(hog)
    report = "there is room for 0 of 1 workers: each asks for 1 CPUs, and 0 are free on the cluster's 1 node(s)."
    assert report in capfd.readouterr().err  # at once, not when they are given up
    slow = ray.remote(num_cpus=0)(Hog).remote(60.0)
    try:
        with pytest.raises(rayinf.RunError, match=r"1 of 1 workers .*, though the cluster has room for them"):
            ray_cluster.wait_ready([slow], rayinf.Cluster(workers=1))
    finally:
        ray.kill(slow)


@pytest.mark.slow
def test_a_run_begins_with_the_workers_that_have_started(no_workers, tmp_path, monkeypatch, capfd):
    """The other one joins it when there is room, here when another job ends: two items wait for each other."""
    from rayinf.engine import ray_cluster

    monkeypatch.setattr(ray_cluster, "_FEWER_SECONDS", 1.0)
    import ray

    hog = ray.remote(num_cpus=2)(Hog).remote()
    ray.get(hog.ready.remote())
    try:
        done = side_by_side(meet, {k: (k, tmp_path) for k in range(3)}, rayinf.Cluster(workers=2))
        found = [next(done)[1]]
        ray.kill(hog)
        found += [pid for _, pid in done]
    finally:
        with suppress(Exception):
            ray.kill(hog)
    assert "1 of 2 workers have started; the run begins with these" in capfd.readouterr().err
    assert len(set(found)) == 2


def meet(item: tuple[int, Path]) -> int:
    """The first item ends at once, the others when both are at work."""
    number, folder = item
    if number:
        (folder / str(number)).touch()
    end = time.monotonic() + 100
    while number and len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    return os.getpid()


def listening(answer: bytes | None):
    """A port of this machine where a server answers so, or not at all."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(5)
    held = []

    def serve():
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            held.append(line)
            if answer is not None:
                line.recv(64)
                line.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.slow
def test_an_address_that_nobody_answers_is_refused_within_seconds(tables, monkeypatch, tmp_path):
    web, silent, dead = listening(b"HTTP/1.1 400 Bad Request\r\n\r\n"), listening(None), socket.socket()
    dead.bind(("127.0.0.1", 0))  # bound, and never listened on
    ports = [s.getsockname()[1] for s in (web, silent, dead)]
    code = (
        "import sys, time, os\n"
        "import rayinf\n"
        "from rayinf.engine.parallel import side_by_side\n"
        "def refused(address, what):\n"
        "    begin = time.monotonic()\n"
        "    try:\n"
        "        list(side_by_side(abs, {0: -1}, rayinf.Cluster(address=address, workers=1)))\n"
        "        raise SystemExit('it ran')\n"
        "    except rayinf.InputError as error:\n"
        "        assert what in str(error) and '\\n' not in str(error), str(error)\n"
        "    assert time.monotonic() - begin < 20\n"
        "web, silent, dead = sys.argv[1:4]\n"
        "refused(f'127.0.0.1:{web}', 'something else listens there')\n"
        "refused(f'ray://127.0.0.1:{web}', 'something else listens there')\n"
        "refused(f'127.0.0.1:{silent}', 'no answer in 5 s')\n"
        "refused(f'127.0.0.1:{dead}', 'Connection refused')\n"
        "refused('no-such-host.invalid:6379', 'no Ray answers at no-such-host.invalid:6379')\n"
        "refused('head', 'is not a host and a port')\n"
        "os.environ['RAY_ADDRESS'] = f'127.0.0.1:{dead}'\n"
        "refused('auto', 'Connection refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, ports)], capture_output=True, text=True, timeout=120, check=False
    )
    for server in (web, silent, dead):
        server.close()
    assert done.returncode == 0, done.stderr[-2000:]


# What is left behind.


def test_a_live_folder_is_kept_and_a_dead_one_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    own = leftovers.temporary_folder()
    code = "import time; time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code])
    monkeypatch.setattr(os, "getpid", lambda: other.pid)
    theirs = leftovers.temporary_folder()
    monkeypatch.undo()
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    mark = own.name.removeprefix("rayinf-")
    # Its process ended, and this process has its number now.
    reused = tmp_path / f"rayinf-{mark[:16]}{int(mark[16:24], 16) - 100_000:08x}{'0' * 8}"
    foreign = tmp_path / f"rayinf-{'0' * 8}{mark[8:24]}{'1' * 8}"
    unrelated = tmp_path / "rayinf-notes"
    for folder in (own, theirs, reused, foreign, unrelated):
        (folder / "partial").mkdir(parents=True)
        (folder / "partial" / "a.safetensors").write_text("x")
    leftovers.sweep_temporaries()
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in (own, theirs, foreign, unrelated)}
    other.kill()
    other.wait()
    long_ago = time.time() - 5 * 86400
    for file in (foreign / "partial" / "a.safetensors", foreign / "partial", foreign):
        os.utime(file, (long_ago, long_ago))
    leftovers.sweep_temporaries()
    assert {f.name for f in tmp_path.iterdir()} == {own.name, unrelated.name}


@pytest.mark.slow
def test_the_temporary_folder_of_a_store_goes_with_its_run(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    closed, lost = runner(), runner()
    for one in (closed, lost):
        one.store("put", "a", {"x": np.ones(3)})
    assert len(list(tmp_path.glob("rayinf-*/a.safetensors"))) == 2
    closed.close()
    assert len(list(tmp_path.glob("rayinf-*"))) == 1
    lost._clean()  # what garbage collection, or the end of the process, calls
    assert not list(tmp_path.glob("rayinf-*"))


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), 9)"])
@pytest.mark.chaos
def test_the_temporary_folder_of_a_process_that_ends_without_closing(ray_session, tmp_path, end):
    code = (
        "import os, sys, types\n"
        "import numpy as np\n"
        "import rayinf\n"
        "from rayinf.engine.ray_runner import RayRunner\n"
        "job = types.SimpleNamespace(key='k', scored='train', task=types.SimpleNamespace(model=None))\n"
        "runner = RayRunner(job, rayinf.Cluster(address='auto', workers=1))\n"
        "runner.store('put', 'a', {'x': np.ones(3)})\n"
        f"print('there', flush=True)\n{end}\n"
    )
    import ray

    env = {**os.environ, "TMPDIR": str(tmp_path), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env, check=False
    )
    assert "there" in done.stdout, done.stderr[-2000:]
    killed = done.returncode == -9
    assert len(list(tmp_path.glob("rayinf-*/a.safetensors"))) == killed
    _sweep(tmp_path)
    assert not list(tmp_path.glob("rayinf-*"))


def _sweep(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leftovers.tempfile, "gettempdir", lambda: str(folder))
        leftovers.sweep_temporaries()


# Runs that need no Ray, and relative paths.


@pytest.mark.slow
def test_a_relative_out_is_one_folder_and_a_finished_run_starts_no_ray(tables, ray_session, tmp_path, monkeypatch):
    """The workers of the session are in another folder than this process is now."""
    from rayinf.engine import ray_runner

    monkeypatch.chdir(tmp_path)
    relative = [os.path.relpath(t) for t in tables]
    found = job.run(*relative, "run", rayinf.Cluster(workers=1))
    assert found.table.num_rows == 240
    assert len(list((tmp_path / "run" / "scores").glob("part-*.parquet"))) == 3
    monkeypatch.setattr(ray_runner, "connect", lambda *_: pytest.fail("a finished run asks for Ray"))
    again = job.run(*relative, "run", rayinf.Cluster(workers=1))
    assert again.table.equals(found.table)


def test_paths_are_absolute_once(tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = job.run(*tables, "run")
    again = job.run(*tables, "again", factors="run")
    assert again.table.equals(found.table)
    task = rayinf.Task(job.model())
    given = SelfInfluenceSpec(task=task, train=None, factors="run", out="~/x")
    assert (given.factors, given.out) == (tmp_path / "run", Path("~/x").expanduser())
    assert str(SelfInfluenceSpec(task=task, train=None, out="s3://bucket/x").out) == "s3://bucket/x"
