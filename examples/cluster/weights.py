"""Search row weights on a cluster: influence vectors as one job, the genetic search (Pareto-LP-GA) as the next.

    python examples/cluster/weights.py --quick
    python examples/cluster/weights.py --store s3://BUCKET/weights --address http://HEAD:8265 --workers 24

The training rows of two classes have wrong labels, so that the model is weak there. The first job values every row for
every class. The second one searches weights of the rows that lift these two classes and spare the others: it trains a
population of candidates, one in each worker, generation by generation. Every candidate is kept in the store, so the
same command again goes on after the last one.

With 24 workers a generation of 24 candidates trains at once; more workers than candidates find nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from digits import draw_rows, train_model
from jobs import Store, open_jobs, read_options
from rich.console import Console

TARGETS = [3, 8]
WRONG = 0.3
SEARCH = {"lr": 0.005, "prefer": 4.0}
QUICK_SEARCH = {
    **dict.fromkeys(("elites", "mutated_elites", "randoms", "crossover_children"), 1),
    "iterations": 2,
    **SEARCH,
}


def spoil(table: pa.Table) -> pa.Table:
    """Some rows of each target class get the label of the other."""
    label = table["label"].to_numpy().copy()
    drawn = np.random.default_rng(0).random(len(label)) < WRONG
    first, second = (label == t for t in TARGETS)
    label[first & drawn], label[second & drawn] = TARGETS[1], TARGETS[0]
    return table.set_column(table.column_names.index("label"), "label", pa.array(label))


def write_tables(store: Store, rows: int) -> None:
    """Training and validation rows, unless they are there."""
    if "valid.parquet" not in store.names(""):
        store.write("train.parquet", spoil(draw_rows(rows, seed=0)))
        store.write("valid.parquet", draw_rows(max(500, rows // 20), seed=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Tables, two jobs, the mean weight of right and wrong labels."""
    args = read_options(__doc__, "weights", argv)
    store: Store = args.store
    write_tables(store, args.rows)
    weights = store.write_weights("model.pt", train_model(store.read("train.parquet")))
    tables = {"train": store.uri("train.parquet"), "valid": store.uri("valid.parquet")}
    search = {"targets": TARGETS, "search": QUICK_SEARCH if args.quick else SEARCH}
    with open_jobs(args) as jobs:
        config = {**tables, "objective": "category", "halves": True, "out": store.uri("runs/scores")}
        seconds = [jobs.run("influence", config, weights)]
        config = {**tables, "scores": store.uri("runs/scores"), **search, "out": store.uri("runs/weights")}
        seconds.append(jobs.run("reweight", config, weights))
    found = store.read("runs/weights/weights.parquet").to_pandas().set_index("row_id")["weight"]
    known = store.read("train.parquet", ["row_id", "label", "true_label"]).to_pandas().set_index("row_id")
    wrong = known.label != known.true_label
    console = Console()
    console.print(
        f"Mean weight of the {wrong.sum():,} rows with a wrong label: {found[wrong[wrong].index].mean():.3f}; "
        f"of the other {(~wrong).sum():,}: {found[wrong[~wrong].index].mean():.3f}."
    )
    console.print(f"Jobs: {seconds[0]:.0f} s and {seconds[1]:.0f} s, starting them included. Everything: {store.place}")


if __name__ == "__main__":
    main()
