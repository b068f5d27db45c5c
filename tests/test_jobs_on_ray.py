"""`rayinf submit` on a head with token authentication: one run a config, its exit code, and nothing secret anywhere."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_server
from engine import own_ray
from engine.ray_head import ROOT, SECRET_OF_HEAD, TOKEN, Head, environment, head, rayinf_command
from sklearn.datasets import load_digits
from store_server import BUCKET, Bucket

import rayinf

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
SECRET = "planted-in-the-environment-of-the-sender"
TASK = """
import time
from pathlib import Path
import rayinf
from words import LABEL


def task():
    while not Path({gate!r}).exists():  # until the test lets it go on
        time.sleep(0.2)
    return rayinf.logistic_regression({train!r}, l2=1e-2, label=LABEL)
"""
TWICE = """
import sys
import rayinf
from rayinf.store.places import open_place

job = rayinf.submit("influence", "run.yaml", sys.argv[1])
assert job.state == "finished" and not job.joined, job
record = open_place(job.out) / "run.json"
before = record.stat().st_mtime_ns
print("-- again", flush=True)
again = rayinf.submit("influence", "run.yaml", sys.argv[1])
assert again.state == "finished" and again.job_id != job.job_id, again
assert record.stat().st_mtime_ns == before
"""
# All that a job server tells of its jobs.
RECORDS = """
import json, sys
from rayinf.engine.ray_jobs import JobServer

client = JobServer(sys.argv[1])._client
jobs = client.list_jobs()
print(json.dumps([repr(j) for j in jobs] + [client.get_job_logs(j.submission_id) for j in jobs if j.submission_id]))
"""
# Refusals by a job server and by a head, each with its seconds.
REFUSED = """
import os, sys, time
import rayinf
from rayinf.engine.parallel import side_by_side

jobs, head = sys.argv[1:]


def join(address):
    return list(side_by_side(abs, {0: -1}, rayinf.Cluster(address=address, workers=1)))


def refused(call, *given):
    begin = time.monotonic()
    try:
        call(*given)
    except rayinf.InputError as error:
        assert chr(10) not in str(error) and "f" * 64 not in str(error), error
        print(f"{time.monotonic() - begin:.1f} {error}")


for mode, token in (("token", "f" * 64), ("token", None), (None, None)):
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    refused(rayinf.submit, "influence", "run.yaml", jobs)
    refused(join, head)
