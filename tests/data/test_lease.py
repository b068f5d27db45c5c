"""One writer a run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayinf
from rayinf.data import lease
from rayinf.data.lease import LEASE, Lease, holder
from rayinf.data.run_folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from rayinf.data.lease import Lease
held = Lease.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_the_holder_and_the_time(other: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(rayinf.InputError, match=rf"is in use: process {other.pid} on \S+ .* since 20\d\d-.*Fix: wait"):
        Lease.acquire(tmp_path)
    seen = holder(tmp_path)
    assert seen is not None and seen["pid"] == other.pid and seen["age"] < 60


def test_a_killed_holder_is_replaced_at_once(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.send_signal(signal.SIGKILL)  # and not waited for: it stays as a zombie
    begin = time.monotonic()
    while holder(tmp_path) is not None:
        assert time.monotonic() - begin < 10
        time.sleep(0.01)
    begin = time.monotonic()
    Lease.acquire(tmp_path).release()
    assert time.monotonic() - begin < 5
    assert not list(tmp_path.iterdir())


def test_another_holder_in_this_process_is_refused(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path)
    with pytest.raises(rayinf.InputError, match=f"is in use: process {os.getpid()}"):
        Lease.acquire(tmp_path)
    first.release()
    Lease.acquire(tmp_path).release()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lease of a process on another machine."""
    monkeypatch.setattr(lease, "_STALE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.05)
    content = {"name": "x", "machine": "another", "host": "node7", "pid": os.getpid(), "started": 1, "since": "2026"}
    (tmp_path / LEASE).write_text(json.dumps(content))
    return tmp_path / LEASE


def test_a_lease_of_another_machine_that_stands_still_is_dead_whatever_the_clock(elsewhere: Path) -> None:
    os.utime(elsewhere, (time.time() + 86400, time.time() + 86400))  # its clock is a day ahead
    held = Lease.acquire(elsewhere.parent)
    assert json.loads(elsewhere.read_text())["name"] != "x"
    held.release()


def test_a_lease_of_another_machine_that_is_renewed_is_alive(elsewhere: Path) -> None:
    code = "import os, sys, time\nfor k in range(400):\n    os.utime(sys.argv[1], (k, k)); time.sleep(0.05)"
    process = subprocess.Popen([sys.executable, "-c", code, str(elsewhere)])
    try:
        while elsewhere.stat().st_mtime > 1e6:
            time.sleep(0.01)
        with pytest.raises(rayinf.InputError, match=r"process .* on node7"):
            Lease.acquire(elsewhere.parent)
        assert json.loads(elsewhere.read_text())["name"] == "x"
    finally:
        process.kill()
        process.wait()


def test_of_two_that_find_a_dead_lease_one_gets_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one sets aside the lease of the first, sees that it is newer, and puts it back."""
    seen = lease._read(elsewhere)
    first = Lease.acquire(elsewhere.parent)
    lease._set_aside(elsewhere, seen)
    assert (lease._read(elsewhere) or {})["name"] == first._name
    first.release()


def test_a_holder_that_lost_its_lease_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_BEAT_SECONDS", 0.02)
    folder = RunFolder(tmp_path / "run")
    folder.begin({"identity": {}})
    (tmp_path / "run" / LEASE).write_text(json.dumps({"name": "other", "machine": "m"}))
    time.sleep(0.5)
    with pytest.raises(rayinf.RunError, match="was taken over by another process"):
        _ = folder.files
    folder.release()
    assert json.loads((tmp_path / "run" / LEASE).read_text())["name"] == "other"


def test_two_runs_at_once_on_one_folder(other: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(rayinf.InputError, match="is in use"):
        RunFolder(tmp_path).begin({"identity": {}})
    assert [p.name for p in tmp_path.iterdir()] == [LEASE]
