"""Value the rows of many days as a job; then the rows of a new day with the old model, its factors and its n.

    python examples/cluster/valuation.py --quick
    python examples/cluster/valuation.py --store s3://BUCKET/valuation --address http://HEAD:8265 --workers 100

The table is a folder with a Parquet file a day; some days have more wrong labels than others. The first job values all
rows of the days on which the model was trained. Then a day is appended. The second job values its rows only: with the
same model, and with the curvature factors of the first job, so that it makes one pass over the new rows.

A value is the change of the validation loss for a row in a training set of n rows. The model was trained without the
new day, so its n is that of the first job. `metadata["factors_from"]` of the second job holds both: `rows`, the n of
the factors, and `n`, the n that its values are for. Values are proportional to 1/n, so multiplying them by n / rows
brings them to the old n.

The same command again finds both runs finished and shows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from digits import draw_rows, train_model
from jobs import Store, open_jobs, read_options
from rich.console import Console
from rich.table import Table

import rayinf

DAYS = 6
# The share of wrong labels on a day.
WRONG = [0.02, 0.02, 0.15, 0.02, 0.02, 0.10]
NEW = f"day-{DAYS}"


def write_days(store: Store, rows: int) -> None:
    """Tables of the days, the last one apart from the others, and of the validation rows, unless they are there."""
    each = rows // (DAYS - 1)
    if "valid.parquet" in store.names(""):
        held = sum(store.read(f"days/day-{k + 1}.parquet", ["row_id"]).num_rows for k in range(DAYS - 1))
        if held != each * (DAYS - 1):
            raise SystemExit(f"{store.place} holds {held:,} rows, not {each * (DAYS - 1):,}: pass another --store")
        return
    for k in range(DAYS):
        folder = "days" if k < DAYS - 1 else "appended"
        store.write(f"{folder}/day-{k + 1}.parquet", draw_rows(each, seed=k, first_id=k * each, flip=WRONG[k]))
    store.write("valid.parquet", draw_rows(max(500, rows // 20), seed=DAYS))


def on_old_n(scores: rayinf.Scores) -> np.ndarray:
    """The total of rows that were valued with the factors of other rows, in a training set of those rows' number."""
    source = scores.metadata["factors_from"]
    return scores.to_pandas()["total"].to_numpy() * (source["n"] / source["rows"])


def show(store: Store, console: Console) -> None:
    """Rows and values a day."""
    first = rayinf.Scores.load(store.uri("runs/days"))
    new = rayinf.Scores.load(store.uri("runs/appended"))
    source = new.metadata["factors_from"]
    console.print(
        f"The new day's {source['n']:,} rows were valued with the factors of {source['rows']:,} rows "
        f"({source['folder']}); their values below are those in a training set of {source['rows']:,} rows.",
        soft_wrap=True,
    )
    ids = np.concatenate([first.to_pandas()["row_id"], new.to_pandas()["row_id"]])
    values = np.concatenate([first.to_pandas()["total"], on_old_n(new)])
    known = pa.concat_tables(store.read(part, ["row_id", "label", "true_label"]) for part in ("days", "appended"))
    known = known.to_pandas().set_index("row_id").loc[ids]
    wrong = (known.label != known.true_label).to_numpy()
    day = ids // (source["rows"] // (DAYS - 1)) + 1
    table = Table(title="Values by day", title_justify="left")
    for heading in ("day", "rows", "sum of values", "harmful rows", "wrong labels", "of these harmful"):
        table.add_column(heading, justify="right")
    for k in range(1, DAYS + 1):
        own = day == k
        harmful = values[own] < 0
        of_wrong = harmful[wrong[own]].mean() if wrong[own].any() else float("nan")
        name = f"{k} (new)" if k == DAYS else str(k)
        cells = [f"{own.sum():,}", f"{values[own].sum():+.3g}", f"{harmful.mean():.0%}", f"{wrong[own].sum():,}"]
        table.add_row(name, *cells, f"{of_wrong:.0%}")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Tables, two jobs, a table of days."""
    args = read_options(__doc__, "valuation", argv)
    store: Store = args.store
    write_days(store, args.rows)
    weights = store.write_weights("model.pt", train_model(store.read("days")))
    shared = {"valid": store.uri("valid.parquet"), "objective": ["total", "category"]}
    with open_jobs(args) as jobs:
        days = {"train": store.uri("days"), **shared, "out": store.uri("runs/days")}
        seconds = [jobs.run("influence", days, weights)]
        appended = {"train": store.uri(f"appended/{NEW}.parquet"), **shared, "factors": store.uri("runs/days")}
        seconds.append(jobs.run("influence", {**appended, "out": store.uri("runs/appended")}, weights))
    console = Console()
    show(store, console)
    console.print(f"Jobs: {seconds[0]:.0f} s and {seconds[1]:.0f} s, starting them included. Everything: {store.place}")


if __name__ == "__main__":
    main()
