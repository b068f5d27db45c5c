"""Time and peak memory of `rayinf.ceiling` on scores in Parquet, by HiGHS on the whole LP and by cuts over passes.

    python tests/benchmarks/ceiling.py [--rows 100000 1000000] [--classes 10] [--halves] [--methods highs cuts]

Each run is a process of its own; the peak is what the operating system counted for it, less what imports take. Beside
the time stands the floor: one reading of the columns, times the passes that the certificate took and one for the rest.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

SHARD = 100_000


def write(folder: Path, rows: int, classes: int, halves: bool) -> None:
    """Scores of a run."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from run_folders import write_run

    write_run(folder, shards(rows, classes, halves), {"classes": {str(k): k for k in range(classes)}})


def shards(rows: int, classes: int, halves: bool) -> Iterator[pa.Table]:
    """Heavy-tailed vectors, mostly good for the row's own class, shard by shard."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, SHARD):
        size = min(SHARD, rows - start)
        own = rng.integers(0, classes, size)
        p = -0.3 * np.abs(rng.standard_normal((size, classes)))
        p[np.arange(size), own] += 2 * np.abs(rng.standard_normal(size))
        p = (p + 0.3 * rng.standard_normal(p.shape)) * np.exp(rng.standard_normal((size, 1)))
        columns = {"row_id": np.arange(start, start + size), ":label": own}
        columns |= {f"category_{k}": p[:, k] for k in range(classes)}
        if halves:
            noise = 0.3 * rng.standard_normal(p.shape)
            for name, half in (("first_half:", p / 2 + noise), ("second_half:", p / 2 - noise)):
                columns |= {f"{name}category_{k}": half[:, k] for k in range(classes)}
        yield pa.table(columns)


def job(folder: str, method: str) -> None:
    """One run in this process; prints its time, its peak and its passes."""
    import rayinf
    from rayinf.data.vectors import Vectors

    scores = rayinf.Scores.load(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    report = rayinf.ceiling(scores, method=method)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    for _ in Vectors.of(scores).joint():
        pass
    reading = time.perf_counter() - begin
    passes = 1 + report.passes
    told = {"seconds": seconds, "floor": reading * passes, "passes": passes, "gain": report.gain, "gap": report.gap}
    print(json.dumps({**told, "cross_fit": report.cross_fit, "imports_mib": before, "peak_mib": peak}))


def main() -> None:
    """Write the scores, run each method in its own process, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--halves", action="store_true", help="cross-fitted too: three times the columns")
    parser.add_argument("--methods", nargs="+", default=["highs", "cuts"])
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(*options.job)
        return
    with tempfile.TemporaryDirectory() as place:
        for rows in options.rows:
            folder = Path(place) / str(rows)
            write(folder, rows, options.classes, options.halves)
            for method in options.methods:
                command = [sys.executable, __file__, "--job", str(folder), method]
                told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                print(
                    f"{rows:>11,} rows {method:>5}: {told['seconds']:7.2f} s (floor {told['floor']:6.2f} s, "
                    f"{told['passes']} passes), peak {told['peak_mib']:7.0f} MiB of which imports "
                    f"{told['imports_mib']:.0f}, gain {told['gain']:.6f}, gap {told['gap']:.1e}, "
                    f"cross-fit {told['cross_fit']}"
                )


if __name__ == "__main__":
    main()
