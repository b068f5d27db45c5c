"""Submitting without a cluster: what is joined, what Ctrl-C asks, how a job's end becomes an error, dead addresses."""

from __future__ import annotations

import builtins
import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_cases import call, refused

import rayinf
from rayinf import submission
from rayinf.engine import ray_jobs
from rayinf.engine.ray_jobs import Ended, JobServer, outcome

ADDRESS = "http://127.0.0.1:9"
CONFIG = "task: mine.py:task\ntrain: /a\nvalid: /b\nout: /c\n"


class FakeServer:
    """A job server that runs nothing.

    Attributes:
        jobs: by run, ids with whether they are under way.
        taken: names that somebody else takes first.
    """

    jobs: dict[str, list[tuple[str, bool]]]
    taken: set[int]
    ends = Ended("SUCCEEDED", 0, "", "")
    log = "one\ntwo\n"
    interrupts = False
    sent: list[dict[str, Any]]

    def __init__(self, address: str) -> None:
        self.address = address
        self.stopped: list[str] = []

    def find(self, digest: str) -> tuple[str | None, int]:
        found = self.jobs.get(digest, [])
        return next((name for name, alive in found if alive), None), len(found)

    def submit(self, name: str, command: str, digest: str, files: Any, runtime_env: Any) -> bool:
        others = self.jobs.setdefault(digest, [])
        self.jobs[digest] = [(n, False) for n, _ in others] + [(name, True)]
        if len(self.jobs[digest]) in self.taken:
            return False
        self.sent.append({"name": name, "command": command, "files": files, "runtime_env": runtime_env})
        return True

    def follow(self, name: str, write: Any) -> Ended:
        if self.interrupts:
            raise KeyboardInterrupt
        write(self.log)
        return self.ends

    def stop(self, name: str) -> bool:
        self.stopped.append(name)
        FakeServer.last_stopped = name
        return True

    last_stopped = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    class Own(FakeServer):
        pass

    Own.jobs, Own.taken, Own.sent = {}, set(), []
    monkeypatch.setattr(ray_jobs, "JobServer", Own)
    FakeServer.last_stopped = ""
    return Own


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text("TASK = 1")
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path / "run.yaml"


def test_a_run_has_one_job_at_a_time(server, config, capsys):
    first = rayinf.submit("influence", config, ADDRESS, follow=False)
    assert (first.state, first.joined, first.out, first.address) == ("running", False, "/c", ADDRESS)
    assert server.sent[0]["command"] == "python -m rayinf influence config.yaml --address auto"
    printed = capsys.readouterr()
    assert "in 2 files: mine.py, config.yaml." in printed.err and printed.out == ""
    again = rayinf.submit("influence", config, ADDRESS)
    assert (again.job_id, again.joined, again.state) == (first.job_id, True, "finished")
    printed = capsys.readouterr()
    assert printed.out == "one\ntwo\n" and "joined" in printed.err
    assert len(server.sent) == 1
    server.jobs = {k: [(n, False) for n, _ in v] for k, v in server.jobs.items()}
    later = rayinf.submit("influence", config, ADDRESS, follow=False)
    assert later.job_id == first.job_id[:-1] + "2" and not later.joined
    assert rayinf.submit("measure", config, ADDRESS, follow=False).job_id not in (first.job_id, later.job_id)


def test_a_verb_without_workers_gets_no_address(server, config):
    config.write_text("task: mine.py:task\ntable: /a\nkeep: /k.parquet\nout: /c\n")
    rayinf.submit("retrain", config, ADDRESS, follow=False)
    assert server.sent[0]["command"] == "python -m rayinf retrain config.yaml"
    assert "keep: /k.parquet" in server.sent[0]["files"]["config.yaml"].decode()


def test_of_two_at_once_the_second_joins(server, config):
    server.taken = {1}  # another process takes the name between the question and the submission
    job = rayinf.submit("influence", config, ADDRESS, follow=False)
    assert job.joined and job.job_id.endswith("-1") and not server.sent