os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = head, "token", "f" * 64
refused(join, "auto")
"""
CONFIG = """
task: digits_task.py:task
train: {train}
valid: {valid}
objective: [total, category]
curvature: exact
out: {out}
cluster: {{workers: 1}}
"""


def limit(seconds: float) -> float:
    """A limit for an idle machine, and what it is while other programs use the machine."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def ray_head(s3_port: int) -> Iterator[Head]:
    """Its processes find the keys of the store in their environment."""
    with (
        tempfile.TemporaryDirectory(prefix="rh", dir="/tmp", ignore_cleanup_errors=True) as folder,
        head(Path(folder)) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def tables(s3_port: int, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the digits lie, and where a run may write: in an object store."""
    folder = tmp_path_factory.mktemp("digits")
    found = load_digits()
    x = (found.data[:400] / 16).astype("float32")
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 64)
    table = pa.table({"row_id": range(400), "features": features, "digit": found.target[:400]})
    pq.write_table(table.slice(0, 300), folder / "train.parquet", row_group_size=100)
    pq.write_table(table.slice(300), folder / "valid.parquet")
    for name in ("train", "valid"):
        bucket.write(f"digits/{name}.parquet", folder / f"{name}.parquet")
    options = f"?endpoint_override=127.0.0.1:{s3_port}&scheme=http&region=us-east-1"
    names = {"train": "train.parquet", "valid": "valid.parquet", "out": "run", "lacking": "lacking"}
    return {name: f"s3://{BUCKET}/digits/{path}{options}" for name, path in names.items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, str]) -> Path:
    """A config, a task that waits for a file, and a module beside it."""
    folder = tmp_path_factory.mktemp("project")
    task = TASK.format(gate=str(folder / "gate"), train=tables["train"])
    (folder / "digits_task.py").write_text(task)
    (folder / "words.py").write_text('LABEL = "digit"')
    (folder / "notes.txt").write_text("never sent")
    (folder / "run.yaml").write_text(CONFIG.format(**tables))
    (folder / "lacking.py").write_text("import a_package_that_nobody_has\n")
    (folder / "lacking.yaml").write_text(
        CONFIG.format(**{**tables, "out": tables["lacking"]}).replace("digits_task.py:task", "lacking.py:task")
    )
    return folder


def submit(project: Path, address: str, config: str = "run.yaml", *more: str, token: str | None = TOKEN, **env: str):
    sender = environment(token, SECRET_FOR_SENDER=SECRET, **env)
    return rayinf_command(["submit", "influence", config, "--address", address, *more], sender, project)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error that a command ended with: a line with a mend, and no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Fix: " in line and TOKEN not in line
    assert done.stderr.splitlines()[-1] == line
    return line


def python(code: str, folder: Path, *words: str, token: str | None = TOKEN, **env: str):
    """A Python program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment(token, SECRET_FOR_SENDER=SECRET, **env),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@dataclass
class Typed:
    """What a command in a terminal showed, and its exit code."""

    shown: str
    code: int


def in_terminal(project: Path, address: str, answer: str) -> Typed:
    """Submit in a terminal, press Ctrl-C once the log is followed, and answer."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "rayinf", "submit", "influence", "run.yaml", "--address", address]
    running = subprocess.Popen(
        words,
        env=environment(),
        cwd=project,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a shell's background has ignored
    )
    os.close(theirs)
    shown, interrupted, answered, end = "", False, False, time.monotonic() + 180
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                new = os.read(ours, 4096).decode(errors="replace")
            except OSError:
                break
            if not new:
                break
            shown += new
        if not interrupted and "Running entrypoint" in shown:
            os.kill(running.pid, signal.SIGINT)
            interrupted = True
        if interrupted and not answered and "[w]" in shown:
            os.write(ours, f"{answer}\n".encode())
            answered = True
        if running.poll() is not None and not select.select([ours], [], [], 0)[0]:
            break
    os.close(ours)
    return Typed(shown, running.wait(30))


def test_one_run_from_the_first_submission_to_the_last(ray_head, project, tables):
    """Submitted, joined, watched no more, stopped, gone on with, finished, and then nothing to do."""
    first = submit(project, ray_head.dashboard, "run.yaml", "--no-follow")
    assert first.returncode == 0, first.stderr
    job = first.stdout.strip()
    assert job.startswith("rayinf-influence-") and "\n" not in job
    assert "in 3 files: digits_task.py, words.py, config.yaml." in first.stderr
    assert f"train {tables['train']}" in first.stderr and f"Written there: {tables['out']}" in first.stderr

    watched = in_terminal(project, ray_head.dashboard, "w")
    assert f"The job {job} runs this config already: joined" in watched.shown
    assert f"The job {job} goes on" in watched.shown and watched.code == 1
    stopped = in_terminal(project, ray_head.dashboard, "s")
    assert f"The job {job} is stopped" in stopped.shown and stopped.code == 1

    (project / "gate").touch()
    done = python(TWICE, project, ray_head.dashboard)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.split("-- again\n")
    assert "300 rows, 11 columns" in first and "already finished" not in first
    assert "already finished: nothing was computed" in second
    found = rayinf.Scores.load(tables["out"])
    assert len(found) == 300 and f"{job[:-1]}3" in done.stderr
    status = rayinf.status(tables["out"])
    assert (status.state, status.done, status.parts) == ("finished", 3, 3)


def test_a_package_that_the_cluster_lacks(ray_head, project):
    done = submit(project, ray_head.dashboard, "lacking.yaml")
    line = one_line(done)
    assert "No module named 'a_package_that_nobody_has'" in line and "runtime_env" in line
    assert "Error" not in done.stdout
    assert done.seconds < limit(30)


def test_a_wrong_token_and_none(ray_head, project):
    """Of a job server and of a head; ray was imported before the variables were set."""
    done = python(REFUSED, project, ray_head.dashboard, ray_head.address, token=None, HOME=str(project))
    lines = done.stdout.splitlines()
    assert len(lines) == 7, done.stdout + done.stderr[-2000:]
    wanted = ["is not the cluster's"] * 2 + ["there is no token"] * 2 + ["RAY_AUTH_MODE is not set"] * 2
    for line, said in zip(lines, [*wanted, "is not the cluster's"], strict=True):
        assert said in line and "Fix: set RAY_AUTH_MODE=token" in line
        assert float(line.split()[0]) < 30


def test_a_token_in_a_file_and_an_address_in_the_environment_are_taken(ray_head, project, tmp_path):
    """RAY_ADDRESS, which Ray itself would take instead, does not matter."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    code = "import sys\nfrom rayinf.engine.ray_jobs import JobServer\nprint(JobServer(sys.argv[1]).find('none'))"
    env = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path), "RAY_ADDRESS": "http://127.0.0.1:9"}
    done = python(code, tmp_path, ray_head.dashboard, token=None, **env)
    assert done.stdout.strip() == "(None, 0)", done.stderr


