"""Rows decoded, seconds and processor seconds of a run on Ray over a table of one large row group.

    PYTHONPATH=tests python tests/benchmarks/row_group.py FOLDER [--rows 2000000] [--workers 4] [--alone]
        [--curvature ggn]

The workers are there before the clock starts, readers are not. With `--alone` workers read for themselves. Ray gives
its processes a niceness of 15: set RAY_worker_niceness=0 on a machine that others use too.
"""

import argparse
import hashlib
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from engine import counted_reads

import rayinf
from rayinf.engine import ray_prefetch, ray_runner, ray_session

WIDTH = 50


def write(path: Path, rows: int) -> None:
    """Rows of float32 in one row group."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    y = (x[:, 0] + rng.normal(size=rows) > 0).astype(np.int64)
    table = pa.table({"features": flat, "label": y})
    pq.write_table(table, path, row_group_size=rows, compression="zstd", compression_level=1, use_dictionary=False)


class Processor:
    """Processor seconds of this process and of all below it, by what they are."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[str, float]] = {}
        self._before = {pid: seconds for pid, (_, seconds) in self._look().items()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _look(self) -> dict[int, tuple[str, float]]:
        for process in (own := psutil.Process(), *own.children(recursive=True)):
            try:
                title, times = " ".join(process.cmdline()).strip(), process.cpu_times()
            except psutil.Error:
                continue
            name = "driver" if process == own else title.partition(".")[0] if title.startswith("ray::") else "Ray"
            if name != "ray::IDLE" or process.pid not in self._held:
                self._held[process.pid] = name, times.user + times.system
        return self._held

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._look()

    def end(self) -> dict[str, float]:
        """Seconds since the start; processes that ended meanwhile are counted to the second before."""
        self._ended.set()
        self._thread.join()
        found: dict[str, float] = {}
        for pid, (name, seconds) in self._look().items():
            found[name] = found.get(name, 0.0) + seconds - self._before.get(pid, 0.0)
        return {name: round(seconds, 1) for name, seconds in found.items()}


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--curvature", default="ggn")
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    counts, out, train = (options.folder / name for name in ("counts", "out", f"{options.rows}.parquet"))
    for old in (counts, out):
        shutil.rmtree(old, ignore_errors=True)
    counts.mkdir(parents=True)
    if not train.exists():
        write(train, options.rows)
    ray_runner.WorkerActor = counted_reads.worker_of(counts)
    ray_prefetch.ReaderActor = counted_reads.reader_of(counts)
    if options.alone:
        ray_prefetch._FEWEST_SHARDS = options.rows
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, WIDTH)).astype(np.float32)
    valid = (x, (x[:, 0] > 0).astype(np.int64))
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(torch.nn.Linear(WIDTH, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    task = rayinf.logistic_regression(valid, l2=0.1) if options.curvature == "ggn" else rayinf.Task(mlp)
    given = {"curvature": options.curvature, "damping": 0.1}
    given["cluster"] = rayinf.Cluster(workers=options.workers, cpus_per_worker=2 / options.workers)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with ray_session.connected():
        rayinf.influence(task, valid, valid, **given)
        decoded = counted_reads.decoded(counts, "worker")
        processor, begin = Processor(), time.monotonic()
        rayinf.influence(task, str(train), valid, out=out, **given)
        seconds, used = time.monotonic() - begin, processor.end()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    by_workers, by_readers = counted_reads.decoded(counts, "worker") - decoded, counted_reads.decoded(counts, "reader")
    parts = sorted((out / "scores").glob("part-*"))
    found = {
        "seconds": round(seconds, 1),
        "stages": {line["name"]: line["seconds"] for line in lines if line["event"] == "stage"},
        "processor": used,
        "decoded by workers, by readers, times the rows": [n / options.rows for n in (by_workers, by_readers)],
        "scores": hashlib.sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()[:12],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
