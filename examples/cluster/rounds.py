"""Active learning with annotators: each round is one job, and between two jobs people label rows.

    python examples/cluster/rounds.py --quick
    python examples/cluster/rounds.py --store /shared/rounds --address http://HEAD:8265 --workers 100

The store has a folder `labels/`. A job trains on the rows that are labelled, measures the model, picks the rows of the
pool that are most worth a label, writes their ids to `labels/ask-*.parquet`, and ends: no machine waits for people. The
annotators write `labels/labels-*.parquet` (row_id, label) beside it. The same job, submitted again, goes on from there.

Here, `annotate` stands for the people: the pool's true labels are known. The same command again goes on after the last
finished round.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from digits import draw_rows, train_model
from jobs import Store, open_jobs, read_options
from rich.console import Console

ROUNDS, QUICK_ROUNDS = 5, 1
FIRST = 60
ASK, LABELS = "ask-", "labels-"


def write_tables(store: Store, rows: int) -> None:
    """A few labelled rows, a pool without labels, test rows, and what the annotators know; unless they are there."""
    if "known.parquet" in store.names("annotators"):
        return
    store.write("labeled.parquet", draw_rows(FIRST, seed=0).select(["row_id", "pixels", "label"]))
    pool = draw_rows(rows, seed=1, first_id=FIRST)
    store.write("pool.parquet", pool.select(["row_id", "pixels"]))
    store.write("test.parquet", draw_rows(max(500, rows // 20), seed=2, first_id=FIRST + rows))
    store.make_folder("labels")
    store.write("annotators/known.parquet", pool.select(["row_id", "label"]))


def annotate(store: Store) -> int:
    """Answer every question in the label folder that has no answer yet.

    Returns:
        How many rows were labelled.
    """
    names = store.names("labels")
    known = store.read("annotators/known.parquet")
    answered = 0
    for name in names:
        answer = LABELS + name.removeprefix(ASK)
        if not name.startswith(ASK) or answer in names:
            continue
        wanted = store.read(f"labels/{name}", ["row_id"])
        rows = wanted.join(known, "row_id")
        store.write(f"labels/{answer}", pa.table({"row_id": rows["row_id"], "label": rows["label"]}))
        answered += rows.num_rows
    return answered


def main(argv: Sequence[str] | None = None) -> None:
    """A job, people, a job, people, and so on."""
    args = read_options(__doc__, "rounds", argv)
    store: Store = args.store
    write_tables(store, args.rows)
    rounds, n = (QUICK_ROUNDS, 40) if args.quick else (ROUNDS, max(20, args.rows // 200))
    config = {
        **{name: store.uri(f"{name}.parquet") for name in ("labeled", "pool", "test")},
        "oracle": store.uri("labels"),
        "rounds": rounds,
        "n": n,
        "strategy": "fi",
        "out": store.uri("runs/rounds"),
    }
    weights = store.write_weights("model.pt", train_model(store.read("labeled.parquet")))
    console = Console()
    with open_jobs(args) as jobs:
        for k in range(rounds + 1):
            seconds = jobs.run("active-learning", config, weights)
            labelled = annotate(store)
            console.print(f"Job {k + 1} took {seconds:.0f} s; the annotators labelled {labelled} rows.")
            if not labelled:
                break
    console.print(f"Learning curve and rows of each round: {store.uri('runs/rounds')}", soft_wrap=True)


if __name__ == "__main__":
    main()