def test_a_cluster_with_a_token_is_joined(ray_head, tmp_path):
    """By its address and by "auto", after a Ray of this process alone, with a token of its own, has come and gone."""
    code = (
        "import json, os, sys, ray, rayinf\nfrom rayinf.engine.parallel import side_by_side\n"
        "from engine import own_ray\n"
        "def join(address):\n"
        "    print(list(side_by_side(abs, {0: -1}, rayinf.Cluster(address=address, workers=1))), flush=True)\n"
        "held = {k: os.environ.pop(k) for k in ('RAY_AUTH_MODE', 'RAY_AUTH_TOKEN')}\n"
        "print(json.dumps(own_ray.look()), flush=True)\n"
        "os.environ.update(held)\n"
        "join(sys.argv[1])\n"
        "os.environ['RAY_ADDRESS'] = sys.argv[1]\n"
        "join('auto')\n"
    )
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    done = python(code, tmp_path, ray_head.address, HOME=str(tmp_path), PYTHONPATH=path)
    own, *joined = done.stdout.splitlines()
    own_ray.check(json.loads(own))
    assert joined == ["[(0, 1)]"] * 2, done.stderr[-2000:]
    assert not list(tmp_path.rglob("*")), "no token is written into the home folder"


def test_no_secret_lies_anywhere(ray_head, project, tables, bucket):
    """In the run's folder, the logs of the job, its record, and the packages that were sent: after all of the above."""
    env = "{workers: 1, runtime_env: {env_vars: {KEY: planted-in-a-runtime-env}}}"
    (project / "secret.yaml").write_text(CONFIG.format(**tables).replace("{workers: 1}", env))
    done = submit(project, ray_head.dashboard, "secret.yaml")
    assert "KEY" in one_line(done) and "planted-in-a-runtime-env" not in done.stderr

    secrets = (SECRET, SECRET_OF_HEAD, TOKEN, "planted-in-a-runtime-env", store_server.SECRET_KEY)
    told = json.loads(python(RECORDS, project, ray_head.dashboard).stdout.splitlines()[-1])
    assert len(told) > 4
    files = [bucket.read(f"digits/run/{name}") for name in bucket.keys("digits/run")]
    sent = [f for f in ray_head.folder.rglob("working_dir_files/**/*") if f.is_file()]
    logs = [f for f in ray_head.folder.rglob("logs/job-driver-*") if f.is_file()]
    assert {"config.yaml", "digits_task.py", "words.py"} <= {f.name for f in sent}
    assert "notes.txt" not in {f.name for f in sent} and logs and len(files) > 5
    for held in [*files, *(file.read_bytes() for file in [*sent, *logs])]:
        told.append(held.decode("latin-1"))
    for secret in secrets:
        assert not [t[:200] for t in told if secret in t]
