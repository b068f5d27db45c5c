"""Processor seconds of the scan, the fit and the scoring pass of EKFAC, and peak memory, over tables of any length.

    python tests/benchmarks/fit.py [--rows 100000 10000000] [--width 50] [--folder FOLDER]

A network of WIDTH-64-10 on random float32 rows, `influence` by "total" with an `out`. Each run is a process of its own
with one thread. "fit" is all that stands between the scan and the scores, but the queries; "peak after the fit" is of
the time before the first row is scored.
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
import pyarrow as pa
import pyarrow.parquet as pq

GROUP, OUTPUTS = 1 << 20, 10
FIT = ("squares", "squares-valid", "norms", "norms-valid", "covariance", "basis", "lambda", "factors")


def write(path: Path, rows: int, width: int) -> None:
    """Random features, and labels that depend on them, a row group at a time."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((width, OUTPUTS), dtype=np.float32)
    schema = pa.schema([("features", pa.list_(pa.float32(), width)), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=False) as writer:
        for start in range(0, rows, GROUP):
            x = rng.standard_normal((min(GROUP, rows - start), width), dtype=np.float32)
            y = (x @ weights + 2 * rng.standard_normal((len(x), OUTPUTS), dtype=np.float32)).argmax(1)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), width)
            writer.write_table(pa.table({"features": flat, "label": y}, schema), row_group_size=GROUP)


def job(train: str, valid: str, width: int) -> None:
    """One run in this process; prints its seconds and its peaks."""
    time.perf_counter = time.process_time  # before the package takes it
    import torch
    from torch import nn

    import rayinf
    from rayinf.engine import pipeline, run

    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    torch.manual_seed(0)
    scan, score, seconds, peaks = run.scan_table, pipeline.score, {}, []

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    def timed_scan(runner: run.Runner, name: str, table: run.Table) -> run.TableScan:
        begin = time.process_time()
        found = scan(runner, name, table)
        seconds[f"scan {name}"] = time.process_time() - begin
        return found

    def noted_score(opened: run.Run, *given: object, **more: object) -> object:
        peaks.append(peak())
        found = score(opened, *given, **more)
        seconds.update(opened.seconds)
        return found

    run.scan_table, pipeline.score = timed_scan, noted_score
    task = rayinf.Task(nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, OUTPUTS)))
    with tempfile.TemporaryDirectory(dir=Path(train).parent) as out:
        rayinf.influence(task, train, valid, out=f"{out}/run")
    print(json.dumps({"seconds": seconds, "peaks": [*peaks, peak()]}))


def main() -> None:
    """Write the tables, run each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--width", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where the tables are written, and removed afterwards")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:  # in a process of its own, so that the tables' making is nobody's peak
        write(Path(options.write[0]), int(options.write[1]), options.width)
        return
    if options.job:
        job(*options.job, width=options.width)
        return
    me = [sys.executable, "-W", "ignore", __file__, "--width", str(options.width)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        subprocess.run([*me, "--write", f"{folder}/valid.parquet", "2000"], check=True)
        for rows in options.rows:
            train = f"{folder}/{rows}.parquet"
            subprocess.run([*me, "--write", train, str(rows)], check=True)
            command = [*me, "--job", train, f"{folder}/valid.parquet"]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(said.splitlines()[-1])
            seconds, (before, after) = found["seconds"], found["peaks"]
            scanned, scored = seconds["scan train"], seconds["scores"]
            fit = sum(seconds.get(name, 0.0) for name in FIT)
            print(f"{rows:>11,} rows: scan {scanned:.2f} s, fit {fit:.2f} s, scores {scored:.2f} s", flush=True)
            print(f"   fit / scores {fit / scored:.3f}; peak after the fit {before} MiB, at the end {after} MiB")
            print("  ", {name: round(value, 3) for name, value in seconds.items()}, flush=True)
            Path(train).unlink()


if __name__ == "__main__":
    main()
