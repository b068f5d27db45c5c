"""A Ray that a run starts on this machine: on the loopback device, with a token, whenever `ray` was imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine import own_ray
from engine.ray_head import ROOT, environment

import rayinf
from rayinf.engine import ray_cluster, ray_token
from rayinf.errors import RunError


@pytest.mark.slow
@pytest.mark.ray
def test_a_local_ray_is_on_loopback_and_has_a_token(tmp_path: Path) -> None:
    """Its workers have the token, another process is refused, the home folder and the environment stay as they are.

    `ray` was not imported before; `test_jobs_on_ray.py` has the case where it was.
    """
    env = environment(None, HOME=str(tmp_path), PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    code = "import json; from engine import own_ray; print(json.dumps(own_ray.look()))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    own_ray.check(json.loads(done.stdout))
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
