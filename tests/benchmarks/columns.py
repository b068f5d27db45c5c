"""Many columns: "total" and "category" of a linear head, in a process each; and kronfluence on the same rows.

    python tests/benchmarks/columns.py --classes 5000 --inputs 512 --rows 20000 --valid 10000 --curvature kfac
    python tests/benchmarks/columns.py --classes 1000 --inputs 512 --rows 10000 --valid 5000 --peer /path/to/python

Classes are Gaussian with means in random directions, and the head is Bayes' rule for them. Printed are the seconds of
the whole run and of its steps, the processor's seconds, and the peak that the operating system counted. `--peer` is the
Python of an environment with kronfluence: it fits EKFAC and scores all classes in one run (`peer.py`, `--way grouped`).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_APART = 0.15
_HERE = Path(__file__).parent


def export(folder: Path, classes: int, inputs: int, rows: int, valid: int) -> None:
    """`rows.npz` and `model.safetensors`, as the peer reads them."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    means = _APART * rng.standard_normal((classes, inputs), dtype=np.float32)
    size = (1 / np.sqrt(np.arange(1, inputs + 1))).astype(np.float32)
    held = {}
    for part, count in (("train", rows), ("valid", valid)):
        y = np.arange(count) % classes
        held[f"{part}_y"] = y
        held[f"{part}_x"] = (means[y] + rng.standard_normal((count, inputs), dtype=np.float32)) * size
    np.savez(folder / "rows.npz", **held)
    bias = -(means**2).sum(1) / 2
    save_file({"0.weight": means / size, "0.bias": bias}, folder / "model.safetensors")


def job(folder: Path, objective: str, curvature: str, threads: int) -> dict[str, object]:
    """One run in this process."""
    import torch
    from safetensors.torch import load_file

    import rayinf

    torch.set_num_threads(threads)
    weights = load_file(folder / "model.safetensors")
    head = torch.nn.Linear(*weights["0.weight"].T.shape)
    head.load_state_dict({k.removeprefix("0."): v for k, v in weights.items()})
    held = np.load(folder / "rows.npz")
    train, valid = ((held[f"{part}_x"], held[f"{part}_y"]) for part in ("train", "valid"))
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    scores = rayinf.influence(rayinf.Task(head), train, valid, objective, curvature=curvature, out=folder / "run")
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "processor_seconds": round(_processor(resource.RUSAGE_SELF) - before.ru_utime - before.ru_stime, 1),
        "peak_mib": _peak(resource.RUSAGE_SELF),
        "columns": len(scores.columns),
    }


def steps(folder: Path) -> dict[str, float]:
    """Seconds of the run's steps, tiles added up."""
    found: dict[str, float] = {}
    for line in (folder / "run" / "log.jsonl").read_text().splitlines():
        held = json.loads(line)
        if held.get("event") == "stage":
            name = held["name"].partition("-")[0]
            found[name] = round(found.get(name, 0.0) + held["seconds"], 1)
    return found


def peer(python: str, folder: Path, threads: int) -> dict[str, object]:
    """kronfluence in a process of its own."""
    before, begin = _processor(resource.RUSAGE_CHILDREN), time.perf_counter()
    out = folder / "peer.json"
    script = _HERE / "kronfluence" / "peer.py"
    given = ["--fisher", "true", "--threads", str(threads), "--way", "grouped", "--out", str(out)]
    subprocess.run([python, str(script), str(folder), *given], check=True)
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "processor_seconds": round(_processor(resource.RUSAGE_CHILDREN) - before, 1),
        "peak_mib": _peak(resource.RUSAGE_CHILDREN),
        **json.loads(out.read_text())["seconds"],
    }


def _processor(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _peak(who: int) -> float:
    return round(resource.getrusage(who).ru_maxrss / 1024)


def main() -> None:
    """Write the rows, run each side in its own process, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 5000), ("inputs", 512), ("rows", 20_000), ("valid", 10_000), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--curvature", default="kfac")
    parser.add_argument("--objectives", nargs="+", default=["total", "category"])
    parser.add_argument("--peer", help="the Python of an environment with kronfluence")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:  # in a process of its own, so that its peak is nobody else's
        print(json.dumps(job(Path(options.job[0]), options.job[1], options.curvature, options.threads)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder, options.classes, options.inputs, options.rows, options.valid)
        if options.peer:
            print(json.dumps({"peer": "kronfluence", **peer(options.peer, folder, options.threads)}), flush=True)
        for objective in options.objectives:
            own = ["--curvature", options.curvature, "--threads", str(options.threads)]
            command = [sys.executable, __file__, *own, "--job", name, objective]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(json.dumps({"objective": objective, **json.loads(told), "steps": steps(folder)}), flush=True)
            subprocess.run(["rm", "-rf", str(folder / "run")], check=True)


if __name__ == "__main__":
    main()
