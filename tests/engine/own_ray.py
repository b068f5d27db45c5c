"""A Ray that a run starts on this machine and ends again, as the run's own process sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import psutil

import rayinf
from rayinf.engine.parallel import session, side_by_side

CLUSTER = rayinf.Cluster(workers=1)
_ASK = "import sys; from rayinf.engine.ray_address import _refusal; print(_refusal(sys.argv[1]))"


def token(_: Any) -> tuple[str | None, int]:
    """How a worker identifies itself: the mode, and the length of its token."""
    return os.environ.get("RAY_AUTH_MODE"), len(os.environ.get("RAY_AUTH_TOKEN", ""))


def look() -> dict[str, Any]:
    """Two runs in one session, and what there is to see of their Ray. `ray` may have been imported, or not."""
    before = dict(os.environ)
    with session(CLUSTER):
        import ray

        early = ray.is_initialized()
        tokens = list(side_by_side(token, {0: 0}, CLUSTER))
        node = ray.get_runtime_context().get_node_id()
        values = list(side_by_side(abs, {0: -3}, CLUSTER))
        address = ray.get_runtime_context().gcs_address
        children = psutil.Process().children(recursive=True)
        sockets = [c for p in children for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        asked = subprocess.run([sys.executable, "-c", _ASK, address], capture_output=True, text=True, check=False)
        same = ray.get_runtime_context().get_node_id() == node
    changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
    return {
        "tokens": tokens,
        "values": values,
        "listens": sorted({c.laddr.ip for c in sockets}),
        "host": address.rpartition(":")[0],
        "refused": asked.stdout.strip(),
        "changed": sorted(k for k in changed if "AUTH" in k or "CLUSTER" in k),
        "before, same node, after": [early, same, ray.is_initialized()],
    }


def check(found: dict[str, Any]) -> None:
    """It has a token, which its workers have, listens on loopback alone, is one for both runs, and is gone.

    Args:
        found: what `look` gave, through JSON.
    """
    assert found["tokens"] == [[0, ["token", 64]]]
    assert found["values"] == [[0, 3]]
    assert set(found["listens"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert found["host"] == "127.0.0.1"
    assert "asks for a token" in found["refused"]
    assert found["changed"] == []
    assert found["before, same node, after"] == [False, True, False]