def test_a_mapping_is_a_config(server, config, monkeypatch):
    monkeypatch.chdir(config.parent)
    given = {"task": "mine.py:task", "train": "/a", "valid": "/b", "out": Path("/c"), "seed": 3}
    given |= {"cluster": rayinf.Cluster(workers=3, address="10.0.0.1:6379"), "objective": ("total", "category")}
    rayinf.submit("influence", given, ADDRESS, follow=False, runtime_env={"pip": ["a"]})
    text = server.sent[0]["files"]["config.yaml"].decode()
    assert "workers: 3" in text and "10.0.0.1" not in text and "- category" in text and "out: /c" in text
    assert server.sent[0]["runtime_env"] == {"pip": ["a"]}
    for verb in ("influence_measure", "measure"):
        measured = rayinf.submit(verb, config, ADDRESS, follow=False)
        assert measured.job_id.startswith("rayinf-measure-")
    with pytest.raises(rayinf.InputError, match="trian"):
        rayinf.submit("influence", {**given, "trian": "/a"}, ADDRESS)


@pytest.mark.parametrize(
    ("terminal", "answer", "state"),
    [
        (True, "s", "stopped"),
        (True, "STOP", "stopped"),
        (True, "w", "running"),
        (True, "", "running"),
        (True, EOFError, "running"),
        (True, KeyboardInterrupt, "running"),
        (False, "s", "running"),
    ],
)
def test_ctrl_c_asks_whether_to_stop_the_job(server, config, monkeypatch, capsys, terminal, answer, state):
    def typed(prompt: str) -> str:
        assert "(s)" in prompt and "(w)" in prompt
        if isinstance(answer, str):
            return answer
        raise answer

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", typed)
    server.interrupts = True
    job = rayinf.submit("influence", config, ADDRESS)
    assert job.state == state and (FakeServer.last_stopped == job.job_id) == (state == "stopped")
    assert "Submit the same config again" in capsys.readouterr().err


def test_the_command(server, config, monkeypatch):
    done = call("submit", "influence", config, "--address", ADDRESS, "--no-follow", "--set", "seed=5", "--workers", 4)
    assert done.exit_code == 0 and done.stdout.strip() == server.sent[0]["name"]
    text = server.sent[0]["files"]["config.yaml"].decode()
    assert "seed: 5" in text and "workers: 4" in text
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://head:8265/")
    assert call("submit", "influence", config, "--no-follow", "--set", "seed=5").exit_code == 0
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    assert "the head is not known" in refused(call("submit", "influence", config))
    assert "VERB=" in refused(call("submit", "trim", config, "--address", ADDRESS))
    line = refused(call("submit", "influence", config, "--address", "http://me:pl4nted@head:8265"))
    assert "password" in line and "pl4nted" not in line
    server.interrupts = True
    assert call("submit", "influence", config, "--address", ADDRESS).exit_code == 1
    shown = " ".join(call("submit", "--help").stdout.replace("│", " ").split())
    for words in ("runs the code that its task", "--no-follow", "RAY_AUTH_MODE=token", "Secrets are never sent"):
        assert words in shown


@pytest.mark.parametrize(
    ("ended", "kind", "part"),
    [
        (Ended("SUCCEEDED", 0, "", "fine"), None, ""),
        (Ended("STOPPED", None, "", ""), rayinf.RunError, "was stopped"),
        (
            Ended("FAILED", 2, "", "Error: train is wrong. Fix: mend it."),
            rayinf.InputError,
            "train is wrong. Fix: mend",
        ),
        (Ended("FAILED", 1, "", "Error: a disk is full. Fix: free it."), rayinf.RunError, "a disk is full. Fix: free"),
        (Ended("FAILED", 2, "", "Error: No module named 'x'. Fix: no."), rayinf.InputError, 'runtime_env={"pip"'),
        (Ended("FAILED", 127, "", "sh: python: not found"), rayinf.InputError, "has no rayinf"),
        (Ended("FAILED", 1, "", "python: No module named rayinf"), rayinf.InputError, "has no rayinf"),
        (Ended("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", "pip failed"), rayinf.InputError, "cannot set up"),
        (Ended("FAILED", -9, "", "Killed"), rayinf.RunError, "ended with exit code -9: Killed"),
        (Ended("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", ""), rayinf.RunError, "said nothing"),
    ],
)
def test_how_a_job_ended_as_an_error(ended, kind, part):
    error = outcome("job", ended)
    assert (type(error) if error else None) is kind
    if error:
        assert part in str(error) and "Fix: " in str(error) and "\n" not in str(error)


