"""A head of Ray in processes of its own, with token authentication, as an operator starts one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
# Planted where the head's processes see it; no file of a run and no record of a job may hold it.
SECRET_OF_HEAD = "planted-in-the-environment-of-the-head"


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        dashboard: the address of its job server.
        address: of the head itself, for `Cluster(address=...)`.
        folder: Ray's temporary folder.
    """

    dashboard: str
    address: str
    folder: Path


def environment(token: str | None = TOKEN, **more: str) -> dict[str, str]:
    """The environment of a process that has a token, or none; nothing else is said of authentication."""
    # Settings in small letters (RAY_worker_niceness) are of Ray's processes; they say nothing of authentication.
    kept = {k: v for k, v in os.environ.items() if not re.match("RAY_[A-Z]", k)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    own |= {} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return {**kept, **own, **more}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@contextmanager
def head(folder: Path) -> Iterator[Head]:
    """A head for as long as the context lasts; `folder` must be short, since sockets lie in it.

    On a busy machine a head may end while it starts: it is started anew.
    """
    with ExitStack() as stack:
        for left in reversed(range(3)):
            try:
                found = stack.enter_context(_started(folder / str(left)))
                break
            except AssertionError:
                if not left:
                    raise
        yield found


@contextmanager
def _started(folder: Path) -> Iterator[Head]:
    folder.mkdir()
    port, dashboard, client, agent = free_ports(4)
    words = (
        f"start --head --block --port {port} --dashboard-host 127.0.0.1 --dashboard-port {dashboard} "
        f"--ray-client-server-port {client} --dashboard-agent-listen-port {agent} --min-worker-port 0 "
        f"--max-worker-port 0 --num-cpus 3 --object-store-memory 100000000 --temp-dir {folder}"
    ).split()
    env = environment(SECRET_FOR_TESTS=SECRET_OF_HEAD, PYTHONUNBUFFERED="1")
    with (folder / "head.log").open("w") as log:
        started = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), *words],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(started, f"http://127.0.0.1:{dashboard}", folder)
        address = (folder / "ray_current_cluster").read_text().strip()
        yield Head(f"http://127.0.0.1:{dashboard}", address, folder)
    finally:
        _end(started, folder)


def _wait(started: subprocess.Popen[bytes], dashboard: str, folder: Path) -> None:
    end = time.monotonic() + 150
    while time.monotonic() < end and started.poll() is None:
        asked = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        with suppress(OSError), urllib.request.urlopen(asked, timeout=5):
            if "Ray runtime started." in (folder / "head.log").read_text():
                return
        time.sleep(0.5)
    raise AssertionError(f"the head did not start: {(folder / 'head.log').read_text()[-2000:]}")


def _end(started: subprocess.Popen[bytes], folder: Path) -> None:
    """End the head, and every process that names its folder."""
    children = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
    started.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        started.wait(20)
    for one in [*children, *_naming(str(folder))]:
        with suppress(psutil.Error):
            one.kill()
    started.kill()
    started.wait()


def _naming(folder: str) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if one.pid != os.getpid() and any(folder in word for word in one.cmdline()):
                found.append(one)
    return found


def rayinf_command(words: Sequence[object], env: dict[str, str], folder: Path, timeout: float = 240.0):
    """The command in a process of its own; what it did, with `seconds`."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "rayinf", *map(str, words)],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    done.seconds = time.monotonic() - begin  # type: ignore[attr-defined]
    return done
