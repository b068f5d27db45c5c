"""A Ray head on this machine, for a time: free ports, a folder of its own, and a token that every call must bring.

It stands in for a real cluster in `--quick` runs and in tests. Other Ray heads on the machine are not touched.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# A head ends while it starts if an agent of its node needs more than 15 seconds, as on a busy machine.
_STARTS, _START_SECONDS = 3, 90.0
_STARTED = "Ray runtime started."
_STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")


@dataclass(frozen=True)
class LocalHead:
    """A head that is running.

    Attributes:
        gcs: host and port, what `Cluster(address=...)` and `ray start --address` take.
        dashboard: where jobs are submitted.
        env: environment variables of a process that may use the head: RAY_ADDRESS, and the token.
    """

    gcs: str
    dashboard: str
    env: Mapping[str, str]


@contextmanager
def local_head(cpus: int = 2) -> Generator[LocalHead]:
    """Start a head with token authentication, and stop it and all that it has started at the end.

    Args:
        cpus: that Ray offers, whatever the machine has.

    Raises:
        RuntimeError: it does not start, tried three times.
    """
    with ExitStack() as stack:
        for left in reversed(range(_STARTS)):
            try:
                head = stack.enter_context(_head(cpus))
                break
            except RuntimeError:
                if not left:
                    raise
        yield head


@contextmanager
def _head(cpus: int) -> Generator[LocalHead]:
    folder = Path(tempfile.mkdtemp(prefix="head-"))  # short: Ray puts sockets there, whose paths have a limit
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    gcs, dashboard = f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}"
    bin_folder = str(Path(sys.executable).parent)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": gcs,
        "PYTHONUNBUFFERED": "1",
    }
    own = {k: v for k, v in env.items() if k != "RAY_ADDRESS"}
    command = [str(Path(bin_folder) / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = folder / "start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=own, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent
        )
    try:
        _wait(process, dashboard, env["RAY_AUTH_TOKEN"], log)
        yield LocalHead(gcs, dashboard, env)
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    """Have Linux stop the head where the script is killed before it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    """Ports that are free, all different."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def _wait(process: subprocess.Popen[bytes], dashboard: str, token: str, log: Path) -> None:
    """Until the head takes jobs, and its node has joined it.

    Raises:
        RuntimeError: it ends or does not answer in time.
    """
    request = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == 200 and _STARTED in log.read_text(errors="replace"):
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.3)
    raise RuntimeError(f"the local Ray head did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End `ray start --block`, which ends what it has started; and whatever of its session is left."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=_STOP_SECONDS)