def test_a_runs_error_is_raised_and_not_printed(server, config, capsys):
    server.ends = Ended("FAILED", 2, "", "Error: train is wrong. Fix: mend it.")
    with pytest.raises(rayinf.InputError, match="train is wrong"):
        rayinf.submit("influence", config, ADDRESS)
    assert "Error" not in capsys.readouterr().out


def test_the_line_of_an_error_is_held_back():
    seen: list[str] = []
    held = ray_jobs._HeldBack(seen.append)
    for text in ("a\nErr", "or: one. Fix: two.", "\nlate words\nnot en", "ded"):
        held.add(text)
    held.end()
    assert "".join(seen) == "a\nlate words\nnot ended\n"
    assert held.error == "Error: one. Fix: two." and held.last == "not ended"
    held.release()
    assert seen[-1] == "Error: one. Fix: two.\n" and not held.error


# A log whose connection is lost.


class Tailed(JobServer):
    """The log is given in pieces; the connection is lost after some of them."""

    def __init__(self, pieces: list[list[str]]) -> None:
        self.address = ADDRESS
        self.pieces = pieces

    async def _lines(self, name: str):  # type: ignore[override]
        for piece in self.pieces.pop(0) if self.pieces else ["!"]:
            if piece == "!":
                raise ConnectionError("lost")
            yield piece


async def tail(server: Tailed, held: Any) -> None:
    await server._tail("job", held)


def test_a_lost_connection_is_made_again_and_nothing_is_said_twice(monkeypatch):
    monkeypatch.setattr(ray_jobs, "_TRY_SECONDS", 0.01)
    seen: list[str] = []
    held = ray_jobs._HeldBack(seen.append)
    ray_jobs._run(tail(Tailed([["one\ntw", "!"], ["one\n", "two\nth", "!"], ["one\ntwo\nthree\n"]]), held))
    assert "".join(seen) == "one\ntwo\nthree\n"
    with pytest.raises(rayinf.RunError, match=r"connection to .* was lost: lost. The job job may go on"):
        ray_jobs._run(tail(Tailed([]), ray_jobs._HeldBack(seen.append)))


def test_a_log_is_followed_in_a_notebook_too():
    """Where a loop is running in the thread already."""
    import asyncio

    seen: list[str] = []

    async def cell() -> None:
        ray_jobs._run(tail(Tailed([["one\n"]]), ray_jobs._HeldBack(seen.append)))

    asyncio.run(cell())
    assert seen == ["one\n"]


# Addresses at which no job server answers.


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """The address of a server that answers so, or never."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(5)
    held = []

    def serve() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            held.append(line)
            if answer is not None:
                line.recv(4096)
                line.sendall(answer)
                line.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "something else listens there"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "something else listens there"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "500"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "RAY_AUTH_MODE is not set to token"),
        (b"SSH-2.0-OpenSSH\r\n", "something else listens there"),
        (b"", "No Ray answers"),
        (None, "no answer in"),
    ],
)
def test_what_is_no_job_server(monkeypatch, answer, part):
    monkeypatch.setattr(ray_jobs, "_TIMEOUTS", (1.0, 2.0))
    begin = time.monotonic()
    with listening(answer) as address, pytest.raises(rayinf.InputError, match=part) as found:
        JobServer(address)
    assert address in found.value.what and "\n" not in str(found.value) and found.value.what.isprintable()
    assert time.monotonic() - begin < 25


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no-such-host.invalid:8265", "No Ray answers at http://no-such-host.invalid:8265 .[^@]+known"),
    ],
)
def test_a_head_that_is_not_there(config, address, part):
    begin = time.monotonic()
    with pytest.raises(rayinf.InputError, match=part):
        rayinf.submit("influence", config, address)
    assert time.monotonic() - begin < 30
    assert sum(ray_jobs._TIMEOUTS) < 30


def test_head_addresses():
    assert submission.head_address("http://head") == "http://head"
    assert submission.head_address("https://head:8265/") == "https://head:8265/"
