"""Side by side: results by key, in this process and on Ray, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import rayinf
from rayinf.engine import ray_session
from rayinf.engine.parallel import session, side_by_side, worker_pool

WORKERS = rayinf.Cluster(workers=2)


def square(x: int) -> tuple[int, int]:
    return x * x, os.getpid()


def refuse(x: int) -> int:
    if x == 3:
        raise rayinf.InputError(f"{x} is wrong.", "pass another.")
    return x


def stop(mark: Path, x: int) -> int:
    mark.write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60.0)  # another thread may take the signal, and this one go on for a moment
    return x


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_in_this_process_in_order():
    found = list(side_by_side(square, {"b": 2, "a": 1}, None))
    assert found == [("b", (4, os.getpid())), ("a", (1, os.getpid()))]


def test_on_ray(ray_session):
    items = {("k", x): x for x in range(7)}
    found = dict(side_by_side(square, items, WORKERS))
    assert {k: v[0] for k, v in found.items()} == {("k", x): x * x for x in range(7)}
    processes = {v[1] for v in found.values()}
    assert os.getpid() not in processes and len(processes) == 2
    assert list(side_by_side(square, {}, WORKERS)) == []


@pytest.mark.parametrize("cluster", [None, rayinf.Cluster(workers=1)])
def test_errors_come_as_they_were_raised(ray_session, cluster):
    with pytest.raises(rayinf.InputError, match="3 is wrong"):
        list(side_by_side(refuse, {x: x for x in range(5)}, cluster))


@pytest.mark.slow
def test_long_items_are_waited_for_and_hopeless_ones_given_up(ray_session, tmp_path):
    ticks = []
    cluster = rayinf.Cluster(workers=1, patience=8.0)
    assert dict(side_by_side(sleep, {0: 18.0}, cluster, lambda: ticks.append(1))) == {0: 18.0}
    assert len(ticks) >= 5
    try:
        with pytest.raises(rayinf.RunError, match="Nothing moved in 8 s: Item 7 does not answer"):
            list(side_by_side(partial(stop, tmp_path / "pid"), {7: 0}, cluster))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_no_session_without_a_cluster(monkeypatch):
    opened = []

    @contextmanager
    def connected():
        opened.append(1)
        yield

    monkeypatch.setattr(ray_session, "connected", connected)
    with session(None):
        assert list(side_by_side(abs, {0: -1}, None)) == [(0, 1)]
    assert not opened
    with session(WORKERS):
        assert opened


class Counting:
    """Says how often this object was called, in which process; dies once when told to."""

    def __init__(self, mark: Path | None = None) -> None:
        self.calls, self.mark = 0, mark

    def __call__(self, x: int) -> tuple[int, int, int]:
        if self.mark is not None and x == 5 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        return x * x, self.calls, os.getpid()


def test_standing_keeps_the_function_in_this_process():
    with worker_pool(Counting(), None) as calls:
        assert list(calls({0: 2, 1: 3})) == [(0, (4, 1, os.getpid())), (1, (9, 2, os.getpid()))]
        assert list(calls({0: 4})) == [(0, (16, 3, os.getpid()))]


@pytest.mark.chaos
def test_standing_keeps_workers_and_their_state_over_sets_and_survives_the_death_of_one(ray_session, tmp_path):
    with worker_pool(Counting(tmp_path / "dead"), rayinf.Cluster(workers=2)) as calls:
        first, second = (dict(calls({k: k for k in range(4)})) for _ in range(2))
        others = [dict(calls({k: k for k in range(8)})) for _ in range(2)]  # 5 kills its process, once
    assert [first[k][0] for k in range(4)] == [second[k][0] for k in range(4)] == [0, 1, 4, 9]
    processes = {v[2] for v in first.values()}
    assert {v[2] for v in second.values()} <= processes and os.getpid() not in processes
    assert max(v[1] for v in second.values()) > max(v[1] for v in first.values())  # counted on from the first set
    assert (tmp_path / "dead").exists()
    for other in others:
        assert {k: v[0] for k, v in other.items()} == {k: k * k for k in range(8)}
