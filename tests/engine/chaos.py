"""Runs of every verb on a cluster of a head and a node a worker, in each of which something fails at a random moment.

    python tests/engine/chaos.py STATE [--seeds 0 1 2 ...] [--kinds worker store ...] [--workers 2]

A run must end with the bytes of an undisturbed one, or stop with one line and, called again, end with them. What fails
is by chance a worker, the store of factors, a worker's node with all that is on it, the driver's node, the GCS, the
driver, the disk (it is full) or the object stores (they are full). Results are kept in STATE line by line, so that the
command goes on where it stopped. Without seeds it does 0 to 199. A disk that fills up needs the right to mount; without
it the driver is killed instead. The exit code is 1 where a run was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine import fault_jobs as jobs
from engine.full_disk import mount
from engine.kills import judge, load
from engine.nodes import HOME, TITLES, Nodes

KINDS = ("worker", "store", "node", "driver", "disk", "gcs", "objects", "head")
VERBS = tuple(jobs.VERBS)
_WITHOUT_RAY = ("reweight_lp",)
_LARGE, _PAGE = 64 << 20, 4096
_STUCK_SECONDS = 240.0
# How often a run that has stopped is called again: on a busy machine a node may be lost once more.
_CALLS = 2
# The exit code of an error that is no `RayinfError`. Ray itself ends drivers with 1.
_RAW = 3
# Ray ends a driver without a word whose node or GCS is lost.
_WORDLESS = ("driver", "head", "gcs")


@dataclass
class Chaos:
    """What the trials share.

    Attributes:
        state: folder of tables, undisturbed runs and results.
        tables: of the jobs.
        workers: of each run; each has a node of its own.
        nodes: the cluster that stands now.
        bounds: by verb, the seconds after its first sign of work within which something fails.
    """

    state: Path
    tables: jobs.Tables
    workers: int = 2
    nodes: Nodes | None = None
    bounds: dict[str, float] = field(default_factory=dict)

    def cluster(self) -> Nodes:
        """The cluster, started if there is none."""
        self.nodes = self.nodes or Nodes(self.workers)
        return self.nodes

    def drop(self) -> None:
        """End the cluster."""
        if self.nodes is not None:
            self.nodes.close()
            self.nodes = None

    def calm(self, verb: str) -> Path:
        """The folder of an undisturbed run in one process."""
        folder = self.state / f"{verb}-calm"
        if not folder.exists():
            assert os.waitpid(self._fork(verb, folder, ""), 0)[1] == 0, self.told()
        return folder

    def told(self) -> str:
        """What the last driver has printed."""
        return (self.state / "driver.txt").read_text()

    def start(self, verb: str, out: Path) -> int:
        """A driver that joins the cluster: its process's number."""
        return self._fork(verb, out, self.cluster().address)

    def _fork(self, verb: str, out: Path, address: str) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 0
        with (self.state / "driver.txt").open("w") as told:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            try:
                _drive(verb, self.tables, out, rayinf_cluster(address, self.workers))
            except BaseException as error:
                from rayinf.errors import RayinfError

                code = 2 if isinstance(error, RayinfError) else _RAW
                print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(code)


def _drive(verb: str, tables: jobs.Tables, out: Path, cluster: Any) -> None:
    os.environ |= {"PYTHONPATH": f"{HOME}:{HOME.parent}", "RAY_gcs_rpc_server_reconnect_timeout_s": "15"}
    jobs.run(verb, tables, out, cluster)


def rayinf_cluster(address: str, workers: int) -> Any:
    """The cluster at an address; None without one."""
    import rayinf

    return rayinf.Cluster(address, workers=workers, patience=120) if address else None


