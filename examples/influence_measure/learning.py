"""Active learning over several draws of the rows: one history of all, and its table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import pyarrow as pa
from common import spread
from rich.console import Console
from rich.table import Table

import rayinf


def joined(histories: Iterable[rayinf.History]) -> rayinf.History:
    """One history of draws under different seeds."""
    held = list(histories)
    picked = dict(chain.from_iterable(h.picked.items() for h in held))
    return rayinf.History(pa.concat_tables([h.table for h in held]), picked)


def show(title: str, history: rayinf.History, paper: str, console: Console) -> None:
    """Accuracy averaged over rounds 1 to the last, leads of FI and of its batch form draw by draw, and seconds."""
    frame = history.to_pandas()
    frame["accuracy"] *= 100
    later = frame[frame["round"] > 0]
    runs = later.pivot_table(index="seed", columns="strategy", values="accuracy")
    last = later[later["round"] == later["round"].max()].groupby("strategy")["accuracy"]
    first = frame[frame["round"] == 0].groupby("seed")["accuracy"].first()
    table = Table(
        title=f"{title}: test accuracy, {len(runs)} seeds, {later['round'].max()} rounds",
        caption=f"in %, mean ± standard deviation over seeds; before the first round {spread(first)}",
    )
    batch = ["fi_batch less it"] if "fi_batch" in runs else []
    leads = ("FI less it", "seeds FI better", *batch)
    for heading in ("strategy", "mean over rounds", *leads, "last round", "s an acquisition"):
        table.add_column(heading, justify="left" if heading == "strategy" else "right")
    for strategy in frame["strategy"].unique():
        lead = runs["fi"] - runs[strategy]
        cells = ["", ""] if strategy == "fi" else [spread(lead, "+"), f"{(lead > 0).sum()} of {len(lead)}"]
        cells += ["" if strategy == "fi_batch" else spread(runs["fi_batch"] - runs[strategy], "+") for _ in batch]
        seconds = later[later["strategy"] == strategy]["acquire_seconds"].mean()
        final = spread(last.get_group(strategy))
        table.add_row(strategy, spread(runs[strategy]), *cells, final, f"{seconds:.3f}")
    console.print(table)
    means = runs.mean()
    under = [s for s in means.index if s != "fi" and means[s] < means["fi"]]
    console.print(f"Here: FI is above {', '.join(under) or 'none'}.\nPaper (pictures, no figures): {paper}")
