"""Peak memory of a whole run (scan, fit, score) over tables of different length: it must not grow with the rows.

    python tests/benchmarks/memory.py [--rows 100000 1000000] [--columns 100] [--row-group 1048576]

Each run is a process of its own; the peak is what the operating system counted for it.
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


def write(path: Path, rows: int, columns: int, group: int) -> None:
    """Random features, labels that depend on them, written a row group at a time."""
    rng = np.random.default_rng(0)
    kind = pa.list_(pa.float32(), columns)
    schema = pa.schema([("features", kind), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=False) as writer:
        for start in range(0, rows, group):
            x = rng.standard_normal((min(group, rows - start), columns), dtype=np.float32)
            y = (x[:, 0] + rng.standard_normal(len(x)) > 0).astype(np.int64)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), columns)
            writer.write_table(pa.table({"features": flat, "label": y}, schema), row_group_size=group)


def job(curvature: str, train: str, valid: str, columns: int) -> None:
    """One run in this process; prints its peak and its rows a second."""
    import torch
    from torch import nn

    import rayinf

    torch.manual_seed(0)
    if curvature == "exact":
        model: nn.Module = nn.Linear(columns, 2)
    else:
        model = nn.Sequential(nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, 2))
    task = rayinf.Task(model, l2=1e-3)
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        scores = rayinf.influence(task, train, valid, ["total", "category"], curvature=curvature, out=f"{out}/run")
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"rows": len(scores), "peak_mib": round(peak, 1), "seconds": round(seconds, 2)}))


def main() -> None:
    """Write the tables, run each in its own process, print the peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--row-group", type=int, default=1 << 20)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:  # in a process of its own, so that the tables' making is nobody's peak
        write(Path(options.write[0]), int(options.write[1]), options.columns, options.row_group)
        return
    if options.job:
        job(*options.job, columns=options.columns)
        return
    sizes = ["--columns", str(options.columns), "--row-group", str(options.row_group)]
    me = [sys.executable, __file__, *sizes]
    with tempfile.TemporaryDirectory() as folder:
        valid = Path(folder) / "valid.parquet"
        write(valid, 2000, options.columns, 1 << 20)
        for rows in options.rows:
            subprocess.run([*me, "--write", f"{folder}/{rows}.parquet", str(rows)], check=True)
        for curvature in ("exact", "ekfac"):
            peaks = []
            for rows in options.rows:
                command = [*me, "--job", curvature, f"{folder}/{rows}.parquet", str(valid)]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(told.stdout)
                peaks.append(found["peak_mib"])
                print(f"{curvature:>6} {rows:>10,} rows: {peaks[-1]:8.1f} MiB peak, {found['seconds']:.1f} s")
            print(f"{curvature:>6} ratio {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
