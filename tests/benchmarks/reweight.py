"""The reweighting LP beside HiGHS on the whole program, and its peak memory over tables of different length.

    python tests/benchmarks/reweight.py speed [--rows 200000] [--classes 10] [--candidates 24] [--cold 2]
    python tests/benchmarks/reweight.py memory [--rows 100000 1000000] [--row-group 1048576]

`speed`: loose alphas (around 1) against highspy's default settings on the same program, model already built; and a
generation of candidates at 0.95 of the largest feasible alphas against HiGHS cold, presolve off, one thread (timed on
the first --cold of them and multiplied, as each takes long; these also check the objective). Both in one run.
`memory`: scores streamed from Parquet, weights into Parquet, each size in a process of its own; the peak is what the
operating system counted for it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import highspy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SETTINGS = {"presolve": "off", "solver": "simplex", "simplex_strategy": 1, "threads": 1, "parallel": "off"}


def influences(rows, classes, seed=0):
    """Every row helps or harms each class at random, with heavy tails."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, classes)) * rng.exponential(size=(rows, 1))


def whole(p, targets, floor, settings):
    """HiGHS with the whole program, 0 <= w <= 2, not yet run."""
    n, k = p.shape
    unit = np.abs(p).mean(0)
    highs = highspy.Highs()  # prints a banner
    for name, value in {"output_flag": False, **settings}.items():
        highs.setOptionValue(name, value)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_, lp.sense_ = n, k, highspy.ObjSense.kMaximize
    lp.col_cost_ = p[:, targets].sum(1) / unit[targets].sum()
    lp.col_lower_, lp.col_upper_ = np.zeros(n), np.full(n, 2.0)
    lp.row_lower_, lp.row_upper_ = floor / unit, np.full(k, highspy.kHighsInf)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.arange(n + 1, dtype=np.int32) * k
    lp.a_matrix_.index_ = np.tile(np.arange(k, dtype=np.int32), n)
    lp.a_matrix_.value_ = (p / unit).ravel()
    highs.passModel(lp)
    return highs, unit[targets].sum()


def timed(highs, scale):
    """Seconds of a cold run, and its objective."""
    begin = time.perf_counter()
    highs.run()
    seconds = time.perf_counter() - begin
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return seconds, highs.getInfo().objective_function_value * scale


def speed(rows, classes, candidates, cold):
    """Print seconds, their ratios and how far the objectives are apart."""
    from rayinf.pareto.lp import InfeasibleError, ReweightLP

    p, targets = influences(rows, classes), [0, 2]
    total = p.sum(0)
    begin = time.perf_counter()
    lp = ReweightLP(p, targets)
    print(f"{rows:,} rows x {classes} classes; survey and sample {time.perf_counter() - begin:.3f} s, once")

    loose = np.random.default_rng(1).uniform(0.9, 1.0, (5, classes))
    own = []
    for alpha in loose:
        begin = time.perf_counter()
        found = lp.solve(alpha)
        own.append(time.perf_counter() - begin)
    seconds, best = timed(*whole(p, targets, loose[-1] * total, {}))
    apart = abs(found.objective - best) / abs(best)
    print(
        f"loose: {np.median(own):.3f} s (median of {len(own)}), {found.passes} passes; highspy's defaults "
        f"{seconds:.2f} s: {seconds / np.median(own):.1f} times faster, objectives {apart:.1e} apart"
    )
    bare, _ = timed(*whole(p, targets, loose[-1] * total, SETTINGS))
    print(f"       HiGHS cold, presolve off {bare:.2f} s: {bare / np.median(own):.1f} times faster")

    try:
        lp.solve(1e9)
        top = 0.0
    except InfeasibleError as error:
        top = error.largest_alpha
    tight = 0.95 * top * np.random.default_rng(2).uniform(0.98, 1.0, (candidates, classes))
    begin = time.perf_counter()
    found = [lp.solve(alpha) for alpha in tight]
    generation = time.perf_counter() - begin
    passes = [f.passes for f in found]
    print(f"largest common alpha {top:.2f}")
    print(f"tight: {candidates} solves {generation:.2f} s, {min(passes)} to {max(passes)} passes")
    slow = []
    for alpha, f in zip(tight[:cold], found, strict=False):
        seconds, best = timed(*whole(p, targets, alpha * total, SETTINGS))
        slow.append(seconds)
        apart = abs(f.objective - best) / abs(best)
        print(f"       HiGHS cold, presolve off {seconds:.2f} s; objectives {apart:.1e} apart")
    share = generation / (np.mean(slow) * candidates)
    print(f"       a generation in {share:.3f} of the time of {candidates} cold solves")


def write(folder, rows, classes, group):
    """A finished run's scores: one shard, of large row groups."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from run_folders import write_run

    write_run(folder, [lambda file: fill(file, rows, classes, group)], {"classes": {}})


def fill(file, rows, classes, group):
    """Write the shard; its rows."""
    names = [f"category_{k}" for k in range(classes)]
    schema = pa.schema([("row_id", pa.int64()), *((n, pa.float64()) for n in names)])
    with pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=False, use_byte_stream_split=names, write_page_checksum=True
    ) as writer:
        for start in range(0, rows, group):
            p = influences(min(group, rows - start), classes, start)
            columns = {"row_id": np.arange(start, start + len(p)), **{n: p[:, k] for k, n in enumerate(names)}}
            writer.write_table(pa.table(columns, schema), row_group_size=group)
    return rows


def job(folder, alpha):
    """One streamed solve in this process; prints its peak."""
    import rayinf

    begin = time.perf_counter()
    scores = rayinf.Scores.load(folder)
    found = rayinf.reweight_lp(scores, ["category_0"], alpha=alpha, stream=True, out=Path(folder) / "weights.parquet")
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, "seconds": seconds, "passes": found.solution.passes, "rows": len(found)}))


def memory(sizes, classes, group):
    """Print peaks and their ratio."""
    me, peaks = [sys.executable, __file__], []
    with tempfile.TemporaryDirectory() as root:
        for rows in sizes:
            folder = f"{root}/{rows}"
            given = [folder, str(rows), str(classes), str(group)]
            subprocess.run([*me, "write", *given], check=True)
            told = subprocess.run([*me, "job", folder, "1.0"], check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(told.stdout)
            peaks.append(found["peak"])
            print(
                f"{found['rows']:>10,} rows: {found['peak']:8.1f} MiB peak, {found['seconds']:.2f} s, "
                f"{found['passes']} passes"
            )
        print(f"ratio {peaks[-1] / peaks[0]:.3f}")


def main():
    """Measure what is asked for."""
    given = sys.argv[1:]
    if given[:1] == ["write"]:  # in a process of its own, so that the making of a table is nobody's peak
        write(Path(given[1]), *map(int, given[2:]))
    elif given[:1] == ["job"]:
        job(given[1], float(given[2]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("what", choices=["speed", "memory"])
        parser.add_argument("--rows", type=int, nargs="+")
        parser.add_argument("--classes", type=int, default=10)
        parser.add_argument("--candidates", type=int, default=24)
        parser.add_argument("--cold", type=int, default=2)
        parser.add_argument("--row-group", type=int, default=1 << 20)
        asked = parser.parse_args()
        if asked.what == "speed":
            speed((asked.rows or [200_000])[0], asked.classes, asked.candidates, asked.cold)
        else:
            memory(asked.rows or [100_000, 1_000_000], asked.classes, asked.row_group)


if __name__ == "__main__":
    main()
