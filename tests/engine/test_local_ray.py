"""A Ray that a run starts on this machine: on the loopback device, with a token, whenever `ray` was imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine.ray_head import environment

import rayinf
from rayinf.engine import ray_cluster, ray_token
from rayinf.errors import RunError

LOOK = """
import os, subprocess, sys
{first}
import psutil, rayinf
from rayinf.engine import parallel


def look(_):
    return os.environ.get("RAY_AUTH_MODE"), len(os.environ.get("RAY_AUTH_TOKEN", ""))


before = dict(os.environ)
cluster = rayinf.Cluster(workers=1)
with parallel.worker_pool(look, cluster) as calls:
    print(list(calls({{0: 0}})))
    import ray
    head = psutil.Process().children(recursive=True)
    found = {{c.laddr.ip for p in head for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}}
    print(sorted(found))
    address = ray.get_runtime_context().gcs_address
    print(address.rpartition(":")[0])
    asked = "import sys; from rayinf.engine.ray_address import _refusal; print(_refusal(sys.argv[1]))"
    print(subprocess.run([sys.executable, "-c", asked, address], capture_output=True, text=True).stdout.strip())
changed = {{k for k in {{*before, *os.environ}} if before.get(k) != os.environ.get(k)}}
print(sorted(k for k in changed if "AUTH" in k or "CLUSTER" in k))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("first", ["", "import ray"])
def test_a_local_ray_is_on_loopback_and_has_a_token(tmp_path: Path, first: str) -> None:
    """Its workers have the token, another process is refused, the home folder and the environment stay as they are."""
    env = environment(None, HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(first=first)], env=env, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "[(0, ('token', 64))]", done.stderr[-2000:]
    assert set(lines[1].strip("[]").replace("'", "").split(", ")) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert lines[2] == "127.0.0.1"
    assert "asks for a token" in lines[3]
    assert lines[4] == "[]"
    assert not list(tmp_path.rglob("auth_token"))


def test_what_the_environment_says_of_authentication_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_token.ray, "is_initialized", lambda: False)
    for name in [n for n in os.environ if n.startswith("RAY_AUTH_")]:
        monkeypatch.delenv(name)
    with ray_token.guarded():
        assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/file")
    with ray_token.guarded():
        assert "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_token.guarded():
        assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ
    ray_token.read_again()


@pytest.mark.parametrize("bad", [2, 9])
def test_a_ray_that_ends_while_it_starts_is_started_anew(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    """Three times at most: its node ends where the machine is so busy that its agents start late."""
    left = [Exception("The current node timed out during startup.\nSee the logs.")] * bad

    def init(**options: object) -> None:
        if left:
            raise left.pop()

    monkeypatch.setattr(ray_cluster.ray, "init", init)
    cluster = rayinf.Cluster(workers=1)
    if bad == 2:
        ray_cluster._init(cluster, 0)
        assert not left
        return
    with pytest.raises(RunError, match=r"tried 3 times: The current node timed out during startup\. Fix: wait") as e:
        ray_cluster._init(cluster, 0)
    assert "\n" not in str(e.value)
    assert len(left) == bad - 3


def test_options_that_ray_refuses_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def init(**options: object) -> None:
        calls.append(options)
        raise ValueError("runtime_env: no such key")

    monkeypatch.setattr(ray_cluster.ray, "init", init)
    with pytest.raises(ValueError, match="no such key"):
        ray_cluster._init(rayinf.Cluster(workers=1), 0)
    assert len(calls) == 1
