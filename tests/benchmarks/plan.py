"""Peak memory and processor seconds of a run, beside what `plan` says of it; each in a process of its own.

    python tests/benchmarks/plan.py [--widths 1024 1024 10] [--rows 512] [--valid 64] [--verb influence] [--threads 1]

A network with ReLU between the widths, random rows. Seconds are of the processor, in both, so that other programs have
no part in them; with one thread they are those of a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn


def problem(widths: list[int], rows: int, valid: int) -> tuple[nn.Module, Any, Any]:
    """The network and both tables."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    rng = np.random.default_rng(0)
    tables = [(rng.standard_normal((n, widths[0])).astype("f4"), np.arange(n) % widths[-1]) for n in (rows, valid)]
    return nn.Sequential(*layers[:-1]).eval(), tables[0], tables[1]


def job(options: argparse.Namespace) -> dict[str, Any]:
    """A run or a plan in this process."""
    time.perf_counter = time.process_time  # before the package takes it
    import rayinf

    torch.set_num_threads(options.threads)
    model, train, valid = problem(options.widths, options.rows, options.valid)
    task = rayinf.Task(model)
    if options.job == "plan":
        cost = rayinf.plan(task, train, valid, verb=options.verb)
        return {"seconds": {s.name: round(s.seconds, 2) for s in cost.stages}, "gib": cost.memory / 2**30}
    given = {} if options.verb == "self_influence" else {"valid": valid}
    scores = getattr(rayinf, options.verb)(task, train, **given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": {k: round(v, 2) for k, v in scores.metadata["seconds"].items()}, "gib": peak}


def main() -> None:
    """A run, then a plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 1024, 10])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--valid", type=int, default=64)
    parser.add_argument("--verb", default="influence", choices=("influence", "self_influence"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--job", choices=("run", "plan"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(options)))
        return
    for kind in ("run", "plan"):
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--job", kind]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{kind}: {sum(found['seconds'].values()):.1f} s, {found['gib']:.2f} GiB; {found['seconds']}", flush=True)


if __name__ == "__main__":
    main()
