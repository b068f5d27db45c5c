"""The search for row ids that stand twice, and the scan of a table that is opened twice: processor seconds, memory.

python tests/benchmarks/ids.py [--rows 20000000] [--twice]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rayinf.data.batches import Columns
from rayinf.data.known_scans import known
from rayinf.data.repeated_ids import repeated_ids
from rayinf.data.tables import as_table

READ, SCANNED, WIDTH = 8192, 400_000, 50


def scan() -> None:
    """A table of 50 numbers a row, scanned, and opened again."""
    x = np.random.default_rng(0).standard_normal((SCANNED, WIDTH)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    columns = Columns(("features",), True, "label", None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        table = pa.table({"features": flat, "label": np.arange(SCANNED) % 10})
        pq.write_table(table, path, row_group_size=1 << 16, use_dictionary=False, compression="zstd")
        time.sleep(0.1)  # until a change of the file would show
        for what in ("scanned", "opened again"):
            begin = time.process_time()
            known.scan(as_table(path, [], [], "train"), columns, READ)
            print(f"{SCANNED:,} rows of {WIDTH} numbers, {what}: {1e3 * (time.process_time() - begin):.0f} ms")


def main() -> None:
    """A scan, and one search over shuffled integers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--twice", action="store_true", help="one id stands in two rows")
    options = parser.parse_args()
    scan()
    ids = np.random.default_rng(0).permutation(options.rows)
    if options.twice:
        ids[5] = ids[-7]
    passes = []

    def read() -> Iterator[np.ndarray]:
        passes.append(1)
        for start in range(0, len(ids), READ):
            yield ids[start : start + READ]

    pd.util.hash_array(ids[:3])  # loads code
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = repeated_ids(read, len(ids))
    seconds = time.process_time() - begin
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{len(ids):,} ids, {len(found)} twice: {seconds:.1f} s, {len(passes)} passes, {more:.0f} MiB more")


if __name__ == "__main__":
    main()
