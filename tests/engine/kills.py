"""Series of SIGKILLs at random moments, of every verb in one process; then the same call once more.

    python tests/engine/kills.py STATE [--verbs influence pairs ...] [--series 10] [--kills 6] [--seed 0]

STATE is a folder: results are kept in it line by line, so that the command goes on where it stopped. `chaos.py` does
the like on a cluster.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine import fault_jobs as jobs


def load() -> None:
    """Import what the verbs import when they are called, so that forks need not."""
    import rayinf

    for module in ("sklearn.ensemble", "sklearn.tree"):
        importlib.import_module(module)
    for name in rayinf.__all__:
        getattr(rayinf, name)


def fork(verb: str, tables: jobs.Tables, out: Path) -> int:
    """A driver as a fork of this process, which has computed nothing: it starts at once."""
    pid = os.fork()
    if pid == 0:
        try:
            jobs.run(verb, tables, out)
        except BaseException as error:
            print(f"{verb}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def series(verb: str, tables: jobs.Tables, place: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """One series in process: what was wrong in the end ("" where nothing was)."""
    calm, out = place / f"{verb}-calm", place / f"{verb}-killed"
    begin = time.monotonic()
    if not calm.exists():
        assert os.waitpid(fork(verb, tables, calm), 0)[1] == 0
        (place / f"{verb}-seconds").write_text(str(time.monotonic() - begin))
    seconds = float((place / f"{verb}-seconds").read_text())
    shutil.rmtree(out, ignore_errors=True)
    struck = 0
    for _ in range(kills):
        pid = fork(verb, tables, out)
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        struck += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    code = os.waitpid(fork(verb, tables, out), 0)[1]
    return {"verb": verb, "kills": struck, "wrong": judge(verb, code, out, calm)}


def judge(verb: str, code: int, out: Path, calm: Path) -> str:
    """What is wrong with a run that was killed and run again."""
    if code != 0:
        return f"stuck: exit {code}"
    found, truth = jobs.digest(out), jobs.digest(calm)
    names = sorted(n for n in {*found, *truth} if found.get(n) != truth.get(n))
    return (
        f"other bytes: {names[:5]}"
        if names
        else (f"left behind: {jobs.leftovers(out)[:5]}" if jobs.leftovers(out) else "")
    )


def main() -> None:
    """All series that are not in the results yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--verbs", nargs="+", default=list(jobs.VERBS))
    parser.add_argument("--series", type=int, default=10)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    results = options.state / "kills.jsonl"
    held = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    tables = jobs.make_tables(options.state)
    load()
    for number in range(options.series):
        for verb in options.verbs:
            if any(r["verb"] == verb and r["series"] == number for r in held):
                continue
            rng = random.Random(f"{options.seed}-{verb}-{number}")
            found = series(verb, tables, options.state, options.kills, rng)
            held.append({**found, "series": number})
            with results.open("a") as file:
                file.write(json.dumps(held[-1]) + "\n")
            if found["wrong"]:
                print(held[-1], flush=True)
    kills, wrong = Counter[str](), Counter[str]()
    for r in held:
        kills[r["verb"]] += r["kills"]
        wrong[r["verb"]] += bool(r["wrong"])
    for verb in options.verbs:
        print(
            f"{verb:<20} {sum(r['verb'] == verb for r in held):>4} series, {kills[verb]:>4} kills, {wrong[verb]} wrong"
        )
    print(f"in all {len(held)} series, {sum(kills.values())} kills, {sum(wrong.values())} wrong")


if __name__ == "__main__":
    main()