def trial(chaos: Chaos, seed: int, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """One run in which something fails, and what was wrong with it in the end ("" where nothing was)."""
    rng = random.Random(f"chaos-{seed}")
    verb = VERBS[seed % len(VERBS)]
    kind = rng.choice(("driver", "disk") if verb in _WITHOUT_RAY else kinds)
    if kind == "disk" and not can_mount(chaos.state):
        kind = "driver"
    calm = chaos.calm(verb)
    with folder(chaos, calm, kind, rng) as (out, make_room):
        for left in reversed(range(6)):
            if left == 2 and kind in ("store", "worker"):  # the verb may have none
                kind = "node"
            begin = time.monotonic()
            moment = rng.uniform(0, chaos.bounds.get(verb, 10.0))
            code, struck = _disturbed(chaos, verb, out, kind, moment, rng)
            if struck or code or not left or kind == "disk":
                break
            chaos.bounds[verb] = max(moment / 2, 0.2)  # it had ended by then
            shutil.rmtree(out)
        stopped = chaos.told().strip().splitlines()[-1:] if code else []
        raw = code == _RAW or (code not in (0, 2) and kind not in _WORDLESS)
        first = time.monotonic() - begin
        _mend(chaos, kind)
        make_room()
        for _ in range(_CALLS):
            if code:
                code = _end(chaos.start(verb, out), _STUCK_SECONDS)
        wrong = judge(verb, code, out, calm) + (f" {chaos.told()[-300:]}" if code else "")
        wrong += f" raw error: {stopped}" if raw else ""
        wrong += f" failed undisturbed: {stopped}" if stopped and not struck else ""
    seconds = {"first": round(first, 1), "whole": round(time.monotonic() - begin, 1)}
    found = {"seed": seed, "verb": verb, "kind": kind, "struck": struck, "moment": round(moment, 2), **seconds}
    return {**found, "stopped": stopped, "wrong": wrong.strip()}


def _disturbed(chaos: Chaos, verb: str, out: Path, kind: str, moment: float, rng: random.Random) -> tuple[int, bool]:
    """The exit code of a run in which something failed (a negative one is a signal), and whether it did."""
    pid = chaos.start(verb, out)
    if kind == "disk":  # its size is what fails
        code = _end(pid, _STUCK_SECONDS)
        return code, code != 0
    end = time.monotonic() + _STUCK_SECONDS
    working, due = verb in _WITHOUT_RAY, time.monotonic() + moment
    while time.monotonic() < end and not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if not working and chaos.cluster().processes(*TITLES["worker"], *TITLES["store"]):
            working, due = True, time.monotonic() + moment
        if working and time.monotonic() >= due:
            if kind == "driver":
                os.kill(pid, 9)
                return _end(pid, 10), True
            if chaos.cluster().strike(kind, rng):
                if kind == "node" and (chaos.workers == 1 or rng.random() < 0.5):
                    chaos.cluster().join()
                return _end(pid, end - time.monotonic()), True
        time.sleep(0.05)
    return (os.waitstatus_to_exitcode(ended[1]) if ended[0] else _end(pid, 0)), False


def _end(pid: int, seconds: float) -> int:
    """A process's exit code when it has ended; it is killed where it takes too long, and 99 is returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status) % 256
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 99


def _mend(chaos: Chaos, kind: str) -> None:
    """Bring the cluster back to what it was."""
    if kind in ("gcs", "head"):
        chaos.drop()
    elif kind == "node":
        chaos.cluster().refill()


@contextmanager
def folder(chaos: Chaos, calm: Path, kind: str, rng: random.Random) -> Iterator[tuple[Path, Any]]:
    """Where a run writes, and what makes room there."""
    place = chaos.state / "disk"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if kind != "disk":
        yield place / "run", lambda: None
        return
    whole = sum(-(-p.stat().st_size // _PAGE) * _PAGE for p in calm.rglob("*") if p.is_file())
    mount(place, _PAGE + int(rng.uniform(0, whole)))
    try:
        yield place / "run", lambda: mount(place, _LARGE, again=True)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def can_mount(state: Path) -> bool:
    """Whether this process may mount a file system."""
    place = state / "mount"
    place.mkdir(exist_ok=True)
    try:
        mount(place, _PAGE)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


def table(held: list[dict[str, Any]]) -> str:
    """What failed how often, what came of it, and the seconds of the runs."""
    lines = [f"{'kind':<8} {'runs':>5} {'struck':>7} {'stopped':>8} {'wrong':>6} {'median seconds':>15}"]
    for kind in KINDS:
        rows = [r for r in held if r["kind"] == kind]
        if rows:
            counts = [sum(bool(r[k]) for r in rows) for k in ("struck", "stopped", "wrong")]
            median = statistics.median(r["whole"] for r in rows)
            lines.append(f"{kind:<8} {len(rows):>5} {counts[0]:>7} {counts[1]:>8} {counts[2]:>6} {median:>15.1f}")
    return "\n".join(lines)


def main() -> None:
    """All seeds that are not in the results yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(200))
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    results = options.state / "chaos.jsonl"
    held = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    chaos = Chaos(options.state, jobs.make_tables(options.state), options.workers)
    load()
    try:
        for seed in sorted({*options.seeds} - {r["seed"] for r in held}):
            held.append(trial(chaos, seed, tuple(options.kinds)))
            with results.open("a") as file:
                file.write(json.dumps(held[-1]) + "\n")
            print(held[-1], flush=True)
    finally:
        chaos.drop()
    print(table(held))
    sys.exit(any(r["wrong"] for r in held))


if __name__ == "__main__":
    main()
