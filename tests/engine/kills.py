"""Series of SIGKILLs at random moments, of every verb, in one process or joined to Ray; then the same call once more.

    python tests/engine/kills.py STATE [--verbs influence pairs ...] [--series 10] [--kills 6] [--seed 0] [--ray]

STATE is a folder: results are kept in it line by line, so that the command goes on where it stopped. With `--ray` a
local head is started, drivers join it, and what is killed is the driver, a worker or the store, by chance.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine import fault_jobs as jobs

_DRIVER = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from pathlib import Path\n"
    "from engine import fault_jobs as jobs\n"
    "import rayinf\n"
    "tables = jobs.Tables(*(Path(sys.argv[3]) / f'{n}.parquet' for n in ('train', 'valid', 'many')))\n"
    "cluster = rayinf.Cluster(address=sys.argv[5], workers=2) if sys.argv[5] else None\n"
    "jobs.run(sys.argv[2], tables, Path(sys.argv[4]), cluster)\n"
)


def start(verb: str, state: Path, out: Path, address: str) -> subprocess.Popen[str]:
    """A driver in a process of its own."""
    home = Path(__file__).parent.parent
    command = [sys.executable, "-c", _DRIVER, str(home), verb, str(state), str(out), address]
    env = {**os.environ, "PYTHONPATH": f"{home}:{home.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


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


def on_ray(verb: str, state: Path, address: str, rng: random.Random) -> dict[str, Any]:
    """One kill of a driver, worker or store on a cluster, then the same call until it ends."""
    calm, out = state / f"{verb}-calm-ray", state / f"{verb}-killed-ray"
    if not calm.exists():
        begin = time.monotonic()
        process = start(verb, state, calm, address)
        assert process.wait() == 0, process.stderr.read() if process.stderr else ""
        (state / f"{verb}-seconds-ray").write_text(str(time.monotonic() - begin))
    seconds = float((state / f"{verb}-seconds-ray").read_text())
    shutil.rmtree(out, ignore_errors=True)
    process, victim = start(verb, state, out, address), rng.choice(["driver", "worker", "store"])
    time.sleep(rng.uniform(0.3 * seconds, 0.9 * seconds))
    struck = strike(process, victim)
    code = process.wait()
    if victim == "driver" or code != 0:
        again = start(verb, state, out, address)
        code = again.wait()
        told = again.stderr.read()[-300:] if again.stderr and code else ""
    else:
        told = ""
    return {"verb": verb, "victim": victim, "kills": struck, "wrong": judge(verb, code, out, calm) + told}


def strike(process: subprocess.Popen[str], victim: str) -> int:
    """Kill the driver, or a process of Ray's of that kind as soon as there is one; how many were killed."""
    import psutil

    titles = {"worker": ("ray::_Actor", "ray::_TrainingActor"), "store": ("ray::_Store",), "driver": ()}[victim]
    while process.poll() is None:
        if victim == "driver":
            process.kill()
            return 1
        for p in psutil.process_iter(["cmdline"]):
            if " ".join(p.info["cmdline"] or []).startswith(titles):
                p.kill()
                return 1
        time.sleep(0.05)
    return 0


def main() -> None:
    """All series that are not in the results yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--verbs", nargs="+", default=list(jobs.VERBS))
    parser.add_argument("--series", type=int, default=10)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    results = options.state / ("ray.jsonl" if options.ray else "kills.jsonl")
    held = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    tables = jobs.make_tables(options.state)
    load()
    address = ""
    if options.ray:
        import ray

        home = Path(__file__).parent.parent
        env = {"env_vars": {"PYTHONPATH": f"{home}:{home.parent}"}}
        context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=env)
        address = context.address_info["gcs_address"]
    for number in range(options.series):
        for verb in options.verbs:
            if any(r["verb"] == verb and r["series"] == number for r in held):
                continue
            rng = random.Random(f"{options.seed}-{verb}-{number}")
            found = (
                on_ray(verb, options.state, address, rng)
                if options.ray
                else series(verb, tables, options.state, options.kills, rng)
            )
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
