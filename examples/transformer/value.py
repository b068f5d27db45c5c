"""Value the rows of one table in a process of its own, and print what that took: run.py calls this.

    python examples/transformer/value.py MODEL.pt TRAIN.parquet VALID.parquet SCORES.parquet --length 48 --layers 6

The last line printed is JSON: rows, seconds (all, and of each stage) and the peak memory of the process in MiB, as the
operating system counted it (null elsewhere than on Linux, which alone counts it for one process).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from minilm import make_task, pretrained

import rayinf

# The true Fisher of four classes takes four backward passes a row where the empirical one takes one.
FISHER = "empirical"


def peak_mib() -> float | None:
    """Peak resident memory of this process; `ru_maxrss` would start at that of the process which called it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Value the rows, write their scores, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "valid", "scores"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--length", type=int, required=True, help="tokens a text")
    parser.add_argument("--layers", type=int, required=True, help="encoder layers that are valued, from the last")
    args = parser.parse_args(argv)
    state = torch.load(args.model, weights_only=True)
    model = pretrained(0, len(state["head.bias"]))
    model.load_state_dict(state)
    task = make_task(model, args.length, args.layers)
    begin = time.perf_counter()
    scores = rayinf.influence(task, str(args.train), str(args.valid), fisher=FISHER)
    seconds = time.perf_counter() - begin
    scores.to_pandas().to_parquet(args.scores)
    stages = scores.metadata["seconds"]
    print(json.dumps({"rows": len(scores), "seconds": seconds, "stages": stages, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
