"""Time and driver memory a shard, of a training table of very many tiny shards: files of one row, or row groups.

    python tests/benchmarks/shards.py FOLDER [--shards 1200 120000] [--groups] [--workers 1 2 8] [--no-fsync]

Each count is a run of `influence` in a process of its own, into FOLDER: seconds and peak memory, the order of the ids,
and what `verify` says. The memory a shard is the difference of the peaks, divided by that of the counts. With
`--workers` each count is run on Ray too, with so many workers (a start of Ray is in the seconds of both counts).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH = 3


def write(folder: Path, shards: int, groups: bool) -> Path:
    """The training table; ids are not positions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(shards, WIDTH)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=shards) > 0).astype(np.int64)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    table = pa.table({"features": flat, "label": y, "row_id": np.arange(shards)[::-1] + 7})
    where = folder / f"train-{shards}{'-groups' if groups else ''}"
    if not where.exists():
        where.mkdir(parents=True)
        if groups:
            pq.write_table(table, where / "all.parquet", row_group_size=1)
        else:
            for k in range(shards):
                pq.write_table(table.slice(k, 1), where / f"{k:07d}.parquet", compression="none", use_dictionary=False)
    return where


def job(train: Path, out: Path, workers: int, fsync: bool) -> None:
    """One run, in this process where there are no workers; prints its figures."""
    import rayinf
    from rayinf.data import disk

    if not fsync:
        disk._force = lambda path: None
    cluster = rayinf.Cluster(workers=workers, cpus_per_worker=min(1.0, 2 / workers)) if workers else None
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, WIDTH)).astype(np.float32)
    valid = (x, (x[:, 0] > 0).astype(np.int64))
    task = rayinf.logistic_regression(valid, l2=0.1)
    begin, processor = time.monotonic(), time.process_time()
    scores = rayinf.influence(task, str(train), valid, curvature="ggn", damping=0.1, out=out, cluster=cluster)
    seconds, processor = time.monotonic() - begin, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    ids = scores.select(["row_id"])["row_id"].to_numpy()
    ordered = bool((ids == np.arange(len(ids))[::-1] + 7).all())
    print(
        json.dumps(
            {
                "seconds": seconds,
                "processor": processor,
                "peak": peak,
                "ordered": ordered,
                "verify": rayinf.verify(out).to_text(),
            }
        )
    )


def main() -> None:
    """All counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, nargs="+", default=[1200, 120_000])
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--no-fsync", action="store_true")
    parser.add_argument("--job", nargs=2, type=Path)
    options = parser.parse_args()
    if options.job:
        job(*options.job, options.workers[0], not options.no_fsync)
        return
    for workers in options.workers:
        compare(options, workers)


def compare(options: argparse.Namespace, workers: int) -> None:
    """All counts of shards with so many workers."""
    found = {}
    for shards in options.shards:
        train = write(options.folder, shards, options.groups)
        command = [sys.executable, __file__, str(options.folder), "--job", str(train), f"{train}-run-{workers}"]
        command += ["--workers", str(workers), *(["--no-fsync"] if options.no_fsync else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[shards] = json.loads(done.stdout.splitlines()[-1])
        print(f"{workers} workers, {shards:>8} shards: {found[shards]}", flush=True)
    few, most = min(found), max(found)
    if few < most:
        slope = (found[most]["peak"] - found[few]["peak"]) / (most - few)
        extra = (found[most]["seconds"] - found[few]["seconds"]) / (most - few)
        own = (found[most]["processor"] - found[few]["processor"]) / (most - few)
        print(
            f"{workers} workers, a shard: {slope:.0f} bytes of peak memory, {1e3 * extra:.2f} ms, "
            f"{1e3 * own:.2f} of the processor in this process"
        )


if __name__ == "__main__":
    main()
