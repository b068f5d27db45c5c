"""One writer a run in a store: by conditional puts, and by the heartbeat alone where there are none."""

import json
import threading
import time

import pytest

from rayinf.data import lease, store_lease
from rayinf.data.files import try_to_remove
from rayinf.data.lease import LEASE, Lease, holder
from rayinf.errors import InputError, RunError
from rayinf.store.places import open_place


@pytest.fixture(params=["s3", "memory"])
def folder(request, tmp_path, monkeypatch):
    """With conditions, and without."""
    monkeypatch.setattr(store_lease, "SETTLE_SECONDS", 0.4)
    monkeypatch.setattr(store_lease, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(store_lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(store_lease, "_POLL_SECONDS", 0.1)
    if request.param == "memory":
        place = open_place(f"memory://{tmp_path.name}/run")
        try_to_remove(place)
        return place
    return open_place(f"s3://bucket/{tmp_path.name}{request.getfixturevalue('s3').options}")


def put(folder, content):
    (folder / LEASE).put(json.dumps(content).encode())


def foreign(**more):
    return {"name": "other", "machine": "elsewhere", "host": "elsewhere", "pid": 7, "since": "then", **more}


def test_taken_and_given_back(folder):
    held = Lease.acquire(folder)
    assert holder(folder)["age"] < 60
    with pytest.raises(InputError, match=r"is in use: process \d+ on .* since .*Fix: wait"):
        Lease.acquire(folder)
    held.check()
    held.release()
    assert holder(folder) is None and not (folder / LEASE).exists()
    Lease.acquire(folder).release()


def test_a_holder_on_another_machine_that_gives_signs_of_life(folder):
    put(folder, foreign(beat=0))
    stop = threading.Event()

    def beat():
        k = 0
        while not stop.wait(0.2):
            k += 1
            put(folder, foreign(beat=k))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 7 on elsewhere"):
            Lease.acquire(folder)
    finally:
        stop.set()
        thread.join()
    begin = time.monotonic()
    held = Lease.acquire(folder)  # it stands still now
    assert time.monotonic() - begin >= 1.0
    held.release()


def test_a_dead_process_of_this_machine(folder):
    put(folder, {**foreign(), "machine": lease.process.machine(), "pid": 2**22 - 1, "started": 1})
    assert holder(folder) is None
    begin = time.monotonic()
    Lease.acquire(folder).release()
    assert time.monotonic() - begin < 5


def test_a_damaged_lease(folder):
    (folder / LEASE).put(b"{")
    Lease.acquire(folder).release()


def test_a_lease_that_was_taken_over_is_noticed(folder):
    held = Lease.acquire(folder)
    put(folder, foreign())
    end = time.monotonic() + 10
    while time.monotonic() < end and not held._heart.lost:
        time.sleep(0.05)
    with pytest.raises(RunError, match=r"was taken over by another process.*Fix: "):
        held.check()
    held.release()
    assert (folder / LEASE).exists()  # that of the other


def test_of_many_at_once_one_gets_it(folder):
    put(folder, {**foreign(), "machine": lease.process.machine(), "pid": 2**22 - 1, "started": 1})
    got, refused, ready = [], [], threading.Barrier(5)

    def take():
        ready.wait()
        try:
            got.append(Lease.acquire(folder))
        except InputError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (len(got), len(refused)) == (1, 4)
    got[0].check()
    got[0].release()


def test_a_store_that_looks_at_no_condition(s3, tmp_path, monkeypatch):
    """It answers a conditional put as if there were no condition: found out, and the heartbeat is used."""
    from rayinf.store.conditional import ConditionalObject

    def careless(self, content, mode):
        self.place.put(content)
        return "tag"

    monkeypatch.setattr(store_lease, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(ConditionalObject, "_put", careless)
    folder = open_place(f"s3://bucket/{tmp_path.name}{s3.options}")
    held = Lease.acquire(folder)
    with pytest.raises(InputError, match="is in use"):
        Lease.acquire(folder)
    held.release()


def test_an_answer_that_was_lost_was_a_success(s3, tmp_path):
    """The put is made again, and finds its own object."""
    s3.kinds, s3.share = ("lost",), 0.4
    for k in range(4):
        folder = open_place(f"s3://bucket/{tmp_path.name}-{k}{s3.options}")
        held = Lease.acquire(folder)
        held.check()
        held.release()
    assert s3.failed["lost"] > 0
