"""What a command prints of a result: a few numbers, the rows that stand out, and where the files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayinf.api.history import History
from rayinf.data.pairs import Pairs
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.selection import Selection
from rayinf.engine.fit_quality import fit_line
from rayinf.engine.left_out import VALUED
from rayinf.select.top_rows import TopRows
from rayinf.store.places import AnyPath

_TOP = 5
_SHOWN_COLUMNS = 8
_SHOWN_CLASSES = 20
_SHOWN_ROUNDS = 21


def print_fit(metadata: Mapping[str, Any], warn: bool = False) -> None:
    """Print how well the model fits the rows that it was valued on.

    Args:
        metadata: of scores or a selection.
        warn: say again what the run warned of.
    """
    fit = metadata.get("fit")
    line = fit_line(fit)
    if line is not None:
        typer.echo(line)
    rows = sum(s["count"] for s in metadata.get("skipped", ()) if s["stage"] in VALUED)
    if rows:
        typer.echo(f"{rows:,} rows have no value: their shards were left out (skipped in run.json lists them)")
    for text in (fit or {}).get("warnings", []) if warn else []:
        typer.echo(f"Warning: {text}", err=True)


def print_influence(scores: Scores) -> None:
    """Print how many rows were valued, which matter most, and where the scores lie."""
    names = scores.columns
    shown = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
    typer.echo(f"{len(scores):,} rows, {len(names)} column{'s' if len(names) > 1 else ''}: {shown}")
    print_fit(scores.metadata)
    best = most(scores, names[0])
    if best is not None:
        rows = [
            (low_id, f"{low:+.4g}", high_id, f"{high:+.4g}")
            for (low_id, low), (high_id, high) in zip(_pairs(best.harms), _pairs(best.helps), strict=True)
        ]
        headings = ("most harmful row_id", "value", "most helpful row_id", "value")
        _print_table(f"{names[0]}: positive helps, negative harms", headings, rows)
    for column, details in scores.metadata.get("objective_details", {}).items():
        if "signed" in details:
            gaps = f"{details['signed']:+.4f} on the validation rows, {details['hard']:.4f} of predictions"
            typer.echo(f"{column}: a gap of {gaps}")
        elif "accuracy" in details:
            typer.echo(f"{column}: {details['accuracy']:.1%} of the attacked validation rows are classified right")
    _print_place(scores)


def print_measure(scores: Scores) -> None:
    """Print how many rows were measured, the highest values, and how good the approximations are."""
    found = scores.metadata
    measured = found.get("rows_measured", len(scores))
    typer.echo(f"{len(scores):,} rows" + (f", {measured:,} of them measured" if measured < len(scores) else ""))
    print_fit(found)
    column = "fi_rank" if "fi_rank" in scores.columns else "fi"
    _print_highest(scores, column, "the higher, the more the fit depends on the row")
    if "one_hot_rows" in found:
        typer.echo(f"Rows with one-hot probabilities, whose fi is 0: {found['one_hot_rows']:,}")
    if "captured_share" in found:
        least = found["least_captured_share"]
        typer.echo(f"Rank {found['rank']} keeps {found['captured_share']:.1%} of a row's norm (least: {least:.1%})")
    _print_forest(found)
    _print_place(scores)


def print_self_influence(scores: Scores) -> None:
    """Print how many rows were valued, the highest values, and where the scores lie."""
    typer.echo(f"{len(scores):,} rows")
    print_fit(scores.metadata)
    _print_highest(scores, "self_influence", "large for rows that are unlike the others, or mislabelled")
    _print_place(scores)


def print_pairs(pairs: Pairs) -> None:
    """Print how many pairs were found, the strongest of the first validation row, and where all lie."""
    table = pairs.table
    typer.echo(f"{len(table):,} pairs")
    print_fit(pairs.metadata)
    if len(table):
        first = table["valid_row_id"][0]
        strongest = table.filter(pc.and_(pc.equal(table["valid_row_id"], first), pc.less(table["rank"], _TOP)))
        rows = [(line["effect"], line["row_id"], f"{line['value']:+.4g}") for line in strongest.to_pylist()]
        _print_table(f"Validation row {first}", ("effect", "row_id", "value"), rows)
    if pairs.path is not None:
        typer.echo(f"Pairs: {pairs.path / 'pairs'}")


def print_acquire(selection: Selection, strategy: str, out: AnyPath, file: AnyPath) -> None:
    """Print which rows were picked first, and where all picks and all values lie.

    Args:
        selection: from `acquire`.
        strategy: by which they were picked.
        out: the run's folder.
        file: of the picked rows.
    """
    held = selection.source
    typer.echo(f"{len(selection):,} of {held.num_rows:,} rows picked by {strategy}")
    print_fit(selection.metadata)
    first = held.filter(held["kept"]).slice(0, _TOP)
    rows = [
        (str(k + 1), row_id, _number(value))
        for k, (row_id, value) in enumerate(zip(first["row_id"].to_pylist(), first["value"].to_pylist(), strict=True))
    ]
    _print_table("The first to ask for", ("rank", "row_id", "value"), rows)
    _print_forest(selection.metadata)
    typer.echo(f"Picked rows: {file}")
    typer.echo(f"Values of all rows of the pool: {out / 'scores'}")


def print_trim(selection: Selection, labels: np.ndarray[Any, Any] | None, files: Sequence[AnyPath]) -> None:
    """Print how many rows are removed, the worst of them, how many of every class, and where both parts lie.

    Args:
        selection: from `trim`.
        labels: of all rows, in table order, if they are known.
        files: of the kept and of the removed rows.
    """
    found, held = selection.metadata, selection.source
    removed, rows = found["removed"], held.num_rows
    typer.echo(f"{removed:,} of {rows:,} rows removed: {found['rule']} {found['by']}")
    if removed < found["budget"]:
        floor = f", and of a class over its floor of {found['floor']:,}" if found["floor"] else ""
        which = "negative" if found["rule"] == "most negative" else "valued"
        why = "another would open the gap again" if found.get("used_up") else f"no other row is {which}{floor}"
        typer.echo(f"That is less than the budget of {found['budget']:,}: {why}.")
    if "gap" in found:
        typer.echo(f"{found['by']}: {found['gap']:.4f}, predicted without these rows: {found['predicted_gap']:.4f}")
    gone = held.filter(np.logical_not(to_numpy(held["kept"])))
    worst = gone.slice(max(removed - _TOP, 0)).to_pylist()[::-1]
    if worst:
        known = [] if labels is None else ["label"]
        lines = [
            (row["row_id"], _number(row["value"]), *([] if labels is None else [labels[row["position"]]]))
            for row in worst
        ]
        _print_table("The worst rows", ("row_id", "value", *known), lines)
    if labels is not None:
        _print_table("Classes", ("label", "rows", "removed", "kept"), _class_lines(labels, selection.mask))
    typer.echo(f"Kept rows: {files[0]}")
    typer.echo(f"Removed rows: {files[1]}")


def print_active_learning(history: History, plot: AnyPath) -> None:
    """Print the learning curve, the mean accuracy of every strategy, what is awaited, and where the plot lies.

    Args:
        history: from `active_learning`.
        plot: of the learning curve.
    """
    frame = history.to_pandas()
    strategies = list(dict.fromkeys(frame["strategy"]))
    curve = frame.groupby(["round", "labeled", "strategy"])["accuracy"].mean().unstack("strategy")[strategies]
    shown = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _SHOWN_ROUNDS)).round().astype(int))
    seeds = frame["seed"].nunique()
    _print_table(
        "Accuracy" + (f", the mean of {seeds} seeds" if seeds > 1 else ""),
        ("round", "labelled", *strategies),
        [
            (f"{at[0]:,}", f"{at[1]:,}", *("-" if np.isnan(v) else f"{v:.4f}" for v in values))
            for at, values in zip(curve.index[shown], curve.to_numpy()[shown], strict=True)
        ],
    )
    for line in history.mean().to_dict("records"):
        several = line["seeds"] > 1
        spread = f", standard deviation {line['std']:.4f} over {line['seeds']} seeds" if several else ""
        typer.echo(f"Mean accuracy over rounds by {line['strategy']}: {line['accuracy']:.4f}{spread}")
    for file in history.waiting:
        rows = file.name.replace("labels-", "ask-", 1)
        typer.echo(f"Labels are awaited: {file} (row_id, label), for the rows in {rows} beside it")
    if history.waiting:
        typer.echo("Put them there and run the same command again: it goes on.")
    typer.echo(f"Learning curve: {plot}")


def print_evaluate(measures: Mapping[str, Any]) -> None:
    """Print every measure of a model on a table."""
    typer.echo(f"{measures['rows']:,} rows")
    rows = [(name, _number(value)) for name, value in measures.items() if name != "rows"]
    _print_table("Measures of the model", ("measure", "value"), rows)


def _print_highest(scores: Scores, column: str, meaning: str) -> None:
    best = most(scores, column)
    if best is not None:
        rows = [(row_id, f"{value:.4g}") for row_id, value in _pairs(best.helps)]
        _print_table(f"{column}: {meaning}", ("highest row_id", "value"), rows)


def most(scores: Scores, column: str) -> TopRows | None:
    """The rows of largest and smallest value, batch by batch: memory does not grow with the rows."""
    best, start = None, 0
    for batch in scores.batches(["row_id", column]):
        values, ids = (batch.column(n).to_numpy(zero_copy_only=False) for n in (column, "row_id"))
        valued = ~np.isnan(values)
        found = TopRows.of(values[valued][None], ids[valued], start, _TOP)
        best, start = found if best is None else best.merge(found), start + batch.num_rows
    return best


def _pairs(side: tuple[Any, Any, Any]) -> list[tuple[Any, float]]:
    """Ids and values of one side of `TopRows` that has one query."""
    return list(zip(side[2][0], side[0][0], strict=True))


def _class_lines(labels: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> list[tuple[str, ...]]:
    """Rows, removed and kept ones of every class; the classes that lose most where there are many."""
    names, codes = np.unique(labels, return_inverse=True)
    rows, kept = np.bincount(codes, minlength=len(names)), np.bincount(codes[mask], minlength=len(names))
    shown = range(len(names))
    if len(names) > _SHOWN_CLASSES:
        shown = np.argsort(kept - rows, kind="stable")[:_SHOWN_CLASSES].tolist()
    return [(str(names[k]), f"{rows[k]:,}", f"{rows[k] - kept[k]:,}", f"{kept[k]:,}") for k in shown]


def _print_forest(metadata: Mapping[str, Any]) -> None:
    if "forest_rank_correlation" in metadata:
        typer.echo(
            f"Forest: out-of-bag rank correlation {metadata['forest_rank_correlation']:.3f} over "
            f"{metadata['forest_rows']:,} valued rows"
        )


def _print_place(scores: Scores) -> None:
    if scores.path is not None:
        typer.echo(f"Scores: {scores.path / 'scores'}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    typer.echo(title)  # as a title of the table it would be broken to the table's width
    table = Table()
    for heading in headings:
        named = heading.endswith("row_id") or heading in ("label", "strategy", "effect", "measure")
        table.add_column(heading, justify="left" if named else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)
